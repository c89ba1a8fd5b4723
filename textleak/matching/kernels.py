"""A network's usual operations with cheap second derivatives, swapped in while the engine runs it.

Torch differentiates layer norms, activations and softmax twice by formulas of many small steps. The operations here,
the products of linear.py and the convolutions of convolution.py give the same values and derivatives to rounding;
weights count as constants, as their gradients come from factors.

Shapes: any leading dimensions, D the last one, O and I the sides of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from textleak.matching.batch_norm import batch_norm_by
from textleak.matching.convolution import conv2d
from textleak.matching.linear import linear
from textleak.matching.replaced import ReplacedFunctions


class CheapSecondDerivatives(ReplacedFunctions):
    """While it is active, torch's own functions give way to those of this file where these apply.

    Args:
        kinks: width that a ReLU's kink counts as having in the second derivative, in standard deviations of what it
            reads; 0 to leave it to torch, for which a kink has no second derivative.
    """

    def __init__(self, kinks: float = 0.0) -> None:
        super().__init__()
        self.kinks = kinks

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A function of this file, where one applies."""
        if self.kinks and func is functional.relu:
            return _relu(self.kinks, *args, **kwargs)
        replacement = _REPLACEMENTS.get(func)
        return None if replacement is None else replacement(*args, **kwargs)


