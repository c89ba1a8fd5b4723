"""‖g'‖² and ⟨g', g⟩ of many tensors at once, each factor that they share taken once, derivatives written out.

With G' = LᵀR over N uses and G = U Wᵀ:  ‖G'‖² = Σ (LLᵀ) ∘ (RRᵀ),  ⟨G', G⟩ = Σ (LU) ∘ (RW).
A factor that several tensors share (the input of query, key and value) gets one Gram matrix and is multiplied
by all their targets' factors at once.

Shapes: K candidates, N uses of a weight, O and I its sides, D either of them, R a target's rank, P tensors,
S sums of one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from textleak.matching.linear import onednn_pays, product
from textleak.matching.rules import Contribution, Formed, Outer, Rows, Sum
from textleak.matching.single import dot, joined, same
from textleak.matching.target import JoinedColumns, TargetTensor


class _Factor:
    """A tensor that moments are taken of, with what is derived from it, and the derivatives of all that.

    Args:
        values_KND: the tensor.
    """

    def __init__(self, values_KND: Tensor) -> None:
        self.shape = values_KND.shape
        self.values_KND: Tensor | None = values_KND
        # The target's factors that it is multiplied by, (D, R) or a stack (K, D, R).
        self.columns: list[Tensor] = []
        self.columns_RD: Tensor | None = None  # all of them
        self.rank = 0
        self.products_KNR: Tensor | None = None
        self.gram_KNN: Tensor | None = None
        self.to_products_KNR: Tensor | None = None
        self.to_gram_KNN: Tensor | None = None
        self.to_sum_KD: Tensor | None = None

    def multiply_by(self, column_DR: Tensor) -> slice:
        """Where the product with `column_DR` will be found among all products."""
        self.columns.append(column_DR)
        self.rank += column_DR.shape[-1]
        return slice(self.rank - column_DR.shape[-1], self.rank)

    def derive(self, values_KND: Tensor, joined_columns: JoinedColumns) -> None:
        """Products and Gram matrix, if some weight is made of this factor (a sum needs neither)."""
        if self.rank:
            self.columns_RD = joined_columns.of(self.columns)
            self.products_KNR = _product(values_KND, self.columns_RD)
            self.gram_KNN = _gram(values_KND)

    def recall(self, values_KND: Tensor | None, products_KNR: Tensor | None, gram_KNN: Tensor | None) -> None:
        """Take back what was derived, and make room for its derivatives."""
        self.values_KND, self.products_KNR, self.gram_KNN = values_KND, products_KNR, gram_KNN
        if products_KNR is not None and gram_KNN is not None:
            self.to_products_KNR, self.to_gram_KNN = (
                torch.empty_like(products_KNR),
                torch.zeros_like(gram_KNN),
            )

    def gradient(self) -> Tensor:
        """With regard to the values, from the derivatives of what was derived."""
        if self.to_products_KNR is None:
            assert self.to_sum_KD is not None
            return self.to_sum_KD.unsqueeze(1).expand(self.shape)
        assert self.to_gram_KNN is not None
        assert self.values_KND is not None
        assert self.columns_RD is not None
        result_KND = _product(self.to_products_KNR, self.columns_RD.mT)
        result_KND.baddbmm_(self.to_gram_KNN, self.values_KND, alpha=2)  # the Gram matrix is symmetric
        return result_KND if self.to_sum_KD is None else result_KND.add_(self.to_sum_KD.unsqueeze(1))

    def forget(self) -> None:
        """Hold no tensor of the candidates: autograd keeps what is needed."""
        self.values_KND = self.products_KNR = self.gram_KNN = None
        self.to_products_KNR = self.to_gram_KNN = self.to_sum_KD = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _OuterMoments:
    """A weight's: its factors, and where their products with the target's are."""

    left: _Factor
    right: _Factor
    left_R: slice
    right_R: slice

    def forward(self) -> tuple[Tensor, Tensor]:
        """‖g'‖² and ⟨g', g⟩, (K,) each."""
        left_KNR = _part(self.left.products_KNR, self.left_R)
        right_KNR = _part(self.right.products_KNR, self.right_R)
        return dot(self.left.gram_KNN, self.right.gram_KNN), dot(left_KNR, right_KNR)

    def backward(self, to_own_K11: Tensor, to_cross_K11: Tensor) -> None:
        """Add this weight's part to its factors' derivatives."""
        for mine, mine_R, other, other_R in (
            (self.left, self.left_R, self.right, self.right_R),
            (self.right, self.right_R, self.left, self.left_R),
        ):
            _add_scaled(mine.to_gram_KNN, other.gram_KNN, to_own_K11)
            other_KNR = _part(other.products_KNR, other_R)
            torch.mul(other_KNR, to_cross_K11, out=_part(mine.to_products_KNR, mine_R))


@dataclass(frozen=True, kw_only=True, eq=False)
class _RowsMoments:
    """A look-up table's: which uses hit the same row, and the target's left factor at those rows."""

    right: _Factor
    right_R: slice
    same_KNN: Tensor
    left_KNR: Tensor

    def forward(self) -> tuple[Tensor, Tensor]:
        """‖g'‖² and ⟨g', g⟩, (K,) each."""
        right_KNR = _part(self.right.products_KNR, self.right_R)
        return dot(self.same_KNN, self.right.gram_KNN), dot(self.left_KNR, right_KNR)

    def backward(self, to_own_K11: Tensor, to_cross_K11: Tensor) -> None:
        """Add this table's part to its factor's derivatives."""
        _add_scaled(self.right.to_gram_KNN, self.same_KNN, to_own_K11)
        torch.mul(self.left_KNR, to_cross_K11, out=_part(self.right.to_products_KNR, self.right_R))


class _SumMoments:
    """Those of all biases and scales of one size: factors summed over N, against the targets themselves."""

    def __init__(self) -> None:
        self.factors: list[_Factor] = []
        self.goals_D: list[Tensor] = []

    def _goals(self) -> Tensor:
        """(S, D), of a stack (K, S, D)."""
        return torch.stack(self.goals_D, -2)

    def forward(self, sums_KSD: Tensor) -> tuple[Tensor, Tensor]:
        """‖g'‖² and ⟨g', g⟩, (K, S) each."""
        return sums_KSD.square().sum(2), (sums_KSD * self._goals()).sum(2)

    def backward(self, sums_KSD: Tensor, to_own_KS: Tensor, to_cross_KS: Tensor) -> None:
        """Add these tensors' parts to their factors' derivatives."""
        all_KSD = to_cross_KS.unsqueeze(2) * self._goals()
        all_KSD.addcmul_(to_own_KS.unsqueeze(2), sums_KSD, value=2)
        for factor, mine_KD in zip(self.factors, all_KSD.unbind(1), strict=True):
            factor.to_sum_KD = mine_KD if factor.to_sum_KD is None else factor.to_sum_KD + mine_KD


class Plan:
    """What is to be computed, with each factor once however many tensors share it.

    Args:
        joined_columns: of the target.
    """

    def __init__(self, joined_columns: JoinedColumns) -> None:
        self.joined_columns = joined_columns
        self.factors: list[_Factor] = []
        self.weights: list[_OuterMoments | _RowsMoments] = []
        self.sums: dict[int, _SumMoments] = {}  # by size
        self._weight_names: list[str] = []
        self._sum_names: dict[int, list[str]] = {}
        # Factors by the ids of the tensors that they are made of, which are good while those live.
        self._known: dict[tuple[int, ...], tuple[_Factor, list[Tensor]]] = {}

    def moments(self) -> tuple[Tensor, Tensor]:
        """‖g'‖² and ⟨g', g⟩, (K, P) each, differentiable once; to be called once."""
        return cast("tuple[Tensor, Tensor]", _PlannedMoments.apply(self, *self._inputs()))  # type: ignore[no-untyped-call]

    @property
    def names(self) -> list[str]:
        """The planned tensors, in the order of the moments."""
        return self._weight_names + [name for names in self._sum_names.values() for name in names]

    def _inputs(self) -> list[Tensor]:
        """The factors' tensors, which the plan lets go of: what autograd doesn't need is freed."""
        self._known.clear()
        inputs = [_values(factor) for factor in self.factors]
        for factor in self.factors:
            factor.forget()
        return inputs

    def take(self, name: str, contributions: list[Contribution], target: TargetTensor) -> bool:
        """Plan a tensor, if it is of a usual kind: not mixed, and a matrix's target thin."""
        if target.mask is not None:
            return False
        outer = [part for part in contributions if isinstance(part, Outer)]
        rows = [part for part in contributions if isinstance(part, Rows)]
        if not outer and not rows:
            goal_D = target.formed().flatten(len(target.leading))
            sums = self.sums.setdefault(goal_D.shape[-1], _SumMoments())
            sums.factors.append(self._factor([_terms(part) for part in contributions]))
            sums.goals_D.append(goal_D)
            self._sum_names.setdefault(goal_D.shape[-1], []).append(name)
            return True
        if target.left_OR is None or target.right_IR is None:
            return False
        if len(outer) == len(contributions):
            left = self._factor([part.left_KNO for part in outer])
            right = self._factor([part.right_KNI for part in outer])
            self.weights.append(
                _OuterMoments(
                    left=left,
                    right=right,
                    left_R=left.multiply_by(target.left_OR),
                    right_R=right.multiply_by(target.right_IR),
                )
            )
        elif len(rows) == len(contributions):
            right = self._factor([part.right_KNI for part in rows])
            rows_KN = joined([part.rows_KN for part in rows])
            self.weights.append(
                _RowsMoments(
                    right=right,
                    right_R=right.multiply_by(target.right_IR),
                    same_KNN=same(rows_KN, target.left_OR.dtype),
                    left_KNR=target.left_rows(rows_KN),
                )
            )
        else:
            return False
        self._weight_names.append(name)
        return True

    def _factor(self, parts: list[Tensor]) -> _Factor:
        """The factor with these uses, one after the other."""
        key = tuple(id(part) for part in parts)
        if key not in self._known:
            self._known[key] = _Factor(joined(parts)), parts
            self.factors.append(self._known[key][0])
        return self._known[key][0]


