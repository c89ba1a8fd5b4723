"""A descent scores no more rows than it may, and ends where it would with places tried one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from textleak.exact.checks import Descent


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
    descent = Descent(kind(), [9, 9, 9, 9], [range(6)] * 4, sweeps=8, solved_at=0.0)
    descent.go_on()
    assert (descent.row, descent.outside) == ([0, 1, 2, 3], 0.0)
    assert descent.over
    assert descent.solved


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_descent_scores_no_more_rows_than_it_may(most: int) -> None:
    check = _Sums()
    descent = Descent(check, [9, 9, 9, 9], [range(6)] * 4, sweeps=8, solved_at=0.0, most=most)
    descent.go_on()
    assert check.asked == most
    assert [a == b for a, b in zip(descent.row, range(4), strict=True)].count(True) == most
    assert descent.outside == float(check.outside(torch.tensor([descent.row])).mean())


@pytest.mark.parametrize("kind", [_Sums, _ManyAtOnce])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_descent_in_parts_goes_the_way_of_a_whole_one(kind: type[_Sums], times: int) -> None:
    whole, parts = (
        Descent(kind(), [9, 9, 9, 9], [range(t, 6) for t in (2, 0, 1, 0)], sweeps=8, solved_at=0.0)
        for _ in range(2)
    )
    whole.go_on()
    went = 0
    while not parts.over:
        parts.go_on(times)
        went += times
        assert went < 100
    assert (parts.row, parts.outside) == (whole.row, whole.outside)
    assert not parts.solved


def test_a_descent_scores_rows_once_a_time() -> None:
    check = _Sums()
    descent = Descent(check, [9, 9, 9, 9], [range(6)] * 4, sweeps=8, solved_at=0.0)
    assert check.asked == 0
    for asked in (1, 2, 3):
        descent.go_on(1)
        assert check.asked == asked
        assert not descent.over
