"""The shared gradient as the engine wants it: each matrix factored once, norms taken in float64.

An undefended matrix has rank at most the number of tokens, so G = U Wᵀ with thin factors; what has no thin
factors (noise) stays dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from textleak.errors import InputError
from textleak.matching.linear import linear
from textleak.numerics import exact, on_capable_device, svd

# Rank the range finder starts from, and columns drawn beyond the rank sought (Halko et al. 2011, sec. 4.2).
_FIRST_RANK = 16
_OVERSAMPLING = 8
# Rows of a masked matrix that are compared, those with the most left in them (our choice: on minilm they tell
# candidates apart as well as all rows do, and cost about what thin factors cost).
_MASKED_ROWS = 32

Rescaled = Literal["all", "layer", "tensor"]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What was done to a gradient after it was taken, as far as the comparison reckons with it.

    Attributes:
        rank: of a matrix, at most (the batch's tokens); what is beyond it is noise. None where that isn't known.
        noise_floor: standard deviation σ of Gaussian noise on each entry, of all tensors or by name; singular values s
            are shrunk to √(s² − f²), f = σ(√O + √I). 0 for none.
        masked: whether entries that are 0 were set to it: nothing is known of them, and they aren't compared.
        masked_rows: of a masked matrix, how many rows are compared, those with the most left; None for all.
        rescaled: bring candidates' gradients to the norm of the shared one first: of all tensors together, of each
            layer's or each tensor's; None to take them as they are.
    """

    rank: int | None = None
    noise_floor: float | Mapping[str, float] = 0.0
    masked: bool = False
    masked_rows: int | None = _MASKED_ROWS
    rescaled: Rescaled | None = None

    def floor(self, name: str) -> float:
        """σ of a tensor."""
        return self.noise_floor[name] if isinstance(self.noise_floor, Mapping) else self.noise_floor


NO_DAMAGE = Damage()


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetTensor:
    """One tensor of the shared gradient, or one of each candidate's own in a stack, K first in all that it has.

    Attributes:
        shape: the parameter's; one of more than two dimensions (a convolution) is kept as a matrix (O, the rest).
        left_OR, right_IR: thin factors, G = left rightᵀ; None when `dense` is kept.
        dense: the tensor itself, or its compared rows where it is masked; None when factored.
        squared_norm: ‖G‖² of what is compared, taken in float64; of a stack that of all together.
        rows_S: which rows of a masked tensor are compared; None for all.
        mask: of a masked tensor, 1 for the compared entries that are left.
        squared_norms: of a stack, each candidate's.
    """

    shape: tuple[int, ...]
    squared_norm: float
    left_OR: Tensor | None = None
    right_IR: Tensor | None = None
    dense: Tensor | None = None
    rows_S: Tensor | None = None
    mask: Tensor | None = None
    squared_norms: tuple[float, ...] = ()

    def to(self, like: Tensor) -> TargetTensor:
        """The same with the device and type of another tensor."""
        parts = {name: getattr(self, name) for name in ("left_OR", "right_IR", "dense", "mask")}
        moved = {name: part.to(like) for name, part in parts.items() if part is not None}
        return replace(self, **moved, rows_S=None if self.rows_S is None else self.rows_S.to(like.device))

    def formed(self) -> Tensor:
        """G itself; of a stack all of them, (K, *shape)."""
        if self.dense is not None:
            return self.dense.view(*self.leading, *self.shape)
        assert self.left_OR is not None
        assert self.right_IR is not None
        return (self.left_OR @ self.right_IR.mT).view(*self.leading, *self.shape)

    @property
    def leading(self) -> tuple[int, ...]:
        """(K,) of a stack, () of one tensor for all candidates."""
        return (len(self.squared_norms),) if self.squared_norms else ()

    def apply(self, x_I: Tensor) -> Tensor:
        """G x, over the last dimension of x (..., I)."""
        if self.dense is not None:
            return _times(x_I, self.dense)
        assert self.left_OR is not None
        assert self.right_IR is not None
        return _times(_times(x_I, self.right_IR.mT), self.left_OR)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of G, (..., I); of a stack, candidate k's own."""
        if self.dense is not None:
            return self._at(self.dense, index)
        assert self.right_IR is not None
        return _times(self.left_rows(index), self.right_IR)

    def left_rows(self, index: Tensor) -> Tensor:
        """Rows of the left factor, (..., R); of a stack, candidate k's own."""
        assert self.left_OR is not None
        return self._at(self.left_OR, index)

    def _at(self, matrix: Tensor, index: Tensor) -> Tensor:
        if not self.leading:
            return matrix[index]
        return matrix[torch.arange(len(matrix), device=matrix.device)[:, None], index]


