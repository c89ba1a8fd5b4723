"""A list of operations that runs again on other inputs, its results in memory that is found once.

What lies where is known from the time that the list was made. So a result is written to where an earlier one lay that
nothing reads any more, views are made once, and a replay neither asks for memory nor hands it back: for tensors of some
hundred kilobytes the system's own bookkeeping takes as long as many of the operations.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]

_ATEN = torch.ops.aten
# The same by a shorter way than torch has for every operation: Python's own functions of torch.
_SHORTER: dict[object, Callable[..., Any]] = {
    _ATEN._local_scalar_dense.default: Tensor.item,
    _ATEN.add.Tensor: torch.add,
    _ATEN.add_.Tensor: Tensor.add_,
    _ATEN.addcmul_.default: Tensor.addcmul_,
    _ATEN.addmm.default: torch.addmm,
    _ATEN.amax.default: torch.amax,
    _ATEN.baddbmm_.default: Tensor.baddbmm_,
    _ATEN.bmm.default: torch.bmm,
    _ATEN.clone.default: torch.clone,
    _ATEN.div.Tensor: torch.div,
    _ATEN.div_.Tensor: Tensor.div_,
    _ATEN.expand.default: Tensor.expand,
    _ATEN.mean.dim: torch.mean,
    _ATEN.mm.default: torch.mm,
    _ATEN.mul.Tensor: torch.mul,
    _ATEN.mul.out: torch.mul,
    _ATEN.mul_.Tensor: Tensor.mul_,
    _ATEN.neg.default: torch.neg,
    _ATEN.select.int: torch.select,
    _ATEN.sub.Tensor: torch.sub,
    _ATEN.sub_.Tensor: Tensor.sub_,
    _ATEN.sum.dim_IntList: torch.sum,
    _ATEN.t.default: torch.t,
    _ATEN.transpose.int: torch.transpose,
    _ATEN.unsqueeze.default: torch.unsqueeze,
    _ATEN.view.default: Tensor.view,
}


def plus_product(total: Tensor, one: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The product of two matrices, row by row, and what it is added to, which may lie at `out`."""
    if out is None:
        out = total.clone(memory_format=torch.contiguous_format)
    elif not out.is_set_to(total):
        out.copy_(total)
    out.view(-1, out.shape[-1]).addmm_(one, other)
    return out


