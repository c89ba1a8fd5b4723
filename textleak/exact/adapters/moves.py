"""What a sentence of a batch may be, by what is known of where its tokens stand, and what a guess may change to.

Shapes: T positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from textleak.exact.adapters.bag import Bag
from textleak.exact.adapters.places import standing
from textleak.matching.discrete import Row, shuffled
from textleak.models import TextModel


class Moves:
    """Sentences of a batch's tokens.

    Attributes:
        ends: where a sentence's last tokens, which the tokenizer adds, can begin.
    """

    def __init__(self, model: TextModel, bag: Bag, size: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.head, self.tail = model.prefix_ids, model.suffix_ids
        standing_T = standing(bag, size)
        told = {token for some in standing_T if some is not None for token in some}
        free = tuple(token for token in bag.tokens if token not in told | {*self.head, *self.tail})
        first = self.tail[:1]
        self._free = free or bag.tokens
        self._at = [
            self._free if some is None else tuple(token for token in some if token not in first)
            for some in standing_T
        ]
        last = len(standing_T) - len(self.tail)
        inner = range(len(self.head) + 1, last)
        self.ends = [
            *(t for t in inner if (some := standing_T[t]) is None or {*first} & {*some}),
            last,
        ]

    def drawn(self, end: int) -> Row:
        """A sentence with any of the tokens that can stand at each position."""
        body = [self._any(t) for t in range(len(self.head), end)]
        return (*self.head, *body, *self.tail)

    def any_length(self) -> Row:
        """A sentence of any length, with any tokens."""
        return self.drawn(self.ends[shuffled(len(self.ends), self.generator)[0]])

    def positions(self, row: Row) -> list[int]:
        """Those of the tokens inside a sentence, in random order."""
        start, end = len(self.head), len(row) - len(self.tail)
        return [start + t for t in shuffled(end - start, self.generator)]

    def tokens(self, row: Row, position: int) -> list[Row]:
        """The sentence with other tokens at a position."""
        return [
            (*row[:position], token, *row[position + 1 :])
            for token in self._at[position]
            if token != row[position]
        ]

    def lengths(self, row: Row) -> Iterator[Row]:
        """The sentence cut off or longer, with or without its last token."""
        now = len(row) - len(self.tail)
        body = row[:now]
        for end in self.ends:
            if end < now:
                yield (*body[:end], *self.tail)
                yield (*body[: end - 1], *body[-1:], *self.tail)
            elif end > now:
                between = tuple(self._any(t) for t in range(now, end - 1))
                for token in self._at[end - 1]:
                    yield (*body, *between, token, *self.tail)
                for token in self._at[end - 2] if now > len(self.head) else ():
                    yield (*body[:-1], *between, token, *body[-1:], *self.tail)

    def orders(self, row: Row) -> Iterator[Row]:
        """The sentence with two tokens exchanged, with one elsewhere, or without it."""
        start, end = len(self.head), len(row) - len(self.tail)
        for a in range(start, end):
            without = (*row[:a], *row[a + 1 :])
            yield from self._fitting(without)
            for b in range(start, end):
                if a < b:
                    exchanged = (*row[:a], row[b], *row[a + 1 : b], row[a], *row[b + 1 :])
                    yield from self._fitting(exchanged)
                if b != a:
                    yield from self._fitting((*without[:b], row[a], *without[b:]))

    def fuller(self, row: Row) -> Iterator[Row]:
        """The sentence with one token more."""
        for t in range(len(self.head), len(row) - len(self.tail) + 1):
            for token in self._at[t] if t < len(self._at) else ():
                yield from self._fitting((*row[:t], token, *row[t:]))

    def _fitting(self, row: Row) -> Iterator[Row]:
        """The sentence, if its tokens can stand where they do."""
        end = len(row) - len(self.tail)
        if end in self.ends and all(row[t] in self._at[t] for t in range(len(self.head), end)):
            yield row

    def _any(self, position: int) -> int:
        some = self._at[position] or self._free
        return some[shuffled(len(some), self.generator)[0]]