class _LayerNorm(torch.autograd.Function):
    """Layer norm over the last dimension."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_D: Tensor, weight_D: Tensor | None, bias_D: Tensor | None, eps: float
    ) -> Tensor:
        y_D, mean_1, scale_1 = torch.native_layer_norm(x_D, x_D.shape[-1:], weight_D, bias_D, eps)
        _save(ctx, x_D, mean_1, scale_1, weight_D)
        return y_D

    @staticmethod
    def backward(ctx: FunctionCtx, grad_D: Tensor) -> tuple[Tensor, None, None, None]:
        x_D, mean_1, scale_1, weight_D = ctx.saved_tensors  # type: ignore[attr-defined]
        slope_D = _LayerNormSlope.apply(grad_D, x_D, mean_1, scale_1, weight_D)  # type: ignore[no-untyped-call]
        return slope_D, None, None, None


class _LayerNormSlope(torch.autograd.Function):
    """r (v − mean v − x̂ mean(v x̂)), v = g ∘ w: the gradient that a layer norm passes on."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        grad_D: Tensor,
        x_D: Tensor,
        mean_1: Tensor,
        scale_1: Tensor,
        weight_D: Tensor | None,
    ) -> Tensor:
        _save(ctx, grad_D, x_D, mean_1, scale_1, weight_D)
        return _layer_norm_slope(grad_D, x_D, mean_1, scale_1, weight_D)

    @staticmethod
    def backward(ctx: FunctionCtx, u_D: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_D, x_D, mean_1, scale_1, weight_D = ctx.saved_tensors  # type: ignore[attr-defined]
        to_grad_D = _layer_norm_slope(u_D, x_D, mean_1, scale_1, None)
        v_D = grad_D
        if weight_D is not None:
            to_grad_D.mul_(weight_D)
            v_D = grad_D * weight_D
        normal_D = (x_D - mean_1).mul_(scale_1)
        u_D = u_D - u_D.mean(-1, keepdim=True)
        v_D = v_D - v_D.mean(-1, keepdim=True)
        along_u_1 = (u_D * normal_D).mean(-1, keepdim=True)
        along_v_1 = (v_D * normal_D).mean(-1, keepdim=True)
        both_1 = (u_D * v_D).mean(-1, keepdim=True)
        # −r² [c_v (u − mean u) + c_u (v − mean v) + x̂ (cov(u, v) − 3 c_u c_v)]
        to_x_D = normal_D.mul_(both_1.addcmul_(along_u_1, along_v_1, value=-3))
        to_x_D.addcmul_(u_D, along_v_1).addcmul_(v_D, along_u_1)
        return to_grad_D, to_x_D.mul_(scale_1.square().neg_()), None, None, None


class _LayerNormScale(torch.autograd.Function):
    """Σ δ ∘ x̂ over a candidate's rows, (K, D): the gradient of a layer norm's scale; keeps δ and x alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, delta_D: Tensor, x_D: Tensor, eps: float, candidates: int) -> Tensor:
        normal_D, mean_1, scale_1 = torch.native_layer_norm(x_D, x_D.shape[-1:], None, None, eps)
        ctx.save_for_backward(delta_D, x_D, mean_1, scale_1)
        return normal_D.mul_(delta_D).view(candidates, -1, x_D.shape[-1]).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_KD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        delta_D, x_D, mean_1, scale_1 = ctx.saved_tensors  # type: ignore[attr-defined]
        shape = (len(grad_KD), -1, x_D.shape[-1])
        grad_K1D = grad_KD.unsqueeze(1)
        weighed_D = (delta_D.reshape(shape) * grad_K1D).view(x_D.shape)
        to_x_D = _layer_norm_slope(weighed_D, x_D, mean_1, scale_1, None)
        to_delta_D = (x_D - mean_1).mul_(scale_1)
        to_delta_D.view(shape).mul_(grad_K1D)
        return to_delta_D, to_x_D, None, None


def layer_norm_scale(delta_D: Tensor, x_D: Tensor, eps: float, candidates: int) -> Tensor:
    """Gradient (K, D) of the scale of a layer norm over the last dimension, differentiable once."""
    return cast(Tensor, _LayerNormScale.apply(delta_D, x_D, eps, candidates))  # type: ignore[no-untyped-call]


def _save(ctx: FunctionCtx, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*cast(tuple[Tensor, ...], tensors))  # None is allowed, but isn't in torch's types


def _layer_norm_slope(
    grad_D: Tensor, x_D: Tensor, mean_1: Tensor, scale_1: Tensor, weight_D: Tensor | None
) -> Tensor:
    result = torch.ops.aten.native_layer_norm_backward(
        grad_D, x_D, x_D.shape[-1:], mean_1, scale_1, weight_D, None, [True, False, False]
    )
    return cast(Tensor, result[0])


@dataclass(frozen=True, kw_only=True)
class _Activation:
    """A function of each entry alone: its value, g times its slope (into a tensor), its curvature."""

    value: Callable[[Tensor], Tensor]
    passed: Callable[[Tensor, Tensor, Tensor], object]
    curvature: Callable[[Tensor], Tensor]


# Entries up to which a slope is kept between its uses (our choice): it takes longer than all else that is done with it,
# and memory on small networks matters less.
_KEPT = 2**20


class _Activated(torch.autograd.Function):
    """f(x)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, f: _Activation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.f, ctx.slope = f, None  # type: ignore[attr-defined]
        return f.value(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        f: _Activation = ctx.f  # type: ignore[attr-defined]
        slope: Tensor | None = ctx.slope  # type: ignore[attr-defined]
        if torch.is_grad_enabled():  # there will be second derivatives
            if slope is None and x.numel() <= _KEPT:
                at = x.detach()
                ones = torch.ones((), dtype=at.dtype, device=at.device).expand_as(at)
                slope = ctx.slope = _times_slope(ones, at, None, f)  # type: ignore[attr-defined]
            return _ActivatedSlope.apply(grad, x, slope, f), None  # type: ignore[no-untyped-call]
        return _times_slope(grad, x, slope, f), None


class _ActivatedSlope(torch.autograd.Function):
    """g ∘ f'(x)."""

    @staticmethod
    def forward(ctx: FunctionCtx, grad: Tensor, x: Tensor, slope: Tensor | None, f: _Activation) -> Tensor:
        _save(ctx, grad, x, slope)
        ctx.f = f  # type: ignore[attr-defined]
        return _times_slope(grad, x, slope, f)

    @staticmethod
    def backward(ctx: FunctionCtx, u: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, x, slope = ctx.saved_tensors  # type: ignore[attr-defined]
        f: _Activation = ctx.f  # type: ignore[attr-defined]
        to_x = torch.empty_like(x)
        for u_, grad_, x_, to_x_ in _blocks(u, grad, x, to_x):
            torch.mul(f.curvature(x_).mul_(grad_), u_, out=to_x_)
        return _times_slope(u, x, slope, f), to_x, None, None


def _times_slope(grad: Tensor, x: Tensor, slope: Tensor | None, f: _Activation) -> Tensor:
    """G ∘ f'(x), in memory as `x` is, by a slope that was kept or by `x`."""
    result = torch.empty_like(x)
    if slope is not None:
        return torch.mul(grad, slope, out=result)
    f.passed(grad, x, result)
    return result


# Entries of a block: several of them fit into a core's second-level cache.
_BLOCK = 64 * 1024


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Contiguous tensors of one shape, piece by piece, as views that can be written to.

    What reads and writes a piece many times then does so in the cache. A GPU gets all at once.
    """
    last = tensors[0].shape[-1]
    rows = max(1, _BLOCK // last) if tensors[0].device.type == "cpu" else tensors[0].numel() // last
    return zip(*(torch.split(tensor.reshape(-1, last), rows) for tensor in tensors), strict=True)


def _gelu_curvature(x: Tensor) -> Tensor:
    """φ(x) (2 − x²)."""
    square = x * x
    density = torch.mul(square, -0.5).exp_()
    return density.mul_(square.sub_(2).mul_(-1 / math.sqrt(2 * math.pi)))


def _silu_curvature(x: Tensor) -> Tensor:
    """S' (2 + x (1 − 2 s)), s the logistic function and s' = s (1 − s)."""
    s = x.sigmoid()
    return (1 - 2 * s).mul_(x).add_(2).mul_(s).mul_(1 - s)


_GELU = _Activation(
    value=functional.gelu,
    passed=lambda grad, x, out: torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=out),
    curvature=_gelu_curvature,
)
_SILU = _Activation(
    value=functional.silu,
    passed=lambda grad, x, out: torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out),
    curvature=_silu_curvature,
)


class _Relu(torch.autograd.Function):
    """max(0, x)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, kinks: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kinks = kinks  # type: ignore[attr-defined]
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _ReluSlope.apply(grad, x, ctx.kinks), None  # type: ignore[attr-defined, no-untyped-call]


class _ReluSlope(torch.autograd.Function):
    """g where x > 0, else 0; its derivative by x is what the step at 0 is on average around x.

    A step has no derivative but at the step, and descent then never learns that moving an input would switch a unit
    on or off: most of what changes in a ReLU network's gradient. Blurred by a logistic density it does, as spiking
    networks are trained (Neftci et al. 2019, arXiv 1901.09948). The values stay exact.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, grad: Tensor, x: Tensor, kinks: float) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.kinks = kinks  # type: ignore[attr-defined]
        return cast(Tensor, torch.ops.aten.threshold_backward(grad, x, 0.0))

    @staticmethod
    def backward(ctx: FunctionCtx, u: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, x = ctx.saved_tensors  # type: ignore[attr-defined]
        others = tuple(range(1, x.dim()))
        # Torch's own deviation takes five times as long.
        apart_R = torch.linalg.vector_norm(x - x.mean(others, keepdim=True), dim=others, keepdim=True)
        deviation_R = apart_R.div_((x[0].numel() - 1) ** 0.5).clamp_min_(torch.finfo(x.dtype).tiny ** 0.5)
        width = ctx.kinks * deviation_R  # type: ignore[attr-defined]
        s = torch.div(x, width).sigmoid_()
        to_x = torch.ops.aten.sigmoid_backward(torch.mul(u, grad), s).div_(width)
        return torch.ops.aten.threshold_backward(u, x, 0.0), to_x, None


@dataclass(frozen=True, kw_only=True)
class _ByValue:
    """A function whose slope its own value y tells: the value, g times the slope, and the derivatives of that.

    Attributes:
        value: y of x.
        passed: what of a gradient g is passed on, by g and y.
        back: derivatives of what is passed on by g and by y, by that which comes back to it, g and y.
    """

    value: Callable[[Tensor], Tensor]
    passed: Callable[[Tensor, Tensor], Tensor]
    back: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class _Valued(torch.autograd.Function):
    """y of x."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, f: _ByValue) -> Tensor:
        y = f.value(x)
        ctx.save_for_backward(y)
        ctx.f = f  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _ValuedSlope.apply(grad, y, ctx.f), None  # type: ignore[attr-defined, no-untyped-call]


class _ValuedSlope(torch.autograd.Function):
    """What of a gradient is passed on."""

    @staticmethod
    def forward(ctx: FunctionCtx, grad: Tensor, y: Tensor, f: _ByValue) -> Tensor:
        ctx.save_for_backward(grad, y)
        ctx.f = f  # type: ignore[attr-defined]
        return f.passed(grad, y)

    @staticmethod
    def backward(ctx: FunctionCtx, u: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, y = ctx.saved_tensors  # type: ignore[attr-defined]
        return *ctx.f.back(u, grad, y), None  # type: ignore[attr-defined]


def _sigmoid_passed(grad: Tensor, s: Tensor) -> Tensor:
    """G ∘ s (1 − s), in memory as `s` is, whatever the order of `grad`."""
    out = torch.empty_like(s)
    return cast(Tensor, torch.ops.aten.sigmoid_backward.grad_input(grad, s, grad_input=out))


def _sigmoid_back(u: Tensor, grad: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    both = u * grad
    return _sigmoid_passed(u, s), both.addcmul_(both, s, value=-2)


def _softmax_value(x_D: Tensor) -> Tensor:
    """Over the last dimension."""
    y_D = (x_D - x_D.amax(-1, keepdim=True)).exp_()  # torch's own is slow on short rows
    return y_D.div_(y_D.sum(-1, keepdim=True))


def _softmax_passed(grad_D: Tensor, y_D: Tensor) -> Tensor:
    """Y ∘ (g − Σ g y)."""
    passed_D = grad_D * y_D
    return passed_D.addcmul_(y_D, passed_D.sum(-1, keepdim=True), value=-1)


def _softmax_back(u_D: Tensor, grad_D: Tensor, y_D: Tensor) -> tuple[Tensor, Tensor]:
    along_u_1 = (u_D * y_D).sum(-1, keepdim=True)
    along_grad_1 = (grad_D * y_D).sum(-1, keepdim=True)
    to_y_D = u_D * (grad_D - along_grad_1) - grad_D * along_u_1
    return (u_D - along_u_1).mul_(y_D), to_y_D


_SIGMOID = _ByValue(value=torch.sigmoid, passed=_sigmoid_passed, back=_sigmoid_back)
_SOFTMAX = _ByValue(value=_softmax_value, passed=_softmax_passed, back=_softmax_back)


def _usable(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    return linear(input, weight, bias) if weight.dim() == 2 and _usable(input) else None


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **options: object) -> Tensor | None:
    if options or input.dim() != 1 or mat2.requires_grad or not _usable(mat1):
        return None
    return linear(mat1, mat2.mT, input)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if len(normalized_shape) != 1 or not _usable(input) or not input.is_contiguous():
        return None
    return cast(Tensor, _LayerNorm.apply(input, weight, bias, eps))  # type: ignore[no-untyped-call]


def _gelu(input: Tensor, approximate: str = "none") -> Tensor | None:
    return _activated(input, _GELU) if approximate == "none" else None


def _silu(input: Tensor, inplace: bool = False) -> Tensor | None:
    return None if inplace else _activated(input, _SILU)


def _sigmoid(input: Tensor) -> Tensor | None:
    return cast(Tensor, _Valued.apply(input, _SIGMOID)) if _usable(input) else None  # type: ignore[no-untyped-call]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    eps: float = 1e-5,
    **_: object,
) -> Tensor | None:
    if training or running_mean is None or running_var is None or input.dim() != 4 or not _usable(input):
        return None
    return batch_norm_by(running_mean, running_var, input, weight, bias, eps)


def _relu(kinks: float, input: Tensor, inplace: bool = False) -> Tensor | None:
    if inplace or not _usable(input) or input.dim() < 2:
        return None
    return cast(Tensor, _Relu.apply(input, kinks))  # type: ignore[no-untyped-call]


def _activated(input: Tensor, f: _Activation) -> Tensor | None:
    if not _usable(input) or not input.is_contiguous():
        return None
    return cast(Tensor, _Activated.apply(input, f))  # type: ignore[no-untyped-call]


def _softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor | None:
    if dim not in (-1, input.dim() - 1) or dtype not in (None, input.dtype) or not _usable(input):
        return None
    return cast(Tensor, _Valued.apply(input, _SOFTMAX))  # type: ignore[no-untyped-call]


# Each gives None where it doesn't apply, and torch's own function runs.
_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    functional.conv2d: conv2d,
    functional.linear: _linear,
    torch.addmm: _addmm,
    functional.layer_norm: _layer_norm,
    functional.gelu: _gelu,
    functional.silu: _silu,
    functional.softmax: _softmax,
    torch.sigmoid: _sigmoid,
    functional.batch_norm: _batch_norm,
}
