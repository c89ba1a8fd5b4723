"""A gradient, a matrix at a time: kept as what it is made of, formed where it is asked for.

The gradient of a linear layer's weight is ΔᵀX over the batch's tokens, far fewer numbers than the matrix where the
layer is wide. So a batch runs a few sentences at a time, and nothing as large as the model is held besides it.

Shapes: N tokens, I and O a layer's input and output size, V rows of a table, E their width.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from textleak.matching.replaced import ReplacedFunctions
from textleak.models.base import Model
from textleak.models.batches import Batch, Targets, TextExamples
from textleak.models.cast import wide
from textleak.models.gradient import InRows, opened
from textleak.models.mapped import give_back, let_go
from textleak.models.padding import filled
from textleak.models.probes.reach import sees_ahead

if TYPE_CHECKING:
    from textleak.models.text import TextModel

# Tokens of a pass, padding counted (our choice: at width 2048 they hold 0.8 GB in float64; each pass of a wide model
# converts all weights once more).
_TOKENS_A_PASS = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    """ΔᵀX, what one use of a linear layer adds to its weight's gradient."""

    inputs_NI: Tensor
    deltas_NO: Tensor
    transposed: bool

    def add_to(self, gradient: Tensor, begin: int) -> None:
        """Add it to a gradient's rows from one on."""
        left, right = self._sides
        gradient.addmm_(left[:, begin : begin + len(gradient)].T, right)

    def formed(self, begin: int, end: int) -> Tensor:
        """Some of its rows alone."""
        left, right = self._sides
        return left[:, begin:end].T @ right

    @property
    def _sides(self) -> tuple[Tensor, Tensor]:
        return (self.inputs_NI, self.deltas_NO) if self.transposed else (self.deltas_NO, self.inputs_NI)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """What one use of an embedding adds to its table's gradient: a row for each token that was looked up."""

    ids_N: Tensor
    deltas_NE: Tensor

    def add_to(self, gradient: Tensor, begin: int) -> None:
        """Add it to a table's rows from one on."""
        here_N = (self.ids_N >= begin) & (self.ids_N < begin + len(gradient))
        gradient.index_add_(0, self.ids_N[here_N] - begin, self.deltas_NE[here_N])


class Deferred(InRows):
    """A gradient by parameter name; a matrix is formed each time that it is asked for."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        """Nothing yet of the named parameters."""
        self._shapes = shapes
        self._formed: dict[str, Tensor] = {}
        self._parts: dict[str, list[_Product | _Rows]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """One parameter's."""
        if name not in self._parts:
            return self._formed[name]
        return self.rows(name, 0, self._shapes[name][0])

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Some rows of it, formed alone."""
        parts, formed = self._parts.get(name, []), self._formed.get(name)
        if not parts:
            whole = self._formed[name]
            return whole[begin:end] if whole.dim() else whole[None]
        if len(parts) == 1 and formed is None and isinstance(parts[0], _Product):
            return parts[0].formed(begin, end)
        first = parts[0].deltas_NO if isinstance(parts[0], _Product) else parts[0].deltas_NE
        gradient = (
            first.new_zeros(end - begin, self._shapes[name][1])
            if formed is None
            else formed[begin:end].clone()
        )
        for part in parts:
            part.add_to(gradient, begin)
        return gradient

    def __contains__(self, name: object) -> bool:
        """Whether the loss reaches a parameter; nothing is formed."""
        return name in self._parts or name in self._formed

    def __iter__(self) -> Iterator[str]:
        """Those that the loss reaches."""
        return filter(self.__contains__, self._shapes)

    def __len__(self) -> int:
        """How many these are."""
        return sum(1 for _ in self)

    def add(self, name: str, gradient: Tensor) -> None:
        """What autograd formed of a parameter's gradient."""
        known = self._formed.get(name)
        self._formed[name] = gradient if known is None else known + gradient

    def note(self, name: str, part: _Product | _Rows) -> None:
        """What one use of a matrix adds to its gradient."""
        self._parts.setdefault(name, []).append(part)

    def wanted(self, name: str | None) -> bool:
        """Whether it is one of the named parameters."""
        return name in self._shapes

    def note_product(self, name: str, inputs_NI: Tensor, deltas_NO: Tensor, *, transposed: bool) -> None:
        """That ΔᵀX is part of a matrix's gradient; transposed where the matrix is (I, O)."""
        self.note(name, _Product(inputs_NI=inputs_NI, deltas_NO=deltas_NO, transposed=transposed))

    def note_rows(self, name: str, ids_N: Tensor, deltas_NE: Tensor) -> None:
        """That rows are added to a table's gradient."""
        self.note(name, _Rows(ids_N=ids_N, deltas_NE=deltas_NE))


