"""What is beside the road of the `streets` scenes: lamps, street trees, signs, lights, parked cycles, pedestrians."""

from __future__ import annotations

import math

from udaseg.data.streets import things
from udaseg.data.streets.plan import CURB, VERGE, Plan
from udaseg.data.streets.scene import BICYCLE, MOTORCYCLE


def curbside(plan: Plan, side: int) -> None:
    """Lamps, trees, signs, bollards, parked cycles along the curb of one side."""
    dice, street, layout, palette, scene = plan.dice, plan.street, plan.look.layout, plan.look.palette, plan.scene
    i, edge = (side + 1) // 2, street.side_edge(side)
    u = edge + side * 0.6
    if dice.chance(layout.lamps):
        z, step = dice.uniform(4.0, 16.0), dice.uniform(16.0, 26.0)
        while z < 100.0:
            if street.open(z, z) and street.claim(u, z, 0.3, 0.6):
                things.lamp(scene, dice, palette, *street.at(u, z), street.yaw(z) - side * math.pi / 2)
            z += step
    if dice.chance(layout.trees):
        z, step, shape = dice.uniform(6.0, 12.0), dice.uniform(7.0, 13.0), dice.weighted(layout.tree_shapes)
        while z < 90.0:
            if street.open(z - 1, z + 1) and street.claim(u, z, 0.5, 1.0):
                things.tree(scene, dice, palette, *street.at(u, z), shape, CURB)
            z += step * dice.uniform(0.85, 1.15)
    for _ in range(dice.count(layout.signs / 2)):
        z = 5.0 + 24.0 * dice.uniform(0.0, 1.0) ** 1.5
        if street.open(z, z) and street.claim(u, z, 0.4, 0.6):
            things.sign(scene, dice, palette, *street.at(u, z))
    for vehicle, mean in ((BICYCLE, layout.racks), (MOTORCYCLE, layout.mopeds)):
        if dice.chance(mean / 2):
            rack(plan, side, edge + side * (0.9 + 0.4 * plan.verge[i]), vehicle)
    if dice.chance(0.2):
        for k in range(6):
            z = 5.0 + 2.5 * k
            if street.open(z, z) and street.claim(edge + side * 0.35, z, 0.2, 0.2):
                things.bollard(scene, dice, palette, *street.at(edge + side * 0.35, z))
    if dice.chance(layout.gantry / 2):
        z = dice.uniform(11.0, 26.0)
        if street.claim(u, z, 0.4, 0.6):
            things.gantry(scene, dice, palette, *street.at(u, z), -side * dice.uniform(2.8, 5.2))


def rack(plan: Plan, side: int, u: float, vehicle: int) -> None:
    """A group of parked bicycles or motorcycles on the sidewalk."""
    dice, street = plan.dice, plan.street
    z, slant = dice.uniform(4.5, 13.0), street.yaw(0.0) + side * dice.uniform(0.5, 1.6)
    for _ in range(1 + dice.count(2.0)):
        if street.open(z, z) and street.claim(u, z, 0.8, 0.45):
            yaw = slant + dice.uniform(-0.2, 0.2)
            things.parked_cycle(plan.scene, dice, plan.look.palette, *street.at(u, z), yaw, vehicle)
        z += dice.uniform(0.9, 1.6)


def corners(plan: Plan) -> None:
    """Traffic lights at the crossing road or, without one, sometimes at a crossing for pedestrians."""
    dice, street = plan.dice, plan.street
    if street.crossing:
        places = [
            (street.crossing[0] - 3.0, 1),
            (street.crossing[0] - 3.0, -1),
            (street.crossing[1] + 3.0, 1),
            (street.crossing[1] + 3.0, -1),
        ]
    elif dice.chance(0.25):
        z = dice.uniform(8.0, 24.0)
        places = [(z, 1), (z, -1)]
    else:
        places = []
    for z, side in places:
        u = street.side_edge(side) + side * 0.5
        if street.claim(u, z, 0.3, 0.3):
            arm = -side * dice.uniform(2.5, 4.5) if dice.chance(plan.look.layout.gantry) else 0.0
            things.traffic_light(plan.scene, dice, plan.look.palette, *street.at(u, z), arm)


def people(plan: Plan) -> None:
    """Pedestrians on the sidewalks and on the road."""
    dice, street, layout = plan.dice, plan.street, plan.look.layout
    for _ in range(dice.count(layout.walkers)):
        side, z = dice.pick((-1, 1)), 4.5 + 32.0 * dice.uniform(0.0, 1.0) ** 1.7
        i = (side + 1) // 2
        u = street.side_edge(side) + side * dice.uniform(0.7, plan.sidewalk[i] + VERGE * plan.verge[i])
        for _ in range(dice.pick((1, 1, 2, 3))):
            if street.open(z, z) and street.claim(u, z, 0.3, 0.3):
                things.person(plan.scene, dice, plan.look.palette, *street.at(u, z))
            u, z = u + dice.uniform(-0.7, 0.7), z + dice.uniform(0.0, 0.6)
    for _ in range(dice.count(layout.crossers)):
        base = street.crossing[0] - 2.7 if street.crossing and dice.chance(0.7) else dice.uniform(6.0, 26.0)
        u, z = dice.uniform(*street.edges), base + dice.uniform(-0.8, 0.8)
        if z > 4.0 and street.claim(u, z, 0.35, 0.35):
            things.person(plan.scene, dice, plan.look.palette, *street.at(u, z))
