"""Matrices of low rank come back from some of their entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from textleak.defenses.largest import keep_largest
from textleak.exact.completion import completed


def low_rank(rows: int, columns: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, columns, generator=generator, dtype=torch.float64)


def outside(whole_OI: Tensor, span_OI: Tensor, rank: int) -> float:
    """How much of one row space lies outside the other, 0 to 1."""
    one, other = (torch.linalg.svd(m, full_matrices=False)[2][:rank] for m in (whole_OI, span_OI))
    return float((one - (one @ other.T) @ other).norm() / rank**0.5)


@pytest.mark.parametrize("pruned", [0.3, 0.5, 0.7])
def test_the_row_space_of_a_pruned_matrix_comes_back(pruned: float) -> None:
    whole_OI = low_rank(120, 80, 4)
    left_OI = keep_largest(whole_OI, 1 - pruned)
    found = completed(left_OI, 4)
    assert found is not None
    # Columns of which nothing is left can't come back.
    assert outside(whole_OI, found, 4) < (1e-4 if pruned < 0.5 else 0.35) * outside(whole_OI, left_OI, 4)


def test_randomly_pruned_entries_come_back() -> None:
    whole_OI = low_rank(120, 80, 3)
    left = torch.rand(whole_OI.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found = completed(whole_OI * left, 3)
    assert found is not None
    assert outside(whole_OI, found, 3) < 1e-4


def test_too_little_is_not_completed() -> None:
    assert completed(keep_largest(low_rank(120, 80, 4), 0.02), 4) is None


def test_what_is_not_of_that_rank_is_not_completed() -> None:
    assert completed(keep_largest(low_rank(120, 80, 20), 0.7), 4) is None
