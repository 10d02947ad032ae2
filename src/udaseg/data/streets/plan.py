"""The plan of one `streets` scene: the road's course and cross-section, and what has been drawn by lot about its sides.

Lateral positions u are metres to the right of the road's centre line; traffic keeps to the right. Sides are -1 and +1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from udaseg.data.streets.looks import Look
from udaseg.data.streets.scene import Dice, Range, Scene

CURB = 0.12
"""Height of the sidewalks and the land beside the road (m)."""
PARKING = 2.2
"""Width of a parking lane (m)."""
VERGE = 1.8
"""Width of a grass strip between road and sidewalk (m)."""
NEAR, FAR = -3.0, 150.0
"""Extent of the street along z (m)."""


@dataclass
class Street:
    """The road's course and cross-section, and which ground is taken."""

    curvature: float
    edges: tuple[float, float]  # u of the left and right curb
    lanes: int  # per direction
    lane_width: float
    parking: tuple[bool, bool]
    crossing: Range | None  # z of the intersecting road
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def at(self, u: float, z: float) -> tuple[float, float]:
        """Ground point (x, z) of lateral position u."""
        return u + self.curvature * z * z / 2, z

    def yaw(self, z: float) -> float:
        """Heading of the road (rad)."""
        return math.atan(self.curvature * z)

    def side_edge(self, side: int) -> float:
        """u of the curb of side -1 or +1."""
        return self.edges[(side + 1) // 2]

    def open(self, low: float, high: float) -> bool:
        """Whether the stretch low..high (m) keeps clear of the intersecting road."""
        return self.crossing is None or high < self.crossing[0] - 2.0 or low > self.crossing[1] + 2.0

    def claim(self, u: float, z: float, half_u: float, half_z: float) -> bool:
        """Takes a rectangle of ground if nothing else stands there."""
        for other_u, other_z, other_hu, other_hz in self.taken:
            if abs(u - other_u) < half_u + other_hu and abs(z - other_z) < half_z + other_hz:
                return False
        self.taken.append((u, z, half_u, half_z))
        return True


@dataclass
class Plan:
    """What the layers of a scene share; pairs are for the left and the right side."""

    scene: Scene
    street: Street
    dice: Dice
    look: Look
    fronts: tuple[str, str]  # keys of `Layout.frontage`
    tram: bool
    sidewalk: tuple[float, float]  # width (m)
    verge: tuple[bool, bool]

    def inner(self, side: int) -> float:
        """u where the sidewalk of one side begins."""
        return self.street.side_edge(side) + side * VERGE * self.verge[(side + 1) // 2]

    def outer(self, side: int) -> float:
        """u where the sidewalk of one side ends."""
        return self.inner(side) + side * self.sidewalk[(side + 1) // 2]
