"""Static labels of a round: oracles of docs/methods/bcl.md, the exact form by sorting, and the pass over a set of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from udaseg.methods.step.static_labels import (
    LEVELS,
    confidence_level,
    label_images,
    level_histogram,
    passes_any,
    passes_locally,
    passes_own,
    share_threshold,
    static_labels,
)

O10 = [0.31, 0.92, 0.55, 0.67, 0.99, 0.71, 0.83, 0.48, 0.95, 0.60]
O10 += [0.77, 0.88, 0.52, 0.97, 0.64, 0.79, 0.90, 0.58, 0.73, 0.86]


def test_bcl_o10() -> None:
    level = confidence_level(torch.tensor(O10)).view(1, 4, 5)
    label = torch.zeros_like(level)
    histogram = level_histogram(label, level, 2)
    for share, threshold, kept in ((0.1, 0.97, 2), (0.25, 0.90, 5), (0.01, None, 0)):
        found = share_threshold(histogram, share)
        assert passes_own(label, level, found).sum() == kept
        assert found[0] == (LEVELS if threshold is None else confidence_level(torch.tensor(threshold)))
        assert found[1] == LEVELS  # a class that was never predicted selects nothing
    p = torch.tensor([0.55, 0.40, 0.05])[None, :, None, None]
    thresholds = confidence_level(torch.tensor([0.6, 0.35, 0.9]))
    assert passes_any(p, thresholds).item()
    assert not passes_own(p.argmax(dim=1), confidence_level(p.amax(dim=1)), thresholds).item()


def test_bcl_o11() -> None:
    level = confidence_level(torch.tensor([[[0.9, 0.5, 0.7], [0.6, 0.95, 0.8]]]))
    assert passes_locally(level, 0.5).tolist() == [[[True, False, False], [False, True, False]]]
    everything = level_histogram(torch.zeros_like(level), level, 1)
    assert share_threshold(everything, 0.5) == confidence_level(torch.tensor([0.8]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.1, 0.29, 0.5, 1.0]))
def test_thresholds_equal_sorting(seed: int, pixels: int, share: float) -> None:
    """The exact form: sort, take element -int(n * r). On levels the two agree without any error."""
    g = torch.Generator().manual_seed(seed)
    probability = torch.rand(2, 1, pixels, generator=g).pow(0.02)  # most of them next to 1
    label = torch.randint(0, 3, (2, 1, pixels), generator=g)
    level = confidence_level(probability)
    found = share_threshold(level_histogram(label, level, 4), share)
    for k in range(4):
        ordered = probability[label == k].sort().values
        kept = int(len(ordered) * share)
        assert found[k] == (confidence_level(ordered[-kept]) if kept else LEVELS)
    local = passes_locally(level, share)
    for b in range(2):
        ordered = level[b].flatten().sort(descending=True).values
        kept = int(pixels * share)
        assert (local[b] == (level[b] > (ordered[kept - 1] if kept else LEVELS))).all()
    globally = passes_own(label, level, found)
    static = static_labels(label, globally, local)
    assert ((static == 255) == ~(globally | local)).all() and (static[globally] == label[globally]).all()


def test_levels_are_monotone_and_within_the_known_error() -> None:
    probability = torch.linspace(0, 1, 100_001)
    level = confidence_level(probability)
    assert (level.diff() >= 0).all() and level[0] == 0 and level[-1] == LEVELS - 1
    _, first = torch.unique_consecutive(level, return_counts=True)
    inside = (level > 0) & (level < LEVELS - 1)  # every step of 2.5e-4 between 1/255 and 1 is seen
    start = int((probability < 1 / 255).sum())
    assert inside[start:-1].all() and first[1:-1].max() <= 25
    assert confidence_level(torch.tensor(1 - 2.0**-24)) < LEVELS - 1  # the last float32 below 1


SHARE = 0.2


class Colours(nn.Module):
    """A network whose logits are the image."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        return images

    def predict(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        assert images.shape[2:] == size and not torch.is_grad_enabled()
        return images


@pytest.mark.parametrize("any_class", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_labelling_a_set_equals_sorting_all_of_it(tmp_path: Path, any_class: bool, on_disk: bool) -> None:
    g = torch.Generator().manual_seed(0)
    sizes = [(9, 12), (10, 12), (10, 7), (4, 4)]
    pictures = [torch.randn(3, h, w, generator=g) for h, w in sizes]
    # the third class wins in the first image only, with little confidence; in the second it has more as a close second
    pictures[0] *= torch.tensor([0.1, 0.1, 0])[:, None, None]
    pictures[1][2] = pictures[1][0] - 0.1
    pictures[2][2] = pictures[3][2] = -9
    calls = []

    def images() -> Iterator[tuple[int, Tensor]]:
        calls.append(1)
        yield from enumerate(pictures)

    shape = (4, 10, 12)
    labels = (
        np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.uint8, shape) if on_disk else np.empty(shape, "u1")
    )
    labels[:] = 255
    label_images(Colours(), images, labels, 3, SHARE, any_class=any_class)  # type: ignore[arg-type]
    assert len(calls) == 1 + any_class and [p.name for p in tmp_path.iterdir()] == ["labels.npy"] * on_disk

    probability = [picture.softmax(dim=0) for picture in pictures]
    winners = [(p.amax(dim=0), p.argmax(dim=0)) for p in probability]
    thresholds = []
    for k in range(3):
        ordered = torch.cat([confidence[label == k] for confidence, label in winners]).sort().values
        thresholds.append(ordered[-int(len(ordered) * SHARE)].item())
    expected = np.full(shape, 255, np.uint8)
    differing = 0
    for n, (p, (confidence, label)) in enumerate(zip(probability, winners, strict=True)):
        own = confidence >= torch.tensor(thresholds)[label]
        everyone = (p >= torch.tensor(thresholds)[:, None, None]).any(dim=0)
        local = confidence > confidence.flatten().sort(descending=True).values[int(confidence.numel() * SHARE) - 1]
        differing += int(((own | local) != (everyone | local)).sum())
        chosen = (everyone if any_class else own) | local
        expected[n, : label.shape[0], : label.shape[1]] = torch.where(chosen, label, 255)
    assert differing and (labels == expected).all()
