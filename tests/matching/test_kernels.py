"""The swapped-in operations equal torch's own, and so do their first and second derivatives."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from textleak.matching import Matcher, SquaredL2, Target, kernels
from textleak.matching.kernels import CheapSecondDerivatives, layer_norm_scale
from textleak.matching.linear import product

torch_draws = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch_draws)


WEIGHT, BIAS, SCALE, SHIFT = draw(5, 7), draw(5), draw(7), draw(7)
OPERATIONS = {
    "linear": lambda x: functional.linear(x, WEIGHT, BIAS),
    "addmm": lambda x: torch.addmm(BIAS, x.flatten(0, 1), WEIGHT.mT),
    "layer norm": lambda x: functional.layer_norm(x, (7,), SCALE, SHIFT),
    "layer norm without scale": lambda x: functional.layer_norm(x, [7]),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softmax": lambda x: functional.softmax(3 * x, dim=-1),
}
UNTOUCHED = {
    "softmax over another dimension": lambda x: functional.softmax(x, dim=1),
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "layer norm over two dimensions": lambda x: functional.layer_norm(x, (3, 7)),
    "linear by a vector": lambda x: functional.linear(x, SCALE),
}


def with_derivatives(operation, x):
    """Value, gradient and second derivative along one direction."""
    x = x.clone().requires_grad_()
    value = operation(x)
    direction = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value).requires_grad_()
    (gradient,) = torch.autograd.grad(value, x, direction, create_graph=True)
    total = gradient.square().sum() + gradient.sum()
    second = torch.autograd.grad(total, [x, direction], allow_unused=True, materialize_grads=True)
    return value.detach(), gradient.detach(), *second


@pytest.mark.parametrize("name", OPERATIONS | UNTOUCHED)
def test_values_and_two_derivatives_equal_torchs(name):
    operation, x = (OPERATIONS | UNTOUCHED)[name], draw(2, 3, 7)
    expected = with_derivatives(operation, x)
    with CheapSecondDerivatives():
        found = with_derivatives(operation, x)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operation_is_really_swapped(name):
    x = draw(2, 3, 7).requires_grad_()
    with CheapSecondDerivatives():
        function = OPERATIONS[name](x).grad_fn
    assert type(function).__name__.startswith("_")


def test_large_tensors_go_in_blocks_and_come_out_the_same():
    x = draw(50, 3000)
    expected = with_derivatives(functional.gelu, x)
    with CheapSecondDerivatives():
        found = with_derivatives(functional.gelu, x)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["gelu", "silu"])
@pytest.mark.parametrize("kept", [0, 2**18])
def test_a_slope_that_is_kept_is_the_one_that_is_made_anew(monkeypatch, name, kept):
    monkeypatch.setattr(kernels, "_KEPT", kept)
    x = draw(2, 3, 7).requires_grad_()

    def last_derivative():
        value = OPERATIONS[name](x)
        (gradient,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum() + value.sum(), x)[0]

    expected = last_derivative()
    with CheapSecondDerivatives():
        found = last_derivative()
    torch.testing.assert_close(found, expected)


def test_a_kink_with_a_width_keeps_value_and_slope_and_curves_like_the_step_blurred():
    x, width = draw(4, 30), 0.3
    expected = with_derivatives(functional.relu, x)
    with CheapSecondDerivatives(kinks=width):
        value, slope, to_x, to_direction = with_derivatives(functional.relu, x)
    torch.testing.assert_close((value, slope, to_direction), (expected[0], expected[1], expected[3]))
    assert not expected[2].any()

    direction = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    deviation = x.std(1, keepdim=True)

    def blurred(y):  # the mean of the step over logistic noise of this width
        return (direction * torch.sigmoid(y / (width * deviation)) * (2 * slope + 1)).sum()

    (curvature,) = torch.autograd.grad(blurred(x.requires_grad_()), x)
    torch.testing.assert_close(to_x, curvature)


def test_without_a_width_a_kink_is_torchs():
    x = draw(2, 3).requires_grad_()
    with CheapSecondDerivatives():
        assert type(functional.relu(x).grad_fn).__name__ == "ReluBackward0"


def test_the_scales_gradient_equals_autograds():
    delta, x = draw(4, 3, 7).requires_grad_(), draw(4, 3, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda d, y: layer_norm_scale(d, y, 1e-5, 2), (delta, x))
    expected = (delta * functional.layer_norm(x, (7,))).reshape(2, 6, 7).sum(1)
    torch.testing.assert_close(layer_norm_scale(delta, x, 1e-5, 2), expected)


@pytest.mark.parametrize("rows", [1, 5, 40, 1500])  # the last by oneDNN
def test_products_equal_torchs_in_single_precision(rows):
    x, weight, bias = draw(2, rows, 33).float(), draw(20, 33).float(), draw(20).float()
    torch.testing.assert_close(product(x, weight, bias), functional.linear(x, weight, bias))
    transposed = weight.mT.contiguous().mT
    torch.testing.assert_close(product(x, transposed), functional.linear(x, weight))
    part = weight[:, :20]
    torch.testing.assert_close(product(x[..., :20], part), functional.linear(x[..., :20], part))


class FirstTokenReader(nn.Module):
    """Mixes tokens, then reads the first one only, through a layer that all tokens pass."""

    def __init__(self):
        super().__init__()
        self.mix, self.up, self.down, self.head = (
            nn.Linear(6, 6),
            nn.Linear(6, 9),
            nn.Linear(9, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        x = x + (self.mix(x) @ x.mT).softmax(-1) @ x
        return self.head(self.down(functional.gelu(self.up(x)))[:, 0])


def test_rows_that_no_gradient_reaches_are_skipped_without_a_trace():
    torch.manual_seed(0)
    network = FirstTokenReader().double().requires_grad_(False)
    leaves = {"x": draw(8, 11, 6), "labels": draw(8, 2)}

    def losses(some):
        return -(network(some["x"]).log_softmax(-1) * some["labels"].softmax(-1)).sum(-1)

    names = [name for name, _ in network.named_parameters()]
    network.requires_grad_(True)
    secret = {"x": draw(1, 11, 6), "labels": draw(1, 2)}
    truth = dict(
        zip(names, torch.autograd.grad(losses(secret).sum(), list(network.parameters())), strict=True)
    )
    matcher = Matcher.of(network.requires_grad_(False), Target.from_gradients(truth), SquaredL2())
    distances, gradients = matcher.value_and_gradient(losses, leaves, ["x", "labels"])
    assert matcher.formed_names == ()
    network.requires_grad_(True)
    for k in range(8):
        own = {name: leaf[k : k + 1].clone().requires_grad_() for name, leaf in leaves.items()}
        formed = torch.autograd.grad(losses(own).sum(), list(network.parameters()), create_graph=True)
        expected = sum((g - t).square().sum() for g, t in zip(formed, truth.values(), strict=True))
        torch.testing.assert_close(distances[k], expected.detach())
        for name, gradient in zip(own, torch.autograd.grad(expected, list(own.values())), strict=True):
            torch.testing.assert_close(gradients[name][k : k + 1], gradient)
