"""‖g'‖², ⟨g', g⟩ and ‖g' − g‖₁ of one tensor, whatever it is made of: formed, masked, dense, mixed.

The usual tensors are taken together (`plan`); what is left comes here one by one.

Shapes: K candidates, M and N uses of a weight, O and I its sides, S rows that are compared.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

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
            found = form([part], target.shape).flatten(1) @ target.formed().flatten()
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


class _FormedAbsolute(torch.autograd.Function):
    """Σ |LᵀR − G|, forming one candidate's gradient at a time and keeping none of them."""

    @staticmethod
    def forward(ctx: FunctionCtx, left_KNO: Tensor, right_KNI: Tensor, goal_OI: Tensor) -> Tensor:
        ctx.save_for_backward(left_KNO, right_KNI, goal_OI)
        return torch.stack(
            [
                (left_NO.mT @ right_NI - goal_OI).abs().sum()
                for left_NO, right_NI in zip(left_KNO, right_KNI, strict=True)
            ]
        )

    @staticmethod
    def backward(ctx: FunctionCtx, grad_K: Tensor) -> tuple[Tensor, Tensor, None]:
        left_KNO, right_KNI, goal_OI = ctx.saved_tensors  # type: ignore[attr-defined]
        to_left, to_right = torch.empty_like(left_KNO), torch.empty_like(right_KNI)
        for k, (left_NO, right_NI) in enumerate(zip(left_KNO, right_KNI, strict=True)):
            sign_OI = (left_NO.mT @ right_NI - goal_OI).sign_().mul_(grad_K[k])
            torch.mm(right_NI, sign_OI.mT, out=to_left[k])
            torch.mm(left_NO, sign_OI, out=to_right[k])
        return to_left, to_right, None


def absolute_distance(
    contributions: list[Contribution], target: TargetTensor, scale_K: Tensor | None
) -> Tensor:
    """‖g' − g‖₁, (K,), candidates' gradients scaled; of masked tensors over what is compared."""
    outer = [part for part in contributions if isinstance(part, Outer)]
    if len(outer) == len(contributions) and target.mask is None:
        left, right = joined([part.left_KNO for part in outer]), joined([part.right_KNI for part in outer])
        left = left if scale_K is None else left * scale_K[:, None, None]
        goal_OI = target.formed().flatten(1)
        return cast(Tensor, _FormedAbsolute.apply(left, right, goal_OI))  # type: ignore[no-untyped-call]
    found_K = _compared(form(contributions, target.shape), target)
    found_K = (found_K if target.mask is None else found_K * target.mask).flatten(1)
    found_K = found_K if scale_K is None else found_K * scale_K[:, None]
    goal = target.formed() if target.mask is None or target.dense is None else target.dense
    return (found_K - goal.flatten()).abs().sum(1)


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
