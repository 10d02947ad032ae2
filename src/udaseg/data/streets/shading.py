"""Turns the polygon numbers of a rasterised `streets` scene into colours: texture, light, shadow, haze, lens, sensor.

Deferred shading: each polygon is a plane, so depth and surface coordinates of a pixel follow from its polygon's number
and its viewing ray. P pixels, H x W image, camera frame x right, y down, z forward, rays (x, y, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from udaseg.data.streets.looks import Look
from udaseg.data.streets.scene import Dice, Material, Polygon, Scene

Array = NDArray[np.float32]

TILE = 256
"""Side of a texture tile in texels; tiles repeat without a seam."""
LEVELS = 6
"""Blurred copies of each tile; copy k is used where a pixel covers about 2^k texels."""

# material: tile, texels per metre, contrast at full texture strength
TEXTURES: dict[Material, tuple[str, float, float]] = {
    Material.ASPHALT: ("grain", 45.0, 0.16),
    Material.PAVING: ("slabs", 256 / 4.8, 0.2),
    Material.GRASS: ("grain", 70.0, 0.4),
    Material.FACADE: ("grain", 25.0, 0.1),
    Material.PLASTER: ("grain", 30.0, 0.14),
    Material.BLOCKS: ("bricks", 256 / 4.0, 0.28),
    Material.LEAVES: ("leaves", 256 / 5.0, 0.75),
    Material.TWIGS: ("leaves", 256 / 5.0, 0.6),
    Material.PLANKS: ("planks", 256 / 3.2, 0.2),
    Material.CLOTH: ("grain", 90.0, 0.3),
}
TILES = ("grain", "slabs", "bricks", "leaves", "planks", "stains")


def _fractal(rng: np.random.Generator, slope: float, low: float, high: float) -> NDArray[np.float64]:
    """Periodic noise (TILE, TILE) of unit variance, amplitude ~ 1 / frequency^slope between two frequencies."""
    frequency = np.fft.fftfreq(TILE, 1 / TILE)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    gain = np.where((radius >= low) & (radius <= high), 1.0 / np.maximum(radius, 1.0) ** slope, 0.0)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((TILE, TILE))) * gain).real
    return noise / noise.std()


@cache
def _atlas() -> Array:
    """All texture tiles, zero mean, mostly within -1..1: (tile, level, TILE, TILE)."""
    rng = np.random.Generator(np.random.PCG64(20240229))
    y, x = np.mgrid[:TILE, :TILE]
    grain = 0.35 * _fractal(rng, 0.6, 2, 128)
    slab = np.kron(rng.uniform(-0.5, 0.5, (8, 8)), np.ones((32, 32)))
    slabs = np.where((x % 32 < 2) | (y % 32 < 2), -1.2, slab) + 0.4 * grain
    row = y // 16
    brick_x = (x + 16 * (row % 2)) % TILE
    brick = rng.uniform(-0.7, 0.7, (16, 8))[row, brick_x // 32]
    bricks = np.where((brick_x % 32 < 3) | (y % 16 < 2), 0.8, brick) + 0.3 * grain
    leaves = np.tanh(0.8 * _fractal(rng, 0.5, 6, 60)) * 0.8
    plank = rng.uniform(-0.6, 0.6, 16)[x // 16]
    planks = np.where(x % 16 < 2, -1.0, plank) + 0.3 * grain
    stains = 0.5 * _fractal(rng, 1.3, 1, 40)
    tiles = []
    for tile in (grain, slabs, bricks, leaves, planks, stains):
        centred = tile - tile.mean()
        tiles.append([centred] + [ndimage.gaussian_filter(centred, 0.6 * 2**k, mode="wrap") for k in range(1, LEVELS)])
    return np.asarray(tiles, np.float32)


@dataclass
class Camera:
    """A pinhole camera at one image size."""

    width: int
    height: int
    focal: float  # pixels
    position: NDArray[np.float64]  # (3,)
    axes: NDArray[np.float64]  # (3, 3), rows: right, down, forward in world coordinates

    @staticmethod
    def of(scene: Scene, width: int, height: int) -> Camera:
        """The scene's camera; its focal length follows the geometric mean of the sides, so that class shares keep."""
        eye = scene.eye
        sin, cos, dip, level = np.sin(eye.yaw), np.cos(eye.yaw), np.sin(eye.pitch), np.cos(eye.pitch)
        forward = np.array([sin * level, -dip, cos * level])
        right = np.array([cos, 0.0, -sin])
        down = np.cross(right, forward)
        tilt_sin, tilt_cos = np.sin(eye.roll), np.cos(eye.roll)
        axes = np.stack([right * tilt_cos + down * tilt_sin, down * tilt_cos - right * tilt_sin, forward])
        return Camera(
            width, height, eye.focal * float(np.sqrt(2.0 * width * height)), np.array([eye.x, eye.y, eye.z]), axes
        )

    def rays(self) -> tuple[Array, Array]:
        """x and y of the ray through each pixel's centre, each (H * W,)."""
        x: Array = ((np.arange(self.width) + 0.5 - self.width / 2) / self.focal).astype(np.float32)
        y: Array = ((np.arange(self.height) + 0.5 - self.height / 2) / self.focal).astype(np.float32)
        return np.tile(x, self.height), np.repeat(y, self.width)


