"""A span laid out for the comparison with dropped inputs: every entry in scales, with what its rounding is.

Shapes: N tokens, O and I the layers' output and input size, R rank of the span, K columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from textleak.exact.dropout.rules import Dropped
from textleak.exact.subspace import InputSpan
from textleak.models import TextModel
from textleak.models.probes.layers import LocalLayer
from textleak.numerics import exact

# Part of an entry's usual size that its scale is at least, and tokens that it is told by (our choice).
_LEAST_SCALE, _SAMPLE = 0.1, 1024


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """Entries of dropped inputs in scales, one of which is an entry's usual size.

    Attributes:
        model: the public model.
        dropped: how entries are dropped.
        layers: local layers that read the input.
        stacked_OI: the layers' gradients, one after the other.
        span: where the inputs lie.
        scale_I: the scales.
        columns_IK: what makes the vectors that are compared, in scales.
        noise_IK: standard deviation of rounding in each column, likewise.
        bounded: whether the gradient is only told between bounds.
        moving: whether it is a sum over several steps, between which the inputs moved a little.
    """

    model: TextModel
    dropped: Dropped
    layers: tuple[LocalLayer, ...]
    stacked_OI: Tensor
    span: InputSpan
    scale_I: Tensor
    columns_IK: Tensor
    noise_IK: Tensor
    bounded: bool = False
    moving: bool = False

    @classmethod
    def of(
        cls,
        model: TextModel,
        dropped: Dropped,
        layers: Sequence[LocalLayer],
        span: InputSpan,
        gradient_OI: Tensor,
        *,
        unsure_RI: Tensor | None = None,
        moving: bool = False,
    ) -> Frame:
        """The frame of one span.

        Args:
            model: the public model.
            dropped: how entries are dropped.
            layers: local layers that read the input.
            span: where their gradients say that it lies.
            gradient_OI: the layers', one after the other.
            unsure_RI: standard deviation of the entries of the span's directions; None where what the gradient has
                outside the span tells it.
            moving: see there.
        """
        sample_N = torch.linspace(0, model.vocab_size - 1, min(model.vocab_size, _SAMPLE)).long()
        sample_NI = dropped.parts(sample_N.to(model.device), 0)
        scale_I = sample_NI.square().mean(0).sqrt() + _LEAST_SCALE * float(sample_NI.abs().mean())
        stacked_OI = exact(gradient_OI).cpu()
        basis_IR = span.basis_RI.T.cpu()
        columns_IK = dropped.columns(basis_IR)
        # The noise of a direction goes the way of the direction; what is added beside them is exact.
        own_IR = dropped.columns(torch.ones_like(basis_IR))[:, : span.rank].abs()
        noise_IK = torch.zeros_like(columns_IK)
        unsure_IR = _noise(stacked_OI, basis_IR) if unsure_RI is None else unsure_RI.T.cpu()
        noise_IK[:, : span.rank] = own_IR * unsure_IR
        return cls(
            model=model,
            dropped=dropped,
            layers=tuple(layers),
            stacked_OI=stacked_OI,
            span=span,
            scale_I=scale_I,
            columns_IK=columns_IK / scale_I[:, None],
            noise_IK=noise_IK / scale_I[:, None],
            bounded=unsure_RI is not None,
            moving=moving,
        )

    def targets(self, ids_N: Tensor, position: int) -> Tensor:
        """What entries of tokens (`marked`) at a position are where they aren't dropped, in scales: (N, I), float64."""
        return self.dropped.parts(ids_N, position) / self.scale_I

    def inside(self, basis_IK: Tensor) -> Callable[[int], Tensor] | None:
        """For a position about the part of all tokens' targets that lies in the space of an orthonormal basis, (V,)."""
        like_VI = self.model.word_embedding.weight
        along = self.dropped.along((basis_IK / self.scale_I[:, None]).T.to(like_VI))
        if along is None:
            return None
        every_V = torch.arange(self.model.marks, device=like_VI.device)
        squares_V = torch.cat(
            [self.targets(ids_N, 0).square().sum(1) for ids_N in torch.split(every_V, 8 * _SAMPLE)]
        ).to(like_VI)
        return lambda position: along(position).square().sum(1) / squares_V


def _noise(stacked_OI: Tensor, basis_IR: Tensor) -> Tensor:
    """Standard deviation of each entry of each direction, (I, R), by what the gradient has outside the span.

    An input's entries are added up in the client's precision, so large ones have more rounding in them than small ones.
    """
    parts_OR = stacked_OI @ basis_IR
    left_OI = stacked_OI - parts_OR @ basis_IR.T
    spread_I = left_OI.norm(dim=0) / max(1, len(stacked_OI) - basis_IR.shape[1]) ** 0.5
    # An entry that happens to have little of it has no less than others in the span itself.
    spread_I = spread_I.clamp_min(float(spread_I.mean()))
    spread_IR: Tensor = spread_I[:, None] / parts_OR.norm(dim=0)
    return spread_IR
