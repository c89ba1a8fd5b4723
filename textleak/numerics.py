"""Floating numbers: float64 on every device (Apple's MPS has none, and few of the decompositions), and their grid."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """The tensor in float64 where it is, or on the CPU where its device has no float64."""
    return on_capable_device(tensor).double()


def on_capable_device(tensor: Tensor) -> Tensor:
    """The tensor where it is, or on the CPU where its device has neither float64 nor decompositions."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def grid_step(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbors in a floating type around each value (float64), 0's that of its smallest number."""
    limits = torch.finfo(dtype)
    exponent = torch.frexp(values.abs().clamp_min(limits.tiny)).exponent
    return torch.ldexp(torch.full_like(values, limits.eps), exponent - 1)


def least_squares(columns_MN: Tensor, wanted_MK: Tensor) -> Tensor:
    """What of some columns comes nearest to what is wanted, (N, K), of the smallest size where several do.

    Solved on the CPU: CUDA's own solver takes for granted that no column follows from the others.

    Args:
        columns_MN: the columns, batched or not.
        wanted_MK: what they should make.
    """
    found: Tensor = torch.linalg.lstsq(columns_MN.cpu(), wanted_MK.cpu()).solution
    return found.to(columns_MN.device)
