"""What was prepared, in a few lines, and what would only be noticed after hours of training: counts of images, sizes and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from udaseg.classes import IGNORE, class_space
from udaseg.data.prepared import Prepared, Sample
from udaseg.errors import UserError
from udaseg.params import Params, Size, Use, uses


@dataclass(frozen=True)
class View:
    """Prepared data in a class space: its names, and prepared value -> index among them (255: none)."""

    data: Prepared
    names: Sequence[str]
    lut: Sequence[int]

    def pixels(self, sample: Sample) -> Counter[str]:
        """Class -> pixels of one full-size label, of the classes that it shows."""
        found: Counter[str] = Counter()
        for value, n in (sample.counts or {}).items():
            if value < len(self.lut) and self.lut[value] != IGNORE:
                found[self.names[self.lut[value]]] += n
        return found

    def absent(self, samples: Sequence[Sample]) -> list[str]:
        """Classes without one pixel in these samples."""
        found: Counter[str] = Counter()
        for sample in samples:
            found.update(self.pixels(sample))
        return [name for name in self.names if not found[name]]


def of_dataset(folder: Path) -> str:
    """The account of one prepared data set, in its own classes."""
    data = Prepared(folder)
    view = View(data, data.classes, range(len(data.classes)))
    return "\n".join(line for split in data.splits for line in lines(f"{folder.name} {split}", view, split))


def of_benchmark(p: Params, name: str, root: Path = Path("data")) -> str:
    """The account of all that a benchmark uses, in its classes.

    Raises:
        UserError: a source or test split without one pixel of the classes, a class that the source lacks, or a crop that no
            image can fill.
    """
    block = p.benchmarks[name]
    space = class_space(block.classes)
    out, problems = [], []
    for use in uses(block):
        data = Prepared(root / name / use.prepared)
        view = View(data, space.names, space.lut(data.classes).tolist())
        out += lines(f"{use.role} {use.dataset}/{use.split}", view, use.split)
        problems += wrong(name, use, view, block.train.crop)
    if problems:
        raise UserError("; ".join(problems))
    return "\n".join(out)


def lines(title: str, view: View, split: str) -> list[str]:
    """One line for a split, and one for the classes that it lacks."""
    samples = view.data.samples(split)
    sizes = Counter(sample.image_size for sample in samples).most_common()
    shown = _x(sizes[0][0]) + (f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else "")
    text = f"{title}: {len(samples)} images of {shown}"
    if not any(sample.label for sample in samples):
        return [f"{text}, no labels"]
    absent = view.absent(samples)
    text += f", {len(view.names) - len(absent)} of {len(view.names)} classes"
    if bare := [sample.name for sample in samples if sample.label and not view.pixels(sample)]:
        text += f", {len(bare)} without a pixel of them (first {bare[0]})"
    return [text, *([f"  absent: {', '.join(absent)}"] if absent else [])]


def wrong(benchmark: str, use: Use, view: View, crop: Size) -> list[str]:
    """What makes a split of no use to the benchmark."""
    samples, where = view.data.samples(use.split), f"{use.dataset}/{use.split}"
    sizes = {sample.image_size for sample in samples}
    out = []
    if use.role != "evaluate" and all(w < crop.width or h < crop.height for w, h in sizes):
        largest = max(sizes, key=lambda size: size[0] * size[1])
        out.append(
            f"{where}: found images of at most {_x(largest)}, expected some that hold the crop {crop}; enlarge "
            f"benchmarks.{benchmark}.size, or reduce its train.crop"
        )
    absent = view.absent(samples) if use.role != "target" else []
    if absent and len(absent) == len(view.names):
        out.append(
            f"{where}: found {len(samples)} images without one pixel of the classes {', '.join(view.names)}; expected labels "
            f"in them; look at `ids` and `classes` of datasets.{use.dataset}"
        )
    elif absent and use.role == "source":
        out.append(
            f"{where}: no pixel of {', '.join(absent)} in the source, so they cannot be learned; leave them out of "
            f"benchmarks.{benchmark}.classes, or look at `ids` of datasets.{use.dataset}"
        )
    return out


def _x(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
