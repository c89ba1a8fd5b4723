"""Pruning: entries of the gradient are set to 0 (Zhu et al. 2019, sec. 5.2; Lin et al. 2018)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import torch
from pydantic import Field

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.defenses.largest import keep_largest
from textleak.shared.effects import Effect, Masked


@DEFENSES.register("prune")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Defense):
    """Sets a share of each tensor's entries to 0: the smallest magnitudes, or random ones.

    Attributes:
        ratio: the share that is set to 0.
        which: "smallest" or "random".
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.9
    which: Literal["smallest", "random"] = "smallest"

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The gradient with zeros."""
        if self.which == "smallest":
            return {name: keep_largest(value, 1 - self.ratio) for name, value in gradient.items()}
        return {
            name: value * (torch.rand(value.shape, generator=step.generator) >= self.ratio).to(value)
            for name, value in gradient.items()
        }

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """A mask, which shows in the zeros."""
        del step
        return (Masked(left="largest-of-tensor" if self.which == "smallest" else "any"),)
