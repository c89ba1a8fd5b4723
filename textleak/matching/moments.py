"""‖g'‖², ⟨g', g⟩ and ‖g' − g‖₁ of every candidate and tensor, from factors.

With G' = LᵀR over N uses and G = U Wᵀ:  ‖G'‖² = Σ (LLᵀ) ∘ (RRᵀ),  ⟨G', G⟩ = Σ (LU) ∘ (RW)  (FIELD.md 3.1).

Shapes: K candidates, N uses of a weight, O and I its sides, P matched tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from textleak.matching.objectives import Moments
from textleak.matching.rules import Contribution, Formed, Outer, Rows
from textleak.matching.target import Target, TargetTensor


def moments_of(found: Mapping[str, list[Contribution]], target: Target, *, absolute: bool = False) -> Moments:
    """Moments of the tensors in `found`, in the target's order.

    Args:
        found: what each gradient is made of, by parameter name.
        target: the shared gradient.
        absolute: ask for ‖g' − g‖₁ too, which forms one gradient at a time and keeps none.
    """
    grams = _Grams()
    own, cross, distant = [], [], []
    names = tuple(name for name in target.tensors if name in found)
    for name in names:
        contributions, tensor = found[name], target.tensors[name]
        if any(isinstance(part, Formed) for part in contributions):
            gradient_K = form(contributions, tensor.shape).flatten(1)
            goal = tensor.formed().flatten()
            own.append(gradient_K.square().sum(1))
            cross.append(gradient_K @ goal)
            if absolute:
                distant.append((gradient_K - goal).abs().sum(1))
        else:
            own.append(_own(contributions, grams))
            cross.append(_cross(contributions, tensor))
            if absolute:
                distant.append(_absolute(contributions, tensor))
    norms = [target.tensors[name].squared_norm for name in names]
    own_KP = torch.stack(own, 1)
    return Moments(
        names=names,
        own_KP=own_KP,
        cross_KP=torch.stack(cross, 1),
        target_P=own_KP.new_tensor(norms),
        absolute_KP=torch.stack(distant, 1) if absolute else None,
    )


def form(contributions: list[Contribution], shape: tuple[int, ...]) -> Tensor:
    """Gradients (K, *shape), formed from what they are made of."""
    total: Tensor | None = None
    for part in contributions:
        if isinstance(part, Formed):
            formed_K = part.gradient_K.reshape(-1, *shape)
        elif isinstance(part, Outer):
            formed_K = part.left_KNO.mT @ part.right_KNI
        else:
            formed_K = part.right_KNI.new_zeros(len(part.rows_KN), *shape)
            index = part.rows_KN.unsqueeze(-1).expand_as(part.right_KNI)
            formed_K = formed_K.scatter_add(1, index, part.right_KNI)
        total = formed_K if total is None else total + formed_K
    assert total is not None
    return total


class _Gram(torch.autograd.Function):
    """x xᵀ; its gradient as one product instead of two."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_KND: Tensor) -> Tensor:
        ctx.save_for_backward(x_KND)
        return x_KND @ x_KND.mT

    @staticmethod
    def backward(ctx: FunctionCtx, grad_KNN: Tensor) -> Tensor:
        (x_KND,) = ctx.saved_tensors  # type: ignore[attr-defined]
        result: Tensor = (grad_KNN + grad_KNN.mT) @ x_KND
        return result


class _Grams:
    """Gram matrices by tensor: query, key and value share their input's."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x_KND: Tensor) -> Tensor:
        if id(x_KND) not in self._known:
            self._known[id(x_KND)] = (x_KND, _Gram.apply(x_KND))  # type: ignore[no-untyped-call]
        return self._known[id(x_KND)][1]


def _own(contributions: list[Contribution], grams: _Grams) -> Tensor:
    """‖G'‖², (K,)."""
    rows, dense, right = _split(contributions)
    right_gram = grams(right)
    if rows is None:
        assert dense is not None
        return (grams(dense) * right_gram).sum((1, 2))
    same_KNN = (rows.unsqueeze(2) == rows.unsqueeze(1)).to(right.dtype)
    if dense is None:
        return (same_KNN * right_gram).sum((1, 2))
    n = rows.shape[1]
    mixed_KMN = dense.gather(2, rows.unsqueeze(1).expand(-1, dense.shape[1], -1))
    return (
        (same_KNN * right_gram[:, :n, :n]).sum((1, 2))
        + 2 * (mixed_KMN * right_gram[:, n:, :n]).sum((1, 2))
        + (grams(dense) * right_gram[:, n:, n:]).sum((1, 2))
    )


def _cross(contributions: list[Contribution], target: TargetTensor) -> Tensor:
    """⟨G', G⟩, (K,)."""
    total: Tensor | None = None
    for part in contributions:
        assert not isinstance(part, Formed)
        if target.dense is not None:
            if isinstance(part, Rows):
                product = target.dense[part.rows_KN] * part.right_KNI
            else:
                product = (part.right_KNI @ target.dense.mT) * part.left_KNO
        else:
            assert target.left_OR is not None
            assert target.right_IR is not None
            if isinstance(part, Rows):
                left_KNR = target.left_OR[part.rows_KN]
            else:
                left_KNR = part.left_KNO @ target.left_OR
            product = left_KNR * (part.right_KNI @ target.right_IR)
        total = product.sum((1, 2)) if total is None else total + product.sum((1, 2))
    assert total is not None
    return total


def _split(contributions: list[Contribution]) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Uses joined: row indices (K, N), dense left factors (K, M, O), right factors (K, N + M, I)."""
    rows = [part.rows_KN for part in contributions if isinstance(part, Rows)]
    dense = [part.left_KNO for part in contributions if isinstance(part, Outer)]
    right = [part.right_KNI for part in contributions if isinstance(part, Rows)]
    right += [part.right_KNI for part in contributions if isinstance(part, Outer)]
    return (_joined(rows) if rows else None, _joined(dense) if dense else None, _joined(right))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


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


def _absolute(contributions: list[Contribution], target: TargetTensor) -> Tensor:
    """‖G' − G‖₁, (K,)."""
    rows, dense, right = _split(contributions)
    if rows is None:
        assert dense is not None
        result: Tensor = _FormedAbsolute.apply(dense, right, target.formed())  # type: ignore[no-untyped-call]
        return result
    return (form(contributions, target.shape) - target.formed()).abs().sum((1, 2))