@dataclass
class Surfaces:
    """Tables over polygons, row 0 standing for the sky."""

    inverse_depth: Array  # (N, 3): 1/z of a pixel is the product with its ray
    bounds: Array  # (N, 2): least and greatest 1/z, which keeps pixels at grazing edges on their polygon
    across: Array  # (N, 4): surface coordinate s (m) = z * (first three . ray) - last
    along: Array  # (N, 4): the same for t
    colour: Array  # (N, 3): linear RGB
    light: Array  # (N,)
    level: NDArray[np.bool_]  # (N,): lies like the ground
    material: NDArray[np.uint8]  # (N,)
    params: Array  # (N, 4)


def surfaces(
    scene: Scene, camera: Camera, polygons: list[Polygon], points: NDArray[np.float64], starts: NDArray[np.int64]
) -> Surfaces:
    """Planes, texture axes and light of all polygons; `points` (M, 3) in the camera frame, polygon i from starts[i]."""
    counts = np.diff(np.append(starts, len(points)))
    a, b, c = points[starts], points[starts + counts // 3], points[starts + 2 * counts // 3]
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    offset = np.einsum("nk,nk->n", normal, a)
    normal *= -np.sign(offset)[:, None]
    plane = -normal / np.maximum(np.abs(offset), 1e-6)[:, None]
    world = normal @ camera.axes
    level = np.abs(world[:, 1]) > 0.9
    side = np.stack([world[:, 2], np.zeros(len(world)), -world[:, 0]], 1)
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    across = np.where(level[:, None], [1.0, 0.0, 0.0], side) @ camera.axes.T
    along = np.where(level[:, None], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]) @ camera.axes.T
    # the ground's texture hangs on the world, any other on the polygon's first corner
    origin = np.where(level[:, None], -(camera.axes @ camera.position), a)
    depth = np.maximum(points[:, 2], 0.05)
    nearest, farthest = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
    sun = np.array([scene.sun.x, scene.sun.y, scene.sun.z])
    direct = np.clip(0.2 + 1.0 * (world @ sun), 0.0, None) * scene.sun.strength
    ambient = (1.0 - 0.62 * scene.sun.strength) * (0.86 + 0.14 * world[:, 1])
    colour = np.array([polygon.colour for polygon in polygons]) ** 2

    def rows(table: NDArray[np.float64]) -> Array:
        return np.concatenate([np.zeros_like(table[:1]), table]).astype(np.float32)

    return Surfaces(
        rows(plane),
        rows(np.stack([1 / farthest, 1 / nearest], 1)),
        rows(np.column_stack([across, np.einsum("nk,nk->n", across, origin)])),
        rows(np.column_stack([along, np.einsum("nk,nk->n", along, origin)])),
        rows(colour),
        rows((ambient + direct)[:, None])[:, 0],
        np.append(False, level),
        np.array([Material.SKY, *(polygon.material for polygon in polygons)], np.uint8),
        rows(np.array([polygon.params for polygon in polygons])),
    )


