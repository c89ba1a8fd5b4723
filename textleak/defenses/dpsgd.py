"""Differentially private SGD: each sample's gradient is clipped, the mean gets noise (Abadi et al. 2016, alg. 1)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from pydantic import Field

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.errors import InputError
from textleak.shared.effects import Clipped, Effect, Noised, clip_factors

_ACCOUNTED = ("steps", "sampling_rate", "delta")


@DEFENSES.register("dpsgd")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Clips each sample's gradient and adds Gaussian noise to the mean; accounts for epsilon on request.

    The mean is over samples, whatever the loss's own mean is over: in language modeling a long sentence's tokens count
    for less than without it.

    Attributes:
        max_norm: largest L2 norm of one sample's gradient, over all shared tensors.
        noise_multiplier: standard deviation of the noise on the samples' sum, in units of max_norm.
        steps: training steps to account for; with sampling_rate and delta, epsilon is computed.
        sampling_rate: share of the data that a step draws on average.
        delta: the probability that epsilon may fail.
    """

    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    steps: Annotated[int, Field(ge=1)] | None = None
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None

    def on_sample(self, gradient: Gradients, step: Step) -> Gradients:
        """The sample's gradient, scaled down where it is too large."""
        del step
        factors = clip_factors(gradient, self.max_norm, "all")
        return {name: value * factors[name] for name, value in gradient.items()}

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The mean plus noise drawn on the CPU, so that every device shares the same noise."""
        sigma = self._sigma(step)
        return {
            name: value + sigma * torch.randn(value.shape, generator=step.generator).to(value)
            for name, value in gradient.items()
        }

    def _sigma(self, step: Step) -> float:
        return self.noise_multiplier * self.max_norm / step.batch_size

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """A clip of each sample, and noise of known strength."""
        noise = (Noised(sigma=self._sigma(step)),) if self.noise_multiplier else ()
        return (Clipped(max_norm=self.max_norm, per="sample"), *noise)

    def epsilon(self) -> float | None:
        """ε for the steps, by Opacus's PRV accountant; None where nothing is to be accounted for, ∞ without noise.

        Raises:
            InputError: only some of steps, sampling_rate and delta were given, or Opacus isn't installed.
        """
        given = {name: getattr(self, name) for name in _ACCOUNTED}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given):
            return None
        if missing:
            raise InputError(
                f"dpsgd can't account for epsilon without {' and '.join(missing)}.",
                why="It depends on the number of steps, the sampling rate and delta together.",
                fix="Give all three, or none of them: dpsgd:steps=1000,sampling_rate=0.01,delta=1e-5.",
            )
        if self.noise_multiplier == 0:
            return float("inf")
        try:
            from opacus.accountants import PRVAccountant
        except ImportError:
            raise InputError(
                "Opacus isn't installed, and dpsgd was asked for epsilon.",
                why="Its accountant computes it.",
                fix="pip install 'textleak[privacy]', or leave steps, sampling_rate and delta out.",
            ) from None
        accountant = PRVAccountant()
        accountant.history = [(self.noise_multiplier, self.sampling_rate, self.steps)]
        return float(accountant.get_epsilon(self.delta))
