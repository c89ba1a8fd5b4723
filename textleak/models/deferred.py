"""A gradient, a matrix at a time: kept as what it is made of, formed where it is asked for.

The gradient of a linear layer's weight is ΔᵀX over the batch's tokens, far fewer numbers than the matrix where the
layer is wide. So a batch runs a few sentences at a time, and nothing as large as the model is held besides it.

Shapes: N tokens, I and O a layer's input and output size, V rows of a table, E their width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from textleak.matching.replaced import ReplacedFunctions
from textleak.models.base import Model
from textleak.models.batches import Batch, Targets, TextExamples
from textleak.models.cast import wide
from textleak.models.gradient import opened

# Tokens of a pass, padding counted, of a wide model and of others (our choice: at width 2048 they hold 0.4 GB in
# float64; each pass converts all weights once more).
_TOKENS_A_PASS_WIDE, _TOKENS_A_PASS = 128, 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    """ΔᵀX, what one use of a linear layer adds to its weight's gradient."""

    inputs_NI: Tensor
    deltas_NO: Tensor
    transposed: bool

    def add_to(self, gradient: Tensor) -> None:
        """Add it."""
        (gradient.T if self.transposed else gradient).addmm_(self.deltas_NO.T, self.inputs_NI)

    def formed(self) -> Tensor:
        """It alone."""
        left, right = (
            (self.inputs_NI, self.deltas_NO) if self.transposed else (self.deltas_NO, self.inputs_NI)
        )
        return left.T @ right


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """What one use of an embedding adds to its table's gradient: a row for each token that was looked up."""

    ids_N: Tensor
    deltas_NE: Tensor

    def add_to(self, gradient: Tensor) -> None:
        """Add it."""
        gradient.index_add_(0, self.ids_N, self.deltas_NE)


class Deferred(Mapping[str, Tensor]):
    """A gradient by parameter name; a matrix is formed each time that it is asked for."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        """Nothing yet of the named parameters."""
        self._shapes = shapes
        self._formed: dict[str, Tensor] = {}
        self._parts: dict[str, list[_Product | _Rows]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """One parameter's."""
        parts, formed = self._parts.get(name, []), self._formed.get(name)
        if not parts:
            return self._formed[name]
        first = parts[0].deltas_NO if isinstance(parts[0], _Product) else parts[0].deltas_NE
        if len(parts) == 1 and formed is None and isinstance(parts[0], _Product):
            return parts[0].formed()
        gradient = first.new_zeros(self._shapes[name]) if formed is None else formed.clone()
        for part in parts:
            part.add_to(gradient)
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
        most = _TOKENS_A_PASS_WIDE if wide(model.network) else _TOKENS_A_PASS
        for part in _parts(batch, left, most):
            anchor = torch.zeros((), requires_grad=True, device=model.device)
            with _Noting(dict(zip(map(id, parameters), names, strict=True)), found, anchor):
                loss = part.loss(model)
            _, *formed = torch.autograd.grad(loss, [anchor, *parameters], allow_unused=True)
            for name, gradient in zip(names, formed, strict=True):
                if gradient is not None:
                    found.add(name, gradient)
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


class _Noting(ReplacedFunctions):
    """While it is active, products with the named matrices are noted instead of forming these matrices' gradients.

    Args:
        names: of the parameters, by identity.
        found: where uses are noted.
        anchor: a number that requires a gradient, so that the first layers' products are reached as well.
    """

    def __init__(self, names: Mapping[int, str], found: Deferred, anchor: Tensor) -> None:
        super().__init__()
        self._names, self._found, self._anchor = names, found, anchor
        self._live: dict[tuple[int, bytes], tuple[Tensor, Tensor]] = {}

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A product or a look-up that is noted."""
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is torch.addmm and len(args) == 3 and not kwargs:
            return self._addmm(*args)
        return self._embedding(*args, **kwargs) if func is functional.embedding else None

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        if (name := self._names.get(id(weight))) is None:
            return None
        product = cast(Tensor, _Multiplied.apply(input, weight.detach().T, self._anchor, self, name, False))  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor | None:
        if (name := self._names.get(id(weight))) is None:
            return None
        product = cast(Tensor, _Multiplied.apply(input, weight.detach(), self._anchor, self, name, True))  # type: ignore[no-untyped-call]
        return product + bias

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
        padding = -1 if padding_idx is None else padding_idx % len(weight)
        return cast(Tensor, _LookedUp.apply(input, weight.detach(), self._anchor, self, name, padding))  # type: ignore[no-untyped-call]

    def multiplied(self, name: str, input: Tensor, delta: Tensor, *, transposed: bool) -> None:
        """Note the use of a matrix, at the tokens where anything comes back."""
        inputs_NI, deltas_NO = input.detach().flatten(0, -2), delta.flatten(0, -2)
        live_N = deltas_NO.any(1)
        if not bool(live_N.all()):
            key = inputs_NI.data_ptr(), live_N.cpu().numpy().tobytes()
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
        ctx: FunctionCtx,
        input: Tensor,
        weight_IO: Tensor,
        anchor: Tensor,
        noting: _Noting,
        name: str,
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(input, weight_IO)
        ctx.noting, ctx.name, ctx.transposed = noting, name, transposed  # type: ignore[attr-defined]
        return torch.mm(input.flatten(0, -2), weight_IO).view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        input, weight_IO = ctx.saved_tensors
        ctx.noting.multiplied(ctx.name, input, delta, transposed=ctx.transposed)
        back = None
        if ctx.needs_input_grad[0]:
            back = torch.mm(delta.flatten(0, -2), weight_IO.T).view(input.shape)
        return back, None, None, None, None, None


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
