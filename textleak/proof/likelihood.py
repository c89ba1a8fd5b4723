"""Does a text explain a noisy gradient? What is left of the gradient, its own taken off, must look like the noise.

With noise of known strength a server can say more than "the nearest of those I tried". If the text is right, what is
left is noise and nothing else: its squared norm is near its expectation, and no direction in a weight's residual stands
out of what random matrices have (Johnstone 2001). A text that is wrong in one word leaves a few directions in every
layer: they stand out long before the norm shows them (measured on minilm, 10.8 million entries: at sigma = 1e-3, 1.2
times the gradient's norm in all, the norm misses some wrong words, the directions none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from textleak.numerics import exact
from textleak.shared.effects import Effect, Noised, of_batch, stages
from textleak.shared.gradient import SharedGradient

# Above what noise alone does in the strongest direction of the worst of a few hundred tensors, in units of that
# direction's spread (our choice; the Tracy-Widom law of order 1 exceeds 5 with a chance of 1e-5), and likewise for
# the normal law of squared norms.
_PLAUSIBLE = 5.0
# Smallest side of a matrix whose directions are looked at, in Gaussian and in heavier-tailed noise, whose single
# entries stand out of small matrices; subspace iterations and columns that find the strongest direction.
_SMALLEST_SIDE, _SMALLEST_SIDE_HEAVY, _ITERATIONS, _COLUMNS = 8, 64, 6, 8


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well a candidate explains a noisy gradient.

    Attributes:
        excess: how far its residual stands out of the noise, in the tensor where it does most, in units of the
            spread that noise alone has.
        log_likelihood: in nats, up to what is the same for all candidates.
    """

    excess: float
    log_likelihood: float

    @property
    def plausible(self) -> bool:
        """Whether noise alone could have left this residual."""
        return self.excess <= _PLAUSIBLE


def fit(shared: SharedGradient, own: Mapping[str, Tensor]) -> Fit | None:
    """How well a candidate's gradient explains the shared one; None where noise isn't the last that was done to it.

    Args:
        shared: the shared gradient.
        own: the candidate's, before any defense of the batch, float64.
    """
    noises, before = _noises(shared.effects)
    if not noises:
        return None
    variance = sum(noise.sigma**2 for noise in noises)
    kurtosis = 3 + sum((noise.kurtosis - 3) * noise.sigma**4 for noise in noises) / variance**2
    expected = stages(dict(own), shared.gradients, before)[0][-1]
    smallest_side = _SMALLEST_SIDE if kurtosis <= 3 else _SMALLEST_SIDE_HEAVY
    squares, worst = 0.0, -math.inf
    for name, gradient in shared.gradients.items():
        left = exact(gradient)
        if name in expected:
            left = left - expected[name].to(left)
        left = left / variance**0.5
        square = float(left.square().sum())
        squares += square
        worst = max(worst, (square - left.numel()) / math.sqrt((kurtosis - 1) * left.numel()))
        if left.dim() >= 2 and min(left.shape[0], left[0].numel()) >= smallest_side:
            worst = max(worst, _strongest_direction(left.flatten(1).float()))
    return Fit(excess=worst, log_likelihood=-squares / 2)


def _noises(effects: tuple[Effect, ...]) -> tuple[list[Noised], list[Effect]]:
    """The noises that end the effects, and what comes before; no noises where something hides what comes before."""
    noises: list[Noised] = []
    before = of_batch(effects)
    while before and (noise := before[-1].noise) is not None:
        noises.append(noise)
        before.pop()
    hidden = any(effect.unbounded or effect.hides_entries for effect in before)
    return ([], []) if hidden else (noises, before)


def _strongest_direction(noise_OI: Tensor) -> float:
    """How far the largest singular value stands above that of a matrix of unit noise (Johnstone 2001, thm. 1.1)."""
    generator = torch.Generator().manual_seed(0)  # which directions are drawn hardly changes the result
    basis_IC = torch.randn(noise_OI.shape[1], _COLUMNS, generator=generator).to(noise_OI)
    for _ in range(_ITERATIONS):
        basis_IC = torch.linalg.qr(noise_OI.mT @ (noise_OI @ basis_IC))[0]
    largest = float(torch.linalg.matrix_norm(noise_OI @ basis_IC, ord=2)) ** 2
    rows, columns = math.sqrt(noise_OI.shape[0] - 1), math.sqrt(noise_OI.shape[1])
    edge = (rows + columns) ** 2
    spread = (rows + columns) * (1 / rows + 1 / columns) ** (1 / 3)
    return (largest - edge) / float(spread)