def deferred_gradient(
    model: Model,
    batch: TextExamples,
    names: Sequence[str],
    *,
    known: Callable[[Deferred, TextExamples], list[int]] | None = None,
) -> Deferred:
    """The gradient of the batch's loss for the named parameters, as `gradient.formed_gradient` forms it.

    Of a batch whose loss is the sum of its sentences' parts; parameters that the loss doesn't reach are left out.

    Args:
        model: whose parameters they are.
        batch: whose loss it is.
        names: of the parameters.
        known: adds what is known of some sentences' parts already, and tells which of them aren't.
    """
    found = Deferred({name: model.parameters[name].shape for name in names})
    left = list(range(len(batch))) if known is None else known(found, batch)
    if not left:
        return found
    with opened(model, names) as parameters:
        large = wide(model.network)
        named = dict(zip(map(id, parameters), names, strict=True))
        for part in _parts(batch, left, _TOKENS_A_PASS):
            anchor = torch.zeros((), requires_grad=True, device=model.device)
            asked_N = _asked(cast("TextModel", model), part) if large else None
            with _Noting(named, found, anchor, asked_N=asked_N, wide=large):
                loss = part.loss(model)
            _, *formed = torch.autograd.grad(loss, [anchor, *parameters], allow_unused=True)
            for name, gradient in zip(names, formed, strict=True):
                if gradient is not None:
                    found.add(name, gradient)
            if large:
                give_back()
    return found


def _parts(batch: TextExamples, chosen: Sequence[int], most: int) -> Iterator[TextExamples]:
    """Some of a batch in parts of few tokens, sentences of like length together, each weighed as it is in the batch."""
    lengths = batch.batch.lengths
    rows: list[int] = []
    for row in sorted(chosen, key=lengths.__getitem__):
        if rows and lengths[row] * (len(rows) + 1) > most:
            yield _some(batch, rows)
            rows = []
        rows.append(row)
    yield _some(batch, rows)


def _some(batch: TextExamples, rows: Sequence[int]) -> TextExamples:
    longest = max(batch.batch.lengths[row] for row in rows)
    whole, targets = batch.batch.mask_BT.shape[1], batch.targets
    per_token = targets.weights.shape[1] == whole > 1
    kept = longest if per_token else targets.weights.shape[1]
    chosen = list(rows)
    return TextExamples(
        batch=Batch(
            ids_BT=batch.batch.ids_BT[chosen, :longest], mask_BT=batch.batch.mask_BT[chosen, :longest]
        ),
        targets=Targets(labels=targets.labels[chosen, :kept], weights=targets.weights[chosen, :kept]),
    )


def _asked(model: TextModel, part: TextExamples) -> Tensor | None:
    """Which tokens the loss of a causal model depends on, (N,); None where that is not seen.

    Those after the last one that is to predict something, and padding, are none of them.
    """
    weights_BL = part.targets.weights
    if weights_BL.shape != part.batch.mask_BT.shape or sees_ahead(model):
        return None
    return (weights_BL != 0).long().flip(1).cummax(1).values.flip(1).bool().flatten()


class NotedUses(ReplacedFunctions, abc.ABC):
    """While it is active, uses of named parameters in products and look-ups are noted, each as a subclass says.

    Args:
        names: of the parameters, by identity.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A product or a look-up that is noted."""
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is torch.addmm and len(args) == 3 and not kwargs:
            return self._addmm(*args)
        return self._embedding(*args, **kwargs) if func is functional.embedding else None

    @abc.abstractmethod
    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """X Wᵀ + b."""

    @abc.abstractmethod
    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor | None:
        """X W + b."""

    @abc.abstractmethod
    def _looked_up(self, name: str, ids: Tensor, weight: Tensor, padding: int) -> Tensor | None:
        """Rows of a table; that of padding (-1 where there is none) learns nothing."""

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor | None:
        del norm_type
        name = self._names.get(id(weight))
        if name is None or max_norm is not None or scale_grad_by_freq or sparse:
            return None
        return self._looked_up(name, input, weight, -1 if padding_idx is None else padding_idx % len(weight))