class JoinedColumns:
    """A target's factors side by side, as candidates' are multiplied by them; those asked for before are kept."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[list[Tensor], Tensor]] = {}

    def of(self, columns_DR: list[Tensor]) -> Tensor:
        """All of them, (R, D), R of all together; of a stack (K, R, D)."""
        key = tuple(map(id, columns_DR))
        if key not in self._known:  # ids are good while the tensors live
            self._known[key] = columns_DR, torch.cat([column_DR.mT for column_DR in columns_DR], -2)
        return self._known[key][1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What candidates' gradients are compared with.

    Attributes:
        tensors: by parameter name, in the order given.
        dropped: tensors left out as their gradient is only rounding noise (key biases are 0 in theory).
        rescaled: see `Damage`.
        dtype: in which candidates' gradients are compared with it, whatever they are computed in; None for that.
        joined_columns: its factors as they were asked for.
    """

    tensors: dict[str, TargetTensor]
    dropped: tuple[str, ...] = ()
    rescaled: Rescaled | None = None
    dtype: torch.dtype | None = None
    joined_columns: JoinedColumns = field(default_factory=JoinedColumns, init=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matched parameters."""
        return tuple(self.tensors)

    @property
    def squared_norm(self) -> float:
        """‖G‖² over all matched tensors."""
        return sum(tensor.squared_norm for tensor in self.tensors.values())

    def stacks_with(self, other: Target) -> bool:
        """Whether candidates of two gradients can be compared in one call, each with its own."""
        return (
            (self.names, self.dtype) == (other.names, other.dtype)
            and self.rescaled is None
            and other.rescaled is None
            and all(
                mine.mask is None and theirs.mask is None and mine.shape == theirs.shape
                for mine, theirs in zip(self.tensors.values(), other.tensors.values(), strict=True)
            )
        )

    @classmethod
    def stack(cls, targets: Sequence[Target]) -> Target:
        """One gradient a candidate, K in all, that stack with each other."""
        first = targets[0]
        tensors = {name: _stacked([target.tensors[name] for target in targets]) for name in first.names}
        return cls(tensors=tensors, dtype=first.dtype)

    @classmethod
    def from_gradients(
        cls,
        gradients: Mapping[str, Tensor],
        damage: Damage = NO_DAMAGE,
        *,
        drop_below: float = 1e-6,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Target:
        """Factor named gradients.

        Args:
            gradients: by parameter name; only those to be matched.
            damage: what was done to them.
            drop_below: leave out a tensor whose norm is under this part of the largest.
            dtype: in which candidates' gradients will be compared with it: the network's, or a finer one, in which the
                difference of two gradients that are nearly equal doesn't cancel; default as given. Thin factors are
                as near as the coarser of this and the given type, 16 bits aside, could tell.
            device: where the engine will run; default as given.

        Raises:
            InputError: nothing to match (empty, or all zero).
        """
        norms = {name: float(exact(g.detach()).norm()) for name, g in gradients.items()}
        largest = max(norms.values(), default=0.0)
        if largest == 0.0:
            raise InputError(
                f"The {len(norms)} gradients to be matched are all zero.",
                why="Every input would match them equally well.",
                fix="Share more parameters, or check the loss on the client.",
            )
        found = {
            name: _target_of(
                gradient.detach().to(device=device, dtype=dtype),
                norms[name],
                damage,
                floor=damage.floor(name),
                rounding=max(
                    _rounding(dtype or gradient.dtype),
                    _rounding(torch.promote_types(gradient.dtype, torch.float32)),
                ),
            )
            for name, gradient in gradients.items()
            if norms[name] >= drop_below * largest
        }
        tensors = {name: tensor for name, tensor in found.items() if tensor.squared_norm > 0.0}
        if not tensors:
            floor = max(map(damage.floor, gradients))
            raise InputError(
                f"All {len(norms)} gradients to be matched lie under the noise floor {floor:g}.",
                why="Nothing is left to compare candidates with.",
                fix="Match without a noise floor.",
            )
        dropped = tuple(name for name in gradients if name not in tensors)
        return cls(tensors=tensors, dropped=dropped, rescaled=damage.rescaled, dtype=dtype)


def _stacked(tensors: Sequence[TargetTensor]) -> TargetTensor:
    """Tensors of one shape, K first: as thin factors, filled up with zeros to one rank, where all have them."""
    norms = tuple(tensor.squared_norm for tensor in tensors)
    stack = TargetTensor(shape=tensors[0].shape, squared_norm=sum(norms), squared_norms=norms)
    lefts = [tensor.left_OR for tensor in tensors if tensor.left_OR is not None]
    rights = [tensor.right_IR for tensor in tensors if tensor.right_IR is not None]
    if len(lefts) < len(tensors):
        formed = [tensor.formed() for tensor in tensors]
        return replace(stack, dense=torch.stack([one if one.dim() < 2 else one.flatten(1) for one in formed]))
    rank = max(left.shape[1] for left in lefts)
    left, right = (
        torch.stack([functional.pad(part, (0, rank - part.shape[1])) for part in parts])
        for parts in (lefts, rights)
    )
    return replace(stack, left_OR=left, right_IR=right)


def _times(x_I: Tensor, matrix_OI: Tensor) -> Tensor:
    """X Gᵀ, of a stack (K, O, I) candidate by candidate."""
    return linear(x_I, matrix_OI) if matrix_OI.dim() == 2 else x_I @ matrix_OI.mT


def _target_of(
    gradient: Tensor, norm: float, damage: Damage, *, floor: float, rounding: float
) -> TargetTensor:
    """One tensor, in the form that is compared the fastest; of norm 0 where all of it lies under the floor."""
    matrix = gradient.flatten(1) if gradient.dim() > 2 else gradient
    if damage.masked and not bool(matrix.all()):
        found = _masked(matrix, damage.masked_rows)
    elif matrix.dim() < 2:
        found = TargetTensor(shape=tuple(matrix.shape), squared_norm=norm**2, dense=matrix)
    elif damage.rank is not None or floor > 0.0:
        found = _denoised(_precise(matrix), damage.rank, floor).to(matrix)
    else:
        found = _factored(_precise(matrix), norm, rounding * norm).to(matrix)
    return replace(found, shape=tuple(gradient.shape))


def _precise(tensor: Tensor) -> Tensor:
    """The tensor where and in a type in which matrices can be decomposed: at least float32."""
    return on_capable_device(tensor).to(torch.promote_types(tensor.dtype, torch.float32))


def _rounding(dtype: torch.dtype) -> float:
    """How much of its norm a gradient of this type can lose and still count as the same (our choice)."""
    eps = torch.finfo(dtype).eps
    return 32 * eps if eps < 1e-4 else eps  # 32 times bfloat16's would be a quarter of the gradient


def _factored(G_OI: Tensor, norm: float, tolerance: float) -> TargetTensor:
    """Thin factors that equal G to within `tolerance`, G itself where there are none (randomized range finder)."""
    rank = _FIRST_RANK
    generator = torch.Generator().manual_seed(0)  # which directions are drawn doesn't change the result
    while rank <= min(G_OI.shape) // 2:
        sketch_IR = torch.randn(G_OI.shape[1], rank + _OVERSAMPLING, generator=generator, dtype=torch.float64)
        basis_OR = torch.linalg.qr(G_OI @ sketch_IR.to(G_OI))[0]
        inside_RI = basis_OR.mT @ G_OI
        if float((G_OI - basis_OR @ inside_RI).norm()) <= tolerance:
            u, s, vh = svd(inside_RI)
            lost_R = (
                s.double().square().flip(0).cumsum(0).sqrt().flip(0)
            )  # norm of what a cut here would lose
            kept = max(1, int((lost_R > tolerance / 8).sum()))
            left_OR, right_IR = basis_OR @ (u[:, :kept] * s[:kept]), vh[:kept].mT
            return TargetTensor(
                shape=tuple(G_OI.shape),
                squared_norm=norm**2,
                left_OR=left_OR.contiguous(),
                right_IR=right_IR.contiguous(),
            )
        rank *= 2
    return TargetTensor(shape=tuple(G_OI.shape), squared_norm=norm**2, dense=G_OI.contiguous())


def _masked(tensor: Tensor, rows: int | None) -> TargetTensor:
    """What is left of a masked tensor; of a matrix, so many rows, those with the most."""
    rows_S, dense = None, tensor
    if tensor.dim() == 2 and rows is not None and rows < len(tensor):
        energies_O = exact(tensor).square().sum(1)
        rows_S = energies_O.topk(rows).indices.to(tensor.device)
        dense = tensor[rows_S]
    return TargetTensor(
        shape=tuple(tensor.shape),
        squared_norm=float(exact(dense).square().sum()),
        dense=dense,
        rows_S=rows_S,
        mask=(dense != 0).to(dense),
    )


def _denoised(G_OI: Tensor, rank: int | None, sigma: float) -> TargetTensor:
    """G's leading singular vectors with the noise's part of each singular value taken out."""
    shape = tuple(G_OI.shape)
    floor = sigma * (shape[0] ** 0.5 + shape[1] ** 0.5)
    u, s, vh = svd(G_OI)
    kept = min(int((s > floor).sum()), len(s) if rank is None else rank)
    shrunk_R = (s[:kept].square() - floor**2).sqrt()
    left_OR, right_IR = (u[:, :kept] * shrunk_R).contiguous(), vh[:kept].mT.contiguous()
    squared_norm = float(shrunk_R.double().square().sum())
    if kept > min(shape) // 2:
        return TargetTensor(shape=shape, squared_norm=squared_norm, dense=left_OR @ right_IR.mT)
    return TargetTensor(shape=shape, squared_norm=squared_norm, left_OR=left_OR, right_IR=right_IR)
