"""The sentences of an encoder's batch, from the tokens that its adapters' gradients give away (our choice).

Which tokens stand together, and where those stand that stand at several positions, is told by what layers further in
read, of each sentence by itself: from the longest one with any tokens, it is changed token by token, gets shorter and
longer, exchanges and moves tokens, for as long as more of its inputs lies in what was measured (`within`). A sentence
that is right all through is told from the rest at once, as its own gradient takes all parts of the tokens that it alone
has; it is taken off, and what is left is the gradient of a smaller batch.

Shapes: T tokens, M measurements, I the first layers' input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.events import Label, Progress
from textleak.exact.adapters.bag import Bag
from textleak.exact.adapters.measured import first_layers, later_measured
from textleak.exact.adapters.moves import Moves
from textleak.exact.adapters.within import Within
from textleak.exact.found import Found
from textleak.matching.discrete import Row
from textleak.models.base import Tensors
from textleak.models.decoding import to_sentence
from textleak.models.guesses import examples_of

# Later layers that are asked, sentences in any order that tell how their inputs differ, and descents until a sentence
# is found (our choice; measured on minilm).
_FURTHER, _USUAL, _DESCENTS = 2, 150, 60
# Numbers that a sentence's own gradient must take away, of the parts of tokens that it alone has (our choice: by
# accident one is within a thousandth once in a thousand).
_TAKEN = 8
# Classes that are tried of a sentence (our choice).
_CLASSES = 64
# What counts as more.
_MORE = 1e-6
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
        self.generator = torch.Generator().manual_seed(0)  # any starts will do
        self.steps = 0
        self._look()

    @property
    def count(self) -> int:
        """Sentences that are not found yet."""
        return self.size - sum(member.times for member in self.members)

    def _look(self) -> None:
        """At what is left of the gradient."""
        left = dataclasses.replace(self.view.shared, gradients=self.gradients)
        read_first = [layer.name for layer in self.first]
        measured = [one for one in later_measured(self.model, left) if one.name not in read_first]
        self.moves = Moves(self.model, self.bag, self.count, self.generator)
        usual = [self.moves.any_length() for _ in range(_USUAL)]
        self.within = Within(self.model, measured[:_FURTHER], usual)
        self.row: Row = self.moves.drawn(self.moves.ends[-1])
        self.rejected: set[Row] = set()

    # The loop

    def run(self) -> Iterator[Progress]:
        """Find one sentence after the other."""
        descents = 0
        while self.count and descents < _DESCENTS and not self._over and self.within.names:
            descents += 1
            yield from self._descend()
            found = None if self.row in self.rejected else self._member(self.row)
            if found is not None:
                descents = 0
                self._take_off(found)
            else:
                self.rejected.add(self.row)
                self.row = self.moves.drawn(self.moves.ends[-1])

    def _descend(self) -> Iterator[Progress]:
        """Change the sentence for as long as more of it lies within."""
        score, before = self.within.scores([self.row])[0], float("-inf")
        while score > before + _MORE and not self._over:
            before = score
            for t in self.moves.positions(self.row):
                score = self._better(score, self.moves.tokens(self.row, t))
            score = self._better(score, self.moves.lengths(self.row))
            # Many more changes, for where those don't help.
            if score <= before + _MORE:
                score = self._better(score, self.moves.orders(self.row))
            if score <= before + _MORE:
                score = self._better(score, self.moves.fuller(self.row))
            self.steps += 1
            yield self._progress()

    @property
    def _over(self) -> bool:
        return self.view.clock.over

    def _better(self, score: float, changes: Iterable[Row]) -> float:
        """Put the best of some changes in the sentence's place, if more of it lies within."""
        rows = [*dict.fromkeys(changes)]
        if not rows or self._over:
            return score
        best, row = max(zip(self.within.scores(rows), rows, strict=True))
        if best <= score + _MORE:
            return score
        self.row = row
        return best

    # Which are right

    def _member(self, row: Row) -> _Member | None:
        """The sentence, if it is in the batch: its own gradient takes away all parts that it alone has."""
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

    def _take_off(self, member: _Member) -> None:
        self.members.append(member)
        self.bag = self.bag.without(self._first_of(member.own), times=member.times)
        for name, own in member.own.items():
            self.gradients[name] = self.gradients[name] - own * member.times
        if self.count:
            self._look()

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
            sets=(self.bag.tokens,) * (self.moves.ends[-1] + len(self.model.suffix_ids)) if not rows else (),
            notes=notes,
        )

    def _progress(self) -> Progress:
        found = [
            to_sentence(self.model, member.row, confidence=[1.0] * len(member.row), label=member.label)
            for member in self.members
            for _ in range(member.times)
        ]
        open_ = to_sentence(self.model, self.row, confidence=[0.0] * len(self.row))
        return Progress(
            phase="grouping",
            step=self.steps,
            sentences=(*found, open_),
            detail=f"{self.size - self.count} of {self.size} sentences found",
        )
