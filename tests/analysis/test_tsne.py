"""The map: the same bits again, groups apart, and few points do."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest

from udaseg.analysis.tsne import embed
from udaseg.params import Tsne

SETTINGS = Tsne(per_class=10, perplexity=10, iterations=300)


def groups(count: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(3), count)
    return rng.normal(size=(3, channels))[label] + 0.1 * rng.normal(size=(3 * count, channels)), label


def test_same_bits_again() -> None:
    x, _ = groups(40, 60)  # wider than PCA leaves
    first = embed(x, SETTINGS)
    assert first.shape == (120, 2) and first.dtype == np.float32
    assert np.array_equal(first, embed(x, SETTINGS))


def test_groups_lie_apart() -> None:
    x, label = groups(40, 8)
    plane = embed(x, SETTINGS)
    distance = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(label[distance.argmin(1)], label)


@pytest.mark.parametrize("count", [4, 5, 31])
def test_few_points_lower_the_perplexity_in_silence(count: int, caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).normal(size=(count, 6))
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        plane = embed(x, SETTINGS)
    assert np.isfinite(plane).all() and not caplog.records
