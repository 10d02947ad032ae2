"""Persons, riders, plants, posts, signs and lights of the `streets` scenes.

Every function adds one thing at the ground point (x, z) in metres. Persons, crowns, bushes and signs are plates that
face the camera.
"""

from __future__ import annotations

import math

from udaseg.data.streets.looks import Palette
from udaseg.data.streets.scene import (
    LIGHT,
    MOTORCYCLE,
    PERSON,
    POLE,
    RIDER,
    SIGN,
    VEGETATION,
    Box,
    Colour,
    Dice,
    Frame,
    Material,
    Part,
    Scene,
    disc,
    facing,
    limb,
    shade,
)
from udaseg.data.streets.vehicles import bicycle, motorcycle

SKIN: tuple[Colour, ...] = ((0.9, 0.72, 0.6), (0.8, 0.6, 0.46), (0.55, 0.38, 0.27), (0.36, 0.24, 0.18))
HAIR: tuple[Colour, ...] = ((0.1, 0.08, 0.07), (0.28, 0.18, 0.1), (0.6, 0.5, 0.3), (0.5, 0.5, 0.5))
RED: Colour = (0.8, 0.08, 0.1)
WHITE: Colour = (0.94, 0.94, 0.92)
BLUE: Colour = (0.08, 0.25, 0.65)
YELLOW: Colour = (0.95, 0.75, 0.1)
GREEN: Colour = (0.05, 0.42, 0.25)
METAL: Colour = (0.45, 0.46, 0.47)


def _head(
    part: Part, dice: Dice, frame: Frame, label: int, x: float, y: float, radius: float, helmet: Colour | None
) -> None:
    skin = dice.pick(SKIN)
    part.add(frame.plate(limb((x, y - radius * 2), (x, y), radius, radius)), label, shade(skin, 0.8))
    part.add(frame.plate(disc(x, y, radius, 8)), label, skin)
    cap = [
        (x + radius * 1.1 * math.cos(a), y + radius * 1.15 * math.sin(a))
        for a in (0.2, 0.6, 1.1, 1.57, 2.05, 2.55, 2.95)
    ]
    part.add(frame.plate(cap), label, helmet or dice.pick(HAIR))


def person(scene: Scene, dice: Dice, palette: Palette, x: float, z: float) -> None:
    """A pedestrian, standing or mid-stride, sometimes with a skirt, a coat or a bag; one in eight is a child."""
    height = dice.uniform(1.0, 1.4) if dice.chance(0.12) else dice.uniform(1.58, 1.9)
    frame, part = facing(scene, x, z), scene.thing(x, z)
    top, legs, k = dice.paint(palette.cloth), dice.paint(palette.cloth), height
    stride, broad = dice.pick((0.03, 0.08, 0.15)), dice.uniform(0.105, 0.135)
    foot = dice.paint(palette.cloth)
    for i, side in enumerate((-1.0, 1.0)):
        knee = (side * (0.04 + stride * 0.55) * k, 0.27 * k)
        ankle = (side * (0.05 + stride) * k, 0.02 * k)
        part.add(
            frame.plate(limb((side * 0.045 * k, 0.5 * k), knee, 0.1 * k, 0.08 * k)),
            PERSON,
            shade(legs, 0.85 + 0.15 * i),
        )
        part.add(frame.plate(limb(knee, ankle, 0.08 * k, 0.055 * k)), PERSON, shade(legs, 0.85 + 0.15 * i))
        part.add(frame.plate(limb(ankle, (ankle[0] + 0.06 * k, 0.01), 0.05 * k, 0.05 * k)), PERSON, shade(foot, 0.6))
    hem = dice.pick((0.45, 0.45, 0.45, 0.3, 0.25))  # jacket, coat or skirt
    flare = broad * (1.0 if hem > 0.4 else 1.25)
    if hem < 0.4 and dice.chance(0.5):
        part.add(
            frame.plate([(-flare * k, hem * k), (flare * k, hem * k), (0.08 * k, 0.6 * k), (-0.08 * k, 0.6 * k)]),
            PERSON,
            legs,
        )
        hem = 0.55
        flare = broad * 0.8
    body = [
        (-flare, hem),
        (flare, hem),
        (broad * 0.85, 0.62),
        (broad, 0.8),
        (0.05, 0.85),
        (-0.05, 0.85),
        (-broad, 0.8),
        (-broad * 0.85, 0.62),
    ]
    part.add(frame.plate([(a * k, b * k) for a, b in body]), PERSON, top, Material.CLOTH)
    for side in (-1.0, 1.0):
        elbow, hand = (side * (broad + 0.03) * k, 0.63 * k), (side * (broad + 0.02 + stride * 0.5) * k, 0.47 * k)
        part.add(
            frame.plate(limb((side * broad * 0.95 * k, 0.8 * k), elbow, 0.07 * k, 0.06 * k)), PERSON, shade(top, 0.85)
        )
        part.add(frame.plate(limb(elbow, hand, 0.06 * k, 0.045 * k)), PERSON, shade(top, 0.8))
        part.add(frame.plate(disc(hand[0], hand[1], 0.025 * k, 6)), PERSON, (0.75, 0.56, 0.44))
    if dice.chance(0.35):
        side = dice.pick((-1.0, 1.0))
        bag = [(a * k, b * k) for a, b in ((0.1, 0.36), (0.24, 0.36), (0.22, 0.52), (0.12, 0.52))]
        part.add(frame.plate([(side * a, b) for a, b in bag]), PERSON, dice.paint(palette.cloth))
    _head(part, dice, frame, PERSON, 0.0, 0.925 * k, 0.068 * k, None)
    scene.cast(frame.footprint(-0.2, 0.2, -0.12, 0.12), 0.0, height)


