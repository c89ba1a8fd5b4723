"""What convolutional networks are run with equals torch's own, and so do first and second derivatives."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.matching.test_kernels import with_derivatives
from textleak.matching import SquaredL2, Target
from textleak.matching.batch_norm import batch_norm
from textleak.matching.convolution import weight_gradient
from textleak.matching.kernels import CheapSecondDerivatives
from textleak.matching.moments import moments_of
from textleak.matching.replaced import WatchedOperations
from textleak.matching.rules import Formed, Outer
from textleak.models.networks import BatchStatisticsNorm, made_by

EPS = 1e-5
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def draw(*shape, layout="channels first", seed=0):
    drawn = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=LAYOUTS[layout]) if len(shape) == 4 else drawn


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaled", [True, False])
def test_batch_norm_by_given_statistics(scaled, layout):
    x = draw(5, 3, 4, 6, layout=layout) + 2
    weight, bias = (draw(3, seed=1), draw(3, seed=2)) if scaled else (None, None)

    def operation(x):
        return functional.batch_norm(x, draw(3, seed=3), draw(3, seed=4).exp(), weight, bias, eps=EPS)

    expected = with_derivatives(operation, x)
    with CheapSecondDerivatives():
        made_by = type(operation(x.clone().requires_grad_()).grad_fn).__name__
        found = with_derivatives(operation, x)
    assert made_by == "AddcmulBackward0"
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def torchs_batch_norm(x, weight, bias):
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPS), mean, variance


# Gradients by which arguments (x, weight, bias) of which outputs (pictures, mean, variance) are asked for.
ASKED = {
    "of pictures alone": ([0], [0]),
    "of the scale alone": ([1], [0]),
    "of scale and bias": ([1, 2], [0]),
    "of all": ([0, 1, 2], [0]),
    "of all, by its statistics too": ([0, 1, 2], [0, 1, 2]),
    "of its mean": ([0], [1]),
    "of its variance": ([0], [2]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("asked", ASKED)
def test_gradients_of_batch_norm_by_its_own_statistics_and_their_derivatives(asked, layout):
    wanted, of = ASKED[asked]
    upstream = draw(5, 3, 4, 6, layout=layout, seed=3), draw(3, seed=4), draw(3, seed=5)

    def derivatives(operation):
        arguments = [draw(5, 3, 4, 6, layout=layout) + 2, draw(3, seed=1), draw(3, seed=2)]
        arguments = [argument.requires_grad_() for argument in arguments]
        outputs = operation(*arguments)
        asked_of = [outputs[number] for number in of]
        along = [upstream[number].clone().requires_grad_() for number in of]
        first = torch.autograd.grad(asked_of, [arguments[n] for n in wanted], along, create_graph=True)
        total = sum(gradient.square().sum() + gradient.sum() for gradient in first)
        second = torch.autograd.grad(total, [*arguments, *along], allow_unused=True, materialize_grads=True)
        return *outputs, *first, *second

    ours = derivatives(lambda x, weight, bias: batch_norm(x, weight, bias, EPS))
    for mine, theirs in zip(ours, derivatives(torchs_batch_norm), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sigmoid_of_pictures(layout):
    x = draw(2, 3, 4, 5, layout=layout)
    expected = with_derivatives(torch.sigmoid, x)
    with CheapSecondDerivatives():
        found = with_derivatives(torch.sigmoid, x)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("candidates", [1, 3])
def test_the_scales_gradient_of_each_candidate(layout, candidates):
    shape = 2 * candidates, 4, 5, 3
    both = draw(*shape, layout=layout), draw(*shape, layout=layout, seed=1)
    norm = BatchStatisticsNorm(nn.BatchNorm2d(4, eps=EPS, dtype=torch.float64))
    norm.samples = 2

    def by_the_norm(delta, x):
        output = norm(x)
        (scales,) = torch.autograd.grad(output, made_by(output).weight, delta, create_graph=True)
        return scales.view(candidates, -1)

    def by_autograd(delta, x):
        parts = zip(delta.chunk(candidates), x.chunk(candidates), strict=True)
        return torch.stack(
            [
                (d * functional.batch_norm(one, None, None, training=True, eps=EPS)).sum((0, 2, 3))
                for d, one in parts
            ]
        )

    assert_same(by_the_norm, by_autograd, both)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2, "padding": (2, 1), "bias": True}, {"dilation": [2], "stride": (1, 2)}],
    ids=["padded", "strided", "dilated"],
)
def test_a_convolution(options, layout):
    x, weight = draw(5, 3, 9, 8, layout=layout), draw(4, 3, 3, 3, seed=1)
    options = {**options, "bias": draw(4, seed=2) if options.get("bias") else None}

    def operation(x):
        return functional.conv2d(x, weight, **options)

    expected = with_derivatives(operation, x)
    with CheapSecondDerivatives():
        found = with_derivatives(operation, x)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


class Convolutions(WatchedOperations):
    """How many there are, those that derivatives are made of among them."""

    number = 0

    def see(self, func, args, kwargs, result):
        self.number += func in (
            torch.ops.aten.convolution.default,
            torch.ops.aten.convolution_backward.default,
        )


def test_no_gradient_of_a_convolutions_constant_weight_is_formed():
    x, weight = draw(2, 3, 9, 8), draw(4, 3, 3, 3)
    with Convolutions() as convolutions, CheapSecondDerivatives():
        with_derivatives(lambda x: functional.conv2d(x, weight), x)
    assert (
        convolutions.number == 3
    )  # itself, what it passes on, and the derivative of that: it has no curvature


@pytest.mark.parametrize(
    "other",
    [
        lambda x: functional.conv2d(x, torch.ones(6, 1, 3, 3, dtype=x.dtype), groups=3),
        lambda x: functional.conv2d(x, torch.ones(6, 3, 3, 3, dtype=x.dtype), padding="same"),
        lambda x: functional.conv2d(x[0], torch.ones(6, 3, 3, 3, dtype=x.dtype)),
    ],
    ids=["groups", "padding in words", "a picture alone"],
)
def test_other_convolutions_are_left_to_torch(other):
    with CheapSecondDerivatives():
        value = other(draw(2, 3, 9, 8).requires_grad_())
    assert "_Convolution" not in type(value.grad_fn).__name__


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2}],
    ids=["padded", "strided", "dilated"],
)
def test_a_convolutions_gradient_of_each_candidate(options, candidates):
    layer = nn.Conv2d(3, 4, 3, bias=False, **options).double()
    x = draw(2 * candidates, 3, 9, 8)
    delta = draw(*layer(x).shape, seed=1)

    def by_patches(delta, x):
        patches = functional.unfold(x, 3, layer.dilation, layer.padding, layer.stride)
        formed = (delta.flatten(2) @ patches.mT).view(candidates, 2, *layer.weight.shape)
        return formed.sum(1)

    assert_same(lambda delta, x: weight_gradient(delta, x, layer, candidates), by_patches, (delta, x))


def assert_same(mine, theirs, inputs):
    """Values, and derivatives along one direction."""
    found = []
    for function in (mine, theirs):
        own = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        value = function(*own)
        along = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
        found.append((value.detach(), *torch.autograd.grad((value * along).sum(), own)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_small_distance_survives_where_gradients_are_compared_in_float64():
    """In float32 the distance of nearly equal gradients is the rounding of their norms."""
    left, right = torch.randn(2, 1, 4, 30, generator=torch.Generator().manual_seed(0)).unbind()
    gradients = {"matrix": (left.mT @ right)[0].double(), "vector": left[0].sum(0).double()}
    gradients = {name: gradient + 1e-5 for name, gradient in gradients.items()}
    true = 1e-10 * (900 + 30)
    found = {"matrix": [Outer(left_KNO=left, right_KNI=right)], "vector": [Formed(gradient_K=left.sum(1))]}
    fine = Target.from_gradients(gradients, dtype=torch.float64)
    assert float(SquaredL2()(moments_of(found, fine))) == pytest.approx(true, rel=0.2)
    coarse = Target.from_gradients(gradients, dtype=torch.float32)
    distance = float(SquaredL2()(moments_of(found, coarse)))
    assert distance == 0.0 or abs(distance - true) > 10 * true  # 0 where the norms happen to round alike