class _PlannedMoments(torch.autograd.Function):
    """‖g'‖² and ⟨g', g⟩ of a plan's tensors, (K, P) each, differentiable once in the plan's factors."""

    @staticmethod
    def forward(ctx: FunctionCtx, plan: Plan, *values_KND: Tensor) -> tuple[Tensor, Tensor]:
        own, cross = [], []
        for factor, values in zip(plan.factors, values_KND, strict=True):
            factor.values_KND = values
            factor.derive(values, plan.joined_columns)
        for weight in plan.weights:
            own_K, cross_K = weight.forward()
            own.append(own_K.unsqueeze(1))
            cross.append(cross_K.unsqueeze(1))
        sums = []
        for group in plan.sums.values():
            sums.append(torch.stack([_values(factor).sum(1) for factor in group.factors], 1))
            own_KS, cross_KS = group.forward(sums[-1])
            own.append(own_KS)
            cross.append(cross_KS)
        products = [factor.products_KNR for factor in plan.factors]
        grams = [factor.gram_KNN for factor in plan.factors]
        # None is allowed; of factors that are only summed, the sums are all that is needed.
        kept = [
            values if factor.rank else None for factor, values in zip(plan.factors, values_KND, strict=True)
        ]
        ctx.save_for_backward(*cast(list[Tensor], kept + products + grams), *sums)
        ctx.plan = plan  # type: ignore[attr-defined]
        for factor in plan.factors:
            factor.forget()
        return torch.cat(own, 1), torch.cat(cross, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, to_own_KP: Tensor, to_cross_KP: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan  # type: ignore[attr-defined]
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        count = len(plan.factors)
        derived = zip(saved[:count], saved[count : 2 * count], saved[2 * count : 3 * count], strict=True)
        for factor, (values, products, gram) in zip(plan.factors, derived, strict=True):
            factor.recall(values, products, gram)
        sizes = [len(plan.weights), *(len(group.factors) for group in plan.sums.values())]
        to_own, to_cross = torch.split(to_own_KP, sizes, 1), torch.split(to_cross_KP, sizes, 1)
        columns = (part.mT[:, :, None, None].unbind() for part in (to_own[0], to_cross[0]))
        for weight, to_own_K11, to_cross_K11 in zip(plan.weights, *columns, strict=True):
            weight.backward(to_own_K11, to_cross_K11)
        for group, *parts in zip(
            plan.sums.values(), saved[3 * count :], to_own[1:], to_cross[1:], strict=True
        ):
            group.backward(*parts)
        gradients = [factor.gradient() for factor in plan.factors]
        for factor in plan.factors:
            factor.forget()
        return None, *gradients


def _values(factor: _Factor) -> Tensor:
    assert factor.values_KND is not None
    return factor.values_KND


def _part(products_KNR: Tensor | None, which_R: slice) -> Tensor:
    assert products_KNR is not None
    return products_KNR[..., which_R]


def _product(values_KND: Tensor, columns_RD: Tensor) -> Tensor:
    """Candidates' values times the target's factors, of a stack (K, R, D) each candidate's own."""
    return product(values_KND, columns_RD) if columns_RD.dim() == 2 else values_KND @ columns_RD.mT


def _gram(x_KND: Tensor) -> Tensor:
    """X xᵀ; where torch's own products are slow, a width just short of 8's multiple is filled up, as vectors are."""
    uses = x_KND.shape[1]
    missing = -uses % 8
    if missing not in (1, 2) or x_KND.device.type != "cpu" or not onednn_pays():
        return x_KND @ x_KND.mT
    return (x_KND @ functional.pad(x_KND, (0, 0, 0, missing)).mT)[..., :uses].contiguous()


def _add_scaled(total: Tensor | None, addend: Tensor | None, scale: Tensor) -> None:
    assert total is not None
    assert addend is not None
    total.addcmul_(addend, scale)


def _terms(part: Contribution) -> Tensor:
    """What a gradient that isn't a matrix product is the sum of, (K, N, D)."""
    if isinstance(part, Sum):
        return part.terms_KND
    assert isinstance(part, Formed)
    return part.gradient_K.flatten(1).unsqueeze(1)
