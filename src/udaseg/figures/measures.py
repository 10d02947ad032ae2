"""What people are shown of analysis.json, the same in figure and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    title: str
    more: bool  # is more better?
    digits: int


MEASURES = {
    "intra_variance": Measure("variance in a class", False, 3),
    "separation": Measure("separation of centres", True, 3),
    "fisher_ratio": Measure("separation / variance", True, 3),
    "silhouette": Measure("silhouette", True, 3),
    "center_distance": Measure("centre distance (CCD)", False, 3),
    "pdd": Measure("discrimination (PDD)", True, 4),
    "domain_gap": Measure("gap of domains", False, 4),
    "linear_probe": Measure("linear probe (%)", True, 1),
    "linear_probe_from_source": Measure("linear probe from source (%)", True, 1),
    "knn": Measure("k\u2011NN (%)", True, 1),
    "knn_from_source": Measure("k\u2011NN from source (%)", True, 1),
}


def defined(values: Sequence[Any]) -> list[float]:
    """The seeds' values; none unless every seed has one."""
    found = [float(value) for value in values if isinstance(value, int | float)]
    return found if len(found) == len(values) else []


def span(values: Iterable[Any]) -> str:
    """One number, or the lowest and the highest; a dash where there is none."""
    found = sorted({value for value in values if value is not None})
    return " to ".join(map(str, found[:: max(1, len(found) - 1)])) or "-"


def limits(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What limits these values of the methods' seeds, as sentences."""
    every = [one for seeds in methods.values() for one in seeds]
    out = []
    if without := [method for method, seeds in methods.items() if any(one.get("pdd_clamped") for one in seeds)]:
        out.append(f"PDD is not defined for {', '.join(without)}: a denominator was not positive.")
    if any(one.get("probe_split") == "cell" for one in every):
        out.append("Probes saw all images (too few to halve): their accuracies are too high.")
    if fewer := [one for one in every if one.get("probe_classes", one.get("classes")) != one.get("classes")]:
        asked, of = (span(one[key] for one in fewer) for key in ("probe_classes", "classes"))
        out.append(f"Probes were asked for {asked} of {of} classes, the others lie in one half of the images alone.")
    return out