class _Noting(NotedUses):
    """While it is active, products with the named matrices are noted instead of forming these matrices' gradients.

    Args:
        names: of the parameters, by identity.
        found: where uses are noted.
        anchor: a number that requires a gradient, so that the first layers' products are reached as well.
        asked_N: the tokens that are multiplied, where not all are; what is made of the others is 0.
        wide: whether the model is, so that its weights' memory is let go when they have been multiplied with.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        found: Deferred,
        anchor: Tensor,
        *,
        asked_N: Tensor | None,
        wide: bool,
    ) -> None:
        super().__init__(names)
        self.wide, self._asked_N = wide, asked_N
        self._last: tuple[Tensor, Tensor] | None = None
        self._found, self._anchor = found, anchor
        self._live: dict[tuple[tuple[int, ...], bytes], tuple[Tensor, Tensor]] = {}

    def _notes(self, weight: Tensor) -> bool:
        """Whether a product with it is noted, or spares tokens."""
        spares = self._asked_N is not None and weight.dim() == 2 and not weight.requires_grad
        return id(weight) in self._names or spares

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        if not self._notes(weight):
            return None
        name = self._names.get(id(weight))
        product = cast(Tensor, _Multiplied.apply(input, weight.detach().T, self._anchor, self, name, False))  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor | None:
        if not self._notes(weight):
            return None
        name = self._names.get(id(weight))
        product = cast(Tensor, _Multiplied.apply(input, weight.detach(), self._anchor, self, name, True))  # type: ignore[no-untyped-call]
        return product + bias

    def _looked_up(self, name: str, ids: Tensor, weight: Tensor, padding: int) -> Tensor | None:
        return cast(Tensor, _LookedUp.apply(ids, weight.detach(), self._anchor, self, name, padding))  # type: ignore[no-untyped-call]

    def asked(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is multiplied of an input (..., I), as rows; and which of all rows these are, None for all of them."""
        rows_NI = input.flatten(0, -2)
        if self._asked_N is None or len(rows_NI) != len(self._asked_N):
            return rows_NI, None
        # Queries, keys and values read the same; the input is kept, as is its address.
        if self._last is None or not _same(self._last[0], rows_NI):
            self._last = rows_NI, rows_NI[self._asked_N]
        return self._last[1], self._asked_N

    def multiplied(self, name: str, inputs_NI: Tensor, deltas_NO: Tensor, *, transposed: bool) -> None:
        """Note the use of a matrix, at the tokens where anything comes back."""
        live_N = deltas_NO.any(1)
        if not bool(live_N.all()):
            key = (inputs_NI.data_ptr(), *inputs_NI.shape), live_N.cpu().numpy().tobytes()
            if (
                key not in self._live
            ):  # queries, keys and values read the same; the input is kept, as is its address
                self._live[key] = inputs_NI, inputs_NI[live_N]
            inputs_NI, deltas_NO = self._live[key][1], deltas_NO[live_N]
        self._found.note(name, _Product(inputs_NI=inputs_NI, deltas_NO=deltas_NO, transposed=transposed))

    def looked_up(self, name: str, ids: Tensor, delta: Tensor, padding: int) -> None:
        """Note the use of a table; the row of padding (-1 where there is none) learns nothing."""
        ids_N, deltas_NE = ids.flatten(), delta.flatten(0, -2)
        ids_N, deltas_NE = ids_N[ids_N != padding], deltas_NE[ids_N != padding]
        self._found.note(name, _Rows(ids_N=ids_N, deltas_NE=deltas_NE))


class _Multiplied(torch.autograd.Function):
    """X W (…, O); its backward pass notes X and the gradient that comes back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        input: Tensor,
        weight_IO: Tensor,
        anchor: Tensor,
        noting: _Noting,
        name: str | None,
        transposed: bool,
    ) -> Tensor:
        ctx.noting, ctx.name, ctx.transposed = noting, name, transposed
        rows_NI, ctx.asked_N = noting.asked(input)
        ctx.save_for_backward(rows_NI, weight_IO)
        return filled(torch.mm(rows_NI, weight_IO), ctx.asked_N).view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        rows_NI, weight_IO = ctx.saved_tensors
        deltas_NO = delta.flatten(0, -2)
        deltas_NO = deltas_NO if ctx.asked_N is None else deltas_NO[ctx.asked_N]
        if ctx.name is not None:
            ctx.noting.multiplied(ctx.name, rows_NI.detach(), deltas_NO, transposed=ctx.transposed)
        back = None
        if ctx.needs_input_grad[0]:
            back = filled(torch.mm(deltas_NO, weight_IO.T), ctx.asked_N).view(*delta.shape[:-1], -1)
            if ctx.noting.wide:
                let_go([weight_IO])
        return back, None, None, None, None, None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same place in memory, read alike."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


class _LookedUp(torch.autograd.Function):
    """Rows of a table; its backward pass notes the ids and the gradient that comes back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        ids: Tensor,
        table_VE: Tensor,
        anchor: Tensor,
        noting: _Noting,
        name: str,
        padding: int,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.noting, ctx.name, ctx.padding = noting, name, padding
        return torch.embedding(table_VE, ids)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[None, ...]:  # noqa: ANN401
        (ids,) = ctx.saved_tensors
        ctx.noting.looked_up(ctx.name, ids, delta, ctx.padding)
        return None, None, None, None, None, None
