"""Entries of unlike error brought to one, by scaling rows and columns: the rank of a matrix stays as it is.

What its singular values then have to stand out of is the largest one that such errors make by themselves.

Shapes: O rows, I columns.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_ROUNDS = 3  # of scaling rows and columns in turn (our choice)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evened:
    """How.

    Attributes:
        scale_O1, scale_1I: what rows and columns are multiplied by.
        largest: singular value of errors alone.
    """

    scale_O1: Tensor
    scale_1I: Tensor
    largest: float

    def of(self, value_OI: Tensor) -> Tensor:
        """A matrix with rows and columns scaled so."""
        return value_OI * self.scale_O1 * self.scale_1I


def evened(error_OI: Tensor) -> Evened:
    """Scales for a matrix whose entries have these standard deviations of error, float64."""
    scale_O1, scale_1I = torch.ones_like(error_OI[:, :1]), torch.ones_like(error_OI[:1])
    for _ in range(_ROUNDS):
        scale_O1 = scale_O1 / (error_OI * scale_O1 * scale_1I).square().mean(1, keepdim=True).sqrt()
        scale_1I = scale_1I / (error_OI * scale_O1 * scale_1I).square().mean(0, keepdim=True).sqrt()
    generator = torch.Generator().manual_seed(0)  # any errors will do
    drawn_OI = torch.randn(error_OI.shape, generator=generator, dtype=torch.float64).to(error_OI)
    errors_OI = error_OI * scale_O1 * scale_1I * drawn_OI
    return Evened(scale_O1=scale_O1, scale_1I=scale_1I, largest=float(torch.linalg.matrix_norm(errors_OI, 2)))