def cyclist(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, yaw: float, vehicle: int) -> None:
    """A rider on a bicycle or, with `vehicle` MOTORCYCLE, on a motorcycle."""
    part, frame = scene.thing(x, z), Frame(x, z, yaw)
    motor = vehicle == MOTORCYCLE
    (motorcycle if motor else bicycle)(part, dice, palette, frame)
    across = abs(frame.cos * (z - scene.eye.z) + frame.sin * (x - scene.eye.x)) < 0.75 * part.distance
    top, legs = dice.paint(palette.cloth), dice.paint(palette.cloth)
    saddle = (-0.25, 0.85) if motor else (-0.2, 0.98)
    helmet = dice.paint(palette.vehicle) if motor or dice.chance(0.5) else None
    if across:  # seen from the side: leaning to the handlebar, in the plane of the wheels
        shoulder = (saddle[0] + 0.28, saddle[1] + 0.52)
        for foot, thigh in (((0.05, 0.3), 0.75), ((-0.1, 0.2), 1.0)):
            knee = (0.22, saddle[1] - 0.15)
            part.add(frame.plate(limb(saddle, knee, 0.17, 0.13)), RIDER, shade(legs, thigh))
            part.add(frame.plate(limb(knee, foot, 0.13, 0.09)), RIDER, shade(legs, thigh))
        part.add(
            frame.plate(limb((saddle[0] - 0.03, saddle[1] - 0.05), shoulder, 0.3, 0.36)), RIDER, top, Material.CLOTH
        )
        part.add(frame.plate(limb(shoulder, (0.32, 1.05), 0.12, 0.09)), RIDER, shade(top, 0.8))
        _head(part, dice, frame, RIDER, shoulder[0] + 0.08, shoulder[1] + 0.25, 0.125, helmet)
    else:  # seen from the front or the back: upright, facing the camera
        card = facing(scene, x, z)
        for side in (-1.0, 1.0):
            knee = (side * 0.24, saddle[1] - 0.35)
            part.add(card.plate(limb((side * 0.1, saddle[1]), knee, 0.18, 0.14)), RIDER, legs)
            part.add(card.plate(limb(knee, (side * 0.16, 0.22), 0.14, 0.1)), RIDER, shade(legs, 0.85))
        hip, neck = saddle[1] - 0.06, saddle[1] + 0.58
        body = [(-0.17, hip), (0.17, hip), (0.24, neck - 0.1), (0.1, neck), (-0.1, neck), (-0.24, neck - 0.1)]
        part.add(card.plate(body), RIDER, top, Material.CLOTH)
        for side in (-1.0, 1.0):
            part.add(
                card.plate(limb((side * 0.22, neck - 0.1), (side * 0.33, neck - 0.38), 0.12, 0.1)),
                RIDER,
                shade(top, 0.85),
            )
            part.add(
                card.plate(limb((side * 0.33, neck - 0.38), (side * 0.28, 1.08), 0.1, 0.08)), RIDER, shade(top, 0.8)
            )
        _head(part, dice, card, RIDER, 0.0, neck + 0.17, 0.13, helmet)
    scene.cast(frame.footprint(-0.2, 0.2, -0.2, 0.2), 0.7, 1.75)


