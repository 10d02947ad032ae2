"""Cars, trucks, buses, trams, motorcycles and bicycles of the `streets` scenes, as boxes and plates in perspective.

Every function adds one thing at the ground point (x, z) in metres, heading along `yaw` (0 = away from the camera).
"""

from __future__ import annotations

from udaseg.data.streets.looks import Palette
from udaseg.data.streets.scene import (
    BICYCLE,
    BUS,
    CAR,
    MOTORCYCLE,
    TRAIN,
    TRUCK,
    Box,
    Colour,
    Dice,
    Frame,
    Material,
    Part,
    Point,
    Range,
    Scene,
    disc,
    inset,
    limb,
    shade,
)

TYRE: Colour = (0.07, 0.07, 0.08)
RIM: Colour = (0.55, 0.56, 0.58)
HEADLAMP: Colour = (0.95, 0.95, 0.88)
TAIL: Colour = (0.75, 0.06, 0.05)
PLATE: Colour = (0.9, 0.9, 0.86)
DETAIL_DISTANCE = 45.0
"""Beyond this distance (m) lamps, plates and rims are smaller than a pixel and left out."""


def _wheels(part: Part, frame: Frame, label: int, places: tuple[float, ...], radius: float, half: float) -> None:
    """Wheels on the side that the camera sees: a tyre and, near enough, a rim."""
    eye = part.scene.eye
    side = (eye.x - frame.x) * frame.cos - (eye.z - frame.z) * frame.sin
    if abs(side) <= half:
        return
    right = half + 0.02 if side > 0 else -half - 0.02
    for place in places:
        arch = [(f, max(u, 0.0)) for f, u in disc(place, radius, radius * 1.22)]
        part.add(frame.plate(arch, right * 0.99), label, (0.04, 0.04, 0.05))
        part.add(frame.plate(disc(place, radius, radius), right), label, TYRE)
        if part.distance < DETAIL_DISTANCE:
            part.add(frame.plate(disc(place, radius, radius * 0.6, 8), right), label, RIM)


def _ends(part: Part, faces: dict[str, list[Point]], label: int, low: float, high: float) -> None:
    """Lamps and number plate on the front and the back of a body, between two shares of its height."""
    if part.distance > DETAIL_DISTANCE:
        return
    for name, lamp in (("front", HEADLAMP), ("back", TAIL)):
        if name in faces:
            part.add(inset(faces[name], 0.04, 0.22, low, high), label, lamp)
            part.add(inset(faces[name], 0.78, 0.96, low, high), label, lamp)
            part.add(inset(faces[name], 0.38, 0.62, max(0.02, low - 0.3), max(0.08, low - 0.1)), label, PLATE)
    if "front" in faces:
        part.add(inset(faces["front"], 0.28, 0.72, low, high), label, (0.1, 0.1, 0.11))


def _skirt(part: Part, frame: Frame, label: int, forward: Range, height: float, half: float) -> None:
    """The dark underside, which also carries the thing's contact with the ground."""
    under = Box((forward[0] * 0.97, forward[1] * 0.97), (0.06, height), (-half * 0.94, half * 0.94))
    for quad in under.faces(frame, part.scene).values():
        part.add(quad, label, (0.05, 0.05, 0.06))


CAR_SHAPES = {
    # length, width, height, belt height, cabin from and to (shares of the length), front and back slope (m)
    "sedan": (4.6, 1.82, 1.45, 0.92, -0.44, 0.2, 0.85, 0.6),
    "hatch": (4.0, 1.76, 1.5, 0.92, -0.49, 0.22, 0.75, 0.3),
    "wagon": (4.7, 1.82, 1.5, 0.92, -0.49, 0.2, 0.8, 0.35),
    "suv": (4.7, 1.92, 1.72, 1.05, -0.49, 0.2, 0.7, 0.25),
    "van": (4.9, 1.95, 2.0, 1.15, -0.495, 0.32, 0.75, 0.12),
}


