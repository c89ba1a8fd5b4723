"""Whitened matching: the same gradient in another metric."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from textleak.matching.factored import Capture
from textleak.matching.whitening import WhitenedMatcher, Whitening

INPUTS, OUTPUTS, TOKENS = 6, 4, 3


@pytest.fixture(params=["by a rule", "formed"])
def layer(request: pytest.FixtureRequest) -> nn.Linear:
    torch.manual_seed(0)
    kind = nn.Linear if request.param == "by a rule" else WithoutRule
    return kind(INPUTS, OUTPUTS).double().requires_grad_(False)


def losses(layer: nn.Linear) -> object:
    def function(leaves: Mapping[str, Tensor]) -> Tensor:
        return layer(leaves["x"]).tanh().sum((1, 2))

    return function


def formed(layer: nn.Linear, x_1NI: Tensor) -> dict[str, Tensor]:
    layer.requires_grad_(True)
    gradients = torch.autograd.grad(layer(x_1NI).tanh().sum(), [layer.weight, layer.bias])
    layer.requires_grad_(False)
    return dict(zip(("weight", "bias"), gradients, strict=True))


class WithoutRule(nn.Linear):
    """A layer that the engine knows nothing of: its gradients are formed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0


def matcher(layer: nn.Linear, shared: dict[str, Tensor], *, centered: bool) -> WhitenedMatcher:
    arbitrary_NI = torch.randn(200, INPUTS, dtype=torch.float64) @ torch.randn(INPUTS, INPUTS).double() + 3
    whitening = Whitening.of(arbitrary_NI, centered=centered, transposed=False)
    biases = {"weight": "bias"} if centered else {}
    return WhitenedMatcher(
        Capture(layer, ["weight", *biases.values()]),
        shared,
        {"weight": whitening},
        biases,
        like=layer.weight,
    )


@pytest.mark.parametrize("centered", [True, False])
def test_the_distance_equals_that_of_formed_whitened_gradients(layer: nn.Linear, *, centered: bool) -> None:
    truth, others = torch.randn(1, TOKENS, INPUTS).double(), torch.randn(5, TOKENS, INPUTS).double()
    shared = formed(layer, truth)
    whitened = matcher(layer, shared, centered=centered)
    distances_K = whitened.evaluate(losses(layer), {"x": others})  # type: ignore[arg-type]
    mean_I, matrix_II, _ = whitened._whitenings["weight"]
    for k in range(5):
        own = formed(layer, others[k : k + 1])
        mine, goal = (
            ((g["weight"] - centered * torch.outer(g["bias"], mean_I)) @ matrix_II).flatten()
            for g in (own, shared)
        )
        assert distances_K[k].item() == pytest.approx(1 - torch.cosine_similarity(mine, goal, dim=0).item())


def test_the_truth_has_no_distance_and_whitened_inputs_no_covariance(layer: nn.Linear) -> None:
    truth = torch.randn(1, TOKENS, INPUTS).double()
    whitened = matcher(layer, formed(layer, truth), centered=True)
    assert whitened.evaluate(losses(layer), {"x": truth}).item() == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]
    inputs_NI = torch.randn(500, INPUTS).double() @ torch.diag(torch.arange(1.0, INPUTS + 1).double())
    whitening = Whitening.of(inputs_NI, centered=True, transposed=False)
    white_NI = (inputs_NI - whitening.mean_I) @ whitening.matrix_II
    covariance_II = white_NI.T @ white_NI / len(white_NI)
    off = covariance_II - torch.diag(covariance_II.diagonal())
    assert off.abs().max() < 1e-9
    assert covariance_II.diagonal().max() / covariance_II.diagonal().min() < 1.5
