"""A class of every token, trained with cross entropy over those that have one (names in a text, parts of speech)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from textleak.events import Label
from textleak.models.batches import Targets
from textleak.models.losses.base import LOSSES, Loss

UNLABELED = -100
"""Stands for a token without a class, as in torch: the loss leaves it out."""
# A token's gradient below this part of the largest one's is none (our choice; a prediction that is as sure of the right
# class as that adds nothing to the loss either).
_NONE = 1e-5
# Weights of tokens may be off each other by this part (our choice; rounding makes 1e-4).
_UNEVEN = 0.02


@LOSSES.register("token-classification")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens(Loss):
    """Cross entropy of each token's class, its mean over all tokens of the batch that have one, or its sum.

    Attributes:
        summed: whether it is the sum.
    """

    auto = "AutoModelForTokenClassification"
    ending = "ForTokenClassification"
    tells = "a class of every token"

    summed: bool = False

    def in_sum(self) -> Tokens:
        """The sum."""
        return Tokens(summed=True)

    def targets(
        self, labels: Sequence[Label], mask_BT: Tensor, outputs: int | None, dtype: torch.dtype
    ) -> Targets:
        """The classes, and weights of 0 where there is none."""
        del outputs
        rows = [label if isinstance(label, tuple) else (label,) for label in labels]
        T = mask_BT.shape[-1]
        classes_BT = torch.tensor(
            [[*map(int, row), *(UNLABELED,) * (T - len(row))][:T] for row in rows], device=mask_BT.device
        )
        counted_BT = (classes_BT != UNLABELED).to(dtype) * mask_BT
        total = 1 if self.summed else counted_BT.sum((-2, -1), keepdim=True).clamp(min=1)
        return Targets(labels=classes_BT.clamp(min=0), weights=counted_BT / total, summed=self.summed)

    def losses(self, logits: Tensor, targets: Targets) -> Tensor:
        """The cross entropy of each token."""
        labels = targets.labels
        found = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        return found.view(labels.shape)

    def why_not(self, label: Label, length: int, outputs: int | None) -> str:
        """A class, or none, for each token."""
        if not isinstance(label, tuple) or len(label) != length:
            return (
                f"It is one class for each of the {length} tokens, special ones counted: 0,3,0,...; "
                f"{UNLABELED} for a token without one."
            )
        whole = all(isinstance(one, int) and (one == UNLABELED or 0 <= one < (outputs or 0)) for one in label)
        if not whole or all(one == UNLABELED for one in label):
            return f"Its classes are from 0 to {(outputs or 1) - 1}, or {UNLABELED} for none; one at least."
        return ""

    def drawn(self, length: int, outputs: int | None, generator: torch.Generator) -> Label:
        """A class of every token but the first and the last, which are the tokenizer's in most models."""
        classes = torch.randint(outputs or 2, (length,), generator=generator).tolist()
        inner = range(1, length - 1) if length > 2 else range(length)
        return tuple(classes[t] if t in inner else UNLABELED for t in range(length))

    def told(self, deltas_BLC: Tensor, logits_BLC: Tensor, mask_BT: Tensor) -> tuple[Label, ...] | None:
        """At each token the class that alone is pulled up, with the same weight everywhere."""
        chances_BTC = logits_BLC.softmax(-1)
        sizes_BT = deltas_BLC.norm(dim=-1)
        counted_BT = (sizes_BT > _NONE * sizes_BT.max()) & (mask_BT == 1)
        classes_BT = deltas_BLC.argmin(-1)
        right_BT1 = classes_BT[..., None]
        # weight · (chance − 1) at the right class.
        weights_BT = deltas_BLC.gather(-1, right_BT1) / (chances_BTC.gather(-1, right_BT1) - 1)
        weights_N = weights_BT[..., 0][counted_BT]
        one = float(weights_N.median()) if len(weights_N) else 0.0
        if one <= 0 or bool(((weights_N - one).abs() > _UNEVEN * one).any()):
            return None
        found_BT = classes_BT.masked_fill(~counted_BT, UNLABELED).tolist()
        lengths = mask_BT.sum(-1).tolist()
        return tuple(tuple(row[:length]) for row, length in zip(found_BT, lengths, strict=True))

    def reached(self, mask_BT: Tensor, logits_BLC: Tensor) -> Tensor:
        """Those of tokens."""
        return (mask_BT == 1)[..., None].expand_as(logits_BLC)