# What writes the same to a tensor of the caller's, `out`, by a kernel that doesn't make one of its own first.
_INTO: dict[object, Callable[..., Any]] = {
    **{
        kind: _SHORTER[kind]
        for kind in (
            _ATEN.add.Tensor,
            _ATEN.addmm.default,
            _ATEN.amax.default,
            _ATEN.bmm.default,
            _ATEN.div.Tensor,
            _ATEN.mean.dim,
            _ATEN.mm.default,
            _ATEN.mul.Tensor,
            _ATEN.neg.default,
            _ATEN.sub.Tensor,
            _ATEN.sum.dim_IntList,
        )
    },
    _ATEN.clone.default: lambda x, *, out, **_: out.copy_(x),
    _ATEN.empty_like.default: lambda *_, out, **__: out,
    _ATEN.gelu.default: _ATEN.gelu.out,
    _ATEN.index.Tensor: _ATEN.index.Tensor_out,
    _ATEN.new_zeros.default: lambda *_, out, **__: out.zero_(),
    _ATEN.ones_like.default: lambda *_, out, **__: out.fill_(1),
    _ATEN.zeros_like.default: lambda *_, out, **__: out.zero_(),
    plus_product: plus_product,
}
# Of these, what works entry by entry: it may write to where an argument lies.
_ENTRY_BY_ENTRY = frozenset(
    {
        _ATEN.add.Tensor,
        _ATEN.clone.default,
        _ATEN.div.Tensor,
        _ATEN.mul.Tensor,
        _ATEN.neg.default,
        _ATEN.sub.Tensor,
    }
)
# Of a tensor and a number; a number that is a tensor of the same type takes them less than half as long (measured).
_ARITHMETIC = frozenset(
    getattr(_ATEN, name).Tensor for name in ("add", "add_", "div", "div_", "mul", "mul_", "sub", "sub_")
)
# Pieces of memory are multiples of so many bytes, so that each can hold entries of any type.
_UNIT = 64
# A result isn't put where this many times as much would have room.
_ROOMY = 2


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor that depends on the inputs."""

    index: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tensor of a slot lies.

    Attributes:
        root: the first slot whose tensor lies in the same storage; views lie in it.
        shape, stride: of the tensor.
        offset: entries from the root's first one to this one's.
        dtype: of its entries.
    """

    root: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def extent(self) -> int:
        """Entries from its first one in memory to its last, both counted; 0 where it has none."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))

    @property
    def entries(self) -> int:
        """How many there are."""
        return torch.Size(self.shape).numel()

    @property
    def dense(self) -> bool:
        """Whether its entries fill the memory that they span, each with a place of its own."""
        expected = 1
        for stride, size in sorted(zip(self.stride, self.shape, strict=True)):
            if size != 1:
                if stride != expected:
                    return False
                expected *= size
        return expected > 0

    def within(self, root: Layout) -> bool:
        """Whether it is a part of a dense root."""
        return (
            self.dtype == root.dtype
            and not self.dtype.is_complex
            and root.dense
            and self.offset >= 0
            and self.offset + self.extent <= root.extent
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One call.

    Attributes:
        kind: torch's operation.
        arguments, options: with slots for what depends on the inputs.
        uses: these slots, in order.
        results: a slot, or several, or None, as it gives them.
        writes: whether it changes an argument.
        decides: the outcome that the rest of the list goes by, in a tuple; None where it goes by none.
    """

    kind: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    uses: tuple[int, ...]
    results: object
    writes: bool
    decides: tuple[object] | None

    @property
    def made(self) -> int | None:
        """The slot of its result, if it can write that to memory of the caller's."""
        return self.results.index if type(self.results) is Slot and self.kind in _INTO else None


class Recording:
    """The operations of a computation, to run again.

    Args:
        operations: in order.
        layouts: of the slots; the first ones are the inputs'.
        inputs: how many these are.
        outputs: slots, or tensors that don't depend on the inputs.
    """

    def __init__(
        self, operations: Sequence[Operation], layouts: Sequence[Layout], inputs: int, outputs: Sequence[Any]
    ) -> None:
        self._outputs = tuple(outputs)
        self._inputs = inputs
        self._busy = threading.Lock()
        last = _last_use(operations)
        self._placed = _placed(operations, layouts, inputs, self._outputs, last)
        kept = set(slots_in(self._outputs))
        done: list[list[int]] = [[] for _ in operations]
        for index, number in last.items():
            if index not in kept and self._placed[index] is None:
                done[number].append(index)
        self._calls = [
            (
                _call_of(_without_numbers(operation, layouts), self._placed),
                self._moving(operation.results),
                operation.decides,
                tuple(indices),
            )
            for operation, indices in zip(operations, done, strict=True)
            if not (_is_view(operation, layouts, self._placed) or _is_there(operation, self._placed))
        ]

    def _moving(self, results: object) -> object:
        """The slots that each replay fills; None where there are none."""
        return results if any(self._placed[index] is None for index in slots_in(results)) else None

    @torch.no_grad()
    def replay(self, inputs: Sequence[Tensor]) -> Tensors | None:
        """What the computation gives for other inputs; None where it decides something else for these.

        None also while another thread is in here.
        """
        if not self._busy.acquire(blocking=False):
            return None
        try:
            slots: list[Any] = list(self._placed)
            for index, value in enumerate(inputs):
                own = slots[index]
                slots[index] = value if own is None else own.copy_(value)
            for call, where, decides, done in self._calls:
                result = call(slots)
                if decides is not None and decides != (outcome(result),):
                    return None
                if type(where) is Slot:
                    slots[where.index] = result
                elif where is not None:
                    _place(where, result, slots)
                for index in done:
                    slots[index] = None
            # Whoever gets them may change them in place.
            return tuple(
                slots[output.index] if isinstance(output, Slot) and self._is_fresh(output.index)
                else _filled(output, slots).clone()
                for output in self._outputs
            )  # fmt: skip
        finally:
            self._busy.release()

    def _is_fresh(self, index: int) -> bool:
        return index >= self._inputs and self._placed[index] is None


