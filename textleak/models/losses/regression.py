"""Regression: one or several numbers for each sentence, trained with the mean squared error (STS-B, rewards)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from textleak.events import Label
from textleak.models.batches import Targets
from textleak.models.losses.base import LOSSES, Loss

# Labels drawn where none are given: STS-B's range of similarities.
_HIGHEST = 5.0


@LOSSES.register("regression")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Loss):
    """Mean squared error of C numbers, or the sum of the squared errors.

    Attributes:
        summed: whether they are summed.
    """

    auto = "AutoModelForSequenceClassification"
    ending = "ForSequenceClassification"
    tells = "a number for each sentence"
    pooled = True
    outputs = 1

    summed: bool = False

    def in_sum(self) -> Regression:
        """The sum of the squared errors."""
        return Regression(summed=True)

    def configure(self, config: Any) -> None:  # noqa: ANN401 - transformers' configuration
        """As a regression."""
        config.problem_type = "regression"

    def owns(self, kinds: Sequence[str], config: Any) -> bool:  # noqa: ANN401
        """One that says so, or has one output, which transformers takes for it."""
        said = config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)
        return super().owns(kinds, config) and said

    def targets(
        self, labels: Sequence[Label], mask_BT: Tensor, outputs: int | None, dtype: torch.dtype
    ) -> Targets:
        """The numbers."""
        del outputs
        numbers_B1C = torch.tensor(
            [[_numbers(label)] for label in labels], dtype=dtype, device=mask_BT.device
        )
        part = numbers_B1C.shape[-1] if self.summed else 1 / len(labels)
        weights_B1 = torch.full_like(numbers_B1C[..., 0], part)
        return Targets(labels=numbers_B1C, weights=weights_B1, summed=self.summed)

    def losses(self, logits: Tensor, targets: Targets) -> Tensor:
        """The squared error, its mean over C."""
        return (logits - targets.labels.to(logits.dtype)).square().mean(-1)

    def why_not(self, label: Label, length: int, outputs: int | None) -> str:
        """C finite numbers."""
        del length
        numbers = _numbers(label)
        if len(numbers) != outputs:
            return f"The head gives {outputs} numbers for each sentence, and the label has {len(numbers)}."
        return "" if all(map(math.isfinite, numbers)) else "It isn't finite."

    def drawn(self, length: int, outputs: int | None, generator: torch.Generator) -> Label:
        """Evenly from STS-B's range."""
        del length
        numbers = tuple((_HIGHEST * torch.rand(outputs or 1, generator=generator)).tolist())
        return numbers[0] if len(numbers) == 1 else numbers

    def told(self, deltas_BLC: Tensor, logits_BLC: Tensor, mask_BT: Tensor) -> tuple[Label, ...]:
        """The numbers that the logits are off by just that much."""
        del mask_BT
        B, _, C = logits_BLC.shape
        total = 1 if self.summed else B * C
        numbers_BC = (logits_BLC - deltas_BLC * (total / 2))[:, 0].tolist()
        return tuple(numbers[0] if C == 1 else tuple(numbers) for numbers in numbers_BC)


def _numbers(label: Label) -> tuple[float, ...]:
    return tuple(map(float, label)) if isinstance(label, tuple) else (float(label),)
