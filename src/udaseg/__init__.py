"""Contrastive unsupervised domain adaptation of semantic segmentation, and the baselines it stands on.

    model = udaseg.load("results/streets/sepico/seed0")
    labels = model.predict("photograph.jpg").labels

docs/python.md has the rest. What is not used is not imported: `import udaseg` is quick and loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.api import Model, Prediction, RunResults, load, runs

__version__ = "0.1.0"
__all__ = ["Model", "Prediction", "RunResults", "load", "runs"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'udaseg' has no attribute {name!r}")
    from udaseg import api

    return getattr(api, name)