class Shader:
    """Colours the pixels of one scene."""

    def __init__(self, scene: Scene, camera: Camera, table: Surfaces, look: Look, dice: Dice) -> None:
        self.scene, self.camera, self.table, self.look = scene, camera, table, look
        self.x, self.y = camera.rays()
        self.haze_distance = dice.between(look.light.haze)
        self.warmth = dice.between(look.light.warmth)
        self.offset = dice.uniform(0.0, TILE)

    def picture(self, solid: NDArray[np.int32], veil: NDArray[np.int32], shadow: Array) -> Array:
        """Linear RGB (H * W, 3) from the foremost opaque and see-through polygons' numbers and the shadow share."""
        front = np.maximum(solid, veil)
        pixels = np.arange(len(front))
        out = self.surface(front, pixels, shadow)
        sky = np.flatnonzero(front == 0)
        out[sky] = self.sky(sky)
        holes = np.flatnonzero(veil > solid)
        if len(holes):
            share = self.opacity(veil[holes], holes)[:, None]
            behind = self.surface(solid[holes], holes, shadow[holes])
            open_sky = np.flatnonzero(solid[holes] == 0)
            behind[open_sky] = self.sky(holes[open_sky])
            out[holes] = share * out[holes] + (1 - share) * behind
        return out

    def coordinates(self, number: NDArray[np.int32], pixels: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Depth z and surface coordinates s, t (m) of the pixels on the polygons of the given numbers, each (P,)."""
        table, x, y = self.table, self.x[pixels], self.y[pixels]
        p = table.inverse_depth[number]
        bounds = table.bounds[number]
        z = np.reciprocal(
            np.clip(p[:, 0] * x + p[:, 1] * y + p[:, 2], np.maximum(bounds[:, 0], 1e-4), np.maximum(bounds[:, 1], 1e-4))
        )
        across, along = table.across[number], table.along[number]
        s = z * (across[:, 0] * x + across[:, 1] * y + across[:, 2]) - across[:, 3]
        t = z * (along[:, 0] * x + along[:, 1] * y + along[:, 2]) - along[:, 3]
        return z, s.astype(np.float32, copy=False), t.astype(np.float32, copy=False)

    def surface(self, number: NDArray[np.int32], pixels: NDArray[np.int64], shadow: Array) -> Array:
        """Lit, textured and hazy colour (P, 3) of polygons."""
        table, palette = self.table, self.look.palette
        z, s, t = self.coordinates(number, pixels)
        material, level = table.material[number], table.level[number]
        footprint = z / self.camera.focal * np.where(level, np.sqrt(z / self.scene.eye.y), 1.0)
        colour = table.colour[number]
        stains = _lookup(TILES.index("stains"), s * 18.0 + self.offset, t * 18.0, footprint * 18.0)
        detail = palette.texture * _texture(material, s, t, footprint) + 0.3 * palette.dirt * stains
        facade = np.flatnonzero(material == Material.FACADE)
        if len(facade):
            colour[facade] = self.windows(colour[facade], number[facade], s[facade], t[facade], footprint[facade])
        sun = self.scene.sun.strength
        # a cast shadow takes the sun's share of the light, a patch below a thing a fixed one
        dark = min(0.8, sun / (1.0 - 0.3 * sun)) if self.scene.long_shadows else 0.6
        brightness = (
            table.light[number] * np.clip(1.0 + detail, 0.15, 2.0) * (1.0 - np.where(level, dark * shadow, 0.0))
        )
        tint = np.array([1.0 + self.warmth * sun, 1.0, 1.0 - self.warmth * sun], np.float32)
        air = (1.0 - np.exp(-z / self.haze_distance))[:, None]
        horizon = np.array(self.scene.sky[0], np.float32) ** 2
        return (1 - air) * colour * brightness[:, None] * tint + air * horizon

    def windows(self, wall: Array, number: NDArray[np.int32], s: Array, t: Array, footprint: Array) -> Array:
        """Windows, frames, storey bands and shops on facades; they fade to their mean where a pixel spans a window."""
        storey, pitch, share, seed = self.table.params[number].T
        column, row = s / pitch, t / storey
        shop = (seed < 0) & (row < 1.0)
        column = np.where(shop, column * 0.5, column)
        share = np.where(shop, 0.86, share)
        u, v = column - np.floor(column) - 0.5, row - np.floor(row)
        low, high = np.where(shop, 0.12, 0.28), np.where(shop, 0.72, 0.8)
        inside = np.minimum(share / 2 - np.abs(u), np.minimum(v - low, high - v))
        random = _hash(np.floor(column), np.floor(row), np.abs(seed))
        glass = np.float32(0.02) + (0.05 + 0.22 * random[:, None] ** 2) * np.array(self.look.palette.panes, np.float32)
        glass = glass * (0.6 + 0.8 * v[:, None]) + 0.15 * wall * (random[:, None] > 0.85)
        frame = wall * np.float32(1.3) + np.float32(0.04)
        window = np.where(inside[:, None] > 0.035, glass, frame)
        band = np.where((v < 0.05) & ~shop, 0.72, 1.0)[:, None]
        sign_board = shop & (v > 0.78)
        board = np.stack([_hash(np.floor(column), row * 0, np.abs(seed) + k) for k in (1, 2, 3)], 1) ** 2
        wall = np.where(sign_board[:, None], board * 0.6 + 0.05, wall * band)
        coverage = np.clip(inside / np.maximum(footprint / storey, 1e-3) + 0.5, 0.0, 1.0)
        far = np.clip(footprint / storey * 2.5 - 0.4, 0.0, 1.0)
        coverage = (1 - far) * coverage + far * share * (high - low)
        return wall + coverage[:, None] * (window - wall)

    def opacity(self, number: NDArray[np.int32], pixels: NDArray[np.int64]) -> Array:
        """How much of each pixel a see-through polygon covers, (P,)."""
        z, s, t = self.coordinates(number, pixels)
        material, footprint = self.table.material[number], z / self.camera.focal
        pickets = _stripe(s, 0.16, 0.5, footprint)
        mesh = np.maximum(_stripe(s + t, 0.12, 0.22, footprint), _stripe(s - t, 0.12, 0.22, footprint))
        radius = self.table.params[number][:, 0]
        from_hub = np.hypot(np.abs(s) - radius, t)
        spokes = np.clip((from_hub - radius * 0.78) / np.maximum(footprint, 0.02) + 0.5, 0.3, 1.0)
        leaf = _lookup(TILES.index("leaves"), s * 51.0 + self.offset, t * 51.0, footprint * 51.0)
        twigs = np.clip(leaf * 4.0 + 0.6, 0.0, 1.0)
        choice = [material == m for m in (Material.PICKETS, Material.MESH, Material.SPOKES, Material.TWIGS)]
        return np.select(choice, [pickets, mesh, spokes, twigs], np.float32(1.0)).astype(np.float32)

    def sky(self, pixels: NDArray[np.int64]) -> Array:
        """Gradient and clouds, (P, 3)."""
        axes = self.camera.axes.astype(np.float32)
        x, y = self.x[pixels, None], self.y[pixels, None]
        direction = x * axes[0] + y * axes[1] + axes[2]
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        climb = np.clip(direction[:, 1], 0.0, 1.0)
        low, high = (np.array(colour, np.float32) ** 2 for colour in self.scene.sky)
        colour = low + (high - low) * (np.clip(climb * 2.2, 0.0, 1.0) ** 0.7)[:, None]
        span = 60.0 / (climb + 0.12)
        cloud = _lookup(
            TILES.index("stains"), direction[:, 0] * span + self.offset, direction[:, 2] * span, np.float32(1.0)
        )
        cover = np.clip((cloud + 1.6 * self.scene.clouds - 0.9) * 1.6, 0.0, 1.0)[:, None]
        white = (0.78 + 0.25 * np.clip(cloud, -0.8, 0.8))[:, None] * np.array([1.0, 1.01, 1.04], np.float32)
        return colour + cover * 0.85 * (white - colour)


def _lookup(tile: int | NDArray[np.int64], s: Array, t: Array, texels: Array | np.float32) -> Array:
    """Texture value at texel coordinates, from the copy whose blur suits the texels that a pixel covers."""
    atlas = _atlas()
    level = np.clip(np.log2(np.maximum(texels, 1.0)), 0, LEVELS - 1).astype(np.int64)
    column, row = np.floor(s).astype(np.int64) & (TILE - 1), np.floor(t).astype(np.int64) & (TILE - 1)
    return atlas.reshape(-1)[((tile * LEVELS + level) * TILE + row) * TILE + column]


def _texture(material: NDArray[np.uint8], s: Array, t: Array, footprint: Array) -> Array:
    """Relative brightness of each pixel's material texture, (P,), zero on average."""
    tile = np.zeros(len(Material), np.int64)
    density, contrast = np.zeros((2, len(Material)), np.float32)
    for entry, (name, texels, strength) in TEXTURES.items():
        tile[entry], density[entry], contrast[entry] = TILES.index(name), texels, strength
    scale = density[material]
    return contrast[material] * _lookup(tile[material], s * scale, t * scale, footprint * scale)


def _stripe(position: Array, period: float, share: float, footprint: Array) -> Array:
    """Coverage by stripes of the given period and share of it, smoothed over a pixel's footprint (m)."""
    phase = position / period
    distance = np.abs(phase - np.floor(phase) - 0.5) * period
    sharp = np.clip((share * period / 2 - distance) / np.maximum(footprint, 1e-4) + 0.5, 0.0, 1.0)
    far = np.clip(footprint / period * 2.0 - 0.5, 0.0, 1.0)
    return (1 - far) * sharp + far * share


def _hash(a: Array, b: Array, c: Array) -> Array:
    """Repeatable pseudo-random numbers in 0..1 from three numbers."""
    mixed = (a * 73.0 + b * 151.0 + np.floor(c) * 37.0).astype(np.int64)
    mixed = (mixed * 2654435761 + 12345) & 0xFFFFFFFF
    mixed ^= mixed >> 15
    return ((mixed * 2246822519 & 0xFFFFFFFF) / 4294967296.0).astype(np.float32)


def develop(linear: Array, camera: Camera, look: Look, dice: Dice, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lens and sensor: linear RGB (H * W, 3) to the final picture (H, W, 3) uint8."""
    film, unit = look.film, camera.width / 256
    image = linear.reshape(camera.height, camera.width, 3)
    image = image * np.float32(dice.between(film.exposure) ** 2)
    shift = dice.between(film.tint)
    balance = np.array([dice.uniform(-1, 1), dice.uniform(-0.4, 0.4), dice.uniform(-1, 1)]) * 2 * shift + 1
    image *= balance.astype(np.float32)
    blur, vignette, noise = dice.between(film.blur), dice.between(film.vignette), dice.between(film.noise)
    if film.bloom:
        image += np.float32(film.bloom) * _soften(np.clip(image - 0.5, 0.0, 1.0), 5.0 * unit)
    if film.blur[1]:
        image = _soften(image, blur * unit)
    if film.vignette[1]:
        x, y = camera.rays()
        corner = (x * x + y * y).reshape(camera.height, camera.width, 1)
        image *= 1.0 - np.float32(vignette) * np.minimum(corner / np.float32(corner.max()), 1.0)
    image = np.sqrt(np.clip(image, 0.0, 1.0))
    image = (image - 0.5) * np.float32(dice.between(film.contrast)) + 0.5
    grey = np.float32(0.3) * image[..., 0] + np.float32(0.59) * image[..., 1] + np.float32(0.11) * image[..., 2]
    chroma = (image - grey[..., None]) * np.float32(dice.between(film.saturation))
    if film.chroma_blur:
        chroma = _soften(chroma, film.chroma_blur * unit)
    if film.noise[1]:
        grey = grey + np.float32(noise) * rng.standard_normal(grey.shape, np.float32)
        chroma = chroma + np.float32(noise * 0.4) * rng.standard_normal(chroma.shape, np.float32)
    return (np.clip(grey[..., None] + chroma, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def _soften(image: Array, sigma: float) -> Array:
    """Gaussian blur over rows and columns of (H, W, C)."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=2.5)
