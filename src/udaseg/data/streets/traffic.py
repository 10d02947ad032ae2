"""What is on the road of the `streets` scenes: moving, crossing and parked vehicles, and riders."""

from __future__ import annotations

import math
from collections.abc import Callable

from udaseg.data.streets import things, vehicles
from udaseg.data.streets.looks import Palette
from udaseg.data.streets.plan import PARKING, Plan
from udaseg.data.streets.scene import BICYCLE, MOTORCYCLE, Dice, Scene

Maker = Callable[[Scene, Dice, Palette, float, float, float], None]
"""Adds a vehicle at (x, z) heading along a yaw, like `vehicles.car`."""


def place(plan: Plan, maker: Maker, u: float, z: float, half: float, against: bool, half_u: float = 1.3) -> None:
    """A vehicle on its lane, if there is room."""
    street = plan.street
    if street.claim(u, z, half_u, half):
        yaw = street.yaw(z) + (math.pi if against else 0.0) + plan.dice.uniform(-0.03, 0.03)
        maker(plan.scene, plan.dice, plan.look.palette, *street.at(u, z), yaw)


def vehicles_and_riders(plan: Plan) -> None:
    """Moving vehicles in their lanes, crossing vehicles, riders, then parked cars."""
    dice, layout, street = plan.dice, plan.look.layout, plan.street
    own = street.lane_width * (int(plan.scene.eye.x / street.lane_width) + 0.5)
    street.claim(own, 2.0, 1.3, 5.0)  # the camera's own car
    if plan.tram and dice.chance(layout.train):
        ahead = own > street.lane_width and dice.chance(0.4)
        u = street.lane_width / 2 if ahead else -street.lane_width / 2
        place(plan, vehicles.train, u, dice.uniform(16.0, 34.0), 13.0, not ahead)
    for maker, probability in ((vehicles.bus, layout.bus), (vehicles.truck, layout.truck)):
        if dice.chance(probability):
            u, against = lane(plan)
            place(plan, maker, u, dice.uniform(11.5, 30.0), 6.5, against)
    for vehicle, mean in ((BICYCLE, layout.cyclists), (MOTORCYCLE, layout.bikers)):
        for _ in range(dice.count(mean)):
            rider(plan, vehicle)
    for _ in range(dice.count(layout.traffic)):
        u, against = lane(plan)
        place(plan, vehicles.car, u + dice.uniform(-0.3, 0.3), 7.0 + 65.0 * dice.uniform(0.0, 1.0) ** 1.5, 3.4, against)
    if street.crossing and dice.chance(0.5):
        z = dice.uniform(street.crossing[0] + 2.0, street.crossing[1] - 2.0)
        u = dice.uniform(-12.0, 12.0)
        if street.claim(u, z, 3.0, 1.3):
            crossing = dice.pick((vehicles.car, vehicles.car, vehicles.truck, vehicles.bus))
            crossing(plan.scene, dice, plan.look.palette, *street.at(u, z), dice.pick((-1.0, 1.0)) * math.pi / 2)
    for i, side in enumerate((-1, 1)):
        if street.parking[i]:
            parked(plan, side)


def lane(plan: Plan) -> tuple[float, bool]:
    """Centre of a random lane, and whether traffic there comes towards the camera."""
    k, against = plan.dice.pick(tuple(range(plan.street.lanes))), plan.dice.chance(0.5)
    u = plan.street.lane_width * (k + 0.5)
    return (-u, True) if against else (u, False)


def rider(plan: Plan, vehicle: int) -> None:
    """A moving bicycle or motorcycle: along the road, or crossing it."""
    dice, street = plan.dice, plan.street
    z = dice.uniform(4.8, 19.0)
    against, across = dice.chance(0.4), dice.chance(0.35)
    u = dice.uniform(*street.edges) if across else (street.edges[0] + 1.4 if against else street.edges[1] - 1.4)
    u += dice.uniform(-0.8, 0.8) + (0.0 if across else (PARKING if against else -PARKING) * street.parking[not against])
    yaw = street.yaw(z) + (math.pi if against else 0.0) + (math.pi / 2 if across else dice.uniform(-0.45, 0.45))
    if street.claim(u, z, 0.9, 1.0):
        things.cyclist(plan.scene, dice, plan.look.palette, *street.at(u, z), yaw, vehicle)


def parked(plan: Plan, side: int) -> None:
    """Cars, sometimes vans or lorries, along the curb."""
    dice, street = plan.dice, plan.street
    z = dice.uniform(3.5, 7.0)
    while z < 75.0:
        if street.open(z - 4.0, z + 4.0) and dice.chance(plan.look.layout.parked):
            u = street.side_edge(side) - side * dice.uniform(1.05, 1.2)
            large = dice.chance(0.04) and z > 12.0
            place(plan, vehicles.truck if large else vehicles.car, u, z, 4.8 if large else 2.6, side < 0, 0.9)
        z += dice.uniform(5.3, 6.4)
