"""How strongly each loss pulls at the student, and whether it pulls where the cross-entropy does (`train.gradient_norms`).

It only looks: each loss of a step is differentiated once more by itself, and no number of the training moves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udaseg import ranks
from udaseg.methods.base import Losses

PLAIN = ("source", "target", "mixed", "supervised")  # cross-entropies, in which all others are measured
NORM, COSINE = "gradient/", "cosine/"


class Gradients:
    """Gradients of one optimizer step, by loss: those of micro-batches and passes are added."""

    def __init__(self, student: nn.Module) -> None:
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.of: dict[str, Tensor] = {}

    def add(self, losses: Losses, share: float) -> None:
        """Losses of a pass whose graph is still whole, each times `share` (one micro-batch of several)."""
        for name, loss in losses.items():
            if not loss.requires_grad:
                continue
            parts = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            flat = torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten().float()
                    for g, p in zip(parts, self.parameters, strict=True)
                ]
            )
            self.of[name] = self.of.get(name, 0) + share * flat

    def measured(self) -> dict[str, float]:
        """`gradient/<loss>`: its norm over the norm of all cross-entropies together; `cosine/<loss>`: of the angle between the two.

        Of all ranks together, which call it together. Cross-entropies get no cosine. Waits for the device.
        """
        mean = {name: ranks.total(self.of[name]) / ranks.world() for name in sorted(self.of)}
        plain = [mean[name] for name in PLAIN if name in mean]
        if not plain:
            return {}
        together = torch.stack(plain).sum(0)
        unit = float(together.norm())
        found = {}
        for name, gradient in mean.items():
            norm = float(gradient.norm())
            found[NORM + name] = norm / max(unit, 1e-30)
            if name not in PLAIN:
                found[COSINE + name] = float(gradient @ together) / max(norm * unit, 1e-30)
        return found
