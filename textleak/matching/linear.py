"""Products with a constant weight, by oneDNN where that is faster, and on the rows that aren't 0 where most are.

On some processors torch multiplies float32 matrices at half the speed that oneDNN reaches, on others oneDNN is the
slower one, by half where the weight is wide and transposed.

Shapes: any leading dimensions, D the last one, O and I the sides of a weight.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from textleak.matching.replaced import unwatched

# Fewer rows than this are multiplied as they are.
_FEW_ROWS = 32
# Products of fewer multiplications are torch's own: to call oneDNN alone takes as long (measured: 50 of 60 µs).
_SMALL = 1 << 20
# oneDNN is taken where it is so many times as fast (2 on an AMD EPYC with AVX2, 0.9 on an Intel Xeon with AVX-512) for
# products of so many rows and columns, by the best of some tries: 10 ms together.
_FAR = 1.4
_TRIED = (224, 384)
_TRIES = 6


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear` with a constant weight; differentiable in the input any number of times."""
    return cast(Tensor, _Linear.apply(input, weight, bias))  # type: ignore[no-untyped-call]


def product(x_I: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """X Wᵀ + b as `functional.linear`, by oneDNN where that pays (a transposed view costs nothing)."""
    large = x_I.numel() * weight_OI.shape[0] >= _SMALL
    dense = weight_OI.is_contiguous() or weight_OI.mT.is_contiguous()  # oneDNN has no fast way with others
    if large and dense and x_I.dtype == torch.float32 and x_I.device.type == "cpu" and onednn_pays():
        return _by_onednn(x_I, weight_OI, bias_O)
    # Torch multiplies one matrix by another where the rows lie one after the other, else many small ones.
    return functional.linear(x_I.contiguous(), weight_OI, bias_O)


def _by_onednn(x_I: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_I, weight_OI, bias_O, "none", [], ""))


@functools.cache
def onednn_pays() -> bool:
    """Whether oneDNN multiplies float32 matrices far faster than torch itself on this processor; measured once.

    What is near is torch's own: the same machine then always rounds in the same way.
    """
    if not _has_onednn():
        return False
    x_NI, weight_OI = torch.ones(*_TRIED), torch.ones(_TRIED[1], _TRIED[1])
    ways = (
        functools.partial(functional.linear, x_NI, weight_OI),
        functools.partial(_by_onednn, x_NI, weight_OI),
    )
    with torch.no_grad():
        own, onednn = (min(_seconds(way) for _ in range(_TRIES)) for way in ways)
    return own > _FAR * onednn


def _seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


@functools.cache
def _has_onednn() -> bool:
    """Whether torch's oneDNN product is there and right (an operation that torch keeps for its compiler)."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x_I, weight_OI = torch.arange(12.0).view(4, 3), torch.arange(6.0).view(3, 2).mT
    try:
        result = torch.ops.mkldnn._linear_pointwise(x_I, weight_OI, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(result, x_I @ weight_OI.mT))


class _Linear(torch.autograd.Function):
    """x Wᵀ + b; its gradient is the same operation with Wᵀ, on the rows that aren't 0."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_I: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI)
        result = product(x_I, weight_OI, bias_O)
        # A view mayn't be changed in place, as some networks do.
        return result.clone() if result._is_view() else result

    @staticmethod
    def backward(ctx: FunctionCtx, grad_O: Tensor) -> tuple[Tensor, None, None]:
        (weight_OI,) = ctx.saved_tensors  # type: ignore[attr-defined]
        live = _live_rows(grad_O)
        if live is None:
            return linear(grad_O, weight_OI.mT), None, None
        some_O = _Picked.apply(grad_O, live)  # type: ignore[no-untyped-call]
        some_I = linear(some_O, weight_OI.mT)
        return _Placed.apply(some_I, live, grad_O.shape[:-1]), None, None  # type: ignore[no-untyped-call]


class _Picked(torch.autograd.Function):
    """Some rows (n, D) of a tensor (..., D)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_D: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.leading = index, x_D.shape[:-1]  # type: ignore[attr-defined]
        return x_D.flatten(0, -2)[index]

    @staticmethod
    def backward(ctx: FunctionCtx, grad_D: Tensor) -> tuple[Tensor, None]:
        return _Placed.apply(grad_D, ctx.index, ctx.leading), None  # type: ignore[attr-defined, no-untyped-call]


class _Placed(torch.autograd.Function):
    """Zeros (..., D) with some rows (n, D) put in."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_D: Tensor, index: Tensor, leading: torch.Size) -> Tensor:
        ctx.index = index  # type: ignore[attr-defined]
        zeros_D = x_D.new_zeros(leading.numel(), x_D.shape[-1])
        return zeros_D.index_copy_(0, index, x_D).view(*leading, -1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_D: Tensor) -> tuple[Tensor, None, None]:
        return _Picked.apply(grad_D, ctx.index), None, None  # type: ignore[attr-defined, no-untyped-call]


def _live_rows(grad_O: Tensor) -> Tensor | None:
    """Which rows aren't all 0, where that is a minority, else None.

    A classifier reads one token's last state, a masked language model is asked for few tokens, and padding
    counts for nothing: no gradient comes back to the other rows. Nothing else makes every entry of a row 0
    but a loss without any slope, and where all rows are 0 all are computed.
    """
    if grad_O.dim() < 2 or grad_O.device.type != "cpu":  # elsewhere asking costs more than it saves
        return None
    rows = grad_O.shape[:-1].numel()
    if not fewer(0, rows):
        return None
    with unwatched():  # where all rows are multiplied a replay needn't ask: that is right for any
        many = not fewer(int(grad_O.detach().flatten(0, -2)[:, 0].count_nonzero()), rows)
    if many:
        return None
    live = grad_O.detach().flatten(0, -2).any(1).nonzero().flatten()
    return live if len(live) and fewer(len(live), rows) else None


def fewer(live: int, rows: int) -> bool:
    """Whether so few of a gradient's rows aren't 0 that they are multiplied alone."""
    return rows >= _FEW_ROWS and 2 * live <= rows
