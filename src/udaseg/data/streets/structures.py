"""Buildings, walls, fences and hedges of the `streets` scenes, each over the ground line between two points."""

from __future__ import annotations

import math

from udaseg.data.streets.looks import Palette
from udaseg.data.streets.scene import (
    BUILDING,
    FENCE,
    VEGETATION,
    WALL,
    Colour,
    Dice,
    Material,
    Part,
    Point,
    Scene,
    facing,
    inset,
    limb,
    seen,
    shade,
)

Ground = tuple[float, float]
"""A ground point (x, z) in metres."""


def _upright(start: Ground, end: Ground, height: float, low: float = 0.0) -> list[Point]:
    """The upright quad over the ground line from start to end, from `low` to `height` (m)."""
    return [(start[0], low, start[1]), (end[0], low, end[1]), (end[0], height, end[1]), (start[0], height, start[1])]


def building(
    scene: Scene,
    dice: Dice,
    palette: Palette,
    near: Ground,
    far: Ground,
    outward: float,
    storeys: int,
    pitched: bool,
    shops: bool,
) -> None:
    """A building over the street line from `near` to `far`, its depth on the side `outward` (-1 left, +1 right)."""
    length = math.hypot(far[0] - near[0], far[1] - near[1])
    nx, nz = outward * (far[1] - near[1]) / length, -outward * (far[0] - near[0]) / length
    depth, storey = dice.uniform(9.0, 14.0), dice.uniform(2.9, 3.6)
    height = storeys * storey + 0.8
    colour = dice.paint(palette.building)
    seed = dice.uniform(1.0, 200.0)
    windows = (
        storey,
        length / max(1, round(length / dice.uniform(1.9, 3.4))),
        dice.uniform(0.4, 0.7),
        -seed if shops else seed,
    )
    part = scene.thing(*far)
    back_near, back_far = (near[0] + nx * depth, near[1] + nz * depth), (far[0] + nx * depth, far[1] + nz * depth)
    front = _upright(far, near, height) if outward > 0 else _upright(near, far, height)
    gable = _upright(near, back_near, height) if outward > 0 else _upright(back_near, near, height)
    # texture coordinates start at the first point, so that windows fit between the corners of the front
    sides = [(front, colour)]
    if seen(scene, gable):
        sides.append((gable, shade(colour, 0.9)))
    for quad, tone in sides:
        part.add(quad, BUILDING, tone, Material.FACADE, windows)
    trim = shade(colour, 1.25) if dice.chance(0.6) else shade(colour, 0.6)
    for quad, _ in sides:
        part.add(inset(quad, 0.0, 1.0, 1 - 0.35 / height, 1.0), BUILDING, trim)
    if pitched:
        ridge, rise = depth / 2, dice.uniform(2.2, 4.0)
        top = [(p[0] + nx * ridge, height + rise, p[1] + nz * ridge) for p in (near, far)]
        a, b = (near[0], height, near[1]), (far[0], height, far[1])
        roof = dice.paint(palette.roof)
        if seen(scene, gable):
            part.add([a, top[0], (back_near[0], height, back_near[1])], BUILDING, shade(colour, 0.85), Material.PLASTER)
        part.add([a, b, top[1], top[0]], BUILDING, roof, Material.PLANKS)
    if shops and part.distance < 45 and dice.chance(0.7):
        _awnings(part, dice, palette, front, length, (nx, nz))
    corners = [near, far, back_far, back_near]
    scene.cast(corners, 0.0, height)


def _awnings(
    part: Part, dice: Dice, palette: Palette, front: list[Point], length: float, normal: tuple[float, float]
) -> None:
    """Sloped awnings over the ground floor."""
    count = max(1, int(length / 5))
    for i in range(count):
        a, b, _, _ = inset(front, (i + 0.12) / count, (i + 0.88) / count, 0.0, 1.0)
        out = [(p[0] - normal[0] * 1.1, 2.5, p[2] - normal[1] * 1.1) for p in (a, b)]
        wall = [(p[0], 3.1, p[2]) for p in (b, a)]
        part.add([out[0], out[1], *wall], BUILDING, dice.paint(palette.vehicle), Material.CLOTH)


def wall(scene: Scene, near: Ground, far: Ground, height: float, colour: Colour) -> None:
    """A stretch of free-standing wall with a coping, all of one colour given by the caller so that stretches match."""
    part = scene.thing(*far)
    part.add(_upright(near, far, height), WALL, colour, Material.BLOCKS)
    part.add(_upright(near, far, height, height - 0.14), WALL, shade(colour, 1.2))
    scene.cast([near, far], 0.0, height)


def fence(scene: Scene, near: Ground, far: Ground, height: float, colour: Colour, material: Material) -> None:
    """A stretch of fence: posts and rails around see-through pickets or mesh (the label covers the holes) or planks."""
    part = scene.thing(*far)
    part.add(_upright(near, far, height, 0.05), FENCE, colour, material)
    for level in (0.2, height - 0.06):
        part.add(_upright(near, far, level + 0.07, level - 0.03), FENCE, shade(colour, 0.85))
    length = math.hypot(far[0] - near[0], far[1] - near[1])
    count = max(1, round(length / 2.5))
    for i in range(count + 1):
        share = i / count
        x, z = near[0] + (far[0] - near[0]) * share, near[1] + (far[1] - near[1]) * share
        if z > 1.0:
            part.add(facing(scene, x, z).plate(limb((0, 0), (0, height + 0.06), 0.1, 0.1)), FENCE, shade(colour, 0.75))
    if material == Material.PLANKS:
        scene.cast([near, far], 0.0, height)


def hedge(scene: Scene, dice: Dice, near: Ground, far: Ground, height: float, colour: Colour, outward: float) -> None:
    """A stretch of clipped hedge with a lit top."""
    part = scene.thing(*far)
    a, b = (near[0] + outward * 0.8, near[1]), (far[0] + outward * 0.8, far[1])
    top = [(near[0], height, near[1]), (far[0], height, far[1]), (b[0], height, b[1]), (a[0], height, a[1])]
    part.add(top, VEGETATION, shade(colour, 1.15), Material.LEAVES)
    part.add(_upright(near, far, height + dice.uniform(-0.05, 0.05)), VEGETATION, shade(colour, 0.85), Material.LEAVES)
    end = _upright(near, a, height) if outward > 0 else _upright(a, near, height)
    if seen(scene, end):
        part.add(end, VEGETATION, shade(colour, 0.7), Material.LEAVES)
    scene.cast([near, far], 0.0, height)
