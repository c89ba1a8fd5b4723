"""The benchmark measures what it says."""

import math

import pytest
import torch
from torch import nn

from textleak.matching import TAG, Candidates, CosineGlobal, CosinePerTensor, SquaredL2, benchmark

HIDDEN, TOKENS = 96, 3


@pytest.fixture
def case():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(8, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2)
    )
    network.double().requires_grad_(False)

    def losses(leaves):
        logits = network(leaves["x"]).mean(1)
        return -(logits.log_softmax(-1) * leaves["labels"].softmax(-1)).sum(-1)

    leaves = {
        "x": torch.randn(6, TOKENS, 8, dtype=torch.float64),
        "labels": torch.randn(6, 2, dtype=torch.float64),
    }
    for parameter in network.parameters():
        parameter.requires_grad_()
    secret = {name: leaf[:1].flip(-1) for name, leaf in leaves.items()}
    found = torch.autograd.grad(losses(secret).sum(), list(network.parameters()))
    gradients = dict(zip((name for name, _ in network.named_parameters()), found, strict=True))
    network.requires_grad_(False)
    return network, Candidates(model_function=losses, leaves=leaves, wrt=("x", "labels")), gradients


@pytest.mark.parametrize("objective", [SquaredL2(), CosinePerTensor(), CosineGlobal(), TAG()], ids=repr)
def test_both_methods_give_the_same_losses_and_gradients(case, objective):
    row = benchmark(*case, objective, repeats=2)
    assert row.max_relative_difference < 1e-8
    assert (row.candidates, row.dtype, row.device, row.repeats) == (6, "float64", "cpu", 2)


def test_speed_and_memory_are_finite_and_factored_saves_less(case):
    row = benchmark(*case, SquaredL2(), repeats=3)
    assert row.factored_candidates_per_second > 0
    assert row.formed_candidates_per_second > 0
    assert math.isfinite(row.speedup)
    assert row.spread >= 0
    assert 0 < row.memory_ratio < 0.5


def test_flops_by_formula_are_those_that_torch_counts(case):
    row = benchmark(*case, SquaredL2(), repeats=1)
    assert row.step_flops == pytest.approx(row.counted_step_flops, rel=0.05)
    assert row.evaluation_flops == pytest.approx(row.counted_evaluation_flops, rel=0.05)


def test_the_network_is_left_frozen(case):
    benchmark(*case, SquaredL2(), repeats=1)
    assert not any(parameter.requires_grad for parameter in case[0].parameters())
