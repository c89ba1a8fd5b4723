"""How far the same number may be apart where it was computed in two ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from textleak.numerics import exact

_COARSE = 5e-2  # bfloat16, float16


def tolerance_of(dtype: torch.dtype, fine: Mapping[torch.dtype, float]) -> float:
    """Which part of a norm rounding may take in a floating type: of `fine`, or what coarse types have."""
    return fine.get(dtype, _COARSE)


def near(found: Tensor, expected: Tensor, fine: Mapping[torch.dtype, float]) -> bool:
    """Whether a tensor is another one of its shape to rounding: no farther than its tolerance times the other's norm.

    Args:
        found: in question.
        expected: what it should be; its type decides.
        fine: tolerances by floating type, as in `tolerance_of`.
    """
    apart = torch.linalg.vector_norm(exact(found - expected))
    allowed = tolerance_of(expected.dtype, fine) * torch.linalg.vector_norm(exact(expected))
    return bool(apart <= allowed)
