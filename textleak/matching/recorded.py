"""A computation that comes again and again on tensors of the same shapes, replayed without Python and autograd.

A step of the engine on a small network is two thousand operations of some microseconds each: to find each of them, to
differentiate it and to call hooks takes longer than it does. They are the same in every step. So one step is watched,
operation by operation as they reach torch's kernels (those of its derivatives among them), and later ones run the list.

What a step decides by values (is a mask all ones, how many rows aren't 0) is in the list: where a replay comes to
another value, the list doesn't hold, and the step is computed as it was.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from textleak.matching.added_products import products_added
from textleak.matching.replaced import WatchedOperations
from textleak.matching.replay import Layout, Operation, Recording, Slot, Tensors, outcome
from textleak.matching.rounding import near

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
        self._recording: Recording | None = None

    def outputs(self, compute: Compute, inputs: Sequence[Tensor]) -> Tensors:
        """By replay, if that has been shown to be right."""
        self._calls += 1
        if self._calls == _UNWATCHED + 1:
            outputs, self._recording = watch(compute, inputs)
            return outputs
        if self._recording is None:
            return compute(inputs)
        if not self._compared:
            return self._outputs_compared(compute, inputs, self._recording)
        replayed = self._recording.replay(inputs)
        if replayed is None:
            self._stray()
            return compute(inputs)
        return replayed

    def _outputs_compared(self, compute: Compute, inputs: Sequence[Tensor], recording: Recording) -> Tensors:
        """As computed; the list is kept if it runs, and if what it gives is the same."""
        outputs = compute(inputs)
        try:
            replayed = recording.replay(inputs)
        except (RuntimeError, TypeError):  # not everything that an operation is told goes together with `out`
            self._recording = None
            return outputs
        if replayed is None:
            self._stray()
        elif all(near(again, own, _TOLERANCE) for again, own in zip(replayed, outputs, strict=True)):
            self._compared = True
        else:
            self._recording = None
        return outputs

    def _stray(self) -> None:
        self._astray += 1
        if self._astray == _ASTRAY:
            self._recording = None


def watch(compute: Compute, inputs: Sequence[Tensor]) -> tuple[Tensors, Recording | None]:
    """What a computation gives, and the list of its operations; None where a list couldn't do what it does.

    That is so where it draws random numbers, or changes tensors that it didn't make.
    """
    # Other inputs needn't lie in one storage where these do.
    storages = [tensor.untyped_storage()._cdata for tensor in inputs]
    inputs = [
        tensor.clone() if storage in storages[:number] else tensor
        for number, (tensor, storage) in enumerate(zip(inputs, storages, strict=True))
    ]
    watcher = _Watcher(inputs)
    with watcher:
        outputs = compute(inputs)
    return outputs, watcher.recording(outputs)


class _Watcher(WatchedOperations):
    """Notes what depends on the inputs; keeps no tensor of these alive."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._operations: list[Operation] = []
        self._layouts: list[Layout] = []
        self._inputs = len(inputs)
        self._known: dict[int, tuple[weakref.ref[Tensor], Slot]] = {}  # by a tensor's id
        # Of these tensors, each with the slot of the first that lies in it.
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._starts: list[int] = []  # of the slots' tensors in their storages
        self._possible = True
        for tensor in inputs:
            self._new_slot(tensor)

    def recording(self, outputs: Tensors) -> Recording | None:
        """What was noted, if it is all."""
        found = self._with_slots(outputs, [])
        if not self._possible:
            return None
        operations = products_added(self._operations, self._layouts, found)
        return Recording(operations, self._layouts, self._inputs, found)

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:  # noqa: ANN401
        """Note it, while that is of use."""
        if not self._possible:
            return
        if torch.Tag.nondeterministic_seeded in func.tags or torch.Tag.inplace_view in func.tags:
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
            Operation(
                kind=func,
                arguments=arguments,
                options=named,
                uses=tuple(uses),
                results=self._placed(result),
                writes=bool(_written(func)),
                decides=(outcome(result),) if decides else None,
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

    def _slot_of(self, tensor: Tensor) -> Slot | None:
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _unseen(self, tensor: Tensor) -> bool:
        """Whether it shares memory with one that depends on the inputs, or may, though no operation made it of that."""
        if tensor.layout is not torch.strided:
            return True
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        return storage is not None and not storage[0].expired()  # type: ignore[no-untyped-call]

    def _placed(self, result: object) -> object:
        """Slots for what an operation gives; a tensor that it was given keeps its own."""
        if isinstance(result, Tensor):
            return self._slot_of(result) or self._new_slot(result)
        if isinstance(result, list | tuple):
            return tuple(map(self._placed, result))
        return None

    def _new_slot(self, tensor: Tensor) -> Slot:
        slot = Slot(len(self._layouts))
        self._name(tensor, slot)
        if not self._possible:
            return slot
        root = self._storages[tensor.untyped_storage()._cdata][1]
        start = int(tensor.storage_offset())
        self._starts.append(start)
        self._layouts.append(
            Layout(
                root=root,
                shape=tuple(tensor.shape),
                stride=tensor.stride(),
                offset=start - self._starts[root],
                dtype=tensor.dtype,
            )
        )
        return slot

    def _name(self, tensor: Tensor, slot: Slot) -> None:
        if tensor.layout is not torch.strided:
            self._possible = False
            return
        storage = tensor.untyped_storage()
        self._known[id(tensor)] = weakref.ref(tensor), slot
        known = self._storages.get(storage._cdata)
        if known is None or known[0].expired():  # type: ignore[no-untyped-call]
            self._storages[storage._cdata] = StorageWeakRef(storage), slot.index  # type: ignore[no-untyped-call]


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:  # noqa: ANN401
    """Places and names of the arguments that an operation writes to."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _holds_tensor(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))
