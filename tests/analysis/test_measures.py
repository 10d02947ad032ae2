"""Measures against worked examples, slow loops and what must not change them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.base import ClassifierMixin

from udaseg.analysis import measures

Sample = tuple[np.ndarray, np.ndarray]
PER_CLASS = (
    measures.intra_variance,
    measures.compactness,
    measures.center_distance,
    measures.pdd_difference,
    lambda x, y: measures.pdd(x, y)[0],
)
OVERALL = (measures.separation, measures.center_cosine, measures.silhouette, lambda x, y: measures.pdd(x, y)[1])


def crossed(model: ClassifierMixin, x: np.ndarray, label: np.ndarray, image: np.ndarray) -> float:
    """Accuracy over the halves in percent, mean over classes."""
    half, both, _ = measures.halves(label, image, 0)
    hits = measures.cross_accuracy(model, x[both], label[both], half[both])
    return 100 * float(np.mean([hits[label[both] == k].mean() for k in set(label[both])]))


@pytest.fixture
def sample() -> Sample:
    """40 cells of 4 classes of unequal sizes, in any order, in 5 dimensions."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(4), (4, 6, 10, 20)))
    return measures.unit(rng.normal(size=(4, 5))[label] + 0.5 * rng.normal(size=(40, 5))), label


def test_bcl_o17_variance_and_centre_distance() -> None:
    x = np.array([[0, 0], [2, 0], [1, 3], [1, 5], [5, 1]], float)
    label = np.array([0, 0, 1, 1, 2])
    np.testing.assert_allclose(measures.centres(x, label), [[1, 0], [1, 4], [5, 1]], rtol=1e-12)
    np.testing.assert_allclose(measures.intra_variance(x, label), [1, 1, 0], atol=1e-12)
    distance = measures.center_distance(x, label)
    np.testing.assert_allclose(distance, [0.060662, 0.051250, 0], atol=5e-7)
    assert distance.mean() == pytest.approx(0.037304, abs=5e-7)


def test_sepico_12_pdd_and_centre_distance() -> None:
    x = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0.8, 0.6]])
    label = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(measures.centres(x, label), [[0.9, 0.3, 0], [0.3, 0.8, 0.3]], rtol=1e-10)
    ratio, clamped = measures.pdd(x, label)
    np.testing.assert_allclose(ratio, [2.0283579840, 2.3404130584], rtol=1e-10)
    assert clamped == 0
    np.testing.assert_allclose(measures.center_distance(x, label), [1 / 7, 0.2571428571], rtol=1e-9)


def test_a_square_worked_by_hand() -> None:
    """Two classes on the axes: centres (1, 0) and (0, 1); the gap to a source whose second centre is at 45 degrees."""
    x, label = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], float), np.array([0, 0, 1, 1])
    assert measures.separation(x, label) == pytest.approx(2)
    assert measures.center_cosine(x, label) == pytest.approx(0)
    assert measures.silhouette(x, label) == pytest.approx(1)
    np.testing.assert_allclose(measures.compactness(x, label), [1, 1])
    np.testing.assert_allclose(measures.pdd_difference(x, label), [1, 1])
    source = np.array([[1, 0], [1, 1]], float)
    np.testing.assert_allclose(measures.domain_gap(source, np.arange(2), x, label), [0, 1 - np.sqrt(0.5)], atol=1e-12)


def test_a_denominator_that_is_not_positive_is_raised_and_counted() -> None:
    x = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0.0]])
    ratio, clamped = measures.pdd(x, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(ratio, [1e6, 1e6])
    assert clamped == 4
    np.testing.assert_allclose(measures.pdd_difference(x, np.array([0, 0, 1, 1])), [2, 2])


def test_dead_cells_and_classes_in_one_place_give_finite_values() -> None:
    x, label = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [1, 0], [1, 0]], float), np.repeat([0, 1, 2], 2)
    for function in PER_CLASS:
        assert np.isfinite(function(x, label)).all()