def _last_use(operations: Sequence[Operation]) -> dict[int, int]:
    """The number of the operation that has last to do with a slot."""
    last: dict[int, int] = {}
    for number, operation in enumerate(operations):
        last.update(dict.fromkeys((*operation.uses, *slots_in(operation.results)), number))
    return last


def _placed(
    operations: Sequence[Operation],
    layouts: Sequence[Layout],
    inputs: int,
    outputs: Sequence[Any],
    last_use: Mapping[int, int],
) -> list[Tensor | None]:
    """Tensors for the slots, at the same places in every replay; None for a slot that each replay fills anew.

    Two share memory only where the later one is made after the earlier one, and all views of it, were last read.
    """
    roots = {*range(inputs), *(made for operation in operations if (made := operation.made) is not None)}
    roots = {index for index in roots if layouts[index].root == index}
    for layout in layouts:
        if not layout.within(layouts[layout.root]):
            roots.discard(layout.root)
    last: dict[int, int] = {}
    for index, number in last_use.items():
        root = layouts[index].root
        last[root] = max(number, last.get(root, 0))
    last.update({layouts[index].root: len(operations) for index in slots_in(outputs)})
    memory = _Memory()
    lies = {index: memory.taken(layouts[index]) for index in sorted(roots) if index < inputs}
    ended: defaultdict[int, list[int]] = defaultdict(list)
    for root in roots:
        ended[last.get(root, len(operations))].append(root)
    for number, operation in enumerate(operations):
        own = operation.made
        if own is not None and own in roots:
            dying = _dying_argument(operation, layouts, {root for root in ended[number] if root in lies})
            if dying is None:
                lies[own] = memory.taken(layouts[own])
            else:
                lies[own] = lies[dying]
                ended[number].remove(dying)
        for root in ended[number]:
            memory.give_back(lies[root])
    return [
        lies[layout.root].view(layout.dtype).as_strided(layout.shape, layout.stride, layout.offset)
        if layout.root in lies
        else None
        for layout in layouts
    ]


def _dying_argument(operation: Operation, layouts: Sequence[Layout], dying: set[int]) -> int | None:
    """The root of an argument in whose place the result can be written; None where there is none."""
    adds = operation.kind is plus_product  # to what is there, of which it reads nothing else
    if not (adds or operation.kind in _ENTRY_BY_ENTRY) or operation.made is None:
        return None
    own = layouts[operation.made]
    read = [layouts[index] for index in operation.uses]
    for layout in read[:1] if adds else read:
        same = (layout.shape, layout.stride, layout.dtype) == (own.shape, own.stride, own.dtype)
        whole = layout.extent == layouts[layout.root].extent
        others = [other for other in read if other.root == layout.root and other != layout]
        if layout.root in dying and same and whole and not others:
            return layout.root
    return None


