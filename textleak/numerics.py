"""Floating numbers: float64 on every device (Apple's MPS has none, and few of the decompositions), and their grid."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not listed


def exact(tensor: Tensor) -> Tensor:
    """The tensor in float64 where it is, or on the CPU where its device has no float64."""
    return on_capable_device(tensor).double()


def on_capable_device(tensor: Tensor) -> Tensor:
    """The tensor where it is, or on the CPU where its device has neither float64 nor decompositions."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def svd(matrix: Tensor, *, full: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition: (..., M, R), (..., R), (..., R, N) with R the smaller of M and N.

    Divide and conquer as torch does it; where that doesn't end, as LAPACK's at times on repeated singular values
    (oneMKL's at one address and not at another), QR iteration.

    Args:
        matrix: (..., M, N).
        full: all M and N directions instead of R.

    Raises:
        torch.linalg.LinAlgError: if an entry isn't finite.
    """
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=full)
    except LinAlgError:
        if not bool(matrix.isfinite().all()):
            raise
        each = exact(matrix.detach()).cpu().reshape(-1, *matrix.shape[-2:]).numpy()
        found = [scipy.linalg.svd(one, full_matrices=full, lapack_driver="gesvd") for one in each]
        left, values, right = (
            torch.from_numpy(np.stack(parts)).reshape(*matrix.shape[:-2], *parts[0].shape).to(matrix)
            for parts in zip(*found, strict=True)
        )
    return left, values, right


def singular_values(matrix: Tensor) -> Tensor:
    """Of a matrix, (..., R), as `svd` has them."""
    try:
        values: Tensor = torch.linalg.svdvals(matrix)
    except LinAlgError:
        _, values, _ = svd(matrix)
    return values


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
