"""One t-SNE map of source and target (van der Maaten and Hinton 2008), by openTSNE: docs/analysis.md."""

from __future__ import annotations

import logging

import numpy as np
from openTSNE import TSNE
from openTSNE.initialization import rescale
from sklearn.decomposition import PCA

from udaseg.params import Tsne

logging.getLogger("openTSNE").setLevel(logging.WARNING)  # it tells at length what it does
WIDTH = 50  # wider features are first reduced to this by PCA
EXAGGERATED = 1 / 3  # share of the iterations with early exaggeration: 250 of 750, openTSNE's default


def embed(x: np.ndarray, p: Tsne) -> np.ndarray:
    """Place features on a plane. Equal features and settings give equal bits.

    Args:
        x: (M, D) float64, M of 4 or more.
        p: perplexity (lowered to (M - 1) / 3 for few points) and iterations.

    Returns:
        (M, 2) float32.
    """
    reduced = PCA(min(WIDTH, *x.shape), svd_solver="full").fit_transform(x)
    early = round(p.iterations * EXAGGERATED)
    tsne = TSNE(
        perplexity=min(p.perplexity, (len(x) - 1) / 3),
        early_exaggeration_iter=early,
        n_iter=p.iterations - early,
        initialization=rescale(reduced[:, :2]),
        neighbors="exact",
        n_jobs=1,
        random_state=0,
    )
    return np.asarray(tsne.fit(reduced), np.float32)