def parked_cycle(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, yaw: float, vehicle: int) -> None:
    """A parked bicycle (vehicle BICYCLE) or motorcycle (vehicle MOTORCYCLE)."""
    (motorcycle if vehicle == MOTORCYCLE else bicycle)(scene.thing(x, z), dice, palette, Frame(x, z, yaw))


def _blob(dice: Dice, a: float, b: float, ra: float, rb: float, corners: int) -> list[tuple[float, float]]:
    points = []
    for i in range(corners):
        angle, reach = 2 * math.pi * i / corners, dice.uniform(0.78, 1.12)
        points.append((a + ra * reach * math.cos(angle), b + rb * reach * math.sin(angle)))
    return points


def _crown(part: Part, dice: Dice, frame: Frame, leaf: Colour, size: tuple[float, float, float]) -> None:
    """Leaf blobs around a dark core with a ragged rim; blobs are lighter towards the top and towards the sun."""
    wide, middle, deep = size
    sun = part.scene.sun
    sunward = (sun.x * frame.sin + sun.z * frame.cos) * (sun.strength > 0)
    rim = _blob(dice, 0.0, middle, wide * 1.15, deep * 1.1, 16)
    part.add(frame.plate(rim), VEGETATION, shade(leaf, 0.8), Material.TWIGS)
    part.add(
        frame.plate(_blob(dice, 0.0, middle, wide * 0.95, deep * 0.95, 13)),
        VEGETATION,
        shade(leaf, 0.7),
        Material.LEAVES,
    )
    count = 11 if part.distance < 30 else 6 if part.distance < 60 else 3
    for i in range(count):
        angle, reach = 2.4 * i + dice.uniform(-0.5, 0.5), 0.72 * math.sqrt((i + 0.5) / count)
        a, b = reach * math.cos(angle), reach * math.sin(angle)
        tone = shade(leaf, 0.95 + 0.3 * b + 0.35 * a * sunward + dice.uniform(-0.1, 0.1))
        radius = dice.uniform(0.26, 0.42)
        part.add(
            frame.plate(_blob(dice, a * wide, middle + b * deep, wide * radius, deep * radius, 9)),
            VEGETATION,
            tone,
            Material.LEAVES,
        )


def tree(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, shape: str, base: float = 0.0) -> None:
    """A tree: tapered trunk and a crown of leaf blobs ("round", "tall"), a cone, or a palm."""
    frame, part = facing(scene, x, z, base), scene.thing(x, z)
    leaf, bark = dice.paint(palette.leaves), dice.paint(palette.bark)
    height = dice.uniform(6.0, 10.0) if shape != "tall" else dice.uniform(9.0, 13.0)
    clear = {"cone": 0.08, "palm": 0.9, "tall": 0.15}.get(shape, dice.uniform(0.26, 0.4)) * height
    thick = height * dice.uniform(0.03, 0.045)
    part.add(
        frame.plate(limb((0, 0), (0, clear + 0.1 * height), thick * 1.2, thick * 0.7)),
        VEGETATION,
        bark,
        Material.PLANKS,
    )
    if shape == "palm":
        for i in range(9):
            angle, reach = math.pi * (i / 8 * 1.4 - 0.2), dice.uniform(1.5, 2.3)
            mid = (reach * 0.6 * math.cos(angle), height * 0.96 + reach * 0.55 * math.sin(angle) + 0.3)
            tip = (reach * 1.1 * math.cos(angle), height * 0.96 + reach * 0.75 * math.sin(angle) - 0.7)
            tone = shade(leaf, dice.uniform(0.7, 1.15))
            part.add(frame.plate(limb((0, height * 0.96), mid, 0.25, 0.55)), VEGETATION, tone, Material.LEAVES)
            part.add(frame.plate(limb(mid, tip, 0.55, 0.08)), VEGETATION, tone, Material.LEAVES)
        scene.cast(frame.footprint(-1.4, 1.4, -1.4, 1.4), height * 0.9, height)
    elif shape == "cone":
        for i in range(4):
            low, wide = clear + i * 0.21 * height, height * (0.24 - 0.05 * i)
            skirt = [
                (-wide, low),
                (-wide * 0.3, low - 0.15),
                (wide * 0.3, low + 0.1),
                (wide, low - 0.05),
                (0.0, low + 0.34 * height),
            ]
            part.add(frame.plate(skirt), VEGETATION, shade(leaf, 0.7 + 0.1 * i), Material.LEAVES)
        scene.cast(frame.footprint(-1.0, 1.0, -1.0, 1.0), 0.0, height * 0.8)
    else:
        wide, middle = height * (0.14 if shape == "tall" else dice.uniform(0.24, 0.34)), (clear + height) / 2
        deep = (height - clear) / 2
        _crown(part, dice, frame, leaf, (wide, middle, deep))
        scene.cast(frame.footprint(-wide, wide, -wide, wide), clear, height * 0.95)
    scene.cast(frame.footprint(-thick, thick, -thick, thick), 0.0, clear)


