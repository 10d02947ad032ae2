"""`streets`: procedural perspective street scenes with pixel-exact labels of the 19 Cityscapes classes, in two looks.

`game` is clean, saturated and regular (a stand-in for a rendered source domain), `photo` has texture, light, shadow,
haze, blur, noise and other layouts and class frequencies (a stand-in for a real target domain). The pictures are
synthetic in both looks.

A scene is composed in metres (`layout` calls `ground`, `frontage`, `traffic` and `sidewalk`, which place the things of
`structures`, `things` and `vehicles`), so it is the same at any size. Each polygon is rasterised once, as its number;
label and colour are both read from that number, which makes them agree to the pixel. See-through things (pickets, mesh,
spokes, twigs) own the holes in them, as in Cityscapes. `looks` holds every constant that tells the two looks apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from udaseg.data.streets import looks
from udaseg.data.streets.layout import compose
from udaseg.data.streets.scene import SEE_THROUGH, SKY, VOID, Dice, Point, Polygon, Scene
from udaseg.data.streets.shading import Camera, Shader, develop, surfaces

LOOKS = ("game", "photo")
MIN_SIDE = 32
NEAR_PLANE = 0.3
"""Polygons are cut at this distance (m) in front of the camera."""


def render(index: int, *, seed: int, width: int, height: int, look: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Renders one scene; a pure function of its arguments.

    Args:
        index: Number of the scene, 0 or more.
        seed: Seed of the data set, 0 or more.
        width: Image width in pixels, at least 32.
        height: Image height in pixels, at least 32.
        look: One of `LOOKS`.

    Returns:
        The image (H, W, 3) uint8 RGB, and the label (H, W) uint8: trainIds 0..18, or 255 on the ego vehicle's bonnet.

    Raises:
        ValueError: Unknown look or size too small.
    """
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}; expected one of {', '.join(LOOKS)}")
    if width < MIN_SIDE or height < MIN_SIDE:
        raise ValueError(f"size {width}x{height} is too small; expected at least {MIN_SIDE}x{MIN_SIDE}")
    style = looks.LOOKS[look]
    plan, air, grain = np.random.SeedSequence([seed, index, style.key]).spawn(3)
    scene = compose(Dice(np.random.default_rng(plan)), style)
    camera, dice = Camera.of(scene, width, height), Dice(np.random.default_rng(air))

    polygons = scene.ground + [p for _, part in sorted(scene.things, key=lambda thing: -thing[0]) for p in part]
    points, starts = _in_camera([p.points for p in polygons], camera)
    solid, veil = _rasterise(polygons, points, starts, camera)
    table = surfaces(scene, camera, polygons, points, starts)
    shader = Shader(scene, camera, table, style, dice)
    linear = shader.picture(solid.ravel(), veil.ravel(), _shadows(scene, camera).ravel())
    labels = np.array([SKY, *(p.label for p in polygons)], np.uint8)[np.maximum(solid, veil)]
    _add_bonnet(scene, linear.reshape(height, width, 3), labels)
    return develop(linear, camera, style, dice, np.random.default_rng(grain)), labels


def _in_camera(outlines: list[Sequence[Point]], camera: Camera) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All points (M, 3) in the camera frame, and where each outline starts."""
    points = np.array([point for outline in outlines for point in outline])
    starts = np.cumsum([0, *(len(outline) for outline in outlines[:-1])])
    # einsum rather than a matrix product: the same bits whatever the number of threads
    return np.einsum("mk,jk->mj", points - camera.position, camera.axes), starts


def _project(points: NDArray[np.float64], starts: NDArray[np.int64], camera: Camera) -> list[list[float] | None]:
    """Each polygon's pixel coordinates x0, y0, x1, y1, ..., or None where it is out of view."""
    ends = np.append(starts[1:], len(points))
    nearest = np.minimum.reduceat(points[:, 2], starts)
    depth = np.maximum(points[:, 2:], NEAR_PLANE)
    centre = np.array([camera.width / 2, camera.height / 2])
    # the rasteriser counts pixels from their centres
    pixels = points[:, :2] / depth * camera.focal + centre - 0.5
    low, high = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
    visible = np.all(high > -1, axis=1) & np.all(low < (camera.width, camera.height), axis=1)
    flat = np.rint(pixels).ravel().tolist()
    result: list[list[float] | None] = []
    for start, end, near, shown in zip(starts.tolist(), ends.tolist(), nearest.tolist(), visible.tolist(), strict=True):
        if near >= NEAR_PLANE:
            result.append(flat[2 * start : 2 * end] if shown else None)
        else:
            result.append(_cut(points[start:end].tolist(), camera))
    return result


def _cut(points: list[list[float]], camera: Camera) -> list[float] | None:
    """Pixel coordinates of a polygon that reaches behind the camera, cut at the near plane."""
    kept: list[tuple[float, float, float]] = []
    for (ax, ay, az), (bx, by, bz) in zip(points, points[1:] + points[:1], strict=True):
        if az >= NEAR_PLANE:
            kept.append((ax, ay, az))
        if (az >= NEAR_PLANE) != (bz >= NEAR_PLANE):
            share = (NEAR_PLANE - az) / (bz - az)
            kept.append((ax + share * (bx - ax), ay + share * (by - ay), NEAR_PLANE))
    if len(kept) < 3:
        return None
    scale, cx, cy = camera.focal, camera.width / 2 - 0.5, camera.height / 2 - 0.5
    return [round(value) for x, y, z in kept for value in (x / z * scale + cx, y / z * scale + cy)]


def _rasterise(
    polygons: list[Polygon], points: NDArray[np.float64], starts: NDArray[np.int64], camera: Camera
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Numbers (H, W) of the foremost opaque and the foremost see-through polygon, counted from 1 in drawing order.

    The greater of the two is in front, because a polygon drawn later has the greater number.
    """
    solid, veil = (Image.new("I", (camera.width, camera.height)) for _ in range(2))
    draw_solid, draw_veil = ImageDraw.Draw(solid).polygon, ImageDraw.Draw(veil).polygon
    for number, (polygon, outline) in enumerate(zip(polygons, _project(points, starts, camera), strict=True), start=1):
        if outline is not None:
            (draw_veil if polygon.material >= SEE_THROUGH else draw_solid)(outline, fill=number)
    return np.asarray(solid, np.int32), np.asarray(veil, np.int32)


def _shadows(scene: Scene, camera: Camera) -> NDArray[np.float32]:
    """Share of the ground's light that is taken away at each pixel, (H, W) in 0..1, with soft edges."""
    mask = Image.new("L", (camera.width, camera.height))
    if scene.shadows:
        outlines: list[Sequence[Point]] = [[(x, 0.0, z) for x, z in outline] for outline in scene.shadows]
        draw = ImageDraw.Draw(mask).polygon
        for outline in _project(*_in_camera(outlines, camera), camera):
            if outline is not None:
                draw(outline, fill=255)
        if scene.long_shadows:
            mask = mask.filter(ImageFilter.BoxBlur(camera.width / 400))
    return np.asarray(mask, np.float32) / np.float32(255)


def _add_bonnet(scene: Scene, linear: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    """Paints the ego vehicle's bonnet, in place: a dark bow at the lower edge, which no class owns."""
    if not scene.bonnet:
        return
    height, width = labels.shape
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = (np.arange(height)[:, None] + 0.5) / height
    inside = y > 1 - scene.bonnet * np.sqrt(np.clip(1 - (x / 1.02) ** 4, 0.0, 1.0))
    labels[inside] = VOID
    linear[inside] = (0.03 + 0.25 * (1 - y) * np.ones_like(x))[inside][:, None]
