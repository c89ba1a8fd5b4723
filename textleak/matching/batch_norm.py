"""Batch norm with cheap second derivatives, by the batch's own statistics or by given ones.

Torch differentiates the first twice by some thirty passes over the pictures; written out, the second derivative is one
combination of three of them, whose shares are five means a channel.

Shapes: N pictures that are normalized together, C channels, H and W height and width, K candidates.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from textleak.matching.convolution import one_after_the_other, side_by_side


def batch_norm(x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float) -> Tensor:
    """As `functional.batch_norm` in train mode, without running statistics; weight and bias count as constants."""
    return cast(Tensor, _BatchNorm.apply(x_NCHW, weight_C, bias_C, eps))  # type: ignore[no-untyped-call]


def batch_norm_by(
    mean_C: Tensor,
    variance_C: Tensor,
    x_NCHW: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    eps: float,
) -> Tensor:
    """As `functional.batch_norm` by given statistics: one number times each entry, and one added."""
    factor_C = (variance_C + eps).rsqrt()
    factor_C = factor_C if weight_C is None else factor_C * weight_C
    shift_C = -mean_C * factor_C if bias_C is None else bias_C - mean_C * factor_C
    return torch.addcmul(_wide(shift_C), x_NCHW, _wide(factor_C))


def batch_norm_scale(delta_RCHW: Tensor, x_RCHW: Tensor, eps: float, candidates: int) -> Tensor:
    """Gradients (K, C) of the scale, Σ δ ∘ x̂ over a candidate's pictures and places, differentiable once in both."""
    gradient: Tensor = _BatchNormScale.apply(delta_RCHW, x_RCHW, eps, candidates)  # type: ignore[no-untyped-call]
    return gradient


class _BatchNorm(torch.autograd.Function):
    """x̂ ∘ w + b."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> Tensor:
        y_NCHW, mean_C, scale_C = torch.native_batch_norm(
            x_NCHW, weight_C, bias_C, None, None, True, 0.0, eps
        )
        ctx.save_for_backward(x_NCHW, mean_C, scale_C, *_given(weight_C))
        ctx.eps = eps  # type: ignore[attr-defined]
        return y_NCHW

    @staticmethod
    def backward(ctx: FunctionCtx, grad_NCHW: Tensor) -> tuple[Tensor, None, None, None]:
        slope = _BatchNormSlope.apply(grad_NCHW, ctx.eps, *ctx.saved_tensors)  # type: ignore[attr-defined, no-untyped-call]
        return slope, None, None, None


class _BatchNormSlope(torch.autograd.Function):
    """r (v − mean v − x̂ mean(v x̂)), v = g ∘ w: the gradient that a batch norm passes on."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        grad_NCHW: Tensor,
        eps: float,
        x_NCHW: Tensor,
        mean_C: Tensor,
        scale_C: Tensor,
        weight_C: Tensor | None = None,
    ) -> Tensor:
        ctx.save_for_backward(grad_NCHW, x_NCHW, mean_C, scale_C, *_given(weight_C))
        ctx.eps = eps  # type: ignore[attr-defined]
        return _slope(grad_NCHW, x_NCHW, mean_C, scale_C, weight_C, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, u_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        grad_NCHW, x_NCHW, mean_C, scale_C, *given = ctx.saved_tensors  # type: ignore[attr-defined]
        eps: float = ctx.eps  # type: ignore[attr-defined]
        numbers = u_NCHW.numel() // u_NCHW.shape[1]
        weight_C = given[0] if given else torch.ones_like(scale_C)
        # Torch's gradients by scale and bias are sums over pictures and places, each in one pass: of u x̂ and u, g x̂
        # and g, and, with g in the place of x, of u (g − mean g).
        statistics = x_NCHW, mean_C, scale_C
        to_grad_NCHW, along_u_C, sum_u_C = _backward(u_NCHW, *statistics, weight_C, eps, (True, True, True))
        _, along_g_C, sum_g_C = _backward(grad_NCHW, *statistics, None, eps, (False, True, True))
        centered = grad_NCHW, sum_g_C / numbers, torch.ones_like(scale_C)
        both_C = _backward(u_NCHW, *centered, None, eps, (False, True, False))[1]
        # −r² w [c_g (u − mean u) + c_u (g − mean g) + x̂ (cov(u, g) − 3 c_u c_g)] = a u + b g + c x + d
        factor_C = -scale_C.square() * weight_C / numbers
        by_u_C, by_g_C = along_g_C * factor_C, along_u_C * factor_C
        by_x_C = (both_C - 3 / numbers * along_u_C * along_g_C) * factor_C * scale_C
        rest_C = -(by_u_C * sum_u_C + by_g_C * sum_g_C) / numbers - by_x_C * mean_C
        to_x_NCHW = torch.addcmul(_wide(rest_C), x_NCHW, _wide(by_x_C))
        to_x_NCHW.addcmul_(u_NCHW, _wide(by_u_C)).addcmul_(grad_NCHW, _wide(by_g_C))
        return (to_grad_NCHW, None, to_x_NCHW, None, None, *[None] * len(given))


class _BatchNormScale(torch.autograd.Function):
    """Σ δ ∘ x̂, of all candidates' channels at once."""

    @staticmethod
    def forward(ctx: FunctionCtx, delta_RCHW: Tensor, x_RCHW: Tensor, eps: float, candidates: int) -> Tensor:
        delta, x = side_by_side(delta_RCHW, candidates), side_by_side(x_RCHW, candidates)
        _, mean, scale = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)
        ctx.save_for_backward(delta, x, mean, scale)
        ctx.eps = eps  # type: ignore[attr-defined]
        return _backward(delta, x, mean, scale, None, eps, (False, True, False))[1].view(candidates, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_KC: Tensor) -> tuple[Tensor, Tensor, None, None]:
        delta, x, mean, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        candidates, grad = len(grad_KC), grad_KC.flatten()
        factor = scale * grad
        to_delta = torch.addcmul(_wide(-mean * factor), x, _wide(factor))
        to_x = _slope(delta, x, mean, scale, grad, ctx.eps)  # type: ignore[attr-defined]
        return one_after_the_other(to_delta, candidates), one_after_the_other(to_x, candidates), None, None


def _given(weight_C: Tensor | None) -> tuple[Tensor, ...]:
    return () if weight_C is None else (weight_C,)


def _slope(
    grad_NCHW: Tensor, x_NCHW: Tensor, mean_C: Tensor, scale_C: Tensor, weight_C: Tensor | None, eps: float
) -> Tensor:
    return _backward(grad_NCHW, x_NCHW, mean_C, scale_C, weight_C, eps, (True, False, False))[0]


def _backward(
    grad_NCHW: Tensor,
    x_NCHW: Tensor,
    mean_C: Tensor,
    scale_C: Tensor,
    weight_C: Tensor | None,
    eps: float,
    asked: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's own gradients by x, scale and bias, of which only those asked for are computed."""
    # A gradient that a sum passed on has one number for many entries, which torch's formula would read one by one.
    grad_NCHW = grad_NCHW.contiguous(memory_format=torch._prims_common.suggest_memory_format(x_NCHW))
    found = torch.ops.aten.native_batch_norm_backward(
        grad_NCHW, x_NCHW, weight_C, None, None, mean_C, scale_C, True, eps, list(asked)
    )
    return cast(tuple[Tensor, Tensor, Tensor], found)


def _wide(x_C: Tensor) -> Tensor:
    return x_C[:, None, None]