def bush(scene: Scene, dice: Dice, palette: Palette, x: float, z: float) -> None:
    """A bush."""
    frame, part, size = facing(scene, x, z), scene.thing(x, z), dice.uniform(0.5, 1.1)
    leaf = dice.paint(palette.leaves)
    part.add(
        frame.plate(_blob(dice, 0.0, size * 0.75, size * 1.3, size * 0.85, 12)),
        VEGETATION,
        shade(leaf, 0.7),
        Material.LEAVES,
    )
    for _ in range(2):
        a, b = dice.uniform(-0.6, 0.6), dice.uniform(0.6, 1.2)
        part.add(
            frame.plate(_blob(dice, a * size, b * size, size * 0.6, size * 0.45, 9)), VEGETATION, leaf, Material.LEAVES
        )


def post(part: Part, frame: Frame, height: float, width: float, colour: Colour) -> None:
    """An upright post, lighter on one half so that it looks round."""
    part.add(frame.plate(limb((0, 0), (0, height), width, width * 0.8)), POLE, colour)
    part.add(frame.plate(limb((-width / 4, 0), (-width / 4, height), width / 3, width / 3)), POLE, shade(colour, 1.3))


def lamp(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, yaw: float) -> None:
    """A street lamp whose arm points along `yaw`."""
    frame, part, height = Frame(x, z, yaw), scene.thing(x, z), dice.uniform(5.5, 8.0)
    card, colour = facing(scene, x, z), dice.paint(palette.pole)
    post(part, card, height, 0.2, colour)
    post(part, card, 0.8, 0.32, colour)
    part.add(frame.plate(limb((0, height), (1.5, height + 0.25), 0.13, 0.1)), POLE, colour)
    for quad in Box((1.2, 2.0), (height + 0.12, height + 0.32), (-0.14, 0.14)).faces(frame, scene).values():
        part.add(quad, POLE, shade(colour, 0.8))
    scene.cast(card.footprint(-0.08, 0.08, -0.08, 0.08), 0.0, height)


def bollard(scene: Scene, dice: Dice, palette: Palette, x: float, z: float) -> None:
    """A low post."""
    post(scene.thing(x, z), facing(scene, x, z), 0.95, 0.17, dice.paint(palette.pole))


def _light_box(part: Part, dice: Dice, frame: Frame, a: float, b: float, size: float) -> None:
    """A traffic light's housing around (a, b), and its three lenses."""
    wide, high, lit = 0.19 * size, 0.5 * size, dice.pick((0, 1, 2, 0, 2))
    part.add(
        frame.plate([(a - wide, b - high), (a + wide, b - high), (a + wide, b + high), (a - wide, b + high)]),
        LIGHT,
        (0.07, 0.08, 0.08),
    )
    lenses: tuple[Colour, ...] = ((1.0, 0.12, 0.08), (1.0, 0.7, 0.1), (0.1, 0.95, 0.45))
    for i, lens in enumerate(lenses):
        tone = lens if i == lit else shade(lens, 0.25)
        part.add(frame.plate(disc(a, b + (1 - i) * high * 0.6, wide * 0.68, 8)), LIGHT, tone)


def traffic_light(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, arm: float) -> None:
    """A traffic light on a post and, for `arm` other than 0, another on an arm of that length (m, + is right)."""
    frame, part, colour = facing(scene, x, z), scene.thing(x, z), dice.paint(palette.pole)
    size = dice.uniform(1.25, 1.6)
    post(part, frame, 5.6 if arm else 2.6, 0.18, colour)
    if arm:
        part.add(frame.plate(limb((0, 5.3), (arm, 5.6), 0.16, 0.12)), POLE, colour)
        _light_box(part, dice, frame, arm, 5.25, size * 1.25)
    _light_box(part, dice, frame, 0.0, 2.75, size)
    scene.cast(frame.footprint(-0.1, 0.1, -0.1, 0.1), 0.0, 3.2)


