"""‖g'‖², ⟨g', g⟩ and ‖g' − g‖₁ of every candidate and tensor, from what the gradients are made of.

With G' = LᵀR over N uses and G = U Wᵀ:  ‖G'‖² = Σ (LLᵀ) ∘ (RRᵀ),  ⟨G', G⟩ = Σ (LU) ∘ (RW).
A factor that several tensors share (the input of query, key and value) gets one Gram matrix and is multiplied
by all their targets' factors at once; so are the derivatives, which are written out here.

Shapes: K candidates, N uses of a weight, O and I its sides, D either of them, R a target's rank, P tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from textleak.matching.kernels import product
from textleak.matching.objectives import Moments
from textleak.matching.rules import Contribution, Formed, Outer, Rows, Sum
from textleak.matching.target import Rescaled, Target, TargetTensor


def moments_of(found: Mapping[str, list[Contribution]], target: Target, *, absolute: bool = False) -> Moments:
    """Moments of the tensors in `found`, in the target's order.

    Args:
        found: what each gradient is made of, by parameter name.
        target: the shared gradient.
        absolute: ask for ‖g' − g‖₁ too, which forms one gradient at a time and keeps none.
    """
    names = tuple(name for name in target.tensors if name in found)
    plan = _Plan()
    others: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        tensor = target.tensors[name]
        if not plan.take(name, found[name], tensor):
            others[name] = (
                (_own(found[name], tensor.shape), _cross(found[name], tensor))
                if tensor.mask is None
                else _masked(found[name], tensor)
            )
    parts = []
    if plan.factors:
        parts.append(_PlannedMoments.apply(plan, *plan.inputs()))  # type: ignore[no-untyped-call]
    parts += [(own_K.unsqueeze(1), cross_K.unsqueeze(1)) for own_K, cross_K in others.values()]
    computed = [*plan.names, *others]
    order = [computed.index(name) for name in names]
    own_KP, cross_KP = (torch.cat(moment, 1)[:, order] for moment in zip(*parts, strict=True))
    target_P = own_KP.new_tensor([target.tensors[name].squared_norm for name in names])
    scale_KP = None if target.rescaled is None else _scale(own_KP, target_P, names, target.rescaled)
    if scale_KP is not None:
        own_KP, cross_KP = own_KP * scale_KP.square(), cross_KP * scale_KP
    distant = [
        _absolute(found[name], target.tensors[name], None if scale_KP is None else scale_KP[:, index])
        for index, name in enumerate(names)
        if absolute
    ]
    return Moments(
        names=names,
        own_KP=own_KP,
        cross_KP=cross_KP,
        target_P=target_P,
        absolute_KP=torch.stack(distant, 1) if absolute else None,
    )


def _scale(own_KP: Tensor, target_P: Tensor, names: Sequence[str], rescaled: Rescaled) -> Tensor:
    """What brings each candidate's gradient to the norm of the shared one, (K, P)."""
    groups = [{"all": "", "layer": name.rpartition(".")[0], "tensor": name}[rescaled] for name in names]
    member_PG = own_KP.new_tensor(
        [[float(group == one) for one in dict.fromkeys(groups)] for group in groups]
    )
    tiny = torch.finfo(own_KP.dtype).tiny ** 0.5
    squared_KG = (target_P @ member_PG) / (own_KP @ member_PG).clamp_min(tiny)
    return squared_KG.sqrt() @ member_PG.mT


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


