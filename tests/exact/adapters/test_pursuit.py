"""Of many known vectors those are found that make a few measurements, though they outnumber them."""

from __future__ import annotations

import torch
from torch import Tensor

from textleak.exact.adapters.pursuit import NOTHING, Pursuit, part_within, parts, whitening

VECTORS, SIZE, MEASURED = 1000, 128, 8


def dictionary() -> Tensor:
    """Vectors with a mean and a few directions far stronger than the others, as embeddings have them."""
    generator = torch.Generator().manual_seed(3)
    spread_I = torch.cat([torch.full((4,), 20.0), torch.ones(SIZE - 4)])
    return torch.randn(VECTORS, SIZE, generator=generator) * spread_I + 3.0


def measurements(of_NI: Tensor) -> Tensor:
    return torch.randn(MEASURED, len(of_NI), generator=torch.Generator().manual_seed(4)) @ of_NI


def taken(gradient_MI: Tensor, vectors_VI: Tensor, most: int) -> tuple[list[int], Pursuit]:
    mean_I = vectors_VI.mean(0)
    pursuit = Pursuit(gradient_MI, whitening(vectors_VI - mean_I, mean_I[None], ridge=1e-6))
    vectors_VJ = vectors_VI @ pursuit.white_JI.T
    found: list[int] = []
    while pursuit.left > NOTHING and len(found) < most:
        outside_VJ = pursuit.outside(vectors_VJ)
        along_VR = outside_VJ @ pursuit.directions()
        within_V = part_within(along_VR, outside_VJ.square().sum(1), vectors_VJ.square().sum(1))
        found.append(int(within_V.argmax()))
        pursuit.take(outside_VJ[found[-1]])
    return found, pursuit


def test_three_times_as_many_vectors_as_measurements_are_told() -> None:
    vectors_VI = dictionary()
    chosen = list(range(5, 29))
    found, pursuit = taken(measurements(vectors_VI[chosen]), vectors_VI, most=30)
    assert sorted(found) == chosen
    assert pursuit.room > 0


def test_nothing_explains_what_isnt_made_of_the_vectors() -> None:
    other_NI = torch.randn(24, SIZE, generator=torch.Generator().manual_seed(5))
    _, pursuit = taken(measurements(other_NI), dictionary(), most=60)
    assert pursuit.left > 0.05


def test_white_coordinates_leave_out_what_is_common_and_vary_alike() -> None:
    vectors_VI = dictionary().double()
    mean_I = vectors_VI.mean(0)
    white_JI = whitening(vectors_VI - mean_I, mean_I[None], ridge=0.0)
    assert float((white_JI @ mean_I).norm()) <= 1e-10 * float(mean_I.norm())
    white_VJ = (vectors_VI - mean_I) @ white_JI.T
    covariance_JJ = white_VJ.T @ white_VJ / VECTORS
    assert torch.allclose(covariance_JJ, torch.eye(SIZE - 1, dtype=torch.float64), atol=1e-8)


def test_parts_tell_which_vectors_are_there_at_all() -> None:
    vectors_VI = dictionary()
    gradient_MI = measurements(vectors_VI[:10])
    found = parts(gradient_MI, vectors_VI[:12])
    assert found.there_N.tolist() == [True] * 10 + [False] * 2
    assert found.left < 1e-6
    assert parts(gradient_MI, vectors_VI[1:12]).left > 1e-3
