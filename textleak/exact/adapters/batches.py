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
from textleak.numerics import exact

# Later layers that are asked, descents until a sentence is found, rounds of one, and random fillings of a sentence that
# gets longer (our choice; measured on minilm).
_FURTHER, _DESCENTS, _ROUNDS, _FILLINGS = 2, 40, 16, 4
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
        self.ends: tuple[float, tuple[Row, ...]] | None = None  # where a descent left least, and how much
        self.kicks = 0
        self.generator = torch.Generator().manual_seed(0)  # any starts will do
        self.steps = 0
        self._agreement: dict[Row, float] = {}
        self._look()
        self.rows = self._drawn()

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
        self._agreement.clear()
        self.ends, self.kicks = None, 0

    # The loop

    def run(self) -> Iterator[Progress]:
        """Find one sentence after the other."""
        descents = 0
        while self.count and descents < _DESCENTS and not self._over and len(self.leftover.names) > 1:
            descents += 1
            found = yield from self._descend()
            if found:
                descents = 0
                self._take_off(found)
            else:
                self._begin_anew()

    def _descend(self) -> Generator[Progress, None, list[_Member]]:
        """Change the sentences until one is right, or no change leaves less."""
        score = float(self.leftover.scores(self.leftover.beside(()), [self.rows]))
        for _ in range(_ROUNDS):
            before, score = score, self._round(score)
            self.steps += 1
            yield self._progress()
            found = self._members()
            if found or self._over or not score < before - _LESS:
                break
        if self.ends is None or score < self.ends[0] - _LESS:
            self.ends, self.kicks = (score, tuple(self.rows)), 0
        return found

    def _begin_anew(self) -> None:
        """From where least was left, those drawn anew that agree least with the gradient; or with all drawn anew."""
        assert self.ends is not None
        self.kicks += 1
        worst_first = sorted(self.ends[1], key=lambda row: self._agreement.get(row, 0.0))
        kept = worst_first[self.kicks :]
        if not kept:
            self.ends, self.kicks = None, 0
        self.rows = self._drawn(kept)

    @property
    def _over(self) -> bool:
        return self.view.clock.over

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

    def _drawn(self, kept: Sequence[Row] = ()) -> list[Row]:
        """Sentences kept, and as many as are missing of random lengths, with the tokens that others haven't."""
        head, ends, tail = len(self.model.prefix_ids), self._ends(), self.model.suffix_ids
        chosen = [ends[shuffled(len(ends), self.generator)[0]] for _ in range(self.count - len(kept))]
        if chosen and all(len(row) - len(tail) < ends[-1] for row in kept):
            chosen[0] = ends[-1]  # positions are there for as long as the longest
        rows = [[*self.model.prefix_ids, *[-1] * (end - head)] for end in chosen]
        used = {token for row in kept for token in row}
        unused = [token for token in self.free if token not in used]
        unused = [unused[i] for i in shuffled(len(unused), self.generator)]
        for t in range(head, max(chosen, default=head)):
            alive = [rows[b] for b in shuffled(len(rows), self.generator) if t < chosen[b]]
            if self.standing[t] is None:
                for row in alive:
                    row[t] = unused.pop() if unused else self._any(t)
            else:
                here = self._at(t) or (self._any(t),)
                taken = {row[t] for row in kept if t < len(row)}
                order = [here[i] for i in shuffled(len(here), self.generator)]
                order.sort(key=taken.__contains__)
                for i, row in enumerate(alive):
                    row[t] = order[i % len(order)]
        return [*kept, *((*row, *tail) for row in rows)]

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
            if row not in self._agreement:
                member = self._member(row)
                if member is not None:
                    found.append(member)
        return found

    def _member(self, row: Row) -> _Member | None:
        known = self.view.shared.known.labels
        classes = range(min(self.model.classes, _CLASSES))
        self._agreement[row] = -1.0
        for label in classes if known is None else dict.fromkeys(known):
            own = self.view.own(examples_of(self.model, [row], (label,)))
            own = {name: gradient / self.size for name, gradient in own.items()}
            self._agreement[row] = max(self._agreement[row], self._agrees(row, self._first_of(own)))
            for times in range(1, self.count + 1):
                left = self.bag.without(self._first_of(own), times=times)
                taken = {*self.bag.tokens} - {*left.tokens}
                if len(taken) * self.bag.parts_NM.shape[1] >= _TAKEN and taken <= {*row}:
                    return _Member(row=row, label=label, times=times, own=own)
        return None

    def _agrees(self, row: Row, own_MI: Tensor) -> float:
        """The cosine similarity of a sentence's tokens' parts in its own gradient and in what is left."""
        there = [k for k, token in enumerate(self.bag.tokens) if token in row]
        own_NM = (exact(own_MI) @ self.bag.reading_IN[:, there]).T
        return float(torch.cosine_similarity(own_NM.flatten(), self.bag.parts_NM[there].flatten(), dim=0))

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
        self.rows = self._drawn([self._fitted(row) for row in kept])

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