def test_measures_agree_with_loops(sample: Sample) -> None:
    x, label = sample
    classes = range(4)
    mean = [sum(x[i] for i in np.flatnonzero(label == c)) / (label == c).sum() for c in classes]

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))

    variance, tight, distance, ratio, difference = ([] for _ in range(5))
    for c in classes:
        mine = [x[i] for i in range(len(x)) if label[i] == c]
        other = [k for k in classes if k != c]
        variance.append(sum(((z - mean[c]) ** 2).sum() for z in mine) / len(mine))
        tight.append(sum(cos(z, mean[c]) for z in mine) / len(mine))
        distance.append(sum(variance[c] / ((mean[c] - mean[k]) ** 2).sum() for k in other) / 3)
        ratio.append(sum(cos(z, mean[c]) / max(sum(cos(z, mean[k]) for k in other), 1e-6) for z in mine) / len(mine))
        difference.append(sum(cos(z, mean[c]) - sum(cos(z, mean[k]) for k in other) / 3 for z in mine) / len(mine))
    for function, expected in zip(PER_CLASS, (variance, tight, distance, difference, ratio), strict=True):
        np.testing.assert_allclose(function(x, label), expected, rtol=1e-10)
    pairs = [(a, b) for a in classes for b in classes if a < b]
    assert measures.separation(x, label) == pytest.approx(np.mean([((mean[a] - mean[b]) ** 2).sum() for a, b in pairs]))
    assert measures.center_cosine(x, label) == pytest.approx(np.mean([cos(mean[a], mean[b]) for a, b in pairs]))

    widths = []
    for i, z in enumerate(x):
        far = {c: [np.sqrt(((z - y) ** 2).sum()) for j, y in enumerate(x) if label[j] == c and j != i] for c in classes}
        own, near = np.mean(far[label[i]]), min(np.mean(far[c]) for c in classes if c != label[i])
        widths.append((near - own) / max(near, own))
    expected_width = np.mean([np.mean([w for w, k in zip(widths, label, strict=True) if k == c]) for c in classes])
    assert measures.silhouette(x, label) == pytest.approx(expected_width)


@pytest.mark.parametrize("function", OVERALL)
def test_order_rotation_and_names_of_classes_change_nothing(
    function: Callable[[np.ndarray, np.ndarray], float], sample: Sample
) -> None:
    x, label = sample
    rng = np.random.default_rng(1)
    order, names = rng.permutation(len(x)), rng.permutation(4)
    turned = x @ ortho_group.rvs(5, random_state=2)
    for other in ((x[order], label[order]), (turned, label), (x, names[label])):
        assert function(*other) == pytest.approx(function(x, label))


@pytest.mark.parametrize("function", PER_CLASS)
def test_each_class_keeps_its_value(function: Callable[[np.ndarray, np.ndarray], np.ndarray], sample: Sample) -> None:
    x, label = sample
    rng = np.random.default_rng(1)
    order, names = rng.permutation(len(x)), rng.permutation(4)
    turned = x @ ortho_group.rvs(5, random_state=2)
    expected = function(x, label)
    np.testing.assert_allclose(function(x[order], label[order]), expected)
    np.testing.assert_allclose(function(turned, label), expected)
    np.testing.assert_allclose(function(x, names[label])[names], expected)


def test_tighter_classes_are_measured_as_tighter() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(4), 10)
    around = np.eye(4)[label] + 0.5
    noise = rng.normal(size=(40, 4))
    loose, tight = around + 0.2 * noise, around + 0.05 * noise
    for function, sign in zip(PER_CLASS, (-1, 1, -1, 1, 1), strict=True):
        assert (sign * (function(tight, label) - function(loose, label)) > 0).all()
    assert measures.silhouette(tight, label) > measures.silhouette(loose, label)


def test_halves_share_no_image_and_hold_every_class() -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 12, 300), rng.integers(0, 4, 300)
    half, both, split = measures.halves(label, image, 0)
    assert split == "image" and both.all() and not set(image[half]) & set(image[~half])
    for k in range(4):
        assert 0.35 < half[label == k].mean() < 0.65
    again = measures.halves(label, image, 0)
    assert np.array_equal(half, again[0])


