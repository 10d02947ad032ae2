"""Building blocks of the `streets` renderer: classes, materials, seeded draws, and the list of polygons of one scene.

World frame, in metres: x to the right, y up, z forward along the street; the camera stands near z = 0.
A scene is a sky, then ground polygons in drawing order, then things (lists of polygons) drawn from far to near.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN) = range(10)
(SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(10, 19)
VOID = 255
"""Cityscapes trainIds; VOID marks the ego vehicle's bonnet, which no class owns."""

Point = tuple[float, float, float]
Colour = tuple[float, float, float]
Range = tuple[float, float]
Paint = tuple[Range, Range, Range]
"""Ranges of hue, saturation and value, each in 0..1, from which one colour is drawn."""

T = TypeVar("T")


class Material(IntEnum):
    """How the surface of a polygon is shaded; the order indexes the tables of `shading`."""

    FLAT = 0
    SKY = 1
    ASPHALT = 2
    PAVING = 3
    GRASS = 4
    FACADE = 5  # windows; params: storey height, window pitch, window width share, seed (negative: shops below)
    PLASTER = 6
    BLOCKS = 7
    LEAVES = 8
    PLANKS = 9
    CLOTH = 10
    PICKETS = 11  # from here on see-through: the label covers the holes, the colour behind shows in them
    MESH = 12
    SPOKES = 13
    TWIGS = 14


SEE_THROUGH = Material.PICKETS


class Polygon(NamedTuple):
    """A planar polygon: world points (m), trainId, colour (RGB in 0..1), material and its four parameters."""

    points: Sequence[Point]
    label: int
    colour: Colour
    material: Material = Material.FLAT
    params: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class Dice:
    """Fast scalar draws from one generator: numbers are taken from blocks, as one call each would dominate the time."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._stream = self._draw(generator)

    @staticmethod
    def _draw(generator: np.random.Generator) -> Iterator[float]:
        while True:
            yield from generator.random(2048).tolist()

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * next(self._stream)

    def between(self, bounds: Range) -> float:
        """A number in the given range."""
        return bounds[0] + (bounds[1] - bounds[0]) * next(self._stream)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return next(self._stream) < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(next(self._stream) * len(options))]

    def weighted(self, weights: dict[str, float]) -> str:
        """A key, with probability proportional to its weight."""
        level = next(self._stream) * sum(weights.values())
        for key, weight in weights.items():
            level -= weight
            if level < 0:
                return key
        return key

    def count(self, mean: float) -> int:
        """A whole number with the given mean, spread evenly from 0 to twice the mean."""
        return int(next(self._stream) * (2 * mean + 1))

    def paint(self, paints: Sequence[Paint]) -> Colour:
        """A colour out of one of several HSV ranges."""
        hue, saturation, value = self.pick(paints)
        return colorsys.hsv_to_rgb(self.between(hue) % 1.0, self.between(saturation), self.between(value))


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor < 1) or lighter, kept within 0..1."""
    return (min(1.0, colour[0] * factor), min(1.0, colour[1] * factor), min(1.0, colour[2] * factor))


@dataclass
class Eye:
    """The camera: position (m), angles (rad, positive pitch looks down), focal length in widths of a 2:1 image."""

    x: float
    y: float
    z: float
    yaw: float
    pitch: float
    roll: float
    focal: float


@dataclass
class Sun:
    """Unit vector towards the sun and its share of the light; strength 0 means an overcast sky."""

    x: float
    y: float
    z: float
    strength: float


@dataclass
class Scene:
    """Everything that is drawn, in world units, so that one scene can be rasterised at any size."""

    eye: Eye
    sun: Sun
    sky: tuple[Colour, Colour]  # at the horizon, overhead
    clouds: float  # 0 clear .. 1 covered
    bonnet: float  # height of the ego vehicle's bonnet as a share of the image height, 0 for none
    long_shadows: bool  # shadows along the sun's rays; otherwise a dark patch below each thing
    ground: list[Polygon] = field(default_factory=list)
    things: list[tuple[float, list[Polygon]]] = field(default_factory=list)
    shadows: list[list[tuple[float, float]]] = field(default_factory=list)  # (x, z) polygons on the ground

    def thing(self, x: float, z: float) -> Part:
        """Starts a thing whose distance from the camera is that of the ground point (x, z)."""
        distance = math.hypot(x - self.eye.x, z - self.eye.z)
        polygons: list[Polygon] = []
        self.things.append((distance, polygons))
        return Part(self, polygons, distance)

    def cast(self, footprint: Sequence[tuple[float, float]], low: float, high: float) -> None:
        """Adds the ground shadow of a prism over `footprint` (x, z points, m) that reaches from `low` to `high` (m)."""
        if not self.long_shadows:
            if low == 0.0:
                cx, cz = sum(x for x, _ in footprint) / len(footprint), sum(z for _, z in footprint) / len(footprint)
                self.shadows.append([(x + (x - cx) * 0.15, z + (z - cz) * 0.08) for x, z in footprint])
            return
        dx, dz = -self.sun.x / self.sun.y, -self.sun.z / self.sun.y
        base = [(x + dx * low, z + dz * low) for x, z in footprint]
        tip = [(x + dx * high, z + dz * high) for x, z in footprint]
        self.shadows += [base, tip]
        for i in range(len(base)):
            self.shadows.append([base[i - 1], base[i], tip[i], tip[i - 1]])


