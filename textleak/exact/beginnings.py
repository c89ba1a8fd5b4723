"""The beginnings of a causal model's sentences, found as a tree (Petrov et al. 2024, sec. 4.2).

Each goes on with every token that stays inside a later layer's span.

Shapes: F beginnings, K tokens tried after each.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from textleak.exact.later_inputs import LaterInput, LaterInputs
from textleak.exact.subspace import OUTSIDE, InputSpan
from textleak.matching.discrete import Row
from textleak.models import TextModel

# Times as many beginnings as a span has room for that are followed before it is given up (our choice).
_TOO_MANY = 2
# A first token repeated at most this often: without positions, only what follows shows it (our choice).
_LONGEST_RUN = 16


@dataclasses.dataclass(kw_only=True, eq=False)
class Tree:
    """Beginnings of sentences, grown by one token at a time.

    Attributes:
        model: the public model.
        ordered: whether the first block's inputs tell positions apart.
        candidates: tokens that could follow beginnings of one length.
        checks: later layers' spans.
        first: which of them every beginning has to be in; the others are asked where too many are.
        longest: tokens at most.
        starts: what beginnings begin with, shorter ones first: nothing, or padding on the left.
        beginnings: those found.
        lost: whether far more fitted than there can be.
    """

    model: TextModel
    ordered: bool
    candidates: Callable[[Sequence[Row]], Sequence[int]]
    checks: LaterInputs
    first: int
    longest: int
    starts: Sequence[Row] = ((),)
    beginnings: list[Row] = dataclasses.field(default_factory=list)
    lost: bool = False

    @property
    def span(self) -> InputSpan:
        """The first check's: its rank is how many beginnings there are."""
        return self._check(self.first).span

    @property
    def finished(self) -> bool:
        """Whether as many beginnings were found as there are."""
        return len(self.beginnings) == self.span.rank

    @property
    def certain(self) -> bool:
        """Whether the beginnings found are the batch's, all of them and no other.

        Each of the batch's own that the gradient shows is among those found; and where these are as many as the span
        has dimensions, and independent, there is room for no other. They lie in all other spans as well, and leave
        no room there.
        """
        if not self.finished or not self._check(self.first).spanned_by(self.beginnings):
            return False
        others = (self.checks[index] for index in itertools.count())
        return all(
            check.span.rank <= len(self.beginnings) and check.holds(self.beginnings)
            for check in itertools.takewhile(lambda check: check is not None, others)
            if check is not None
        )

    @property
    def predicts(self) -> bool:
        """Whether labels are the next tokens, so that a sentence's last token is no input."""
        return self.model.task == "causal-lm"

    @property
    def leaves(self) -> list[Row]:
        """Beginnings that no other one goes on from, longest first."""
        inner = {row[:t] for row in self.beginnings for t in range(1, len(row))}
        return sorted((row for row in self.beginnings if row not in inner), key=len, reverse=True)

    def place(self, row: Row) -> Row:
        """The beginning that stands for this one: without positions, repeating the first token changes nothing."""
        return row[:1] if not self.ordered and len(set(row)) == 1 else row

    def grow(self) -> Iterator[int]:
        """Find all beginnings; yields the length reached."""
        for start in self.starts:
            if start and not self.candidates([start]):
                break
            yield from self._follow([start])
        if self.ordered:
            return
        # Only what comes after a first token's repetitions shows them: tried where beginnings are missing.
        firsts = [row for row in self.beginnings if len(row) == 1]
        for length in range(2, min(_LONGEST_RUN, self.longest - 1) + 1):
            if not firsts or len(self.beginnings) >= self.span.rank:
                return
            yield from self._follow([first * length for first in firsts])

    def _follow(self, frontier: list[Row]) -> Iterator[int]:
        for position in range(len(frontier[0]), self.longest):
            frontier = self._extended(frontier, self.candidates(frontier))
            if not frontier:
                return
            self.beginnings += frontier
            self.lost = len(self.beginnings) > _TOO_MANY * self.span.rank
            if self.lost:
                return
            yield position + 1

    def _extended(self, frontier: list[Row], tokens: Sequence[int]) -> list[Row]:
        room = _TOO_MANY * self.span.rank  # more would be noise
        tokens = tokens[:room]
        if not tokens:
            return []
        misfits_FK = self._check(self.first).misfits(frontier, tokens).tolist()
        kept = [
            (misfit, (*row, token))
            for row, misfits_K in zip(frontier, misfits_FK, strict=True)
            for token, misfit in zip(tokens, misfits_K, strict=True)
            if misfit <= OUTSIDE and (not row or self.place((*row, token)) != self.place(row))
        ]
        # More beginnings than there are: other layers tell more.
        other = 0
        while len(self.beginnings) + len(kept) > self.span.rank and (check := self.checks[other]):
            if other != self.first:
                misfits = check.row_misfits([row for _, row in kept])
                pairs = zip(kept, misfits, strict=True)
                kept = [(max(before, after), row) for (before, row), after in pairs if after <= OUTSIDE]
            other += 1
        return [row for _, row in sorted(kept)[: room + 1]]

    def _check(self, index: int) -> LaterInput:
        check = self.checks[index]
        assert check is not None
        return check