class _Factor:
    """A tensor that moments are taken of, with what is derived from it, and the derivatives of all that.

    Args:
        values_KND: the tensor.
    """

    def __init__(self, values_KND: Tensor) -> None:
        self.shape = values_KND.shape
        self.values_KND: Tensor | None = values_KND
        self.columns_RD: list[Tensor] = []  # the targets' factors that it is multiplied by
        self.rank = 0
        self.products_KNR: Tensor | None = None
        self.gram_KNN: Tensor | None = None
        self.to_products_KNR: Tensor | None = None
        self.to_gram_KNN: Tensor | None = None
        self.to_sum_KD: Tensor | None = None

    def multiply_by(self, column_DR: Tensor) -> slice:
        """Where the product with `column_DR` will be found among all products."""
        self.columns_RD.append(column_DR.mT)
        self.rank += column_DR.shape[1]
        return slice(self.rank - column_DR.shape[1], self.rank)

    def derive(self, values_KND: Tensor) -> None:
        """Products and Gram matrix, if some weight is made of this factor (a sum needs neither)."""
        if self.rank:
            self.columns_RD = [torch.cat(self.columns_RD)]
            self.products_KNR = product(values_KND, self.columns_RD[0])
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
        result_KND = product(self.to_products_KNR, self.columns_RD[0].mT)
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
        return _dot(self.left.gram_KNN, self.right.gram_KNN), _dot(left_KNR, right_KNR)

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
        return _dot(self.same_KNN, self.right.gram_KNN), _dot(self.left_KNR, right_KNR)

    def backward(self, to_own_K11: Tensor, to_cross_K11: Tensor) -> None:
        """Add this table's part to its factor's derivatives."""
        _add_scaled(self.right.to_gram_KNN, self.same_KNN, to_own_K11)
        torch.mul(self.left_KNR, to_cross_K11, out=_part(self.right.to_products_KNR, self.right_R))


class _SumMoments:
    """Those of all biases and scales of one size: factors summed over N, against the targets themselves."""

    def __init__(self) -> None:
        self.factors: list[_Factor] = []
        self.goals_D: list[Tensor] = []

    def forward(self, sums_KSD: Tensor) -> tuple[Tensor, Tensor]:
        """‖g'‖² and ⟨g', g⟩, (K, S) each."""
        return sums_KSD.square().sum(2), (sums_KSD * torch.stack(self.goals_D)).sum(2)

    def backward(self, sums_KSD: Tensor, to_own_KS: Tensor, to_cross_KS: Tensor) -> None:
        """Add these tensors' parts to their factors' derivatives."""
        all_KSD = to_cross_KS.unsqueeze(2) * torch.stack(self.goals_D)
        all_KSD.addcmul_(to_own_KS.unsqueeze(2), sums_KSD, value=2)
        for factor, mine_KD in zip(self.factors, all_KSD.unbind(1), strict=True):
            factor.to_sum_KD = mine_KD if factor.to_sum_KD is None else factor.to_sum_KD + mine_KD


