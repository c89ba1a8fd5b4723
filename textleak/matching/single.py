"""‖g'‖², ⟨g', g⟩ and ‖g' − g‖₁ of one tensor, whatever it is made of: formed, masked, dense, mixed.

The usual tensors are taken together (`plan`); what is left comes here one by one.

Shapes: K candidates, M and N uses of a weight, O and I its sides, S rows that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from textleak.matching.rules import Contribution, Formed, Outer, Rows, Sum
from textleak.matching.target import TargetTensor


def form(contributions: list[Contribution], shape: tuple[int, ...]) -> Tensor:
    """Gradients (K, *shape), formed from what they are made of."""
    total: Tensor | None = None
    for part in contributions:
        if isinstance(part, Formed):
            formed_K = part.gradient_K.reshape(-1, *shape)
        elif isinstance(part, Sum):
            formed_K = part.terms_KND.sum(1).reshape(-1, *shape)
        elif isinstance(part, Outer):
            formed_K = (part.left_KNO.mT @ part.right_KNI).reshape(-1, *shape)
        else:
            formed_K = part.right_KNI.new_zeros(len(part.rows_KN), *shape)
            index = part.rows_KN.unsqueeze(-1).expand_as(part.right_KNI)
            formed_K = formed_K.scatter_add(1, index, part.right_KNI)
        total = formed_K if total is None else total + formed_K
    assert total is not None
    return total


def own(contributions: list[Contribution], shape: tuple[int, ...]) -> Tensor:
    """‖g'‖², (K,)."""
    outer = [part for part in contributions if isinstance(part, Outer)]
    looked_up = [part for part in contributions if isinstance(part, Rows)]
    if len(outer) + len(looked_up) < len(contributions):
        return form(contributions, shape).flatten(1).square().sum(1)
    total: Tensor | None = None
    if outer:
        left, right = joined([part.left_KNO for part in outer]), joined([part.right_KNI for part in outer])
        total = dot(left @ left.mT, right @ right.mT)
    if looked_up:
        rows, values = joined([p.rows_KN for p in looked_up]), joined([p.right_KNI for p in looked_up])
        hits = dot(same(rows, values.dtype), values @ values.mT)
        total = hits if total is None else total + hits
        if outer:
            at_rows_KMN = left.gather(2, rows.unsqueeze(1).expand(-1, left.shape[1], -1))
            total = total + 2 * dot(at_rows_KMN, right @ values.mT)
    assert total is not None
    return total


def cross(contributions: list[Contribution], target: TargetTensor) -> Tensor:
    """⟨g', g⟩, (K,)."""
    total: Tensor | None = None
    for part in contributions:
        if isinstance(part, Formed | Sum):
            goal = target.formed().flatten(len(target.leading))
            found = (form([part], target.shape).flatten(1) * goal).sum(1)
        elif isinstance(part, Outer):
            found = dot(part.left_KNO, target.apply(part.right_KNI))
        else:
            found = dot(target.rows(part.rows_KN), part.right_KNI)
        total = found if total is None else total + found
    assert total is not None
    return total


def masked(contributions: list[Contribution], target: TargetTensor) -> tuple[Tensor, Tensor]:
    """‖M∘g'‖² and ⟨M∘g', g⟩ over the compared rows, (K,) each; no other rows of a matrix product are formed."""
    assert target.dense is not None
    assert target.mask is not None
    total: Tensor | None = None
    for part in contributions:
        if target.rows_S is None or isinstance(part, Formed | Sum):
            found = _compared(form([part], target.shape), target)
        elif isinstance(part, Outer):
            found = part.left_KNO[..., target.rows_S].mT @ part.right_KNI
        else:
            hits_KNS = (part.rows_KN.unsqueeze(-1) == target.rows_S).to(part.right_KNI)
            found = hits_KNS.mT @ part.right_KNI
        total = found if total is None else total + found
    assert total is not None
    left_K = (total * target.mask).flatten(1)
    return left_K.square().sum(1), left_K @ target.dense.flatten()


