"""The sentences of an encoder's batch, from the tokens that its adapters' gradients give away (our choice).

Which tokens stand together, and where those stand that stand at several positions, is told by what layers further in
read: sentences are changed token by token, exchange tokens and ends, get longer and shorter, for as long as the batch
leaves less of these layers' gradients (`leftover`). A sentence that is right all through is told from the rest at once,
as its own gradient takes all parts of the tokens that it alone has; it is taken off, and what is left is the gradient
of a smaller batch.

Shapes: B sentences, T tokens, M measurements, I the first layers' input size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.events import Label, Progress
from textleak.exact.adapters.bag import Bag
from textleak.exact.adapters.leftover import Beside, Leftover
from textleak.exact.adapters.measured import Measured, first_layers, later_measured
from textleak.exact.adapters.places import standing
from textleak.exact.found import Found
from textleak.matching.discrete import Row, shuffled
from textleak.models.base import Tensors
from textleak.models.decoding import to_sentence
from textleak.models.guesses import examples_of

# Later layers that are asked, random starts for each sentence, rounds of one, and random fillings of a sentence that
# gets longer (our choice; measured on minilm).
_FURTHER, _STARTS, _ROUNDS, _FILLINGS = 2, 12, 16, 4
# Numbers that a sentence's own gradient must take away, of the parts of tokens that it alone has (our choice: by
# accident one is within a thousandth once in a thousand).
_TAKEN = 8
# Classes that are tried of a sentence (our choice).
_CLASSES = 64
# What counts as less.
_LESS = 1e-9
_LEFT = "{} of {} sentences were not found; these tokens are theirs, in an order that was not: {}"


def encoder_batch(view: View, bag: Bag, size: int) -> Generator[Progress, None, Found]:
    """The sentences of a batch, as far as they can be told.

    Args:
        view: what the server sees, of a classifying encoder.
        bag: the batch's tokens, with positions' parts.
        size: how many sentences there are.
    """
    batch = _Batch(view, bag, size)
    yield from batch.run()
    return batch.found()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
    """A sentence that is in the batch.

    Attributes:
        row: its tokens.
        label: its class.
        times: how often it is there.
        own: its share of the gradient.
    """

    row: Row
    label: Label
    times: int
    own: Tensors


class _Batch:
    """One run: what was found so far, and what is left."""

    def __init__(self, view: View, bag: Bag, size: int) -> None:
        self.view, self.model, self.bag, self.size = view, view.text_model, bag, size
        self.gradients = dict(view.shared.gradients)
        self.first = first_layers(self.model, view.shared)
        self.members: list[_Member] = []
        self.rows: list[Row] = []
        self.generator = torch.Generator().manual_seed(0)  # any starts will do
        self.steps = 0
        self._tried: set[Row] = set()
        self._look()

    @property
    def count(self) -> int:
        """Sentences that are not found yet."""
        return self.size - sum(member.times for member in self.members)

    def _look(self) -> None:
        """At what is left of the gradient."""
        left = dataclasses.replace(self.view.shared, gradients=self.gradients)
        measured = [Measured.of(left, self.first), *later_measured(self.model, left)[:_FURTHER]]
        self.leftover = Leftover(self.model, measured)
        self.standing = standing(self.bag, self.count)
        told = {token for some in self.standing if some is not None for token in some}
        fixed = {*self.model.prefix_ids, *self.model.suffix_ids}
        self.free = tuple(token for token in self.bag.tokens if token not in told | fixed)
        self._tried.clear()

    # The loop

    def run(self) -> Iterator[Progress]:
        """Find one sentence after the other."""
        starts = 0
        while self.count and starts < _STARTS and not self._over and len(self.leftover.names) > 1:
            if not self.rows:
                starts += 1
                self.rows = self._start()
            score = self._score()
            for _ in range(_ROUNDS):
                before, score = score, self._round(score)
                self.steps += 1
                yield self._progress()
                found = self._members()
                if found:
                    starts = 0
                    self._take_off(found)
                    break
                if self._over or not score < before - _LESS:
                    self.rows = []
                    break
            else:
                self.rows = []

    @property
    def _over(self) -> bool:
        return self.view.clock.over

    def _score(self) -> float:
        return float(self.leftover.scores(self.leftover.beside(()), [self.rows]))

    def _round(self, score: float) -> float:
        """Change each sentence, and what each two exchange, where less is left then."""
        for b in shuffled(len(self.rows), self.generator):
            beside = self.leftover.beside([*self.rows[:b], *self.rows[b + 1 :]])
            head, end = len(self.model.prefix_ids), len(self.rows[b]) - len(self.model.suffix_ids)
            for t in (head + index for index in shuffled(end - head, self.generator)):
                row = self.rows[b]
                others = [(*row[:t], token, *row[t + 1 :]) for token in self._at(t) if token != row[t]]
                score = self._better(score, beside, (b,), [(other,) for other in others])
            score = self._better(score, beside, (b,), [(row,) for row in self._lengths(self.rows[b])])
        for a, b in itertools.combinations(range(len(self.rows)), 2):
            rest = [row for c, row in enumerate(self.rows) if c not in (a, b)]
            exchanged = list(self._exchanges(self.rows[a], self.rows[b]))
            score = self._better(score, self.leftover.beside(rest), (a, b), exchanged)
        return score

    def _better(
        self, score: float, beside: Beside, which: tuple[int, ...], changes: Sequence[Sequence[Row]]
    ) -> float:
        """Put the best of some changes to sentences in their place, if it leaves less."""
        if not changes or self._over:
            return score
        scores_C = self.leftover.scores(beside, changes)
        best = int(scores_C.argmin())
        if not float(scores_C[best]) < score - _LESS:
            return score
        for b, row in zip(which, changes[best], strict=True):
            self.rows[b] = row
        return float(scores_C[best])

    # What sentences may be

    def _at(self, position: int) -> Row:
        """The tokens that can stand at a position inside a sentence."""
        some = self.standing[position]
        tail = self.model.suffix_ids[:1]
        return self.free if some is None else tuple(token for token in some if token not in tail)

    def _any(self, position: int) -> int:
        some = self._at(position) or self.free or self.bag.tokens
        return some[shuffled(len(some), self.generator)[0]]

    def _filled(self, start: int, end: int) -> Row:
        return tuple(self._any(t) for t in range(start, end))

    def _ends(self) -> list[int]:
        """Where a sentence's last tokens can begin."""
        head, tail = len(self.model.prefix_ids), self.model.suffix_ids
        last = len(self.standing) - len(tail)
        ends = (
            t for t in range(head + 1, last) if (some := self.standing[t]) is None or {*tail[:1]} & {*some}
        )
        return [*ends, last]

    def _start(self) -> list[Row]:
        """Sentences of random lengths, the longest as long as there are positions, with tokens where they can stand."""
        head, ends = len(self.model.prefix_ids), self._ends()
        chosen = [ends[-1]] + [ends[shuffled(len(ends), self.generator)[0]] for _ in range(self.count - 1)]
        rows = [[*self.model.prefix_ids, *[-1] * (end - head)] for end in chosen]
        unused = [self.free[i] for i in shuffled(len(self.free), self.generator)]
        for t in range(head, ends[-1]):
            alive = [rows[b] for b in shuffled(len(rows), self.generator) if t < chosen[b]]
            if self.standing[t] is None:
                for row in alive:
                    row[t] = unused.pop() if unused else self._any(t)
            else:
                here = self._at(t) or (self._any(t),)
                order = shuffled(len(here), self.generator)
                for i, row in enumerate(alive):
                    row[t] = here[order[i % len(here)]]
        return [(*row, *self.model.suffix_ids) for row in rows]

    def _lengths(self, row: Row) -> Iterator[Row]:
        """A sentence of another length: its end cut off or filled up, with or without its last token."""
        tail = self.model.suffix_ids
        now, body = len(row) - len(tail), row[: len(row) - len(tail)]
        for end in self._ends():
            if end < now:
                yield (*body[:end], *tail)
                yield (*body[: end - 1], *body[-1:], *tail)
            elif end > now:
                for _ in range(_FILLINGS):
                    yield (*body, *self._filled(now, end), *tail)
                yield (*body[:-1], *self._filled(now - 1, end - 1), *body[-1:], *tail)

    def _exchanges(self, one: Row, other: Row) -> Iterator[tuple[Row, Row]]:
        """Two sentences exchange a token, or all from one position on."""
        head = len(self.model.prefix_ids)
        for t in range(head, min(len(one), len(other)) - len(self.model.suffix_ids)):
            if one[t] != other[t]:
                yield (*one[:t], other[t], *one[t + 1 :]), (*other[:t], one[t], *other[t + 1 :])
            if t > head:
                yield one[:t] + other[t:], other[:t] + one[t:]

    # Which are right

    def _members(self) -> list[_Member]:
        """The sentences that are in the batch: their own gradient takes away all parts that they alone have."""
        found = []
        for row in dict.fromkeys(self.rows):
            if row not in self._tried:
                self._tried.add(row)
                member = self._member(row)
                if member is not None:
                    found.append(member)
        return found

    def _member(self, row: Row) -> _Member | None:
        known = self.view.shared.known.labels
        classes = range(min(self.model.classes, _CLASSES))
        for label in classes if known is None else dict.fromkeys(known):
            own = self.view.own(examples_of(self.model, [row], (label,)))
            own = {name: gradient / self.size for name, gradient in own.items()}
            for times in range(1, self.count + 1):
                left = self.bag.without(self._first_of(own), times=times)
                taken = {*self.bag.tokens} - {*left.tokens}
                if len(taken) * self.bag.parts_NM.shape[1] >= _TAKEN and taken <= {*row}:
                    return _Member(row=row, label=label, times=times, own=own)
        return None

    def _first_of(self, gradients: Tensors) -> Tensor:
        return torch.cat([gradients[layer.weight_name] for layer in self.first])

    def _take_off(self, members: Sequence[_Member]) -> None:
        for member in members:
            if member.times > self.count:
                continue
            self.members.append(member)
            self.bag = self.bag.without(self._first_of(member.own), times=member.times)
            for name, own in member.own.items():
                self.gradients[name] = self.gradients[name] - own * member.times
        if not self.count:
            return
        self._look()
        rows = {member.row for member in members}
        kept = [row for row in self.rows if row not in rows][: self.count]
        self.rows = [self._fitted(row) for row in kept] if len(kept) == self.count else []

    def _fitted(self, row: Row) -> Row:
        """A sentence with other tokens in the place of those that are none of the batch's any more."""
        tail = self.model.suffix_ids
        body = row[: len(row) - len(tail)][: self._ends()[-1]]
        there = {*self.bag.tokens, *self.model.prefix_ids}
        return (*(token if token in there else self._any(t) for t, token in enumerate(body)), *tail)

    # What it shows

    def found(self) -> Found:
        """What is known at the end."""
        rows = [member.row for member in self.members for _ in range(member.times)]
        classes = [member.label for member in self.members for _ in range(member.times)]
        words = self.model.decode(list(self.bag.tokens))
        notes = (_LEFT.format(self.count, self.size, words),) if self.count else ()
        return Found(
            rows=tuple(rows),
            classes=tuple(classes),
            batch_size=self.size,
            complete=not self.count,
            sets=(self.bag.tokens,) * len(self.standing) if not rows else (),
            notes=notes,
        )

    def _progress(self) -> Progress:
        found = [
            to_sentence(self.model, member.row, confidence=[1.0] * len(member.row), label=member.label)
            for member in self.members
            for _ in range(member.times)
        ]
        open_ = [to_sentence(self.model, row, confidence=[0.0] * len(row)) for row in self.rows]
        return Progress(
            phase="grouping",
            step=self.steps,
            sentences=(*found, *open_),
            detail=f"{self.size - self.count} of {self.size} sentences found",
        )