def _sign_face(part: Part, dice: Dice, frame: Frame, a: float, b: float, r: float) -> None:
    """One sign around (a, b) of radius r: prohibition, mandatory, warning, stop, priority, information, or a back."""
    kind = dice.pick(("ring", "ring", "blue", "warn", "stop", "rhomb", "info", "board", "back"))
    plate = frame.plate
    triangle = [(a - r, b - 0.7 * r), (a + r, b - 0.7 * r), (a, b + r)]
    square = [
        (a - 0.85 * r, b - 0.85 * r),
        (a + 0.85 * r, b - 0.85 * r),
        (a + 0.85 * r, b + 0.85 * r),
        (a - 0.85 * r, b + 0.85 * r),
    ]
    if kind in ("ring", "back"):
        part.add(plate(disc(a, b, r)), SIGN, RED if kind == "ring" else METAL)
        part.add(plate(disc(a, b, r * 0.72)), SIGN, WHITE if kind == "ring" else shade(METAL, 0.85))
        part.add(
            plate(limb((a - 0.4 * r, b), (a + 0.4 * r, b), r * 0.3, r * 0.3)),
            SIGN,
            (0.1, 0.1, 0.1) if kind == "ring" else METAL,
        )
    elif kind == "blue":
        part.add(plate(disc(a, b, r)), SIGN, BLUE)
        part.add(plate(limb((a, b - 0.6 * r), (a, b + 0.6 * r), r * 0.3, r * 0.3)), SIGN, WHITE)
    elif kind == "warn":
        part.add(plate(triangle), SIGN, RED)
        inner = [(a + (p - a) * 0.6, b + (q - b) * 0.6) for p, q in triangle]
        part.add(plate(inner), SIGN, dice.pick((WHITE, YELLOW)))
    elif kind == "stop":
        part.add(plate(disc(a, b, r, 8)), SIGN, RED)
        part.add(plate(limb((a - 0.6 * r, b), (a + 0.6 * r, b), r * 0.4, r * 0.4)), SIGN, WHITE)
    elif kind == "rhomb":
        part.add(plate([(a - r, b), (a, b - r), (a + r, b), (a, b + r)]), SIGN, WHITE)
        part.add(plate([(a - 0.7 * r, b), (a, b - 0.7 * r), (a + 0.7 * r, b), (a, b + 0.7 * r)]), SIGN, YELLOW)
    else:
        colour = BLUE if kind == "info" else dice.pick((YELLOW, GREEN, WHITE, BLUE))
        wide = square if kind == "info" else [(a + (p - a) * 1.6, q) for p, q in square]
        part.add(plate(wide), SIGN, colour)
        mark = WHITE if colour not in (WHITE, YELLOW) else (0.1, 0.1, 0.12)
        for level in (0.35, -0.3):
            part.add(
                plate(limb((a - 0.6 * r, b + level * r), (a + 0.6 * r, b + level * r), r * 0.28, r * 0.28)), SIGN, mark
            )


def sign(scene: Scene, dice: Dice, palette: Palette, x: float, z: float) -> None:
    """One or two traffic signs on a post."""
    frame, part, r = facing(scene, x, z), scene.thing(x, z), dice.uniform(0.4, 0.6)
    height = dice.uniform(2.2, 2.7)
    post(part, frame, height + 0.3, 0.13, dice.paint(palette.pole))
    _sign_face(part, dice, frame, 0.0, height, r)
    if dice.chance(0.35):
        _sign_face(part, dice, frame, 0.0, height - 2 * r - 0.05, r * 0.9)
    scene.cast(frame.footprint(-0.06, 0.06, -0.06, 0.06), 0.0, height)


def gantry(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, reach: float) -> None:
    """A direction sign on an arm of the given reach over the road (m, positive to the right)."""
    frame, part, colour = Frame(x, z, math.pi / 2), scene.thing(x, z), dice.paint(palette.pole)
    post(part, facing(scene, x, z), 6.4, 0.26, colour)
    part.add(frame.plate(limb((0, 6.1), (reach, 6.3), 0.2, 0.14)), POLE, colour)
    board = dice.pick((BLUE, GREEN, YELLOW, WHITE))
    for place in (0.55, 0.95) if abs(reach) > 4 else (0.9,):
        a, b, w, h = reach * place, 5.9, dice.uniform(0.8, 1.2), dice.uniform(0.5, 0.7)
        part.add(frame.plate([(a - w, b - h), (a + w, b - h), (a + w, b + h), (a - w, b + h)]), SIGN, board)
        mark = WHITE if board in (BLUE, GREEN) else (0.1, 0.1, 0.12)
        for level in (0.25, -0.25):
            part.add(
                frame.plate(limb((a - 0.7 * w, b + level * h), (a + 0.5 * w, b + level * h), h * 0.3, h * 0.3)),
                SIGN,
                mark,
            )
