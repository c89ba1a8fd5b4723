"""Several classes at once: yes or no to each of C, trained with binary cross entropy (multi-label classification)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from textleak.events import Label
from textleak.models.batches import Targets
from textleak.models.losses.base import LOSSES, Loss, nearest_whole

# What an answer may be off 0 or 1 by for rounding (our choice: labels that were smoothed are off by 0.05 and more).
_ROUNDED = 0.01


@LOSSES.register("multi-label")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Several(Loss):
    """Binary cross entropy of C answers, the mean or the sum.

    Attributes:
        summed: whether it is the sum.
    """

    auto = "AutoModelForSequenceClassification"
    ending = "ForSequenceClassification"
    tells = "several classes of each sentence"
    pooled = True

    summed: bool = False

    def in_sum(self) -> Several:
        """The sum."""
        return Several(summed=True)

    def configure(self, config: Any) -> None:  # noqa: ANN401 - transformers' configuration
        """As such a classification."""
        config.problem_type = "multi_label_classification"

    def owns(self, kinds: Sequence[str], config: Any) -> bool:  # noqa: ANN401
        """One that says so."""
        return super().owns(kinds, config) and config.problem_type == "multi_label_classification"

    def targets(
        self, labels: Sequence[Label], mask_BT: Tensor, outputs: int | None, dtype: torch.dtype
    ) -> Targets:
        """The answers."""
        del outputs
        answers_B1C = torch.tensor([[label] for label in labels], dtype=dtype, device=mask_BT.device)
        part = answers_B1C.shape[-1] if self.summed else 1 / len(labels)
        weights_B1 = torch.full_like(answers_B1C[..., 0], part)
        return Targets(labels=answers_B1C, weights=weights_B1, summed=self.summed)

    def losses(self, logits: Tensor, targets: Targets) -> Tensor:
        """The cross entropy of each answer, its mean over C."""
        answers = targets.labels.to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, answers, reduction="none").mean(-1)

    def why_not(self, label: Label, length: int, outputs: int | None) -> str:
        """C answers from 0 to 1."""
        del length
        if not isinstance(label, tuple) or len(label) != outputs:
            return f"It is one answer, 0 or 1, to each of {outputs} classes: 0,1,..."
        return "" if all(0 <= answer <= 1 for answer in label) else "Its answers are from 0 to 1."

    def drawn(self, length: int, outputs: int | None, generator: torch.Generator) -> Label:
        """Yes or no alike."""
        del length
        return tuple(torch.randint(2, (outputs or 2,), generator=generator).tolist())

    def told(self, deltas_BLC: Tensor, logits_BLC: Tensor, mask_BT: Tensor) -> tuple[Label, ...]:
        """The answers that the predictions are off by just that much; not quite 0 or 1 where they were smoothed."""
        del mask_BT
        B, _, C = logits_BLC.shape
        total = 1 if self.summed else B * C
        answers_BC = (logits_BLC.sigmoid() - deltas_BLC * total)[:, 0].tolist()
        return tuple(tuple(nearest_whole(answer, _ROUNDED) for answer in row) for row in answers_BC)
