"""Composes one `streets` scene: camera and light, then the layers from the ground up."""

from __future__ import annotations

import math

from udaseg.data.streets import frontage, ground, sidewalk, traffic
from udaseg.data.streets.looks import Look
from udaseg.data.streets.plan import PARKING, Plan, Street
from udaseg.data.streets.scene import Dice, Eye, Scene, Sun


def compose(dice: Dice, look: Look) -> Scene:
    """Draws one scene."""
    layout, light = look.layout, look.light
    lanes, lane_width = dice.pick(layout.lanes), dice.between(layout.lane_width)
    parking = (dice.chance(layout.parking), dice.chance(layout.parking))
    edges = (-lanes * lane_width - PARKING * parking[0], lanes * lane_width + PARKING * parking[1])
    start = dice.uniform(8.0, 28.0)
    crossing = (start, start + dice.uniform(7.0, 13.0)) if dice.chance(layout.crossing) else None
    bend = dice.between(layout.curvature) * dice.pick((-1.0, 1.0))
    street = Street(bend, edges, lanes, lane_width, parking, crossing)
    eye = Eye(
        lane_width * (dice.pick(tuple(range(lanes))) + 0.5) + dice.uniform(-0.4, 0.4),
        dice.between(layout.eye_height),
        0.0,
        dice.between(layout.yaw) + bend * 12.0,
        dice.between(layout.pitch),
        dice.between(layout.roll),
        dice.between(layout.focal),
    )
    height, around = dice.between(light.elevation), dice.uniform(0.0, 2 * math.pi)
    overcast = dice.chance(light.overcast)
    sun = Sun(
        math.cos(height) * math.sin(around),
        math.sin(height),
        math.cos(height) * math.cos(around),
        0.0 if overcast else dice.between(light.sun),
    )
    palette = look.palette
    scene = Scene(
        eye,
        sun,
        (dice.paint(palette.horizon), dice.paint(palette.zenith)),
        1.0 if overcast else dice.between(light.clouds),
        dice.uniform(0.05, 0.09) if dice.chance(light.bonnet) else 0.0,
        light.long_shadows and not overcast,
    )
    fronts = (dice.weighted(layout.frontage), dice.weighted(layout.frontage))
    plan = Plan(
        scene,
        street,
        dice,
        look,
        fronts,
        dice.chance(layout.tram),
        (dice.between(layout.sidewalk), dice.between(layout.sidewalk)),
        (dice.chance(layout.verge), dice.chance(layout.verge)),
    )
    ground.surfaces(plan)
    ground.markings(plan)
    frontage.backdrop(plan)
    for side in (-1, 1):
        frontage.frontage(plan, side)
    traffic.vehicles_and_riders(plan)
    for side in (-1, 1):
        sidewalk.curbside(plan, side)
    sidewalk.corners(plan)
    sidewalk.people(plan)
    return scene