class Part(NamedTuple):
    """The polygons of one thing under construction, drawn in the order in which they are added."""

    scene: Scene
    polygons: list[Polygon]
    distance: float

    def add(
        self,
        points: Sequence[Point],
        label: int,
        colour: Colour,
        material: Material = Material.FLAT,
        params: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    ) -> None:
        """Adds one polygon in front of what the thing has so far."""
        self.polygons.append(Polygon(points, label, colour, material, params))


class Frame:
    """A local frame on the ground: l forward along `yaw` (rad, 0 = away from the camera), y up, w to the right (m)."""

    def __init__(self, x: float, z: float, yaw: float, base: float = 0.0) -> None:
        self.x, self.z, self.base = x, z, base
        self.sin, self.cos = math.sin(yaw), math.cos(yaw)

    def at(self, forward: float, up: float, right: float) -> Point:
        """World point of local coordinates (m)."""
        return (
            self.x + forward * self.sin + right * self.cos,
            self.base + up,
            self.z + forward * self.cos - right * self.sin,
        )

    def plate(self, points: Sequence[tuple[float, float]], right: float = 0.0) -> list[Point]:
        """World polygon of (forward, up) points in the upright plane at the given offset to the right."""
        return [self.at(forward, up, right) for forward, up in points]

    def footprint(self, l0: float, l1: float, w0: float, w1: float) -> list[tuple[float, float]]:
        """Ground rectangle as (x, z) points."""
        corners = ((l0, w0), (l1, w0), (l1, w1), (l0, w1))
        return [(x, z) for x, _, z in (self.at(forward, 0.0, right) for forward, right in corners)]


def facing(scene: Scene, x: float, z: float, base: float = 0.0) -> Frame:
    """A frame whose upright (forward, up) plane faces the camera; forward points to the camera's right."""
    return Frame(x, z, math.atan2(z - scene.eye.z, -(x - scene.eye.x)), base)


def seen(scene: Scene, quad: Sequence[Point]) -> bool:
    """Whether the outside of a quad (bottom left, bottom right, top right, top left from outside) faces the camera."""
    (ax, ay, az), (bx, by, bz), _, (dx, dy, dz) = quad
    ux, uy, uz, vx, vy, vz = bx - ax, by - ay, bz - az, dx - ax, dy - ay, dz - az
    eye = scene.eye
    return (
        (uy * vz - uz * vy) * (ax - eye.x) + (uz * vx - ux * vz) * (ay - eye.y) + (ux * vy - uy * vx) * (az - eye.z)
    ) > 0


def inset(quad: Sequence[Point], left: float, right: float, low: float, high: float) -> list[Point]:
    """The part of a quad between two shares of its width and two shares of its height."""
    a, b, c, d = quad

    def at(u: float, v: float) -> Point:
        p, q, r, s = (1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v
        return (
            p * a[0] + q * b[0] + r * c[0] + s * d[0],
            p * a[1] + q * b[1] + r * c[1] + s * d[1],
            p * a[2] + q * b[2] + r * c[2] + s * d[2],
        )

    return [at(left, low), at(right, low), at(right, high), at(left, high)]


class Box(NamedTuple):
    """A box in a frame: extents along forward, up and right (m), and how far its top draws in at the four sides."""

    forward: Range
    up: Range
    right: Range
    taper: tuple[float, float, float] = (0.0, 0.0, 0.0)  # back, front, both sides

    def faces(self, frame: Frame, scene: Scene) -> dict[str, list[Point]]:
        """The faces that the camera sees, each as bottom left, bottom right, top right, top left from outside."""
        (l0, l1), (y0, y1), (w0, w1) = self.forward, self.up, self.right
        back, front, side = self.taper
        m0, m1, v0, v1 = l0 + back, l1 - front, w0 + side, w1 - side
        at = frame.at
        lower = (at(l0, y0, w0), at(l0, y0, w1), at(l1, y0, w1), at(l1, y0, w0))
        upper = (at(m0, y1, v0), at(m0, y1, v1), at(m1, y1, v1), at(m1, y1, v0))
        quads = {
            "top": [upper[0], upper[1], upper[2], upper[3]],
            "back": [lower[0], lower[1], upper[1], upper[0]],
            "front": [lower[2], lower[3], upper[3], upper[2]],
            "right": [lower[1], lower[2], upper[2], upper[1]],
            "left": [lower[3], lower[0], upper[0], upper[3]],
        }
        return {name: quad for name, quad in quads.items() if seen(scene, quad)}


_ROUND = {n: [(math.cos(2 * math.pi * i / n), math.sin(2 * math.pi * i / n)) for i in range(n)] for n in (6, 8, 12)}


def disc(forward: float, up: float, radius: float, corners: int = 12) -> list[tuple[float, float]]:
    """A regular polygon with 6, 8 or 12 corners, as (forward, up) points of a plate."""
    return [(forward + radius * c, up + radius * s) for c, s in _ROUND[corners]]


def limb(a: tuple[float, float], b: tuple[float, float], width_a: float, width_b: float) -> list[tuple[float, float]]:
    """A bar from a to b with the given end widths, as (forward, up) points of a plate."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy) or 1.0
    nx, ny = -dy / length / 2, dx / length / 2
    return [
        (a[0] + nx * width_a, a[1] + ny * width_a),
        (b[0] + nx * width_b, b[1] + ny * width_b),
        (b[0] - nx * width_b, b[1] - ny * width_b),
        (a[0] - nx * width_a, a[1] - ny * width_a),
    ]
