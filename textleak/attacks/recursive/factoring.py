"""The last convolution's weight gradient taken apart into which units are on after it and what it read.

Behind a mean over places the loss's gradient at each channel is the same for all of them, and known from the head. So
the weight's gradient is, for each place k of the kernel, G_k = T S_k X: T is that gradient where a unit is on and 0
where it isn't, X is what the convolution read, and S_k, known, moves places by k and puts zeros beyond the border.
Whatever X is, all columns of the G_k, one below the other, lie in the span of the T S_k, one below the other. T is
looked for, its entries between 0 and the full gradient, and X is eliminated (variable projection, Golub and Pereyra
1973). Where T and X have full rank only multiples of T fit as well: what commutes with all S_k is a multiple of 1, as
these generate all matrices. Zeros beyond the border are why no moved picture fits (our own; in practice a few units
are on everywhere, T isn't of full rank, and one answer fits all the same: `tests/figures`).

The span is fitted by the gradient's left singular vectors, all alike: what a network gives is nearly the same at
neighboring places, and weighed by their singular values descent doesn't end. What it finds is put to a test: with each
unit rounded to on or off, X is determined by least squares, and nothing of the equations is left over.

Shapes: O and I channels that the convolution gives and reads, K places of its kernel, L places of what it gives, P
places of what it reads, X entries of the weight for one channel read, R the gradient's rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from textleak.attacks.recursive.inputs import Equations, columns_of, seen_places, solve
from textleak.matching import LBFGS, Leaves, Limits, minimize
from textleak.numerics import svd

# Evaluations before a test of what is found, tests of one start, and starts (our choice; one to three tests did on the
# pictures of `tests/figures`).
_EVALUATIONS, _ROUNDS, _STARTS = 100, 10, 4
# After a test that failed logits go back into this range: units that were surely wrong can be put right again. Without
# this descent ended with a few of them (our choice).
_UNSURE = 1.0
# Where the start's logits lie: most units on, none of them surely (our choice).
_LOGIT, _SPREAD = 1.0, 0.3
# Singular values below this many times what may be left over are rounding (our choice).
_ROUNDING = 4.0
# Added to the spanning columns' squared lengths, as a part of their mean: they may follow from each other (our choice).
_RIDGE = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Factored:
    """Where a factoring stands.

    Attributes:
        left: what is left over of the equations, as a part of them, with the units rounded.
        on: which units are on, (1, O, H, W), 0 or 1.
    """

    left: float
    on: Tensor


def factored(last: Equations, shape: torch.Size, *, tolerance: float, seed: int) -> Iterator[Factored]:
    """Take a gradient apart, test after test; the last one has nothing left over, or all starts were in vain.

    Args:
        last: of the convolution, with the loss's gradient as it would be if all units were on.
        shape: of what it reads, (I, H, W).
        tolerance: what may be left over of the equations, as a part of them.
        seed: of the starts.
    """
    loudest_O = last.delta.abs().amax((0, 2, 3))
    rows_O = torch.where(loudest_O > 0, loudest_O, 1.0)
    full_OL = (last.delta[0] / rows_O[:, None, None]).flatten(1)
    relative_OIHW = last.gradient / rows_O[:, None, None, None]
    vectors_XR, values_R, _ = svd(relative_OIHW.permute(0, 2, 3, 1).reshape(-1, shape[0]))
    rank = int((values_R > _ROUNDING * tolerance * values_R[0]).sum())
    if rank == 0:
        return
    vectors_XR = vectors_XR[:, :rank]
    seen_PKL = seen_places(last.layer, shape[1:])

    def outside(leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        logits_1D = leaves["logits"].detach().requires_grad_()
        with torch.enable_grad():
            on_OL = logits_1D.view(full_OL.shape).sigmoid()
            loss = _outside(vectors_XR, columns_of(on_OL * full_OL, seen_PKL))
            (slope_1D,) = torch.autograd.grad(loss, logits_1D)
        return loss.detach()[None], {"logits": slope_1D}

    optimizer = LBFGS(gradient_tolerance=0.0, change_tolerance=0.0)
    for start in range(_STARTS):
        generator = torch.Generator().manual_seed(seed + start)
        logits_D = _LOGIT + _SPREAD * torch.randn(full_OL.numel(), generator=generator, dtype=torch.float64)
        for _ in range(_ROUNDS):
            limits = Limits(steps=_EVALUATIONS)
            *_, end = minimize(outside, {"logits": logits_D[None]}, optimizer, limits=limits)
            logits_D = end.best["logits"][0]
            rounded = _rounded(logits_D.sigmoid()).view(last.delta.shape)
            read = solve([dataclasses.replace(last, delta=last.delta * rounded)], shape)
            left = 1.0 if read is None else read.left
            yield Factored(left=left, on=rounded)
            if left <= tolerance:
                return
            logits_D = logits_D.clamp(-_UNSURE, _UNSURE)


def _outside(vectors_XR: Tensor, columns_XP: Tensor) -> Tensor:
    """The part of orthonormal vectors, squared, that isn't in the span of columns."""
    gram_PP = columns_XP.mT @ columns_XP
    ridge_PP = torch.eye(len(gram_PP), dtype=gram_PP.dtype) * (_RIDGE * gram_PP.diagonal().mean())
    factor_PP = torch.linalg.cholesky(gram_PP + ridge_PP)
    within_PR = torch.linalg.solve_triangular(factor_PP, columns_XP.mT @ vectors_XR, upper=False)
    outside: Tensor = 1 - within_PR.square().sum() / vectors_XR.shape[1]
    return outside


def _rounded(on_OL: Tensor) -> Tensor:
    """1 for what is nearer to what units are that are on than to 0; a multiple of all of them fits as well."""
    loud = on_OL[on_OL > on_OL.max() / 2].mean()
    return (on_OL > loud / 2).double()
