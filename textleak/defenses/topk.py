"""Top-k sparsification over the whole gradient (Aji & Heafield 2017)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from pydantic import Field

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.defenses.largest import keep_largest
from textleak.shared.effects import Effect, Masked


@DEFENSES.register("topk")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(Defense):
    """Shares the largest magnitudes of all tensors together, and 0 for the rest.

    Attributes:
        ratio: the share of all entries that is kept.
    """

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.01

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The gradient with zeros."""
        del step
        together = keep_largest(torch.cat([value.flatten() for value in gradient.values()]), self.ratio)
        parts = torch.split(together, [value.numel() for value in gradient.values()])
        return {
            name: part.view_as(value) for (name, value), part in zip(gradient.items(), parts, strict=True)
        }

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """A mask, which shows in the zeros."""
        del step
        return (Masked(left="largest-of-all"),)