class _Memory:
    """Pieces of memory, handed out and given back."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Tensor]] = defaultdict(list)  # by their bytes

    def taken(self, layout: Layout) -> Tensor:
        """A piece, (bytes,), with room for a root: the least of those that were given back, or a new one.

        Of several the one that was given back last, which may still be in the cache.
        """
        size = -(-layout.entries * layout.dtype.itemsize // _UNIT) * _UNIT
        least = min((held for held, pieces in self._free.items() if pieces and held >= size), default=0)
        if size <= least <= _ROOMY * size:
            return self._free[least].pop()
        return torch.empty(size, dtype=torch.uint8)

    def give_back(self, piece: Tensor) -> None:
        """Its content is of no use any more."""
        self._free[len(piece)].append(piece)


def _is_view(operation: Operation, layouts: Sequence[Layout], placed: Sequence[Tensor | None]) -> bool:
    """Whether all that it does is to give views of what has its place."""
    given = list(slots_in(operation.results))
    return (
        operation.decides is None
        and not operation.writes
        and operation.made is None
        and all(placed[index] is not None for index in given)
        and {layouts[index].root for index in given} <= {layouts[index].root for index in operation.uses}
    )


def _is_there(operation: Operation, placed: Sequence[Tensor | None]) -> bool:
    """Whether its result needs no work: memory without content, or a copy in the place of what it is of."""
    result = None if operation.made is None else placed[operation.made]
    if result is None or operation.kind is not _ATEN.clone.default:
        return result is not None and operation.kind is _ATEN.empty_like.default
    original = placed[operation.uses[0]]
    return original is not None and original.is_set_to(result)


def slots_in(value: object) -> Iterator[int]:
    """The slots in what an operation takes or gives."""
    if isinstance(value, Slot):
        yield value.index
    elif isinstance(value, list | tuple):
        for one in value:
            yield from slots_in(one)
    elif isinstance(value, dict):
        yield from slots_in(tuple(value.values()))


def outcome(result: object) -> object:
    """What later operations may go by."""
    return result.shape if isinstance(result, Tensor) else result


def _filled(value: Any, slots: Sequence[Any]) -> Any:  # noqa: ANN401
    """The same, with the tensors that are in the slots; a slot stays where there is none."""
    kind = type(value)
    if kind is Slot:
        found = slots[value.index]
        return value if found is None else found
    if kind is list or kind is tuple:
        return kind([_filled(one, slots) for one in value])
    return value


def _without_numbers(operation: Operation, layouts: Sequence[Layout]) -> Operation:
    """The same with a tensor for the number in a sum, difference, product or quotient."""
    first, *rest = operation.arguments or (None,)
    if operation.kind not in _ARITHMETIC or not _is_slot(first):
        return operation
    dtype = layouts[first.index].dtype
    if dtype not in (torch.float32, torch.float64):  # a number is more precise than others
        return operation
    rest = [torch.tensor(one, dtype=dtype) if type(one) in (float, int) else one for one in rest]
    return replace(operation, arguments=(first, *rest))


def _call_of(operation: Operation, placed: Sequence[Tensor | None]) -> Callable[[list[Any]], Any]:
    """The operation as a function of what stands in the slots; quick where few of its arguments are slots."""
    function = _SHORTER.get(operation.kind, operation.kind)
    arguments: tuple[Any, ...] = _filled(operation.arguments, placed)
    options = {name: _filled(value, placed) for name, value in operation.options.items()}
    if operation.made is not None and placed[operation.made] is not None:
        function = _INTO[operation.kind]
        options["out"] = placed[operation.made]
    leading = [argument.index for argument in itertools.takewhile(_is_slot, arguments)]
    rest = arguments[len(leading) :]
    if any(True for _ in slots_in((rest, options))) or len(leading) > 2:
        return lambda values: function(
            *[_filled(argument, values) for argument in arguments],
            **{name: _filled(value, values) for name, value in options.items()},
        )
    if not leading:
        return lambda _: function(*arguments, **options)
    first, second = leading[0], leading[-1]
    if len(leading) == 1:
        return lambda values: function(values[first], *rest, **options)
    return lambda values: function(values[first], values[second], *rest, **options)


def _is_slot(value: object) -> TypeGuard[Slot]:
    return isinstance(value, Slot)


def _place(where: object, result: Any, slots: list[Any]) -> None:  # noqa: ANN401
    if type(where) is Slot:
        slots[where.index] = result
    elif type(where) is tuple:
        for one, value in zip(where, result, strict=True):
            _place(one, value, slots)
