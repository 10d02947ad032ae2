"""Class-balanced cropping against slices of the image."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udaseg.methods.step.crops import best_corner, class_counts, crop_scores, cut
from udaseg.params import Size


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9))
def test_counts_and_crops_equal_slices(seed: int, height: int, width: int) -> None:
    g, size = torch.Generator().manual_seed(seed), Size(width, height)
    label = torch.randint(0, 4, (2, 6, 9), generator=g)
    label[label == 3] = 255
    images = torch.rand(2, 3, 6, 9, generator=g)
    top = torch.randint(0, 6 - height + 1, (2, 5), generator=g)
    left = torch.randint(0, 9 - width + 1, (2, 5), generator=g)
    corners = torch.stack([top, left], dim=2)
    counts = class_counts(label, corners, size, 3)
    best = best_corner(label, corners, size, 3, 0.75)
    for b in range(2):
        for n in range(5):
            y, x = corners[b, n].tolist()
            piece = label[b, y : y + height, x : x + width]
            assert counts[b, n].tolist() == [(piece == k).sum() for k in range(3)]
        scores = crop_scores(counts[b], 0.75).tolist()
        assert best[b].tolist() == corners[b, scores.index(max(scores))].tolist()  # the first of equals
        y, x = best[b].tolist()
        assert torch.equal(cut(images, best, size)[b], images[b, :, y : y + height, x : x + width])
