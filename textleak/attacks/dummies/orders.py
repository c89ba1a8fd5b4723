"""Orders of a sentence's tokens: how they are drawn, and the same dummies in other orders.

Shapes: M orders compared, B sentences, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.attacks.dummies.text import Dummies
from textleak.matching import Leaves
from textleak.models import TextModel
from textleak.models.decoding import fixed_tokens

Order = tuple[int, ...]
"""Which of a row's tokens stands at each place after a move."""


def inner_places(model: TextModel, length: int) -> list[int]:
    """Positions of a sentence of `length` whose token the tokenizer doesn't fix."""
    fixed = fixed_tokens(model, length)
    return [t for t in range(length) if t not in fixed]


def whole_order(model: TextModel, inner: Sequence[int], length: int) -> Order:
    """An order of a whole sentence from one of the tokens that aren't fixed."""
    places = inner_places(model, length)
    order = list(range(length))
    for t, moved in zip(places, inner, strict=True):
        order[t] = places[moved]
    return tuple(order)


def reordered(dummies: Dummies, free: Leaves, batches: Sequence[Sequence[Order]]) -> dict[str, Tensor]:
    """One candidate's leaves (1, ...) in M orders of its sentences: (M, ...). With a token goes all that is its."""
    longest = max(dummies.lengths)
    padded = [[[*row, *range(len(row), longest)] for row in rows] for rows in batches]
    orders_MBT = torch.tensor(padded, device=free["embeddings"].device)
    found = {}
    for name, leaf in free.items():
        # Of a causal model's labels, a row is the token that stands after it; the last one, of no token, goes with the
        # first token.
        ahead = name == "labels" and dummies.model.task == "causal-lm"
        moved = leaf.roll(1, 2) if ahead else leaf
        for dimension in dummies.along_tokens(name):
            moved = _gathered(moved, orders_MBT, dimension)
        moved = moved.expand(len(batches), *leaf.shape[1:])
        found[name] = moved.roll(-1, 2) if ahead else moved
    return found


def _gathered(leaf: Tensor, orders_MBT: Tensor, dimension: int) -> Tensor:
    """What stands at each place along a dimension after a move; all other dimensions go with it."""
    shape = [1] * leaf.dim()
    shape[0], shape[1], shape[dimension] = orders_MBT.shape
    rest = (len(orders_MBT), *leaf.shape[1:])
    return leaf.expand(rest).gather(dimension, orders_MBT.view(shape).expand(rest))


def random_order(count: int, generator: torch.Generator) -> Order:
    """All tokens shuffled."""
    return tuple(torch.randperm(count, generator=generator).tolist())


def tried_orders(count: int, tries: int, generator: torch.Generator) -> list[Order]:
    """The order as it is and random moves of `count` tokens, `tries` in all, those that are equal once.

    The four kinds take turns as in LAMP's released code.
    """
    if count < 2:
        return [tuple(range(count))]
    kinds = itertools.islice(itertools.cycle((move_token, move_span, prefix_to_end, swap)), tries - 1)
    return list(dict.fromkeys([tuple(range(count)), *(kind(count, generator) for kind in kinds)]))


def swap(count: int, generator: torch.Generator) -> Order:
    """Two tokens change places."""
    order = list(range(count))
    i, j = _below(count, generator), _below(count, generator)
    order[i], order[j] = order[j], order[i]
    return tuple(order)


def move_token(count: int, generator: torch.Generator) -> Order:
    """A token goes to another place."""
    start = _below(count, generator)
    return _span_moved(count, start, start + 1, generator)


def move_span(count: int, generator: torch.Generator) -> Order:
    """Tokens that stand side by side go to another place together."""
    start, end = sorted((_below(count + 1, generator), _below(count + 1, generator)))
    return _span_moved(count, start, end, generator)


def prefix_to_end(count: int, generator: torch.Generator) -> Order:
    """The first tokens go to the end."""
    length = _below(count, generator)
    return (*range(length, count), *range(length))


def _span_moved(count: int, start: int, end: int, generator: torch.Generator) -> Order:
    rest = (*range(start), *range(end, count))
    place = _below(len(rest) + 1, generator)
    return (*rest[:place], *range(start, end), *rest[place:])


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
