"""A computation that comes again and again on tensors of the same shapes, replayed without Python and autograd.

A step of the engine on a small network is two thousand operations of some microseconds each: to find each of them, to
differentiate it and to call hooks takes longer than it does. They are the same in every step. So one step is watched,
operation by operation as they reach torch's kernels (those of its derivatives among them), and later ones run the list.

What a step decides by values (is a mask all ones, how many rows aren't 0) is in the list: where a replay comes to
another value, the list doesn't hold, and the step is computed as it was.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from textleak.matching.replaced import WatchedOperations
from textleak.matching.rounding import near

Tensors = tuple[Tensor, ...]
Compute = Callable[[Sequence[Tensor]], Tensors]
"""Tensors from tensors: the same operations in the same order each time, but for what values decide."""

# Calls of one kind before one is watched (our choice). To watch one takes as long as to compute some six (bert-tiny on
# a CPU, measured), and each replay saves less than half of one: in a run that ends sooner it would never pay.
_UNWATCHED = 6
UNTIL_REPLAYED = _UNWATCHED + 2
"""How many calls of one kind are computed before one is replayed; the last of them is compared with its replay."""
# Kinds that are remembered, the latest.
_KEPT = 4
# How far a replay may be from the computation: kernels round by where in memory their arguments lie.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
# Replays of a kind that values may lead astray before it is left alone.
_ASTRAY = 3

_ATEN = torch.ops.aten
# The same by a shorter way than torch has for every operation: Python's own functions of torch.
_SHORTER: dict[object, Callable[..., Any]] = {
    _ATEN._local_scalar_dense.default: Tensor.item,
    _ATEN._unsafe_view.default: Tensor.view,
    _ATEN.add.Tensor: torch.add,
    _ATEN.add_.Tensor: Tensor.add_,
    _ATEN.addcmul_.default: Tensor.addcmul_,
    _ATEN.addmm.default: torch.addmm,
    _ATEN.baddbmm_.default: Tensor.baddbmm_,
    _ATEN.bmm.default: torch.bmm,
    _ATEN.clone.default: torch.clone,
    _ATEN.count_nonzero.default: torch.count_nonzero,
    _ATEN.expand.default: Tensor.expand,
    _ATEN.mean.dim: torch.mean,
    _ATEN.mm.default: torch.mm,
    _ATEN.mul.Tensor: torch.mul,
    _ATEN.mul.out: torch.mul,
    _ATEN.mul_.Tensor: Tensor.mul_,
    _ATEN.select.int: torch.select,
    _ATEN.sub.Tensor: torch.sub,
    _ATEN.sum.dim_IntList: torch.sum,
    _ATEN.t.default: torch.t,
    _ATEN.transpose.int: torch.transpose,
    _ATEN.unsqueeze.default: torch.unsqueeze,
    _ATEN.view.default: Tensor.view,
}
_ANOTHER_NAME = frozenset({_ATEN.alias.default, _ATEN.detach.default})  # for the tensor that they are given


class Replayed:
    """Computes, and replays what it has computed before on tensors of the same shapes, strides, types and devices."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def __call__(self, function: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> Tensors:
        """What `compute` gives for `inputs`.

        Args:
            function: tells computations apart; equal where `compute` does the same with other inputs.
            compute: must depend on nothing that changes but `inputs`.
            inputs: are left as they are.
        """
        if any(tensor.device.type != "cpu" for tensor in inputs):  # not tried elsewhere
            return compute(inputs)
        layouts = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs)
        kind = self._kinds.setdefault((function, layouts), _Kind())
        self._kinds.move_to_end((function, layouts))
        if len(self._kinds) > _KEPT:
            self._kinds.popitem(last=False)
        return kind.outputs(compute, inputs)


