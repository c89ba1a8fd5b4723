"""Decompositions that end where LAPACK's first way doesn't."""

from __future__ import annotations

from typing import Never

import pytest
import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, not listed

from textleak.numerics import singular_values, svd


def _does_not_end(*_arguments: object, **_options: object) -> Never:
    raise LinAlgError("did not converge")


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 3)])
@pytest.mark.parametrize("full", [False, True])
def test_a_decomposition_that_does_not_end_is_taken_another_way(
    shape: tuple[int, ...], full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    usual = torch.linalg.svd(matrix, full_matrices=full)
    for name in ("svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, _does_not_end)
    left, values, right = svd(matrix, full=full)
    assert (left.shape, right.shape) == (usual.U.shape, usual.Vh.shape)
    rank = values.shape[-1]
    made = (left[..., :rank] * values[..., None, :]) @ right[..., :rank, :]
    torch.testing.assert_close(made, matrix)
    torch.testing.assert_close(values, usual.S)
    torch.testing.assert_close(singular_values(matrix), usual.S)


def test_what_is_no_number_stays_an_error() -> None:
    with pytest.raises(LinAlgError):
        svd(torch.full((3, 2), torch.nan))
