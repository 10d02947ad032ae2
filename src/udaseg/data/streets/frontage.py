"""What lines the street beyond the sidewalks of the `streets` scenes: buildings, barriers, plants, the far skyline."""

from __future__ import annotations

import math

from udaseg.data.streets import structures, things
from udaseg.data.streets.plan import CURB, FAR, NEAR, Plan
from udaseg.data.streets.scene import BUILDING, VEGETATION, Material


def backdrop(plan: Plan) -> None:
    """Distant roofs and trees that close the view."""
    dice, scene = plan.dice, plan.scene
    x = -260.0
    while x < 260.0:
        width, z = dice.uniform(12.0, 34.0), dice.uniform(165.0, 230.0)
        part = scene.thing(x, z)
        if dice.chance(0.6):
            colour, top = dice.paint(plan.look.palette.building), dice.uniform(8.0, 22.0)
            quad = [(x, 0.0, z), (x + width, 0.0, z), (x + width, top, z), (x, top, z)]
            part.add(quad, BUILDING, colour, Material.FACADE, (3.2, 3.0, 0.5, 7.0))
        else:
            colour, top = dice.paint(plan.look.palette.leaves), dice.uniform(7.0, 14.0)
            rim = [
                (
                    x + width * (i / 8 * 1.3 - 0.15),
                    top * (0.6 + 0.4 * dice.uniform(0.5, 1.0) * math.sin(math.pi * i / 8)),
                    z,
                )
                for i in range(9)
            ]
            part.add(
                [(x + width * 1.15, 0.0, z), (x - width * 0.15, 0.0, z), *rim], VEGETATION, colour, Material.LEAVES
            )
        x += width * 0.9


def frontage(plan: Plan, side: int) -> None:
    """What stands behind the sidewalk of one side."""
    kind = plan.fronts[(side + 1) // 2]
    edge = plan.outer(side)
    dice, palette = plan.dice, plan.look.palette
    if kind == "blocks":
        blocks(plan, side, edge, dice.uniform(0.0, 0.6), plan.look.layout.storeys, 0.12, True)
    elif kind == "houses":
        blocks(plan, side, edge + side * dice.uniform(4.0, 9.0), 1.5, (1, 3), 0.45, False)
        barrier(plan, side, edge, dice.pick(("fence", "hedge", "low wall", "fence")))
        plants(plan, side, edge + side * 2.2, 14.0, 0.5)
    elif kind == "park":
        blocks(plan, side, edge + side * dice.uniform(22.0, 40.0), 3.0, plan.look.layout.storeys, 0.4, False)
        if dice.chance(0.6):
            barrier(plan, side, edge + side * 0.4, dice.pick(("fence", "hedge", "low wall")))
        plants(plan, side, edge + side * 3.0, 7.0, 0.85)
        plants(plan, side, edge + side * 10.0, 9.0, 0.8)
    elif kind == "walled":
        blocks(plan, side, edge + side * dice.uniform(8.0, 18.0), 2.0, plan.look.layout.storeys, 0.3, False)
        plants(plan, side, edge + side * 3.0, 10.0, 0.6)
        barrier(plan, side, edge, "high wall")
    else:
        blocks(plan, side, edge + side * dice.uniform(6.0, 12.0), 4.0, (2, 4), 0.35, False)
        barrier(plan, side, edge, dice.pick(("mesh", "mesh", "planks")))
    if kind != "blocks" and dice.chance(0.5):
        for _ in range(dice.count(4.0)):
            things.bush(
                plan.scene,
                dice,
                palette,
                *plan.street.at(edge + side * dice.uniform(0.8, 2.0), dice.uniform(4.0, 45.0)),
            )


def blocks(
    plan: Plan, side: int, edge: float, setback: float, storeys: tuple[int, int], gaps: float, shops: bool
) -> None:
    """A row of buildings."""
    dice, street, layout = plan.dice, plan.street, plan.look.layout
    z, pitched = NEAR, dice.chance(layout.mansard)
    tall = dice.uniform(*storeys)
    while z < FAR - 10.0:
        length = dice.uniform(8.0, 18.0)
        if street.open(z, z + length):
            u = edge + side * dice.uniform(0.0, setback)
            floors = max(storeys[0], min(storeys[1], round(tall + dice.uniform(-1.6, 1.6))))
            structures.building(
                plan.scene,
                dice,
                plan.look.palette,
                street.at(u, z),
                street.at(u, z + length),
                side,
                floors,
                pitched and dice.chance(0.85),
                shops and dice.chance(0.6),
            )
            z += length
        else:
            z += 3.0
        if dice.chance(gaps):
            z += dice.uniform(2.0, 9.0)


def barrier(plan: Plan, side: int, u: float, kind: str) -> None:
    """A wall, fence or hedge along one side, in stretches short enough to sort by distance."""
    dice, street, palette = plan.dice, plan.street, plan.look.palette
    wall, leaf, wood = dice.paint(palette.wall), dice.paint(palette.leaves), dice.paint(palette.fence)
    height = {
        "high wall": dice.uniform(2.0, 3.6),
        "low wall": dice.uniform(0.7, 1.3),
        "mesh": dice.uniform(1.8, 2.6),
    }.get(kind, dice.uniform(1.0, 1.8))
    material = {"mesh": Material.MESH, "planks": Material.PLANKS}.get(kind, Material.PICKETS)
    z, step = NEAR, 6.0
    while z < 95.0:
        if street.open(z, z + step) and not (kind != "high wall" and dice.chance(0.06)):
            near, far = street.at(u, z), street.at(u, z + step)
            if kind.endswith("wall"):
                structures.wall(plan.scene, near, far, height, wall)
            elif kind == "hedge":
                structures.hedge(plan.scene, dice, near, far, height, leaf, side)
            else:
                structures.fence(plan.scene, near, far, height, wood, material)
        z += step


def plants(plan: Plan, side: int, u: float, spacing: float, density: float) -> None:
    """Trees scattered behind the frontage."""
    dice, z = plan.dice, 3.0
    while z < 110.0:
        z += spacing * dice.uniform(0.6, 1.4)
        if plan.street.open(z - 1, z + 1) and dice.chance(density):
            x, depth = plan.street.at(u + side * dice.uniform(0.0, 4.0), z)
            things.tree(
                plan.scene, dice, plan.look.palette, x, depth, dice.weighted(plan.look.layout.tree_shapes), CURB
            )
