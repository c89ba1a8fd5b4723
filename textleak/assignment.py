"""Which goes with which: the Hungarian method, of scipy, which is imported at first use as that takes a while."""

from __future__ import annotations

from typing import Any


def assignment(values_RC: Any, *, maximize: bool = False) -> list[tuple[int, int]]:  # noqa: ANN401 (array-like)
    """Rows and columns in pairs, each at most once, min(R, C) of them, with the least sum of values.

    Args:
        values_RC: finite numbers, whatever NumPy makes a matrix of.
        maximize: the largest sum instead.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(values_RC, maximize=maximize)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
