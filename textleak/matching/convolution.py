"""Convolutions, and the gradients of their weights, formed, with cheap second derivatives: convolutions again.

Made of patches of the input and their product with the output's gradient, a weight's gradient would take two to five
times as long: the patches of a 3 × 3 kernel are nine copies of a picture. As torch has it,
a convolution's second derivative forms a gradient of the weight too, which nobody asks for.

Shapes: K candidates, N pictures of one candidate, C channels, O and I those of output and input, H and W height and
width, a prime for the output's, J and L those of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def weight_gradient(delta: Tensor, x: Tensor, layer: nn.Conv2d, candidates: int) -> Tensor:
    """Gradients (K, O, I, J, L) of a layer's weight, differentiable once.

    Args:
        delta: gradient at the output, (K N, O, H', W').
        x: input, (K N, I, H, W).
        layer: a plain convolution: one group, zeros around.
        candidates: K.
    """
    gradient: Tensor = _WeightGradient.apply(delta, x, layer, candidates)  # type: ignore[no-untyped-call]
    return gradient


def side_by_side(x: Tensor, candidates: int) -> Tensor:
    """Candidates' pictures (K N, C, H, W) as N pictures of K C channels: one call of torch then serves them all."""
    return x if candidates == 1 else x.view(candidates, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def one_after_the_other(x: Tensor, candidates: int) -> Tensor:
    """The way back, from (N, K C, H, W) to (K N, C, H, W)."""
    return (
        x if candidates == 1 else x.view(len(x), candidates, -1, *x.shape[2:]).transpose(0, 1).flatten(0, 1)
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    """`functional.conv2d` of pictures (N, I, H, W), the weight constant, differentiable twice; None for other uses."""
    if groups != 1 or isinstance(padding, str) or input.dim() != 4 or not input.requires_grad:
        return None
    weight = _in_order_of(input, weight.detach())
    given = _pair(stride), _pair(padding), _pair(dilation)
    return cast(Tensor, _Convolution.apply(input, weight, bias, given))  # type: ignore[no-untyped-call]


def _pair(number: int | Sequence[int]) -> list[int]:
    """Of height and width: torch takes one number for both."""
    return [number, number] if isinstance(number, int) else [*number, *number][:2]


_Given = tuple[list[int], list[int], list[int]]


class _Convolution(torch.autograd.Function):
    """x ∗ w + b."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, given: _Given) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.given = given  # type: ignore[attr-defined]
        return torch.conv2d(x, weight, bias, *given)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = _InputGradient.apply(grad, x.detach(), weight, ctx.given)  # type: ignore[attr-defined, no-untyped-call]
        return slope, None, None, None


class _InputGradient(torch.autograd.Function):
    """What a convolution passes on of a gradient: linear in it, so that its derivative is the convolution."""

    @staticmethod
    def forward(ctx: FunctionCtx, grad: Tensor, x: Tensor, weight: Tensor, given: _Given) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.given = given  # type: ignore[attr-defined]
        asked = [True, False, False]
        found = torch.ops.aten.convolution_backward(grad, x, weight, None, *given, False, [0, 0], 1, asked)
        return cast(Tensor, found[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, u: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.conv2d(u, weight, None, *ctx.given), None, None, None  # type: ignore[attr-defined]


class _WeightGradient(torch.autograd.Function):
    """A convolution in groups, a candidate each."""

    @staticmethod
    def forward(ctx: FunctionCtx, delta: Tensor, x: Tensor, layer: nn.Conv2d, candidates: int) -> Tensor:
        wide = side_by_side(delta, candidates), side_by_side(x, candidates)
        ctx.save_for_backward(*wide)
        ctx.layer, ctx.candidates = layer, candidates  # type: ignore[attr-defined]
        weight = layer.weight.detach()
        weights = _in_order_of(x, weight.expand(candidates, *weight.shape).flatten(0, 1))
        return _backward(*wide, weights, layer, by_input=False).view(candidates, *weight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, to_weight_K: Tensor) -> tuple[Tensor, Tensor, None, None]:
        delta, x = ctx.saved_tensors  # type: ignore[attr-defined]
        layer: nn.Conv2d = ctx.layer  # type: ignore[attr-defined]
        candidates = len(to_weight_K)
        # The gradient is linear in both: each one's derivative is the convolution with this in the weight's place.
        weights, padding = _in_order_of(x, to_weight_K.flatten(0, 1)), cast("list[int]", layer.padding)
        to_delta = torch.conv2d(x, weights, None, layer.stride, padding, layer.dilation, candidates)
        to_x = _backward(delta, x, weights, layer, by_input=True)
        return one_after_the_other(to_delta, candidates), one_after_the_other(to_x, candidates), None, None


def _in_order_of(x: Tensor, weight: Tensor) -> Tensor:
    """A weight in the order in memory that torch would bring it to for each of its uses with pictures like `x`."""
    return weight.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def _backward(delta: Tensor, x: Tensor, weights: Tensor, layer: nn.Conv2d, *, by_input: bool) -> Tensor:
    """Torch's own gradient of a convolution by its input or by its weight."""
    found = torch.ops.aten.convolution_backward(
        delta,
        x,
        weights,
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        [0, 0],
        len(weights) // layer.out_channels,
        [by_input, not by_input, False],
    )
    return cast(Tensor, found[0] if by_input else found[1])
