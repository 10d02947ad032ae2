"""The two looks of the `streets` scenes: every constant that tells the synthetic domain from the realistic one.

`game` stands for a rendered source domain (GTA5): wide regular streets, clean saturated surfaces, a clear day, a sharp
camera. `photo` stands for a real target domain (Cityscapes): narrow crowded streets, muted weathered surfaces whose
colours overlap, sun and overcast days, haze, and a real lens and sensor. Both are built from the same things.
Colours are HSV ranges in 0..1; lengths in metres; angles in radians; every range is drawn from evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

from udaseg.data.streets.scene import Colour, Paint, Range


@dataclass(frozen=True)
class Layout:
    """Where the camera stands and what the street holds."""

    eye_height: Range
    pitch: Range
    yaw: Range
    roll: Range
    focal: Range  # focal length over the width of a 2:1 image
    curvature: Range  # 1/m, either sign
    lanes: tuple[int, ...]  # per direction, equally likely
    lane_width: Range
    parking: float  # probability of a parking lane, each side
    parked: float  # share of parking slots taken
    sidewalk: Range
    verge: float  # probability of a grass strip between road and sidewalk, each side
    frontage: dict[str, float]  # weights of what lines the street, drawn for each side
    crossing: float  # probability of an intersection
    tram: float  # probability of tram tracks in the road
    train: float  # probability of a tram on the tracks
    traffic: float  # moving cars, mean
    bus: float  # probabilities of at least one
    truck: float
    walkers: float  # persons on the sidewalks, mean
    crossers: float  # persons on the road, mean
    cyclists: float  # moving bicycles, mean
    bikers: float  # moving motorcycles, mean
    racks: float  # groups of parked bicycles, mean
    mopeds: float  # groups of parked motorcycles, mean
    lamps: float  # probability of a row of street lamps, each side
    trees: float  # probability of a row of street trees, each side
    tree_shapes: dict[str, float]
    signs: float  # signs on posts, mean
    gantry: float  # probability of a sign or light on an arm over the road
    storeys: tuple[int, int]
    mansard: float  # probability of a pitched roof on a block


@dataclass(frozen=True)
class Palette:
    """Colours of things; one range of each tuple is drawn per thing."""

    road: tuple[Paint, ...]
    marking: Range  # brightness of road markings
    worn: float  # probability of worn-off markings
    patches: float  # repaired patches of the road, mean
    sidewalk: tuple[Paint, ...]
    grass: tuple[Paint, ...]
    leaves: tuple[Paint, ...]
    bark: tuple[Paint, ...]
    building: tuple[Paint, ...]
    roof: tuple[Paint, ...]
    glass: tuple[Paint, ...]
    panes: Colour  # tint of the windows of buildings
    wall: tuple[Paint, ...]
    fence: tuple[Paint, ...]
    pole: tuple[Paint, ...]
    vehicle: tuple[Paint, ...]
    cloth: tuple[Paint, ...]
    horizon: tuple[Paint, ...]
    zenith: tuple[Paint, ...]
    texture: float  # strength of all surface textures
    dirt: float  # strength of large stains


@dataclass(frozen=True)
class Light:
    """Sun, shadow and air."""

    overcast: float  # probability of no sun
    elevation: Range
    sun: Range  # share of direct light on a sunny day
    long_shadows: bool  # shadows along the sun's rays; otherwise a dark patch below each thing
    warmth: Range  # how much redder the sun is than the sky light
    clouds: Range
    haze: Range  # distance at which 63 % of the light is haze
    bonnet: float  # probability of seeing the ego vehicle's bonnet


@dataclass(frozen=True)
class Film:
    """Lens and sensor, applied to the finished picture."""

    exposure: Range
    contrast: Range
    saturation: Range
    tint: Range  # strength of a random colour cast
    blur: Range  # pixels at a width of 256
    chroma_blur: float  # pixels at a width of 256
    bloom: float
    vignette: Range
    noise: Range  # standard deviation of the sensor noise, 0..1


@dataclass(frozen=True)
class Look:
    """One look: a number that enters the seed, and its four groups of constants."""

    key: int
    layout: Layout
    palette: Palette
    light: Light
    film: Film


GAME = Look(
    key=0,
    layout=Layout(
        eye_height=(1.5, 2.0),
        pitch=(0.02, 0.06),
        yaw=(-0.05, 0.05),
        roll=(0.0, 0.0),
        focal=(0.62, 0.72),
        curvature=(0.0, 0.0008),
        lanes=(1, 2, 2),
        lane_width=(3.4, 3.7),
        parking=0.45,
        parked=0.4,
        sidewalk=(3.0, 5.0),
        verge=0.5,
        frontage={"blocks": 0.36, "houses": 0.18, "park": 0.14, "walled": 0.18, "yard": 0.14},
        crossing=0.45,
        tram=0.35,
        train=0.85,
        traffic=5.0,
        bus=0.5,
        truck=0.55,
        walkers=7.0,
        crossers=1.0,
        cyclists=1.3,
        bikers=1.6,
        racks=0.8,
        mopeds=0.8,
        lamps=0.8,
        trees=0.5,
        tree_shapes={"round": 0.45, "palm": 0.35, "cone": 0.2},
        signs=4.0,
        gantry=0.4,
        storeys=(3, 12),
        mansard=0.1,
    ),
    palette=Palette(
        road=(((0.55, 0.65), (0.02, 0.1), (0.32, 0.5)), ((0.05, 0.15), (0.0, 0.06), (0.34, 0.48))),
        marking=(0.85, 1.0),
        worn=0.0,
        patches=0.0,
        sidewalk=(((0.05, 0.12), (0.04, 0.16), (0.6, 0.78)), ((0.5, 0.65), (0.02, 0.08), (0.58, 0.74))),
        grass=(((0.22, 0.33), (0.5, 0.75), (0.42, 0.66)), ((0.09, 0.14), (0.4, 0.6), (0.55, 0.72))),
        leaves=(((0.24, 0.37), (0.5, 0.85), (0.3, 0.62)),),
        bark=(((0.05, 0.09), (0.35, 0.55), (0.3, 0.5)),),
        building=(
            ((0.0, 0.13), (0.15, 0.6), (0.55, 0.95)),
            ((0.5, 0.68), (0.1, 0.45), (0.45, 0.9)),
            ((0.2, 0.45), (0.05, 0.3), (0.5, 0.85)),
            ((0.0, 1.0), (0.0, 0.08), (0.45, 0.95)),
        ),
        roof=(((0.0, 0.05), (0.45, 0.75), (0.45, 0.7)), ((0.55, 0.65), (0.1, 0.3), (0.3, 0.5))),
        glass=(((0.53, 0.62), (0.25, 0.6), (0.2, 0.55)),),
        panes=(0.64, 1.3, 2.4),
        wall=(
            ((0.0, 0.12), (0.2, 0.6), (0.5, 0.85)),
            ((0.5, 0.7), (0.0, 0.2), (0.5, 0.85)),
            ((0.2, 0.4), (0.05, 0.4), (0.4, 0.8)),
        ),
        fence=(
            ((0.0, 1.0), (0.0, 0.08), (0.75, 0.98)),
            ((0.05, 0.1), (0.4, 0.7), (0.4, 0.7)),
            ((0.25, 0.45), (0.3, 0.6), (0.25, 0.5)),
            ((0.5, 0.65), (0.1, 0.3), (0.2, 0.55)),
        ),
        pole=(((0.5, 0.65), (0.02, 0.15), (0.3, 0.65)), ((0.28, 0.42), (0.3, 0.6), (0.25, 0.4))),
        vehicle=(
            ((0.0, 1.0), (0.65, 0.95), (0.55, 0.95)),
            ((0.0, 1.0), (0.65, 0.95), (0.55, 0.95)),
            ((0.0, 1.0), (0.0, 0.08), (0.15, 0.98)),
        ),
        cloth=(((0.0, 1.0), (0.4, 0.95), (0.4, 0.95)), ((0.0, 1.0), (0.0, 0.15), (0.15, 0.95))),
        horizon=(((0.54, 0.58), (0.12, 0.3), (0.92, 1.0)),),
        zenith=(((0.56, 0.61), (0.5, 0.75), (0.8, 0.98)),),
        texture=0.5,
        dirt=0.15,
    ),
    light=Light(
        overcast=0.0,
        elevation=(0.75, 1.1),
        sun=(0.35, 0.6),
        long_shadows=False,
        warmth=(0.0, 0.06),
        clouds=(0.0, 0.55),
        haze=(700.0, 1500.0),
        bonnet=0.0,
    ),
    film=Film(
        exposure=(0.92, 1.12),
        contrast=(1.0, 1.1),
        saturation=(0.95, 1.2),
        tint=(0.0, 0.03),
        blur=(0.0, 0.0),
        chroma_blur=0.0,
        bloom=0.0,
        vignette=(0.0, 0.0),
        noise=(0.0, 0.0),
    ),
)

PHOTO = Look(
    key=1,
    layout=Layout(
        eye_height=(1.15, 1.6),
        pitch=(0.0, 0.09),
        yaw=(-0.14, 0.14),
        roll=(-0.02, 0.02),
        focal=(0.68, 0.88),
        curvature=(0.0, 0.005),
        lanes=(1, 1, 1, 2),
        lane_width=(3.0, 3.5),
        parking=0.45,
        parked=0.6,
        sidewalk=(2.8, 4.8),
        verge=0.4,
        frontage={"blocks": 0.36, "houses": 0.18, "park": 0.12, "walled": 0.18, "yard": 0.16},
        crossing=0.4,
        tram=0.32,
        train=0.85,
        traffic=2.5,
        bus=0.5,
        truck=0.5,
        walkers=12.0,
        crossers=1.2,
        cyclists=2.4,
        bikers=1.7,
        racks=1.1,
        mopeds=0.7,
        lamps=0.5,
        trees=0.5,
        tree_shapes={"round": 0.75, "cone": 0.1, "tall": 0.15},
        signs=4.0,
        gantry=0.15,
        storeys=(2, 6),
        mansard=0.6,
    ),
    palette=Palette(
        road=(((0.05, 0.15), (0.0, 0.08), (0.28, 0.44)), ((0.55, 0.68), (0.0, 0.1), (0.26, 0.44))),
        marking=(0.55, 0.85),
        worn=0.3,
        patches=2.0,
        sidewalk=(
            ((0.05, 0.13), (0.02, 0.18), (0.42, 0.64)),
            ((0.0, 0.06), (0.08, 0.25), (0.42, 0.58)),
            ((0.55, 0.65), (0.0, 0.08), (0.4, 0.62)),
        ),
        grass=(((0.17, 0.29), (0.25, 0.5), (0.28, 0.48)), ((0.08, 0.13), (0.2, 0.42), (0.34, 0.52))),
        leaves=(
            ((0.2, 0.33), (0.3, 0.6), (0.26, 0.5)),
            ((0.2, 0.33), (0.3, 0.6), (0.26, 0.5)),
            ((0.2, 0.33), (0.3, 0.6), (0.26, 0.5)),
            ((0.06, 0.15), (0.35, 0.6), (0.36, 0.56)),
        ),
        bark=(((0.04, 0.12), (0.1, 0.35), (0.14, 0.32)),),
        building=(
            ((0.03, 0.13), (0.08, 0.38), (0.4, 0.8)),
            ((0.0, 0.05), (0.25, 0.5), (0.3, 0.5)),
            ((0.0, 1.0), (0.0, 0.1), (0.35, 0.8)),
            ((0.15, 0.3), (0.05, 0.2), (0.4, 0.7)),
        ),
        roof=(((0.0, 0.05), (0.3, 0.5), (0.28, 0.45)), ((0.55, 0.7), (0.05, 0.15), (0.2, 0.35))),
        glass=(((0.5, 0.65), (0.05, 0.25), (0.14, 0.42)),),
        panes=(0.8, 1.0, 1.2),
        wall=(
            ((0.03, 0.12), (0.05, 0.3), (0.32, 0.65)),
            ((0.0, 0.04), (0.25, 0.45), (0.3, 0.45)),
            ((0.5, 0.7), (0.0, 0.1), (0.35, 0.6)),
        ),
        fence=(
            ((0.06, 0.12), (0.15, 0.4), (0.2, 0.45)),
            ((0.25, 0.4), (0.15, 0.4), (0.15, 0.35)),
            ((0.0, 1.0), (0.0, 0.08), (0.15, 0.7)),
        ),
        pole=(((0.0, 1.0), (0.0, 0.1), (0.18, 0.5)), ((0.3, 0.45), (0.1, 0.3), (0.15, 0.3))),
        vehicle=(
            ((0.0, 1.0), (0.0, 0.1), (0.1, 0.28)),
            ((0.5, 0.65), (0.0, 0.1), (0.35, 0.6)),
            ((0.0, 1.0), (0.0, 0.05), (0.75, 0.95)),
            ((0.0, 1.0), (0.4, 0.8), (0.3, 0.7)),
        ),
        cloth=(
            ((0.5, 0.7), (0.1, 0.5), (0.1, 0.4)),
            ((0.0, 1.0), (0.0, 0.15), (0.06, 0.35)),
            ((0.0, 1.0), (0.1, 0.6), (0.3, 0.75)),
        ),
        horizon=(((0.08, 0.14), (0.0, 0.12), (0.76, 0.93)), ((0.55, 0.6), (0.04, 0.2), (0.74, 0.92))),
        zenith=(((0.56, 0.62), (0.3, 0.6), (0.55, 0.8)), ((0.55, 0.62), (0.0, 0.15), (0.62, 0.82))),
        texture=0.7,
        dirt=0.35,
    ),
    light=Light(
        overcast=0.35,
        elevation=(0.4, 0.9),
        sun=(0.5, 0.75),
        long_shadows=True,
        warmth=(0.05, 0.3),
        clouds=(0.0, 0.75),
        haze=(300.0, 1000.0),
        bonnet=0.2,
    ),
    film=Film(
        exposure=(1.0, 1.3),
        contrast=(0.9, 1.15),
        saturation=(0.75, 1.05),
        tint=(0.0, 0.07),
        blur=(0.2, 0.45),
        chroma_blur=1.2,
        bloom=0.12,
        vignette=(0.05, 0.28),
        noise=(0.003, 0.01),
    ),
)

LOOKS = {"game": GAME, "photo": PHOTO}