def car(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, yaw: float) -> None:
    """A passenger car: body with sloped cabin, glass, wheels, lamps."""
    length, width, height, belt, rear, front, slope_front, slope_back = CAR_SHAPES[dice.pick(tuple(CAR_SHAPES))]
    colour, glass = dice.paint(palette.vehicle), dice.paint(palette.glass)
    frame, half, end = Frame(x, z, yaw), width / 2, length / 2
    part = scene.thing(x, z)
    _skirt(part, frame, CAR, (-end, end), 0.32, half)
    middle = 0.3 + 0.55 * (belt - 0.3)
    # the sides bulge: they lean out up to the middle and in above it, so that light breaks there
    lower = Box((-end + 0.1, end - 0.1), (0.24, middle), (-half + 0.07, half - 0.07), (-0.1, -0.1, -0.07)).faces(
        frame, scene
    )
    upper = Box((-end, end), (middle, belt), (-half, half), (0.1, 0.32, 0.08)).faces(frame, scene)
    for name, quad in lower.items():
        if name != "top":
            part.add(quad, CAR, colour)
            part.add(
                inset(quad, 0.0, 1.0, 0.0, 0.3), CAR, shade(colour, 0.55) if slope_front > 0.75 else (0.12, 0.12, 0.13)
            )
    for name, quad in upper.items():
        part.add(quad, CAR, colour)
        if name in ("left", "right") and part.distance < DETAIL_DISTANCE:
            for seam in (0.3, 0.52, 0.72):
                part.add(inset(quad, seam, seam + 0.006, 0.0, 1.0), CAR, shade(colour, 0.6))
            part.add(inset(quad, 0.46, 0.5, 0.6, 0.72), CAR, shade(colour, 0.4))
    _wheels(part, frame, CAR, (-0.31 * length, 0.32 * length), 0.33, half)
    cabin_box = Box(
        (rear * length, front * length),
        (belt - 0.02, height),
        (-half + 0.06, half - 0.06),
        (slope_back, slope_front, 0.18),
    )
    cabin = cabin_box.faces(frame, scene)
    for name, quad in cabin.items():
        part.add(quad, CAR, colour)
        if name in ("front", "back"):
            part.add(inset(quad, 0.07, 0.93, 0.1, 0.9), CAR, glass)
        elif name != "top":
            part.add(inset(quad, 0.06, 0.47, 0.12, 0.88), CAR, shade(glass, 0.85))
            part.add(inset(quad, 0.51, 0.94, 0.12, 0.88), CAR, shade(glass, 0.85))
    _ends(part, upper, CAR, 0.15, 0.6)
    if "front" in lower and part.distance < DETAIL_DISTANCE:
        part.add(inset(lower["front"], 0.15, 0.85, 0.12, 0.45), CAR, (0.08, 0.08, 0.09))
    scene.cast(frame.footprint(-end, end, -half, half), 0.0, height * 0.8)


