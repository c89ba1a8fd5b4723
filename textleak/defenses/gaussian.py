"""Gaussian noise on every shared gradient entry (Zhu et al. 2019, sec. 5.1)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from pydantic import Field

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.shared.effects import Effect, Noised


@DEFENSES.register("gaussian")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(Defense):
    """Adds independent N(0, sigma²) to every entry.

    Attributes:
        sigma: standard deviation, in units of the gradient.
    """

    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The gradient plus noise drawn on the CPU, so that every device shares the same noise."""
        return {
            name: value + self.sigma * torch.randn(value.shape, generator=step.generator).to(value)
            for name, value in gradient.items()
        }

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """Noise of known strength."""
        del step
        return (Noised(sigma=self.sigma),)
