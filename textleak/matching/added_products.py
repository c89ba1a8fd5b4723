"""Products whose only use is to be added to something are added to it where it lies.

A gradient that comes back from several layers is a sum of their products. Each product was written to memory, read
again, and the sum written once more; a matrix multiplication adds to what is there in one pass.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from textleak.matching.replay import Layout, Operation, Slot, plus_product, slots_in

_ATEN = torch.ops.aten


def products_added(
    operations: Sequence[Operation], layouts: Sequence[Layout], outputs: Sequence[Any]
) -> list[Operation]:
    """The operations, with such a product and the sum that it goes into as one, in the sum's place.

    Args:
        operations: in order.
        layouts: of the slots.
        outputs: slots, or tensors that don't depend on the inputs.
    """
    return _Sums(operations, layouts, outputs).joined()


class _Sums:
    """Sums of a product and something else that nothing else reads."""

    def __init__(
        self, operations: Sequence[Operation], layouts: Sequence[Layout], outputs: Sequence[Any]
    ) -> None:
        self._operations, self._layouts = operations, layouts
        self._kept = {layouts[index].root for index in slots_in(outputs)}
        # By a root, the operation that gives it, if that can write it to given memory, and all that deal with it.
        self._made: dict[int, int] = {}
        self._seen: defaultdict[int, list[int]] = defaultdict(list)
        for number, operation in enumerate(operations):
            for root in self._roots(operation):
                self._seen[root].append(number)
            if operation.made is not None and layouts[operation.made].root == operation.made:
                self._made[operation.made] = number

    def joined(self) -> list[Operation]:
        """See `products_added`."""
        found: dict[int, Operation] = dict(enumerate(self._operations))
        for number, operation in enumerate(self._operations):
            both = self._addends(number)
            if both is None:
                continue
            product, total = both
            made = self._operations[self._made[product]]
            found[number] = dataclasses.replace(
                operation,
                kind=plus_product,
                arguments=(Slot(total), *made.arguments),
                uses=(total, *made.uses),
            )
            for other in self._seen[product]:  # the product, and views of it
                if other != number:
                    del found[other]
        return list(found.values())

    def _addends(self, number: int) -> tuple[int, int] | None:
        """A product's root and the slot that it is added to, where a sum can be joined so; of two the later product."""
        operation = self._operations[number]
        slots = [argument.index for argument in operation.arguments if isinstance(argument, Slot)]
        if operation.kind is not _ATEN.add.Tensor or operation.options or len(slots) != 2:
            return None
        one, other = (self._layouts[index] for index in slots)
        roots = [one.root, other.root]
        if (one.shape, one.dtype) != (other.shape, other.dtype) or one.root == other.root:
            return None
        pairs = [
            (root, total)
            for root, product, total in zip(roots, slots, reversed(slots), strict=True)
            if self._is_product(number, product) and self._is_total(number, total, self._factors(root))
        ]
        return max(pairs, key=lambda pair: self._made[pair[0]], default=None)

    def _is_product(self, number: int, slot: int) -> bool:
        """Whether a slot of a sum holds a whole product, row by row, that nothing but the sum reads."""
        read = self._layouts[slot]
        root, made = self._layouts[read.root], self._made.get(read.root)
        if made is None or self._operations[made].kind is not _ATEN.mm.default:
            return False
        same_rows = _row_by_row(read) and _row_by_row(root) and read.shape[-1] == root.shape[-1]
        whole = read.offset == 0 and read.entries == root.entries
        alone = read.root not in self._kept and all(
            other in (made, number) or self._only_views(self._operations[other], read.root)
            for other in self._seen[read.root]
        )
        factors, between = self._factors(read.root), self._operations[made + 1 : number]
        changed = any(operation.writes and factors & {*self._roots(operation)} for operation in between)
        return same_rows and whole and alone and not changed

    def _is_total(self, number: int, slot: int, factors: set[int]) -> bool:
        """Whether a sum may be written where one of its slots lies: nothing reads that later, nor is it a factor."""
        read, made = self._layouts[slot], self._operations[number].made
        own = None if made is None else self._layouts[made]
        same = own is not None and (own.shape, own.stride, own.dtype) == (read.shape, read.stride, read.dtype)
        ends = read.root in self._made and read.root not in self._kept and self._seen[read.root][-1] == number
        return same and _row_by_row(read) and ends and read.root not in factors

    def _factors(self, product: int) -> set[int]:
        """The roots of what a product was made of; none where it isn't one."""
        made = self._made.get(product)
        return set() if made is None else {self._layouts[index].root for index in self._operations[made].uses}

    def _only_views(self, operation: Operation, root: int) -> bool:
        """Whether an operation does nothing but give views of what lies at a root."""
        given = [self._layouts[index].root for index in slots_in(operation.results)]
        return not operation.writes and operation.decides is None and bool(given) and {*given} == {root}

    def _roots(self, operation: Operation) -> Iterator[int]:
        """Where all that an operation deals with lies."""
        slots = dict.fromkeys((*operation.uses, *slots_in(operation.results)))
        return iter(dict.fromkeys(self._layouts[index].root for index in slots))


def _row_by_row(layout: Layout) -> bool:
    """Whether its entries lie one after the other, in order."""
    expected = 1
    for size, stride in zip(reversed(layout.shape), reversed(layout.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return expected > 0 and len(layout.shape) > 1