def truck(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, yaw: float) -> None:
    """A lorry: cab in front, load box or tarpaulin behind, or an open bed."""
    length, width = dice.uniform(6.5, 9.5), 2.5
    frame, half, end = Frame(x, z, yaw), width / 2, length / 2
    cab_colour, load_colour = (
        dice.paint(palette.vehicle),
        dice.paint(palette.wall if dice.chance(0.5) else palette.vehicle),
    )
    glass, split, height = dice.paint(palette.glass), end - 2.2, dice.uniform(3.2, 3.8)
    part = scene.thing(x, z)
    _skirt(part, frame, TRUCK, (-end, end), 0.95, half * 0.8)
    cab = Box((split, end), (0.5, 2.7), (-half + 0.05, half - 0.05), (0.0, 0.25, 0.05)).faces(frame, scene)
    open_bed = dice.chance(0.25)
    load = Box((-end, split - 0.15), (0.9, 1.9 if open_bed else height), (-half, half)).faces(frame, scene)
    # the cab is hidden by the load when seen from behind, and the load by the cab from the front
    for faces in (load, cab) if "front" in cab else (cab, load):
        for name, quad in faces.items():
            if faces is load:
                part.add(quad, TRUCK, load_colour, Material.PLANKS)
                if name != "top":
                    part.add(inset(quad, 0.0, 1.0, 0.0, 0.06), TRUCK, shade(load_colour, 0.55))
                    part.add(inset(quad, 0.0, 1.0, 0.95, 1.0), TRUCK, shade(load_colour, 0.7))
                if name == "back":
                    part.add(inset(quad, 0.485, 0.515, 0.05, 0.95), TRUCK, shade(load_colour, 0.5))
                continue
            part.add(quad, TRUCK, cab_colour)
            if name == "front":
                part.add(inset(quad, 0.07, 0.93, 0.5, 0.88), TRUCK, glass)
                part.add(inset(quad, 0.2, 0.8, 0.15, 0.38), TRUCK, shade(cab_colour, 0.4))
            elif name in ("left", "right"):
                low, high = (0.42, 0.9) if name == "right" else (0.1, 0.58)
                part.add(inset(quad, low, high, 0.5, 0.85), TRUCK, glass)
    _wheels(part, frame, TRUCK, (end - 1.1, -end + 0.9, -end + 2.0), 0.5, half)
    bumper = Box((-end, end), (0.45, 0.95), (-half, half)).faces(frame, scene)
    _ends(part, {name: bumper[name] for name in ("front", "back") if name in bumper}, TRUCK, 0.4, 0.9)
    scene.cast(frame.footprint(-end, end, -half, half), 0.0, height)


def bus(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, yaw: float) -> None:
    """A city bus: one long box with a band of windows, doors, wheels and a destination board."""
    length, width, height = dice.uniform(9.0, 12.0), 2.55, 3.1
    frame, half, end = Frame(x, z, yaw), width / 2, length / 2
    colour, stripe, glass = dice.paint(palette.vehicle), dice.paint(palette.vehicle), dice.paint(palette.glass)
    part = scene.thing(x - frame.sin * end * 0.4, z - abs(frame.cos) * end * 0.4)
    _skirt(part, frame, BUS, (-end, end), 0.4, half)
    body = Box((-end, end), (0.3, height), (-half, half), (0.05, 0.12, 0.06)).faces(frame, scene)
    for name, quad in body.items():
        part.add(quad, BUS, colour)
        if name == "top":
            continue
        part.add(inset(quad, 0.0, 1.0, 0.0, 0.3), BUS, stripe)
        if name in ("front", "back"):
            low = 0.3 if name == "front" else 0.48
            part.add(inset(quad, 0.06, 0.94, low, 0.84), BUS, glass)
            part.add(inset(quad, 0.2, 0.8, 0.87, 0.96), BUS, (0.12, 0.1, 0.05))
            part.add(inset(quad, 0.3, 0.7, 0.89, 0.94), BUS, (0.95, 0.65, 0.15))
            continue
        for i in range(7):
            part.add(
                inset(quad, 0.02 + i * 0.139, 0.14 + i * 0.139, 0.45, 0.84), BUS, shade(glass, 0.9 + 0.05 * (i % 3))
            )
        for door in (0.08, 0.5) if name == "left" else (0.4, 0.86):
            part.add(inset(quad, door, door + 0.06, 0.04, 0.84), BUS, shade(glass, 0.8))
    _wheels(part, frame, BUS, (0.3 * length, -0.27 * length), 0.48, half)
    _ends(part, body, BUS, 0.12, 0.2)
    scene.cast(frame.footprint(-end, end, -half, half), 0.0, height)