class _Kind:
    """What is known of one computation on tensors of one layout."""

    def __init__(self) -> None:
        self._calls = 0
        self._astray = 0
        self._compared = False
        self._recording: _Recording | None = None

    def outputs(self, compute: Compute, inputs: Sequence[Tensor]) -> Tensors:
        """By replay, if that has been shown to be right."""
        self._calls += 1
        if self._calls == _UNWATCHED + 1:
            outputs, self._recording = watch(compute, inputs)
            return outputs
        if self._recording is None:
            return compute(inputs)
        replayed = self._recording.replay(inputs)
        if replayed is None:
            self._astray += 1
            if self._astray == _ASTRAY:
                self._recording = None
            return compute(inputs)
        if not self._compared:
            outputs = compute(inputs)
            self._compared = True
            if not all(near(again, own, _TOLERANCE) for again, own in zip(replayed, outputs, strict=True)):
                self._recording = None
            return outputs
        return replayed


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor that depends on the inputs."""

    index: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Operation:
    """One call.

    Attributes:
        function: torch's.
        arguments, options: with slots for what depends on the inputs.
        uses: these slots, in order.
        results: a slot, or several, or None, as it gives them.
        decides: the outcome that the rest of the list goes by, in a tuple; None where it goes by none.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    uses: tuple[int, ...]
    results: object
    decides: tuple[object] | None


class _Recording:
    """The operations of a computation.

    Args:
        operations: in order.
        slots: how many there are; the first ones are the inputs'.
        outputs: slots, or tensors that don't depend on the inputs.
    """

    def __init__(self, operations: Sequence[_Operation], slots: int, outputs: Sequence[Any]) -> None:
        self._slots = slots
        self._outputs = tuple(outputs)
        kept = set(_slots_in(self._outputs))
        last: dict[int, int] = {}
        for number, operation in enumerate(operations):
            last.update(dict.fromkeys(operation.uses, number))
            last.update(dict.fromkeys(_slots_in(operation.results), number))
        done: list[list[int]] = [[] for _ in operations]
        for index, number in last.items():
            if index not in kept:
                done[number].append(index)
        self._calls = [
            (_call_of(operation), operation.results, operation.decides, tuple(indices))
            for operation, indices in zip(operations, done, strict=True)
        ]

    @torch.no_grad()
    def replay(self, inputs: Sequence[Tensor]) -> Tensors | None:
        """What the computation gives for other inputs; None where it decides something else for these."""
        slots: list[Any] = [*inputs, *([None] * (self._slots - len(inputs)))]
        for call, where, decides, done in self._calls:
            result = call(slots)
            if decides is not None and decides != (_outcome(result),):
                return None
            if type(where) is _Slot:
                slots[where.index] = result
            else:
                _place(where, result, slots)
            for index in done:
                slots[index] = None
        # Whoever gets them may change them in place.
        return tuple(
            slots[output.index] if isinstance(output, _Slot) and output.index >= len(inputs)
            else _filled(output, slots).clone()
            for output in self._outputs
        )  # fmt: skip


def watch(compute: Compute, inputs: Sequence[Tensor]) -> tuple[Tensors, _Recording | None]:
    """What a computation gives, and the list of its operations; None where a list couldn't do what it does.

    That is so where it draws random numbers, or changes tensors that it didn't make.
    """
    watcher = _Watcher(inputs)
    with watcher:
        outputs = compute(inputs)
    return outputs, watcher.recording(outputs)


