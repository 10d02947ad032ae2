"""How tight, how separate and how alike over domains classes lie in feature space: docs/analysis.md.

All values are means over classes of means over a class's cells, so that large classes do not decide. NaN: not defined.

shapes: N cells, D channels, K classes (indices 0..K-1, each with a cell); all arrays are float64
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist, pdist
from sklearn import config_context
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LEAST_COSINES = 1e-6  # PDD's denominator is kept above this
LEAST_DISTANCE = 1e-12  # between class centres, squared
WORKING_MEMORY = 256  # MiB, for scikit-learn's blocks of distances


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, M) cosines of the rows of (N, D) and (M, D); 0 for a row of zeros."""
    return unit(x) @ unit(y).T


def class_mean(value: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(K,) mean of (N,) values over each class."""
    return np.bincount(label, value) / np.bincount(label)


def centres(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(K, D) mean of each class."""
    count = np.bincount(label)
    return np.eye(len(count))[label].T @ x / count[:, None]


def intra_variance(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(K,) S(c) = mean |x - m_c|^2 (oracle o17, docs/methods/bcl.md). Lower is tighter."""
    return class_mean(((x - centres(x, label)[label]) ** 2).sum(1), label)


def compactness(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(K,) mean cos(x, m_c). Higher is tighter."""
    return class_mean(own(cosines(x, centres(x, label)), label), label)


def center_distance(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(K,) CCD(c) = mean over k != c of S(c) / |m_c - m_k|^2, after FADA. Lower is better.

    Oracles o17 of docs/methods/bcl.md, 12 of sepico.md.
    """
    means = centres(x, label)
    inverse = 1 / np.maximum(cdist(means, means, "sqeuclidean"), LEAST_DISTANCE)
    np.fill_diagonal(inverse, 0)
    return intra_variance(x, label) * inverse.sum(1) / (len(means) - 1)


def separation(x: np.ndarray, label: np.ndarray) -> float:
    """Mean squared distance of two class centres. Higher is better."""
    return float(pdist(centres(x, label), "sqeuclidean").mean())


def center_cosine(x: np.ndarray, label: np.ndarray) -> float:
    """Mean cosine of two class centres. Lower is better."""
    means = centres(x, label)
    return float(cosines(means, means)[np.triu_indices(len(means), 1)].mean())


def pdd(x: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, int]:
    """Pixel-wise discrimination distance after SDCA and SePiCo (oracle sepico 12). Higher is better.

    Returns:
        (K,) mean of cos(x, m_c) / sum over k != c of cos(x, m_k), and the number of cells whose denominator was raised
        to LEAST_COSINES.
    """
    cosine = cosines(x, centres(x, label))
    mine = own(cosine, label)
    others = cosine.sum(1) - mine
    return class_mean(mine / np.maximum(others, LEAST_COSINES), label), int((others < LEAST_COSINES).sum())


def pdd_difference(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(K,) mean of cos(x, m_c) - mean over k != c of cos(x, m_k): PDD without a denominator. Higher is better."""
    cosine = cosines(x, centres(x, label))
    mine = own(cosine, label)
    return class_mean(mine - (cosine.sum(1) - mine) / (cosine.shape[1] - 1), label)


def domain_gap(
    source: np.ndarray, source_label: np.ndarray, target: np.ndarray, target_label: np.ndarray
) -> np.ndarray:
    """(K,) 1 - cos(m_c of the source, m_c of the target). Lower is more alike."""
    return 1 - np.diag(cosines(centres(source, source_label), centres(target, target_label)))


def own(cosine: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(N,) entry of each row's own class."""
    return cosine[np.arange(len(label)), label]


def silhouette(x: np.ndarray, label: np.ndarray) -> float:
    """Mean over classes of the silhouette (Rousseeuw 1987), Euclidean. 1: far from the nearest other class; 0: between."""
    with config_context(working_memory=WORKING_MEMORY):
        return float(class_mean(silhouette_samples(x, label), label).mean())


def linear_probe() -> ClassifierMixin:
    """Logistic regression (L2, C = 1) on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", tol=1e-3, max_iter=200))


def nearest(neighbours: int) -> KNeighborsClassifier:
    """Majority of the nearest cells; on unit vectors Euclidean and cosine neighbours are the same."""
    return KNeighborsClassifier(neighbours, algorithm="brute")


def accuracy(
    model: ClassifierMixin, x: np.ndarray, label: np.ndarray, test: np.ndarray, test_label: np.ndarray
) -> np.ndarray:
    """(M,) whether `model`, trained on (N, D), names the classes of (M, D). Neighbours are at most half of the N cells."""
    if isinstance(model, KNeighborsClassifier):
        model = nearest(max(1, min(model.n_neighbors, len(x) // 2)))
    with warnings.catch_warnings(), config_context(working_memory=WORKING_MEMORY):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit of iterations is part of the measure
        return np.asarray(model.fit(x, label).predict(test) == test_label, np.float64)


def halves(label: np.ndarray, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Two halves of the cells, no image in both, so that a probe is not asked about images that it has seen.

    A class that lies in one half only cannot be asked for. Where fewer than two classes lie in both (a single image), the
    halves are drawn by cell.

    Returns:
        (N,) bool: in the second half; (N,) bool: of a class that lies in both; what was split, "image" or "cell".
    """
    if len(np.unique(image)) > 1:
        _, second = next(StratifiedGroupKFold(2, shuffle=True, random_state=seed).split(label, label, image))
        half = np.isin(np.arange(len(label)), second)
        both = np.isin(label, np.intersect1d(label[half], label[~half]))
        if len(np.unique(label[both])) > 1:
            return half, both, "image"
    _, second = next(StratifiedKFold(2, shuffle=True, random_state=seed).split(label, label))
    return np.isin(np.arange(len(label)), second), np.ones(len(label), bool), "cell"


def cross_accuracy(model: ClassifierMixin, x: np.ndarray, label: np.ndarray, half: np.ndarray) -> np.ndarray:
    """(N,) whether `model` names the class of each cell, each half asked with the other half learnt."""
    hits = np.empty(len(label))
    for asked in (half, ~half):
        hits[asked] = accuracy(model, x[~asked], label[~asked], x[asked], label[asked])
    return hits


def probes(
    source: np.ndarray,
    target: np.ndarray,
    source_label: np.ndarray,
    target_label: np.ndarray,
    target_image: np.ndarray,
    *,
    neighbours: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracies in percent of classifiers, learnt on the other half of the target and, of the same classes, on the source.

    Both are asked about the same target cells. Arguments as of `measure`.
    """
    half, asked, split = halves(target_label, target_image, seed)
    classes, label = np.unique(target_label[asked], return_inverse=True)
    known = np.isin(source_label, classes)
    source, source_label = source[known], np.searchsorted(classes, source_label[known])
    x, half = target[asked], half[asked]
    values: dict[str, Any] = {"probe_classes": len(classes), "probe_split": split}
    for name, model in {"linear_probe": linear_probe(), "knn": nearest(neighbours)}.items():
        values[name] = 100 * float(class_mean(cross_accuracy(model, x, label, half), label).mean())
        hits = accuracy(model, source, source_label, x, label)
        values[f"{name}_from_source"] = 100 * float(class_mean(hits, label).mean())
    return values


def measure(
    source: np.ndarray,
    target: np.ndarray,
    source_label: np.ndarray,
    target_label: np.ndarray,
    target_image: np.ndarray,
    *,
    neighbours: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All measures of a sample.

    Args:
        source, target: (N, D) features of unit length.
        source_label, target_label: (N,), the same classes in both.
        target_image: (N,) image of each target cell.
        neighbours: of the k-NN classifier.
        seed: of the halves.

    Returns:
        Values by name, and values of each class (K,) by name. `pdd` is NaN where a denominator was raised.
    """
    ratio, clamped = pdd(target, target_label)
    by_class = {
        "intra_variance": intra_variance(target, target_label),
        "compactness": compactness(target, target_label),
        "center_distance": center_distance(target, target_label),
        "pdd": np.full_like(ratio, np.nan) if clamped else ratio,
        "pdd_difference": pdd_difference(target, target_label),
        "domain_gap": domain_gap(source, source_label, target, target_label),
    }
    values: dict[str, Any] = {name: float(value.mean()) for name, value in by_class.items()}
    values["pdd_clamped"] = clamped
    values["separation"] = separation(target, target_label)
    values["center_cosine"] = center_cosine(target, target_label)
    values["fisher_ratio"] = values["separation"] / max(values["intra_variance"], LEAST_DISTANCE)
    values["silhouette"] = silhouette(target, target_label)
    values |= probes(source, target, source_label, target_label, target_image, neighbours=neighbours, seed=seed)
    return values, by_class
