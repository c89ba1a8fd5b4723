"""The gradient of a convolution's weight, formed, with cheap second derivatives: convolutions again.

Made of patches of the input and their product with the output's gradient, it would take two to five times as long: the
patches of a 3 × 3 kernel are nine copies of a picture.

Shapes: K candidates, N pictures of one candidate, C channels, O and I those of output and input, H and W height and
width, a prime for the output's, J and L those of the kernel.
"""

from __future__ import annotations

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


class _WeightGradient(torch.autograd.Function):
    """A convolution in groups, a candidate each."""

    @staticmethod
    def forward(ctx: FunctionCtx, delta: Tensor, x: Tensor, layer: nn.Conv2d, candidates: int) -> Tensor:
        wide = side_by_side(delta, candidates), side_by_side(x, candidates)
        ctx.save_for_backward(*wide)
        ctx.layer, ctx.candidates = layer, candidates  # type: ignore[attr-defined]
        weight = layer.weight.detach()
        weights = weight.expand(candidates, *weight.shape).flatten(0, 1)
        return _backward(*wide, weights, layer, by_input=False).view(candidates, *weight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, to_weight_K: Tensor) -> tuple[Tensor, Tensor, None, None]:
        delta, x = ctx.saved_tensors  # type: ignore[attr-defined]
        layer: nn.Conv2d = ctx.layer  # type: ignore[attr-defined]
        candidates = len(to_weight_K)
        # The gradient is linear in both: each one's derivative is the convolution with this in the weight's place.
        weights, padding = to_weight_K.flatten(0, 1), cast("list[int]", layer.padding)
        to_delta = torch.conv2d(x, weights, None, layer.stride, padding, layer.dilation, candidates)
        to_x = _backward(delta, x, weights, layer, by_input=True)
        return one_after_the_other(to_delta, candidates), one_after_the_other(to_x, candidates), None, None


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