def test_a_class_of_one_image_is_not_asked_for() -> None:
    image = np.repeat(np.arange(6), 10)
    label = np.where(image == 5, 2, np.arange(60) % 2)
    half, both, split = measures.halves(label, image, 0)
    assert split == "image" and np.array_equal(both, label != 2) and not set(image[half]) & set(image[~half])
    x = np.eye(3)[label]
    values, _ = measures.measure(x, x, label, label, image, neighbours=1, seed=0)
    assert (values["probe_classes"], values["probe_split"]) == (2, "image")
    assert values["knn"] == values["knn_from_source"] == 100


def test_both_kinds_of_a_probe_are_asked_about_the_same_cells() -> None:
    """A class of one image is not asked for; its source cells, nearer to another class than that class's own, are not learnt."""
    image = np.repeat(np.arange(6), 10)
    label = np.where(image == 5, 2, np.arange(60) % 2)
    target = np.eye(3)[label]
    source = np.eye(3)[label % 2] + 0.1 * (label == 0)[:, None]
    values, _ = measures.measure(source, target, label, label, image, neighbours=1, seed=0)
    assert values["knn"] == values["knn_from_source"] == 100
    assert values["linear_probe"] == values["linear_probe_from_source"] == 100


def test_the_second_kind_of_a_probe_learns_on_the_source() -> None:
    """The source has the same two places with the names exchanged."""
    label, image = np.arange(80) % 2, np.arange(80) // 10
    x = np.eye(2)[label]
    values, _ = measures.measure(x[::-1], x, label, label, image, neighbours=3, seed=0)
    assert values["linear_probe"] == values["knn"] == 100
    assert values["linear_probe_from_source"] == values["knn_from_source"] == 0


@pytest.mark.parametrize("cells", [(195, 5), (100, 2), (2, 2)])  # of each class in the first and in the second image
def test_uneven_images_have_enough_neighbours(cells: tuple[int, int]) -> None:
    label, image = np.tile(np.arange(3), sum(cells)), np.repeat([0, 1], [3 * count for count in cells])
    x = np.eye(3)[label]
    values, _ = measures.measure(x, x, label, label, image, neighbours=20, seed=0)
    assert values["knn"] == values["knn_from_source"] == 100 and values["probe_classes"] == 3


def test_one_image_is_halved_by_cell() -> None:
    label = np.arange(40) % 2
    half, both, split = measures.halves(label, np.zeros(40, int), 0)
    assert split == "cell" and both.all() and half.sum() == 20 and label[half].sum() == 10


@pytest.mark.parametrize("model", [measures.linear_probe(), measures.nearest(3)])
def test_probes_know_separate_classes_and_guess_random_ones(model: ClassifierMixin) -> None:
    rng = np.random.default_rng(0)
    label, image = np.repeat(np.arange(4), 60), np.arange(240) % 10
    separate = np.eye(4)[label] + 0.05 * rng.normal(size=(240, 4))
    assert crossed(model, separate, label, image) == 100
    assert 10 < crossed(model, rng.normal(size=(240, 4)), label, image) < 40


def test_every_class_weighs_the_same_in_the_accuracy() -> None:
    """200 cells that are named and 20 that are not: 50 %, not 91 %."""
    label, image = np.repeat([0, 1], (200, 20)), np.arange(220) % 10
    x = np.zeros((220, 1))
    values, _ = measures.measure(x, x, label, label, image, neighbours=99, seed=0)
    assert values["knn"] == values["knn_from_source"] == 50


def test_all_measures_of_a_sample(sample: Sample) -> None:
    """Of a target that is the source: no gap, and 1-NN from the source finds every cell itself."""
    x, label = sample
    values, by_class = measures.measure(x, x, label, label, np.arange(40) % 8, neighbours=1, seed=0)
    assert values["domain_gap"] == pytest.approx(0, abs=1e-12) and values["knn_from_source"] == 100
    assert values["fisher_ratio"] == pytest.approx(values["separation"] / values["intra_variance"])
    assert all(
        values[name] == pytest.approx(of.mean(), nan_ok=True) and of.shape == (4,) for name, of in by_class.items()
    )