def _compared(formed_K: Tensor, target: TargetTensor) -> Tensor:
    """Of formed gradients (K, *shape) the rows that are compared, (K, S, I); all of a vector."""
    matrix_K = formed_K if formed_K.dim() < 3 else formed_K.flatten(2)
    return matrix_K if target.rows_S is None else matrix_K[:, target.rows_S]


# Entries of a block of rows that is formed: two such blocks fit into a core's second-level cache.
_BLOCK = 128 * 1024


class _FormedAbsolute(torch.autograd.Function):
    """Σ |LᵀR − G|, forming some rows of one candidate's difference at a time and keeping none of them.

    The difference is piecewise linear in the factors, so its derivatives are taken while its signs are at hand.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, left_KNO: Tensor, right_KNI: Tensor, target: TargetTensor, slopes: bool
    ) -> Tensor:
        to_left, to_right = torch.empty_like(left_KNO), torch.zeros_like(right_KNI)
        distances = []
        rows = max(1, _BLOCK // right_KNI.shape[-1])
        for k, (left_NO, right_NI) in enumerate(zip(left_KNO, right_KNI, strict=True)):
            difference = _difference(left_NO, right_NI, target, k)
            total = left_NO.new_zeros(())
            for start in range(0, left_NO.shape[1], rows):
                some = slice(start, start + rows)
                difference_OI = difference(some)
                total += difference_OI.abs().sum()
                if slopes:
                    sign_OI = difference_OI.sign_()
                    torch.mm(right_NI, sign_OI.mT, out=to_left[k][:, some])
                    to_right[k].addmm_(left_NO[:, some], sign_OI)
            distances.append(total)
        ctx.save_for_backward(to_left, to_right)
        return torch.stack(distances)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_K: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_left, to_right = ctx.saved_tensors  # type: ignore[attr-defined]
        return to_left * grad_K[:, None, None], to_right * grad_K[:, None, None], None, None


def _difference(left_NO: Tensor, right_NI: Tensor, target: TargetTensor, k: int) -> Callable[[slice], Tensor]:
    """What gives some rows of LᵀR − G, G the target's or, of a stack, candidate k's."""
    own = (k,) if target.leading else ()
    if target.left_OR is None or target.right_IR is None:
        goal_OI = target.formed()[own].flatten(1)
        return lambda some: torch.addmm(goal_OI[some], left_NO[:, some].mT, right_NI, beta=-1)
    both_left = torch.cat([left_NO, -target.left_OR[own].mT])
    both_right = torch.cat([right_NI, target.right_IR[own].mT])
    return lambda some: both_left[:, some].mT @ both_right


def absolute_distance(
    contributions: list[Contribution], target: TargetTensor, scale_K: Tensor | None
) -> Tensor:
    """‖g' − g‖₁, (K,), candidates' gradients scaled; of masked tensors over what is compared."""
    outer = [part for part in contributions if isinstance(part, Outer)]
    if len(outer) == len(contributions) and target.mask is None:
        left, right = joined([part.left_KNO for part in outer]), joined([part.right_KNI for part in outer])
        left = left if scale_K is None else left * scale_K[:, None, None]
        slopes = torch.is_grad_enabled()
        return cast(Tensor, _FormedAbsolute.apply(left, right, target, slopes))  # type: ignore[no-untyped-call]
    found_K = _compared(form(contributions, target.shape), target)
    found_K = (found_K if target.mask is None else found_K * target.mask).flatten(1)
    found_K = found_K if scale_K is None else found_K * scale_K[:, None]
    goal = target.formed() if target.mask is None or target.dense is None else target.dense
    return (found_K - goal.flatten(len(target.leading))).abs().sum(1)


def dot(a: Tensor | None, b: Tensor | None) -> Tensor:
    """Inner products of matrices, (K,)."""
    assert a is not None
    assert b is not None
    return (a * b).sum((1, 2))


def same(rows_KN: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where two uses hit the same row, (K, N, N)."""
    return (rows_KN.unsqueeze(2) == rows_KN.unsqueeze(1)).to(dtype)


def joined(parts: list[Tensor]) -> Tensor:
    """Uses one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