def train(scene: Scene, dice: Dice, palette: Palette, x: float, z: float, yaw: float) -> None:
    """A tram: sections with joints, tapered ends, continuous windows down low, and a current collector on the roof."""
    sections, section, half, height = dice.pick((2, 3)), 8.5, 1.25, 3.4
    end = sections * section / 2
    frame = Frame(x, z, yaw)
    colour, stripe, glass = dice.paint(palette.vehicle), dice.paint(palette.vehicle), dice.paint(palette.glass)
    part = scene.thing(x - frame.sin * end * 0.5, z - abs(frame.cos) * end * 0.5)
    _skirt(part, frame, TRAIN, (-end, end), 0.3, half)
    order = range(sections) if frame.cos < 0 else range(sections - 1, -1, -1)
    for i in order:
        low, high = -end + i * section + 0.2, -end + (i + 1) * section - 0.2
        nose_back, nose_front = (0.9 if i == 0 else 0.0), (0.9 if i == sections - 1 else 0.0)
        joint = Box((low - 0.2, high + 0.2), (0.3, height - 0.2), (-half + 0.15, half - 0.15))
        if sections > 1 and i > 0:
            for quad in joint._replace(forward=(low - 0.4, low)).faces(frame, scene).values():
                part.add(quad, TRAIN, (0.13, 0.13, 0.14))
        body = Box((low, high), (0.18, height), (-half, half), (nose_back, nose_front, 0.12)).faces(frame, scene)
        for name, quad in body.items():
            part.add(quad, TRAIN, colour if name != "top" else shade(colour, 0.8))
            if name == "top":
                continue
            part.add(inset(quad, 0.0, 1.0, 0.0, 0.14), TRAIN, (0.2, 0.2, 0.22))
            part.add(inset(quad, 0.0, 1.0, 0.14, 0.34), TRAIN, stripe)
            part.add(inset(quad, 0.0, 1.0, 0.9, 1.0), TRAIN, stripe)
            if name in ("front", "back"):
                part.add(inset(quad, 0.1, 0.9, 0.4, 0.85), TRAIN, shade(glass, 0.8))
                part.add(inset(quad, 0.25, 0.75, 0.91, 0.98), TRAIN, (0.95, 0.75, 0.25))
                part.add(inset(quad, 0.1, 0.25, 0.2, 0.28), TRAIN, HEADLAMP if name == "front" else TAIL)
                part.add(inset(quad, 0.75, 0.9, 0.2, 0.28), TRAIN, HEADLAMP if name == "front" else TAIL)
                continue
            part.add(inset(quad, 0.05, 0.95, 0.42, 0.84), TRAIN, glass)
            for door in (0.22, 0.66):
                part.add(inset(quad, door, door + 0.12, 0.03, 0.86), TRAIN, shade(colour, 0.75))
                part.add(inset(quad, door + 0.015, door + 0.105, 0.25, 0.8), TRAIN, shade(glass, 0.8))
    roof, knee, top = (0.0, height), (0.7, height + 0.6), (0.1, height + 1.2)
    for a, b in ((roof, knee), (knee, top)):
        part.add(frame.plate(limb(a, b, 0.1, 0.1)), TRAIN, (0.15, 0.15, 0.16))
    scene.cast(frame.footprint(-end, end, -half, half), 0.0, height)


