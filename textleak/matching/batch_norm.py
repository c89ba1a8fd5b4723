"""Batch norm with cheap second derivatives, by the batch's own statistics or by given ones.

Torch differentiates the first twice by some thirty passes over the pictures. Written out, the second derivatives of
what it passes on and of its scale's and bias's gradients are together one combination of three of them, whose shares
are five means a channel; and the statistics that it goes by cost nothing more.

Shapes: N pictures that are normalized together, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def batch_norm(x_NCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `functional.batch_norm` in train mode, without running statistics, with the mean and variance (C,) it goes by.

    All three are differentiable twice, in all that they are made of.
    """
    found = _BatchNorm.apply(x_NCHW, weight_C, bias_C, eps)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor], found)


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


class _BatchNorm(torch.autograd.Function):
    """x̂ ∘ w + b, and what x̂ is made by."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_NCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y_NCHW, mean_C, scale_C = torch.native_batch_norm(
            x_NCHW, weight_C, bias_C, None, None, True, 0.0, eps
        )
        ctx.save_for_backward(x_NCHW, mean_C, scale_C, weight_C)
        ctx.eps = eps  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return y_NCHW, mean_C, scale_C.square().reciprocal_().sub_(eps)

    @staticmethod
    def backward(
        ctx: FunctionCtx, grad_NCHW: Tensor | None, to_mean_C: Tensor | None, to_variance_C: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_NCHW, mean_C, scale_C, weight_C = ctx.saved_tensors  # type: ignore[attr-defined]
        to_x_NCHW = along_C = sum_C = None
        if grad_NCHW is not None:
            to_x_NCHW, along_C, sum_C = _BatchNormSlope.apply(  # type: ignore[no-untyped-call]
                grad_NCHW,
                ctx.eps,  # type: ignore[attr-defined]
                x_NCHW,
                mean_C,
                scale_C,
                weight_C,
            )
        if to_mean_C is not None or to_variance_C is not None:
            # By x the mean has 1 / numbers, the variance 2 (x − mean) / numbers.
            share = len(mean_C) / x_NCHW.numel()
            none_C = torch.zeros_like(mean_C)
            factor_C = none_C if to_variance_C is None else to_variance_C * (2 * share)
            shift_C = (none_C if to_mean_C is None else to_mean_C * share) - mean_C * factor_C
            of_statistics_NCHW = torch.addcmul(_wide(shift_C), x_NCHW, _wide(factor_C))
            to_x_NCHW = of_statistics_NCHW if to_x_NCHW is None else to_x_NCHW + of_statistics_NCHW
        return to_x_NCHW, along_C, sum_C, None


class _BatchNormSlope(torch.autograd.Function):
    """r w (g − mean g − x̂ mean(g x̂)), the gradient that a batch norm passes on, and those of scale and bias.

    These are Σ g x̂ and Σ g over pictures and places: the derivatives of all three are combinations of x, g and u, what
    comes in for the first.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        grad_NCHW: Tensor,
        eps: float,
        x_NCHW: Tensor,
        mean_C: Tensor,
        scale_C: Tensor,
        weight_C: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope_NCHW, along_C, sum_C = _backward(
            grad_NCHW, x_NCHW, mean_C, scale_C, weight_C, eps, (True, True, True)
        )
        ctx.save_for_backward(grad_NCHW, x_NCHW, mean_C, scale_C, weight_C, along_C.detach(), sum_C.detach())
        ctx.eps = eps  # type: ignore[attr-defined]
        return slope_NCHW, along_C, sum_C

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, u_NCHW: Tensor, to_along_C: Tensor, to_sum_C: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad_NCHW, x_NCHW, mean_C, scale_C, weight_C, along_C, sum_C = ctx.saved_tensors  # type: ignore[attr-defined]
        eps: float = ctx.eps  # type: ignore[attr-defined]
        share = len(mean_C) / x_NCHW.numel()
        # Means over pictures and places, two in one pass: c_u = mean(u x̂) and that of u; and, with g in the place of
        # x, mean(u (g − mean g)).
        statistics = mean_C, scale_C * share
        _, along_u_C, sum_u_C = _backward(u_NCHW, x_NCHW, *statistics, None, eps, (False, True, True))
        along_g_C, mean_g_C, mean_u_C = along_C * share, sum_C * share, sum_u_C * share
        statistics = mean_g_C, torch.full_like(scale_C, share)
        both_C = _backward(u_NCHW, grad_NCHW, *statistics, None, eps, (False, True, False))[1]
        # Of u ∘ slope + s Σ g x̂ + t Σ g, by g: r w (u − mean u − x̂ c_u) + s x̂ + t
        by_u_C = scale_C * weight_C
        by_x_C = (to_along_C - by_u_C * along_u_C) * scale_C
        rest_C = to_sum_C - by_u_C * mean_u_C - by_x_C * mean_C
        to_grad_NCHW = torch.addcmul(_wide(rest_C), x_NCHW, _wide(by_x_C)).addcmul_(u_NCHW, _wide(by_u_C))
        # and by x: r (s − r w c_u) (g − mean g) − r² w c_g (u − mean u) − r x̂ [s c_g + r w (cov(u, g) − 3 c_u c_g)].
        by_g_C = by_x_C
        product_C = along_u_C * along_g_C
        apart_C = both_C - product_C
        by_x_C = -scale_C.square() * (to_along_C * along_g_C + by_u_C * (apart_C - 2 * product_C))
        by_u_C = -by_u_C * along_g_C * scale_C
        rest_C = -by_g_C * mean_g_C - by_u_C * mean_u_C - by_x_C * mean_C
        to_x_NCHW = torch.addcmul(_wide(rest_C), x_NCHW, _wide(by_x_C))
        to_x_NCHW.addcmul_(u_NCHW, _wide(by_u_C)).addcmul_(grad_NCHW, _wide(by_g_C))
        return to_grad_NCHW, None, to_x_NCHW, None, None, apart_C * scale_C / share


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
