"""The shared gradient, factored."""

import pytest
import torch

from textleak.errors import InputError
from textleak.matching import Damage, Target


def low_rank(rows, columns, rank, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=dtype)
    return left @ torch.randn(rank, columns, generator=generator, dtype=dtype)


@pytest.mark.parametrize("rank", [1, 7, 16, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_of_low_rank_has_thin_factors_that_equal_it(rank, dtype):
    gradient = low_rank(90, 70, rank, dtype)
    tensor = Target.from_gradients({"w": gradient}).tensors["w"]
    assert tensor.left_OR.shape == (90, rank)
    torch.testing.assert_close(
        tensor.formed(), gradient, atol=1e-4 if dtype == torch.float32 else 1e-11, rtol=0
    )
    assert tensor.squared_norm == pytest.approx(float(gradient.double().square().sum()))


def test_a_matrix_of_high_rank_stays_dense():
    gradient = low_rank(40, 40, 30)
    tensor = Target.from_gradients({"w": gradient}).tensors["w"]
    assert tensor.left_OR is None
    assert torch.equal(tensor.dense, gradient)


def test_rounding_noise_is_left_out():
    target = Target.from_gradients({"query": torch.ones(3, 3), "key.bias": torch.full((3,), 1e-8)})
    assert target.names == ("query",)
    assert target.dropped == ("key.bias",)


def test_truncation_to_the_rank_of_the_batch_removes_most_of_the_noise():
    clean = low_rank(200, 150, 5)
    noise = torch.randn(200, 150, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = Target.from_gradients({"w": clean + 0.05 * noise}, Damage(rank=5, noise_floor=0.05))
    left = (target.tensors["w"].formed() - clean).norm()
    assert left < 0.4 * (0.05 * noise).norm()


def test_a_matrix_wholly_under_the_noise_floor_is_left_out():
    noise = torch.randn(30, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = Target.from_gradients({"w": low_rank(30, 30, 2), "v": 0.001 * noise}, Damage(noise_floor=0.01))
    assert target.dropped == ("v",)


def test_a_gradient_of_zeros_is_an_input_error():
    with pytest.raises(InputError, match="all zero"):
        Target.from_gradients({"w": torch.zeros(3, 3)})


def test_a_bfloat16_gradient_has_thin_factors_to_its_rounding():
    gradient = low_rank(96, 80, 5).bfloat16()
    tensor = Target.from_gradients({"w": gradient}).tensors["w"]
    assert tensor.dense is None
    assert tensor.left_OR.dtype == torch.bfloat16
    assert tensor.left_OR.shape[1] < 20
    assert (tensor.formed() - gradient).double().norm() <= 2**-6 * gradient.double().norm()


@pytest.mark.parametrize(("given", "rank"), [(torch.float32, 5), (torch.float64, 5), (torch.bfloat16, None)])
def test_thin_factors_of_a_finer_type_leave_out_what_the_given_one_rounded(given, rank):
    """Float32's rounding has full rank in float64; bfloat16's is too much to be taken for nothing."""
    gradient = low_rank(90, 70, 5)
    tensor = Target.from_gradients({"w": gradient.to(given)}, dtype=torch.float64).tensors["w"]
    assert (None if tensor.left_OR is None else tensor.left_OR.shape[1]) == rank
    assert tensor.formed().dtype == torch.float64
    assert (tensor.formed() - gradient).norm() <= 32 * torch.finfo(given).eps * gradient.norm()