class _Watcher(WatchedOperations):
    """Notes what depends on the inputs; keeps no tensor of these alive."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._operations: list[_Operation] = []
        self._slots = 0
        self._known: dict[int, tuple[weakref.ref[Tensor], _Slot]] = {}  # by a tensor's id
        self._storages: dict[int, StorageWeakRef] = {}  # of these tensors
        self._possible = True
        for tensor in inputs:
            self._new_slot(tensor)

    def recording(self, outputs: Tensors) -> _Recording | None:
        """What was noted, if it is all."""
        found = self._with_slots(outputs, [])
        return _Recording(self._operations, self._slots, found) if self._possible else None

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:  # noqa: ANN401
        """Note it, while that is of use."""
        if not self._possible:
            return
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._possible = False
            return
        uses: list[int] = []
        arguments, named = self._with_slots(args, uses), self._with_slots(kwargs, uses)
        if not uses:
            return
        if func in _ANOTHER_NAME and isinstance(result, Tensor):
            self._name(result, arguments[0])
            return
        for place, name in _written(func):
            written = named.get(name, arguments[place] if place < len(arguments) else None)
            self._possible = self._possible and not _holds_tensor(written)
        decides = torch.Tag.dynamic_output_shape in func.tags or not _holds_tensor(result)
        self._operations.append(
            _Operation(
                function=_SHORTER.get(func, func),
                arguments=arguments,
                options=named,
                uses=tuple(uses),
                results=self._placed(result),
                decides=(_outcome(result),) if decides else None,
            )
        )

    def _with_slots(self, value: Any, uses: list[int]) -> Any:  # noqa: ANN401
        """The same, with slots for the tensors that depend on the inputs; these are added to `uses`."""
        if isinstance(value, Tensor):
            slot = self._slot_of(value)
            if slot is not None:
                uses.append(slot.index)
                return slot
            self._possible = self._possible and not self._unseen(value)
        elif isinstance(value, list | tuple):
            return type(value)([self._with_slots(one, uses) for one in value])
        elif isinstance(value, dict):
            return {name: self._with_slots(one, uses) for name, one in value.items()}
        return value

    def _slot_of(self, tensor: Tensor) -> _Slot | None:
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _unseen(self, tensor: Tensor) -> bool:
        """Whether it shares memory with one that depends on the inputs, or may, though no operation made it of that."""
        if tensor.layout is not torch.strided:
            return True
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        return storage is not None and not storage.expired()  # type: ignore[no-untyped-call]

    def _placed(self, result: object) -> object:
        """Slots for what an operation gives; a tensor that it was given keeps its own."""
        if isinstance(result, Tensor):
            return self._slot_of(result) or self._new_slot(result)
        if isinstance(result, list | tuple):
            return tuple(map(self._placed, result))
        return None

    def _new_slot(self, tensor: Tensor) -> _Slot:
        slot = _Slot(self._slots)
        self._slots += 1
        self._name(tensor, slot)
        return slot

    def _name(self, tensor: Tensor, slot: _Slot) -> None:
        if tensor.layout is not torch.strided:
            self._possible = False
            return
        storage = tensor.untyped_storage()
        self._known[id(tensor)] = weakref.ref(tensor), slot
        self._storages[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:  # noqa: ANN401
    """Places and names of the arguments that an operation writes to."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _slots_in(value: object) -> Iterator[int]:
    if isinstance(value, _Slot):
        yield value.index
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _slots_in(one)
    elif isinstance(value, dict):
        yield from _slots_in(tuple(value.values()))


def _holds_tensor(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))


def _filled(value: Any, slots: Sequence[Any]) -> Any:  # noqa: ANN401
    kind = type(value)
    if kind is _Slot:
        return slots[value.index]
    if kind is list or kind is tuple:
        return kind([_filled(one, slots) for one in value])
    return value


def _call_of(operation: _Operation) -> Callable[[list[Any]], Any]:
    """The operation as a function of what stands in the slots; quick where only its first arguments are slots."""
    function, arguments, options = operation.function, operation.arguments, operation.options
    slots = [argument.index for argument in itertools.takewhile(_is_slot, arguments)]
    rest = arguments[len(slots) :]
    if len(operation.uses) > len(slots) or len(slots) not in (1, 2):
        return lambda values: function(
            *[_filled(argument, values) for argument in arguments],
            **{name: _filled(value, values) for name, value in options.items()},
        )
    first, second = slots[0], slots[-1]
    if len(slots) == 1:
        return lambda values: function(values[first], *rest, **options)
    return lambda values: function(values[first], values[second], *rest, **options)


def _is_slot(value: object) -> TypeGuard[_Slot]:
    return isinstance(value, _Slot)


def _place(where: object, result: Any, slots: list[Any]) -> None:  # noqa: ANN401
    if type(where) is _Slot:
        slots[where.index] = result
    elif type(where) is tuple:
        for one, value in zip(where, result, strict=True):
            _place(one, value, slots)


def _outcome(result: object) -> object:
    return result.shape if isinstance(result, Tensor) else result