def motorcycle(part: Part, dice: Dice, palette: Palette, frame: Frame) -> None:
    """A motorcycle or scooter, added to a part so that its rider can follow."""
    colour, scooter, scene = dice.paint(palette.vehicle), dice.chance(0.5), part.scene
    radius = 0.26 if scooter else 0.33
    for place in (-0.65, 0.68):
        tyre = Box((place - radius, place + radius), (0.02, 2 * radius), (-0.07, 0.07), (0.1, 0.1, 0.0))
        for name, quad in tyre.faces(frame, scene).items():
            if name in ("front", "back"):
                part.add(quad, MOTORCYCLE, TYRE)
        part.add(frame.plate(disc(place, radius, radius)), MOTORCYCLE, TYRE)
        part.add(frame.plate(disc(place, radius, radius * 0.55, 8)), MOTORCYCLE, RIM)
    part.add(frame.plate(limb((0.68, radius), (0.45, 1.05), 0.1, 0.1)), MOTORCYCLE, (0.3, 0.3, 0.32))
    boxes: tuple[tuple[Box, Colour], ...] = (
        (Box((-0.35, 0.4), (0.22, 0.6), (-0.15, 0.15), (0.05, 0.1, 0.0)), (0.2, 0.2, 0.21)),
        (Box((-0.85, 0.35), (0.55, 0.82), (-0.17, 0.17), (0.1, 0.1, 0.05)), colour),
        (Box((-0.75, 0.05), (0.8, 0.9), (-0.14, 0.14)), (0.08, 0.08, 0.09)),
    )
    if scooter:
        boxes += ((Box((0.3, 0.5), (0.25, 1.05), (-0.2, 0.2), (0.0, 0.1, 0.05)), colour),)
    else:
        boxes += ((Box((0.1, 0.55), (0.75, 1.05), (-0.16, 0.16), (0.2, 0.05, 0.05)), colour),)
    for box, paint in boxes if frame.cos > 0 else boxes[::-1]:
        for quad in box.faces(frame, scene).values():
            part.add(quad, MOTORCYCLE, paint)
    bar = Box((0.4, 0.46), (1.02, 1.1), (-0.38, 0.38)).faces(frame, scene)
    for name in ("front", "back"):
        if name in bar:
            part.add(bar[name], MOTORCYCLE, (0.1, 0.1, 0.1))
    lamps = (Box((0.5, 0.6), (0.85, 1.02), (-0.09, 0.09)), Box((-0.92, -0.86), (0.6, 0.72), (-0.09, 0.09)))
    for box, name, lamp in ((lamps[0], "front", HEADLAMP), (lamps[1], "back", TAIL)):
        quad_or_none = box.faces(frame, scene).get(name)
        if quad_or_none:
            part.add(quad_or_none, MOTORCYCLE, lamp)
    scene.cast(frame.footprint(-0.9, 0.9, -0.2, 0.2), 0.0, 0.9)


def bicycle(part: Part, dice: Dice, palette: Palette, frame: Frame) -> None:
    """A bicycle, added to a part so that its rider can follow; the label covers the wheels with their spokes."""
    colour, radius, scene = dice.paint(palette.vehicle), 0.35, part.scene
    for place in (-0.52, 0.54):
        tyre = Box((place - radius, place + radius), (0.01, 2 * radius), (-0.03, 0.03), (0.15, 0.15, 0.0))
        for name, quad in tyre.faces(frame, scene).items():
            if name in ("front", "back"):
                part.add(quad, BICYCLE, TYRE)
        part.add(frame.plate(disc(place, radius, radius)), BICYCLE, TYRE, Material.SPOKES, (radius, 0.0, 0.0, 0.0))
    rear, crank, seat, head, front = (-0.52, 0.35), (-0.05, 0.3), (-0.18, 0.8), (0.36, 0.85), (0.54, 0.35)
    thick = 0.07
    for a, b in ((rear, crank), (rear, seat), (crank, seat), (crank, head), (seat, head), (head, front)):
        part.add(frame.plate(limb(a, b, thick, thick)), BICYCLE, colour)
    part.add(frame.plate(limb(seat, (-0.22, 0.95), 0.05, 0.05)), BICYCLE, RIM)
    saddle = Box((-0.36, -0.08), (0.93, 1.0), (-0.09, 0.09)).faces(frame, scene)
    bar = Box((0.3, 0.36), (0.98, 1.05), (-0.3, 0.3)).faces(frame, scene)
    for quad in (*saddle.values(), *bar.values()):
        part.add(quad, BICYCLE, (0.1, 0.09, 0.09))
    part.add(frame.plate(limb(head, (0.33, 1.02), 0.05, 0.05)), BICYCLE, RIM)
    if dice.chance(0.4):
        basket = Box((0.4, 0.68), (0.75, 1.0), (-0.17, 0.17)).faces(frame, scene)
        for quad in basket.values():
            part.add(quad, BICYCLE, dice.paint(palette.bark), Material.PLANKS)
    scene.cast(frame.footprint(-0.8, 0.8, -0.12, 0.12), 0.0, 0.7)
