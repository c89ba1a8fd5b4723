"""A descent scores no more rows than it may, and ends where it would with places tried one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from textleak.exact.checks import descend


class _Sums:
    """Parts outside are how far each pair is from its place's own; several places are asked at once, or one."""

    ahead: ClassVar[int] = 1

    def __init__(self) -> None:
        self.asked = 0

    def outside(self, rows_KT: Tensor) -> Tensor:
        return (rows_KT - torch.arange(rows_KT.shape[1])).abs().double()

    def changed(self, row: Sequence[int], places_KM: Tensor, pairs_KM: Tensor) -> Tensor:
        self.asked += 1
        return self.outside(torch.tensor(row).repeat(len(places_KM), 1).scatter_(1, places_KM, pairs_KM))


class _ManyAtOnce(_Sums):
    ahead: ClassVar[int] = 16


@pytest.mark.parametrize("kind", [_Sums, _ManyAtOnce])
def test_a_descent_ends_at_what_belongs_there(kind: type[_Sums]) -> None:
    row, outside = descend(kind(), [9, 9, 9, 9], [range(6)] * 4, sweeps=8, solved_at=0.0)
    assert (row, outside) == ([0, 1, 2, 3], 0.0)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_descent_scores_no_more_rows_than_it_may(most: int) -> None:
    check = _Sums()
    row, outside = descend(check, [9, 9, 9, 9], [range(6)] * 4, sweeps=8, solved_at=0.0, most=most)
    assert check.asked == most
    assert [a == b for a, b in zip(row, range(4), strict=True)].count(True) == most
    assert outside == float(check.outside(torch.tensor([row])).mean())
