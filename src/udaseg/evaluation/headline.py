"""The few numbers of a run that fit one line of a terminal: headline.json, which DVC shows and compares. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME = "headline.json"


def of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The headline of a metrics.json, in percent.

    `miou`, the means over other class lists (`miou13`; not one over all classes, which is `miou` again), and under `other`,
    where there are any, the mIoU of each: teacher, aggregated, flip, further evaluation sets. The names keep `miou` first in
    DVC's tables, which are sorted by name.
    """
    everything = f"miou{len(metrics['iou']) + len(metrics['absent'])}"
    found = {key: value for key, value in metrics.items() if key.startswith("miou") and key != everything}
    other = {name: block["miou"] for name, block in metrics["other"].items()}
    return found | ({"other": other} if other else {})
