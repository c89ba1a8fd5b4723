"""Gradient matching in whitened coordinates: a layer's inputs as seen from their own mean and covariance.

A layer's inputs share a mean and a few strong directions whatever the data are, so most of G = ΔᵀX says nothing of
the data, and raw distances hardly tell a right token from a wrong one. With the inputs' mean µ and a whitening L,
both from the public model on arbitrary inputs, Δᵀ(X − µ)L is compared instead: the same gradient in another metric
(the bias's gradient, the sum of Δ, takes the mean out of the shared one).

Shapes: K candidates, N tokens a candidate, O outputs, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from textleak.matching.factored import Leaves, ModelFunction
from textleak.matching.matcher import GradientSource, Matcher
from textleak.matching.objectives import CosinePerTensor
from textleak.matching.rules import Contribution, Outer
from textleak.matching.single import form
from textleak.matching.target import Target
from textleak.numerics import exact

# Added to the eigenvalues, in units of their mean, so that directions without variance don't count for everything
# (our choice; 0.01 was the best of 0.001 to 0.1 on minilm).
_DAMPING = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """A layer's inputs x become (x − mean) @ matrix.

    Attributes:
        mean_I: zero where the bias's gradient isn't there to take the mean out of the shared gradient.
        matrix_II: whitens.
        transposed: whether the layer's weight is stored as (I, O).
    """

    mean_I: Tensor
    matrix_II: Tensor
    transposed: bool

    @classmethod
    def of(cls, inputs_NI: Tensor, *, centered: bool, transposed: bool) -> Whitening:
        """From inputs that the layer reads on arbitrary data."""
        inputs_NI = exact(inputs_NI)
        mean_I = inputs_NI.mean(0) if centered else inputs_NI.new_zeros(inputs_NI.shape[1])
        moved_NI = inputs_NI - mean_I
        values_I, vectors_II = torch.linalg.eigh(moved_NI.T @ moved_NI / len(moved_NI))
        values_I = values_I.clamp_min(0)
        scale_I = (values_I / values_I.mean() + _DAMPING).rsqrt()
        return cls(mean_I=mean_I, matrix_II=vectors_II * scale_I, transposed=transposed)


class WhitenedMatcher(Matcher):
    """Mean over layers of 1 − cosine of the whitened gradients; otherwise a `Matcher`.

    Args:
        source: gives candidates' gradients of those weights and biases.
        gradients: the shared gradient by parameter name.
        whitenings: by name of the weight; each must be in `gradients`.
        biases: name of the bias beside a weight, for those whose whitening is centered.
        like: a tensor of the type and on the device that the network computes in.
        chunk: candidates a call of the network at most.
    """

    def __init__(
        self,
        source: GradientSource,
        gradients: Mapping[str, Tensor],
        whitenings: Mapping[str, Whitening],
        biases: Mapping[str, str],
        *,
        like: Tensor,
        chunk: int | None = None,
    ) -> None:
        target = Target.from_gradients(
            {name: gradients[name] for name in whitenings}, dtype=like.dtype, device=like.device
        )
        super().__init__(source, target, CosinePerTensor(), chunk=chunk)
        self._biases = dict(biases)
        self._whitenings: dict[str, tuple[Tensor, Tensor, bool]] = {}
        self._goals: dict[str, Tensor] = {}
        for name in target.names:
            whitening = whitenings[name]
            goal_OI = gradients[name].to(whitening.mean_I)
            goal_OI = goal_OI.T if whitening.transposed else goal_OI
            if name in biases:
                goal_OI = goal_OI - torch.outer(gradients[biases[name]].to(goal_OI), whitening.mean_I)
            goal_OI = goal_OI @ whitening.matrix_II
            self._goals[name] = (goal_OI / goal_OI.norm()).to(like)
            self._whitenings[name] = (
                whitening.mean_I.to(like),
                whitening.matrix_II.to(like),
                whitening.transposed,
            )

    def distances(
        self, model_function: ModelFunction, leaves: Leaves, *, create_graph: bool = True
    ) -> Tensor:
        """Distances (K,), 0 to 2, differentiable in the leaves that require a gradient."""
        found = self._contributions(model_function, leaves, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            total_K = torch.stack([self._distance(name, found) for name in self._goals])
            return total_K.mean(0)

    def _distance(self, name: str, found: Mapping[str, list[Contribution]]) -> Tensor:
        mean_I, matrix_II, transposed = self._whitenings[name]
        goal_OI = self._goals[name]
        parts = [part for part in found[name] if isinstance(part, Outer)]
        if len(parts) < len(found[name]):  # no rule for this layer: its gradient is formed
            own_KOI = form(found[name], tuple(goal_OI.T.shape if transposed else goal_OI.shape))
            own_KOI = own_KOI.mT if transposed else own_KOI
            if name in self._biases:
                delta_KO = form(found[self._biases[name]], (len(goal_OI),))
                own_KOI = own_KOI - delta_KO[..., None] * mean_I
            white_KOI = own_KOI @ matrix_II
            norm_K = white_KOI.flatten(1).norm(dim=1)
            cosine_K = (white_KOI * goal_OI).sum((1, 2))
            distance_K: Tensor = 1 - cosine_K / norm_K.clamp_min(torch.finfo(norm_K.dtype).tiny ** 0.5)
            return distance_K
        inputs = torch.cat([part.left_KNO if transposed else part.right_KNI for part in parts], 1)
        deltas = torch.cat([part.right_KNI if transposed else part.left_KNO for part in parts], 1)
        white_KNI = (inputs - mean_I) @ matrix_II
        own_K = ((white_KNI @ white_KNI.mT) * (deltas @ deltas.mT)).sum((1, 2))
        cross_K = ((deltas @ goal_OI) * white_KNI).sum((1, 2))
        return 1 - cross_K / own_K.clamp_min(torch.finfo(own_K.dtype).tiny ** 0.5).sqrt()
