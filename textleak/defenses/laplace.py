"""Laplace noise on every shared gradient entry (Zhu et al. 2019, sec. 5.1)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from pydantic import Field

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.shared.effects import Effect, Noised


@DEFENSES.register("laplace")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Laplace(Defense):
    """Adds independent Laplace noise to every entry.

    Attributes:
        scale: its mean magnitude, in units of the gradient; the standard deviation is √2 times that.
    """

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The gradient plus noise drawn on the CPU, so that every device shares the same noise."""
        return {name: value + self._noise(value, step.generator) for name, value in gradient.items()}

    def _noise(self, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        magnitudes = torch.empty(value.shape).exponential_(1 / self.scale, generator=generator)
        upwards = torch.rand(value.shape, generator=generator) < 0.5
        return torch.where(upwards, magnitudes, -magnitudes).to(value)

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """Noise of known strength."""
        del step
        return (Noised(sigma=2**0.5 * self.scale, kurtosis=6.0),)
