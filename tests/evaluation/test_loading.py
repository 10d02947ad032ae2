"""What comes out of the loader, in which order and how far ahead."""

from __future__ import annotations

import numpy as np
import pytest
from fake_data import random_data

from udaseg.classes import class_space
from udaseg.errors import UserError
from udaseg.evaluation import loading


def test_batches_hold_equal_sizes_in_order() -> None:
    data = random_data([(8, 12)] * 9 + [(7, 13), (8, 12), (8, 12)], scale=2)
    found = list(loading.batches(data, data.samples("test"), class_space("cityscapes19"), threads=3))
    assert [len(images) for images, _ in found] == [8, 1, 1, 2]
    images = [image for batch, _ in found for image in batch]
    labels = [label for _, batch in found for label in batch]
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), data.images[str(n)])
        assert np.array_equal(label.numpy(), data.labels[str(n)])


def test_labels_come_in_the_class_space_of_the_benchmark() -> None:
    data = random_data([(4, 4)])
    data.labels["0"] = np.array([[10, 13, 9, 255]], np.uint8)
    (_, label), *_ = loading.batches(data, data.samples("test"), class_space("cityscapes16"))
    assert label.tolist() == [[[9, 12, 255, 255]]]  # sky, car; terrain is not scored


def test_large_images_go_alone() -> None:
    assert loading.room(((512, 1024), (1024, 2048))) == 1
    assert loading.room(((2048, 4096), (2048, 4096))) == 1
    assert loading.room(((128, 256), (128, 256))) == 8


def test_reading_ahead_is_bounded_and_ends_with_an_error() -> None:
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n == 20:
            raise UserError("damaged")
        return n

    items = loading.ahead(work, range(100), threads=2)
    assert next(items) == 0
    assert max(begun) <= loading.MOST_IMAGES + 2
    with pytest.raises(UserError, match="damaged"):
        list(items)
    assert max(begun) < 100 - 1
