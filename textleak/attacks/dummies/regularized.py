"""Dummies kept near the vocabulary's norm while their gradient is matched (Balunović et al. 2022, sec. 4.2).

Shapes: K candidates, B sentences, T tokens, E embedding size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.attacks.dummies.trials import Trials
from textleak.matching import Leaves


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Regularized:
    """What the continuous steps minimize: the distance, and how far the dummies' mean norm is from the vocabulary's.

    Attributes:
        trials: gives the distance.
        norm: that the dummies are kept near.
        weight: of the squared difference.
    """

    trials: Trials
    norm: float
    weight: float

    def value_and_gradient(self, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """Values (K,), and their gradients by the free leaves."""
        values_K, gradients = self.trials.dummies.value_and_gradient(self.trials.matcher, leaves)
        penalties_K, slopes_KBTE = norm_penalty(leaves, self.norm)
        gradients["embeddings"] = gradients["embeddings"] + self.weight * slopes_KBTE
        return values_K + self.weight * penalties_K, gradients


def norm_penalty(leaves: Leaves, norm: float) -> tuple[Tensor, Tensor]:
    """Squared difference of the tokens' mean norm from `norm`, and its gradient by the dummies.

    Special tokens count, as in the released code; padding doesn't (there it does).

    Returns:
        Penalties (K,) and slopes (K, B, T, E).
    """
    with torch.enable_grad():
        dummies_KBTE = leaves["embeddings"].detach().requires_grad_()
        norms_KBT = torch.where(leaves["open"][..., None], dummies_KBTE, leaves["fixed"]).norm(dim=-1)
        tokens_KBT = leaves["mask"].to(norms_KBT)
        means_K = (norms_KBT * tokens_KBT).sum((1, 2)) / tokens_KBT.sum((1, 2))
        penalties_K = (means_K - norm).square()
        (slopes_KBTE,) = torch.autograd.grad(penalties_K.sum(), dummies_KBTE)
    return penalties_K.detach(), slopes_KBTE
