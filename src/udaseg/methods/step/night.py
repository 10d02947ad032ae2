"""Pseudo-labels of night images with the day image of the same place: SePiCo's recipe for Dark Zurich, after DANNet.

B images, K classes, H W image size. (S10) of docs/methods/sepico.md.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import torch
from torch import Tensor

from udaseg.errors import UserError
from udaseg.methods.base import Predict
from udaseg.models import Segmenter
from udaseg.params import Run
from udaseg.recipes.self_training import SelfTraining

STATIC = ("road", "sidewalk", "building", "wall", "fence", "vegetation", "terrain", "sky")


def static_classes(names: Sequence[str]) -> Tensor:
    """(K,) which classes stand where they stood by day."""
    return torch.tensor([name in STATIC for name in names])


def day_and_night(day: Tensor, night: Tensor, static: Tensor, confident: float, weight: float) -> Tensor:
    """Probabilities (B, K, H, W) of both images in one; they need not sum to 1.

    Static classes take `weight` of the day where the day is surer than `confident`, else 1 - `weight`, and the rest of the
    night; what moves is told by the night alone. day, night: (B, K, H, W); static: (K,).
    """
    share = torch.where(day > confident, weight, 1 - weight)
    return torch.where(static[:, None, None], share * day + (1 - share) * night, night)


def class_weights(frequency: Sequence[float], strength: float) -> Tensor:
    """(K,) weights 1 + strength * rarity, rarity being -log frequency standardised over the classes; float64.

    Raises:
        UserError: a weight is not positive.
    """
    log_f = torch.tensor(frequency, dtype=torch.float64).log()
    weights = 1 + strength * (log_f.mean() - log_f) / log_f.std()
    if not (weights > 0).all():
        raise UserError(
            f"day_reference: frequencies {list(frequency)} with strength {strength} give the class weights "
            f"{[round(w, 3) for w in weights.tolist()]}; expected all above 0: frequencies above 0 and a smaller strength"
        )
    return weights


def reference_weights(run: Run, strength: float) -> Tensor:
    """(K,) class weights of the recipe's frequencies. Raises UserError where these belong to other classes."""
    reference = typing.cast(SelfTraining, run.method).day_reference
    assert reference is not None
    if len(reference.frequency) != len(run.classes):
        raise UserError(
            f"params.yaml: methods.{run.method_name}.day_reference.frequency: found {len(reference.frequency)} values, "
            f"expected one for each of the {len(run.classes)} classes of {run.benchmark_name}"
        )
    return class_weights(reference.frequency, strength)


def test_views(run: Run, student: Segmenter) -> dict[str, Predict]:
    """With a day reference, SePiCo's released test: class weights on the probabilities."""
    reference = typing.cast(SelfTraining, run.method).day_reference
    if reference is None:
        return {}
    log_weights = reference_weights(run, reference.test_balance).log()[:, None, None]

    def weighted(images: Tensor, size: tuple[int, int]) -> Tensor:
        return student.predict(images, size).log_softmax(dim=1) + log_weights.to(images)

    return {"class_weighted": weighted}
