"""The ground of the `streets` scenes: land, sidewalks, curbs, road, and what is painted on it."""

from __future__ import annotations

from itertools import pairwise

from udaseg.data.streets.plan import CURB, FAR, NEAR, PARKING, VERGE, Plan
from udaseg.data.streets.scene import ROAD, SIDEWALK, TERRAIN, Colour, Material, Point, Polygon, Range, shade


def breaks(plan: Plan) -> tuple[float, ...]:
    """z (m) at which ground strips are cut: a straight road needs one plane, a bent one follows in steps."""
    if abs(plan.street.curvature) < 2e-4:
        return NEAR, FAR
    return NEAR, 4.0, 9.0, 15.0, 22.0, 31.0, 42.0, 56.0, 74.0, 98.0, FAR


def strip(
    plan: Plan, u: Range, label: int, colour: Colour, material: Material, height: float = 0.0, z: Range = (NEAR, FAR)
) -> None:
    """A ground strip between two lateral positions."""
    at = plan.street.at
    cuts = [z[0], *(b for b in breaks(plan) if z[0] < b < z[1]), z[1]]
    for low, high in pairwise(cuts):
        corners = (at(u[0], low), at(u[1], low), at(u[1], high), at(u[0], high))
        plan.scene.ground.append(Polygon([(x, height, c) for x, c in corners], label, colour, material))


def surfaces(plan: Plan) -> None:
    """Land on both sides, sidewalks with curbs and grass verges, the road and a crossing road."""
    dice, palette, street = plan.dice, plan.look.palette, plan.street
    paving, grass, road = dice.paint(palette.sidewalk), dice.paint(palette.grass), dice.paint(palette.road)
    land = [
        Polygon(
            [(-400.0, CURB, 140.0), (400.0, CURB, 140.0), (400.0, CURB, 900.0), (-400.0, CURB, 900.0)],
            TERRAIN,
            grass,
            Material.GRASS,
        )
    ]
    plan.scene.ground += land
    for i, side in enumerate((-1, 1)):
        edge, paved = street.side_edge(side), plan.fronts[i] in ("blocks", "walled") and dice.chance(0.85)
        surface = (SIDEWALK, paving, Material.PAVING) if paved else (TERRAIN, grass, Material.GRASS)
        strip(plan, (edge, side * 150.0), *surface, CURB)
        width = plan.sidewalk[i]
        if plan.verge[i]:
            strip(plan, (edge, edge + side * VERGE), TERRAIN, grass, Material.GRASS, CURB)
            strip(plan, (edge + side * VERGE, edge + side * (width + VERGE)), SIDEWALK, paving, Material.PAVING, CURB)
        else:
            strip(plan, (edge, edge + side * width), SIDEWALK, paving, Material.PAVING, CURB)
        strip(plan, (edge, edge + side * 0.18), SIDEWALK, shade(paving, 1.12), Material.PLASTER, CURB)
        curb(plan, edge, shade(paving, 0.75))
    strip(plan, street.edges, ROAD, road, Material.ASPHALT)
    for i, side in enumerate((-1, 1)):
        if street.parking[i] and dice.chance(0.5):
            edge = street.side_edge(side)
            strip(plan, (edge, edge - side * (PARKING - 0.1)), ROAD, shade(road, 1.15), Material.PAVING)
    if street.crossing:
        low, high = street.crossing
        corners = [(-150.0, low), (150.0, low), (150.0, high), (-150.0, high)]
        plan.scene.ground.append(Polygon([(x, 0.0, z) for x, z in corners], ROAD, road, Material.ASPHALT))
    for _ in range(dice.count(palette.patches)):  # repaired patches of asphalt
        u, z = dice.uniform(*street.edges) * 0.7, dice.uniform(4.0, 40.0)
        tone = shade(road, dice.uniform(0.75, 1.15))
        strip(
            plan,
            (u, u + dice.uniform(0.6, 2.0)),
            ROAD,
            tone,
            Material.ASPHALT,
            0.0,
            (z, z + dice.uniform(1.5, 9.0)),
        )


def curb(plan: Plan, edge: float, colour: Colour) -> None:
    """The upright face of a curb."""
    at = plan.street.at
    for low, high in pairwise(breaks(plan)):
        (x0, z0), (x1, z1) = at(edge, low), at(edge, high)
        points: list[Point] = [(x0, 0.0, z0), (x1, 0.0, z1), (x1, CURB, z1), (x0, CURB, z0)]
        plan.scene.ground.append(Polygon(points, SIDEWALK, colour, Material.PLASTER))


def markings(plan: Plan) -> None:
    """Lane lines, edge lines, tram rails, zebra crossings and stop lines; all of them are road."""
    dice, street = plan.dice, plan.street
    bright = dice.between(plan.look.palette.marking)
    paint: Colour = (bright, bright, bright * 0.96)
    width, period, dash = 0.16, dice.uniform(8.0, 12.0), dice.uniform(3.0, 5.0)
    worn = dice.chance(plan.look.palette.worn)
    for k in range(1 - street.lanes, street.lanes):
        u = k * street.lane_width
        if k == 0 and dice.chance(0.35):
            line(plan, u, paint, width, (NEAR, FAR))
            continue
        z = NEAR + dice.uniform(0.0, period)
        while z < 75.0 and not worn:
            line(plan, u, paint, width, (z, z + dash))
            z += period
    if not worn:
        for i, side in enumerate((-1, 1)):
            line(
                plan,
                street.side_edge(side) - side * (PARKING if street.parking[i] else 0.3),
                paint,
                width * 0.8,
                (NEAR, 90.0),
            )
    if plan.tram:
        for u in (-street.lane_width / 2, street.lane_width / 2):
            for rail in (-0.72, 0.72):
                line(plan, u + rail, (0.2, 0.2, 0.22), 0.16, (NEAR, FAR), always=True)
                line(plan, u + rail, (0.55, 0.55, 0.58), 0.05, (NEAR, FAR), always=True)
    if street.crossing:
        low, high = street.crossing
        for z in (low - 4.2, high + 1.2):
            zebra(plan, z, paint)
        strip(plan, (0.1, street.lanes * street.lane_width), ROAD, paint, Material.FLAT, 0.0, (low - 5.6, low - 5.1))
    elif dice.chance(0.25):
        zebra(plan, dice.uniform(7.0, 25.0), paint)


def line(plan: Plan, u: float, colour: Colour, width: float, z: Range, always: bool = False) -> None:
    """A line along the road, interrupted by the crossing road."""
    stretches = [z]
    if plan.street.crossing and not always:
        low, high = plan.street.crossing[0] - 5.0, plan.street.crossing[1] + 4.0
        stretches = [(z[0], min(z[1], low)), (max(z[0], high), z[1])]
    for low, high in stretches:
        if high > low:
            strip(plan, (u - width / 2, u + width / 2), ROAD, colour, Material.ASPHALT, 0.0, (low, high))


def zebra(plan: Plan, z: float, colour: Colour) -> None:
    """A zebra crossing, its bars along the road."""
    u = plan.street.edges[0] + 0.4
    while u < plan.street.edges[1] - 0.6:
        strip(plan, (u, u + 0.5), ROAD, colour, Material.ASPHALT, 0.0, (z, z + 3.0))
        u += 1.0
