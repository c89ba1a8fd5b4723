"""Which rows were looked up, where something else may have filled some."""

from __future__ import annotations

import pytest
import torch

from textleak.exact.lookups import denser_than_noise

ROWS, WIDTH, OWN = 30_522, 384, 8


@pytest.mark.parametrize("kept", [0.0, 1e-5, 1e-4, 1e-3, 5e-3, 2e-2])
def test_rows_of_pruned_noise_are_told_from_those_that_were_looked_up(kept: float):
    noise = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) < kept
    counts = noise.sum(1)
    counts[:OWN] = WIDTH // 2
    assert denser_than_noise(counts, WIDTH) == list(range(OWN))


def test_where_no_row_is_empty_none_is_told():
    assert denser_than_noise(torch.full((ROWS,), 3), WIDTH) == []


@pytest.mark.parametrize("looked_up", [0, 1, 400, 511])
def test_full_rows_are_told_while_one_is_empty(looked_up: int):
    counts = torch.zeros(512, dtype=torch.long)
    counts[:looked_up] = WIDTH
    assert denser_than_noise(counts, WIDTH) == list(range(looked_up))