class _Plan:
    """What is to be computed, with each factor once however many tensors share it."""

    def __init__(self) -> None:
        self.factors: list[_Factor] = []
        self.weights: list[_OuterMoments | _RowsMoments] = []
        self.sums: dict[int, _SumMoments] = {}  # by size
        self._weight_names: list[str] = []
        self._sum_names: dict[int, list[str]] = {}
        # Factors by the ids of the tensors that they are made of, which are good while those live.
        self._known: dict[tuple[int, ...], tuple[_Factor, list[Tensor]]] = {}

    @property
    def names(self) -> list[str]:
        """The planned tensors, in the order of the moments."""
        return self._weight_names + [name for names in self._sum_names.values() for name in names]

    def inputs(self) -> list[Tensor]:
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
            goal_D = target.formed().flatten()
            sums = self.sums.setdefault(len(goal_D), _SumMoments())
            sums.factors.append(self._factor([_terms(part) for part in contributions]))
            sums.goals_D.append(goal_D)
            self._sum_names.setdefault(len(goal_D), []).append(name)
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
            rows_KN = _joined([part.rows_KN for part in rows])
            self.weights.append(
                _RowsMoments(
                    right=right,
                    right_R=right.multiply_by(target.right_IR),
                    same_KNN=_same(rows_KN, target.left_OR.dtype),
                    left_KNR=target.left_OR[rows_KN],
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
            self._known[key] = _Factor(_joined(parts)), parts
            self.factors.append(self._known[key][0])
        return self._known[key][0]


class _PlannedMoments(torch.autograd.Function):
    """‖g'‖² and ⟨g', g⟩ of a plan's tensors, (K, P) each, differentiable once in the plan's factors."""

    @staticmethod
    def forward(ctx: FunctionCtx, plan: _Plan, *values_KND: Tensor) -> tuple[Tensor, Tensor]:
        own, cross = [], []
        for factor, values in zip(plan.factors, values_KND, strict=True):
            factor.values_KND = values
            factor.derive(values)
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
        plan: _Plan = ctx.plan  # type: ignore[attr-defined]
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


def _gram(x_KND: Tensor) -> Tensor:
    """X xᵀ; on a CPU a width just short of a multiple of 8 is filled up, as vectors are that wide."""
    uses = x_KND.shape[1]
    missing = -uses % 8
    if x_KND.device.type != "cpu" or missing not in (1, 2):
        return x_KND @ x_KND.mT
    return (x_KND @ functional.pad(x_KND, (0, 0, 0, missing)).mT)[..., :uses].contiguous()


def _dot(a: Tensor | None, b: Tensor | None) -> Tensor:
    assert a is not None
    assert b is not None
    return (a * b).sum((1, 2))


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


def _same(rows_KN: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where two uses hit the same row, (K, N, N)."""
    return (rows_KN.unsqueeze(2) == rows_KN.unsqueeze(1)).to(dtype)


# What a plan doesn't take: formed matrices, dense targets (noise), look-ups mixed with products (tied heads).


def _own(contributions: list[Contribution], shape: tuple[int, ...]) -> Tensor:
    """‖g'‖², (K,)."""
    outer = [part for part in contributions if isinstance(part, Outer)]
    looked_up = [part for part in contributions if isinstance(part, Rows)]
    if len(outer) + len(looked_up) < len(contributions):
        return form(contributions, shape).flatten(1).square().sum(1)
    total: Tensor | None = None
    if outer:
        left, right = _joined([part.left_KNO for part in outer]), _joined([part.right_KNI for part in outer])
        total = _dot(left @ left.mT, right @ right.mT)
    if looked_up:
        rows, values = _joined([p.rows_KN for p in looked_up]), _joined([p.right_KNI for p in looked_up])
        same = _dot(_same(rows, values.dtype), values @ values.mT)
        total = same if total is None else total + same
        if outer:
            at_rows_KMN = left.gather(2, rows.unsqueeze(1).expand(-1, left.shape[1], -1))
            total = total + 2 * _dot(at_rows_KMN, right @ values.mT)
    assert total is not None
    return total


def _cross(contributions: list[Contribution], target: TargetTensor) -> Tensor:
    """⟨g', g⟩, (K,)."""
    total: Tensor | None = None
    for part in contributions:
        if isinstance(part, Formed | Sum):
            found = form([part], target.shape).flatten(1) @ target.formed().flatten()
        elif isinstance(part, Outer):
            found = _dot(part.left_KNO, target.apply(part.right_KNI))
        else:
            found = _dot(target.rows(part.rows_KN), part.right_KNI)
        total = found if total is None else total + found
    assert total is not None
    return total


def _masked(contributions: list[Contribution], target: TargetTensor) -> tuple[Tensor, Tensor]:
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


def _absolute(contributions: list[Contribution], target: TargetTensor, scale_K: Tensor | None) -> Tensor:
    """‖g' − g‖₁, (K,), candidates' gradients scaled; of masked tensors over what is compared."""
    outer = [part for part in contributions if isinstance(part, Outer)]
    if len(outer) == len(contributions) and target.mask is None:
        left, right = _joined([part.left_KNO for part in outer]), _joined([part.right_KNI for part in outer])
        left = left if scale_K is None else left * scale_K[:, None, None]
        goal_OI = target.formed().flatten(1)
        return cast(Tensor, _FormedAbsolute.apply(left, right, goal_OI))  # type: ignore[no-untyped-call]
    found_K = _compared(form(contributions, target.shape), target)
    found_K = (found_K if target.mask is None else found_K * target.mask).flatten(1)
    found_K = found_K if scale_K is None else found_K * scale_K[:, None]
    goal = target.formed() if target.mask is None or target.dense is None else target.dense
    return (found_K - goal.flatten()).abs().sum(1)
