"""Quantization of the shared gradient (Zhu et al. 2019, sec. 5.1; stochastic: Alistarh et al. 2017, sec. 3.1)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.shared.effects import Effect, Grid, Rounded, rounded, spacing

_GRIDS: dict[str, Grid] = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


@DEFENSES.register("quantize")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize(Defense):
    """Rounds every entry to fp16, bf16 or int8 with one scale a tensor.

    Attributes:
        to: "fp16", "bf16" or "int8".
        rounding: "nearest", or "stochastic": up or down with chances that keep the mean.
    """

    to: Literal["fp16", "bf16", "int8"] = "int8"
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The gradient on the grid, in the type that it had."""
        return {name: self._rounded(value, step.generator) for name, value in gradient.items()}

    def _rounded(self, value: Tensor, generator: torch.Generator) -> Tensor:
        steps = spacing(value, _GRIDS[self.to])
        if self.rounding == "nearest":
            return rounded(value, steps)
        return rounded(value, steps, torch.rand(value.shape, generator=generator).to(value))

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """A grid."""
        del step
        return (Rounded(grid=_GRIDS[self.to], stochastic=self.rounding == "stochastic"),)
