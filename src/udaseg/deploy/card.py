"""The card of a trained model: what it is, what it learned from and under which terms, how it scores, what it is not for. Part of no result."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from udaseg import origins, results
from udaseg.artifacts import MODEL, RECORD, read_record, write_text
from udaseg.errors import UserError

log = logging.getLogger("udaseg")
CARD = "README.md"  # what hubs show
METRICS = "metrics.json"
OWN = "rendered by this program, Apache-2.0"
# Format of a data set -> its terms, in a few words. THIRD_PARTY.md.
TERMS = {
    "streets": OWN,
    "camvid": "CamVid, CC BY-NC 4.0 (SegNet release): non-commercial",
    "gta5": "GTA5 (Playing for Data), research",
    "synthia": "SYNTHIA, CC BY-NC-SA 3.0: non-commercial",
    "cityscapes": "Cityscapes, research, registration",
    "dark_zurich": "Dark Zurich, research, registration",
    "acdc": "ACDC, research, registration",
    "nighttime_driving": "Nighttime Driving, research",
    "bdd100k_night": "BDD100K, its own licence, registration",
    "folder": "images of the trainer's own: their terms are not known here",
}


def describe(folder: Path, *, scored: bool = False) -> None:
    """Write the card beside the model of a run; what hinders it is said and stops nothing.

    Args:
        folder: of the run, with its run.json.
        scored: whether metrics.json is about this model; after a training it may still be that of the one before.
    """
    try:
        write_text(folder / CARD, card(folder, scored=scored))
    except UserError as error:
        log.warning("no card: %s", error)


def card(folder: Path, *, scored: bool) -> str:
    """The card as Markdown, from run.json and, where it is scored, metrics.json.

    Raises:
        UserError: a file is missing or damaged.
    """
    made = read_record(folder / RECORD)
    found = results.scores_below(folder) if scored else None
    params = made.get("params", {})
    block = params.get("benchmark", {})
    method, benchmark, seed = made.get("method"), made.get("benchmark"), made.get("seed")
    source, target = block.get("source", "not recorded"), block.get("target", "not recorded")
    lines = [
        *("---", "license: other", "library_name: udaseg", "pipeline_tag: image-segmentation"),
        *("tags: [semantic-segmentation, domain-adaptation]", "---", ""),
        f"# {benchmark}, {method}, seed {seed}",
        "",
        f"A network that labels every pixel of an image. It learned from labelled images of `{source}` and unlabelled ones of `{target}` "
        f"(method `{method}` of udaseg, protocol {made.get('protocol')}, {made.get('steps')} steps).",
        "",
        "```python",
        "import udaseg",
        "",
        f'labels = udaseg.load("{MODEL}").predict("photo.jpg").labels  # or: udaseg predict {MODEL} photos/ --out labels',
        "```",
        "",
        "## Scores",
        "",
        *scores(found),
        "",
        "## Data and weights",
        "",
        *data(params),
        f"* weights at the start: {start(made, block)}",
        "",
        "Whoever uses the model keeps these terms; udaseg itself is Apache-2.0.",
        "",
        "## For what, and for what not",
        "",
        f"For research on domain adaptation, and to label images like those of `{target}` where errors do no harm. Its classes are those of the source; a "
        "class that the source does not show is never found, and every pixel gets some class. Not for driving, surveillance or any decision about people. "
        "Scores of one seed and one test set say little about other cameras, places or weather.",
        "",
        "## How it was made",
        "",
        f"* `{made.get('command')}` at revision {made.get('revision')}{' with changes that are not committed' if made.get('dirty') else ''}",
        f"* {made.get('device')}, {made.get('threads')} threads, {made.get('seconds')} s, at most {made.get('peak_memory_mb')} MB",
        f"* hashes: parameters {made.get('params_hash')}, code {made.get('code_hash')}, data {str(made.get('data_hash'))[:16]}, "
        f"model {str(made.get('model_hash'))[:16]}",
        f"* versions: {', '.join(f'{name} {version}' for name, version in made.get('versions', {}).items())}",
        f"* all values: `params` in `{RECORD}`",
    ]
    return "\n".join(lines) + "\n"


def scores(scored: dict[str, Any] | None) -> list[str]:
    if scored is None:
        return [f"Not scored when this was written; `{METRICS}` beside it has the scores once it is."]
    rows = [("mIoU", scored["miou"]), *((f"IoU {name}", value) for name, value in scored["iou"].items())]
    return [
        f"In %, on {scored['images']} labelled test images, one pass over the whole image or in windows as the model file says.",
        "",
        "| score | % |",
        "|---|---:|",
        *(f"| {name} | {value:.2f} |" for name, value in rows),
    ]


def data(params: dict[str, Any]) -> list[str]:
    blocks = params.get("datasets", {})
    return [f"* `{name}`: {TERMS.get(each.get('format', ''), 'terms not known here')}" for name, each in blocks.items()]


def start(made: dict[str, Any], block: dict[str, Any]) -> str:
    weights = str(block.get("model", {}).get("weights", "not recorded"))
    if weights == "none" or made.get("init") == "none":
        return "none, a random start"
    if origin := origins.ORIGINS.get(weights):
        return f"{weights}, {origin.what}"
    return f"{weights} of {block.get('model', {}).get('backbone')}, under the terms of whoever published them"


def parameters(made: dict[str, Any]) -> str:
    """The resolved parameters of a run, as JSON."""
    return json.dumps(made.get("params", {}), indent=2, sort_keys=True) + "\n"
