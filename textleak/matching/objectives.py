"""How far a candidate's gradient g' is from the shared one g, from a few figures per tensor.

An objective never sees a gradient, but each tensor's ‖g'‖², ⟨g', g⟩, ‖g‖² and, if it asks, ‖g' − g‖₁.
Shapes: K candidates, P matched tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What is known of every candidate's gradient, tensor by tensor.

    Attributes:
        names: the P tensors.
        own_KP: ‖g'‖².
        cross_KP: ⟨g', g⟩.
        target_P: ‖g‖²; (K, P) where each candidate has its own.
        absolute_KP: ‖g' − g‖₁, None unless the objective asked for it.
    """

    names: tuple[str, ...]
    own_KP: Tensor
    cross_KP: Tensor
    target_P: Tensor
    absolute_KP: Tensor | None = None


class Objective(Protocol):
    """A distance that falls to 0 where the gradients are equal."""

    needs_absolute: ClassVar[bool]

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each tensor by name, 1 if not named; a tensor of weight 0 is never computed."""

    def __call__(self, moments: Moments) -> Tensor:
        """Distances (K,), differentiable in the moments."""


def tensor_weights(objective: Objective, moments: Moments) -> Tensor:
    """The objective's weights in the order of the moments, (P,)."""
    weights = [float(objective.weights.get(name, 1.0)) for name in moments.names]
    return moments.target_P.new_tensor(weights)


@dataclass(frozen=True, kw_only=True)
class SquaredL2:
    """Σ ‖g' − g‖² (Zhu et al. 2019). Near 0 it cancels: its floor is float rounding of ‖g‖²."""

    needs_absolute: ClassVar[bool] = False
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, moments: Moments) -> Tensor:
        """Distances (K,)."""
        squared_KP = moments.own_KP - 2 * moments.cross_KP + moments.target_P
        return squared_KP @ tensor_weights(self, moments)


@dataclass(frozen=True, kw_only=True)
class CosinePerTensor:
    """Mean over tensors of 1 − cosine (Balunović et al. 2022, L_cos)."""

    needs_absolute: ClassVar[bool] = False
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, moments: Moments) -> Tensor:
        """Distances (K,), 0 to 2."""
        weights_P = tensor_weights(self, moments)
        cosine_KP = _cosine(moments.own_KP, moments.cross_KP, moments.target_P)
        return ((1 - cosine_KP) @ weights_P) / weights_P.sum()


@dataclass(frozen=True, kw_only=True)
class CosineGlobal:
    """1 − cosine of all tensors as one vector (Geiping et al. 2020, eq. 4, without its image prior)."""

    needs_absolute: ClassVar[bool] = False
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, moments: Moments) -> Tensor:
        """Distances (K,), 0 to 2."""
        weights_P = tensor_weights(self, moments)
        return 1 - _cosine(
            moments.own_KP @ weights_P, moments.cross_KP @ weights_P, moments.target_P @ weights_P
        )


@dataclass(frozen=True, kw_only=True)
class TAG:
    """Σ ‖g' − g‖₂² + α ‖g' − g‖₁ (Deng et al. 2021, eq. 5)."""

    needs_absolute: ClassVar[bool] = True
    alpha: float = 0.01  # Deng et al. 2021, sec. 4
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, moments: Moments) -> Tensor:
        """Distances (K,)."""
        assert moments.absolute_KP is not None
        squared_KP = moments.own_KP - 2 * moments.cross_KP + moments.target_P
        return (squared_KP + self.alpha * moments.absolute_KP) @ tensor_weights(self, moments)


def _cosine(own: Tensor, cross: Tensor, target: Tensor) -> Tensor:
    tiny = (
        torch.finfo(own.dtype).tiny ** 0.5
    )  # a gradient of exactly 0 counts as orthogonal, with a finite slope
    return cross / (own.clamp_min(tiny).sqrt() * target.sqrt())
