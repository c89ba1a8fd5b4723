"""Where the sentences of a causal model's batch end, and how often each stands in it.

The tree of beginnings known, what was predicted after each of them can be read off (`predictions`), with how often it
was. In a language model a beginning that is asked for more than the tree goes on with is where a sentence ends; in a
classifier, every beginning that is asked for a class.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from textleak.exact.beginnings import Tree
from textleak.exact.found import OPEN, Found
from textleak.exact.predictions import Predictions, read_predictions, whole_numbers
from textleak.matching.discrete import Row
from textleak.shared.gradient import SharedGradient

UNTRACED = "What comes after the last token that has a label leaves no trace."
# A gradient this far off its batch's was scaled (our choice; measured: 1e-6 where it wasn't).
_SCALED = 1e-2


def ended(tree: Tree, shared: SharedGradient) -> Found:
    """The tree's sentences, from what was predicted after each beginning."""
    if tree.model.own_loss is not None:  # whatever it asks for, a label is no token
        return _labeled(tree, shared)
    following = _following(tree)
    predictions = read_predictions(tree.model, shared, tree.beginnings, following)
    if predictions is None or not predictions.whole:
        rows = [(*row, OPEN) if tree.predicts else row for row in tree.leaves]
        return answer(rows, complete=False, notes=[*_missing(tree), _why_no_labels(predictions)])
    asked = _Asked.of(tree, shared, predictions, following)
    if not tree.predicts:
        batch = _classified(tree, asked)
    elif asked.certain:
        batch = _counted(tree, asked, shared)
    else:
        batch = _uncounted(tree, asked)
    return answer(
        batch.rows,
        classes=batch.classes,
        complete=batch.complete,
        notes=[*_missing(tree), *_doubts(tree, asked), *batch.notes],
    )


def _labeled(tree: Tree, shared: SharedGradient) -> Found:
    """The tree's sentences, where labels are no tokens: all of each, or up to the last token that has one."""
    rows, lengths, notes = list(tree.leaves), shared.known.lengths, _missing(tree)
    if lengths is None or sorted(lengths) == sorted(map(len, rows)):
        return answer(rows, complete=tree.finished, notes=notes)
    if len(lengths) == len(rows) == 1:
        rows = [(*rows[0], *(OPEN,) * (lengths[0] - len(rows[0])))]
    return answer(rows, complete=False, notes=[*notes, UNTRACED])


def answer(
    rows: Sequence[Row],
    *,
    complete: bool,
    notes: Sequence[str],
    classes: Sequence[int] = (),
    sets: Sequence[tuple[int, ...]] = (),
) -> Found:
    """What was found; every token that isn't open is certain."""
    confidence = tuple(tuple(float(token != OPEN) for token in row) for row in rows)
    return Found(
        rows=tuple(rows),
        confidence=confidence if any(OPEN in row for row in rows) else (),
        classes=tuple(classes),
        complete=complete,
        notes=tuple(notes),
        sets=tuple(sets),
    )


# The evidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was asked for after each beginning.

    Attributes:
        following: for each of them, the tokens that go on from it: labels there, in a language model.
        counts: for each of them, how often each label stands there; where that couldn't be told, each label that
            nothing goes on from, once.
        counted: whether it could.
        open: beginnings that more was asked of than could be told.
        scale: how many times its batch's the gradient is.
    """

    following: Sequence[set[int]]
    counts: tuple[dict[int, int], ...]
    counted: bool
    open: tuple[Row, ...]
    scale: float

    @classmethod
    def of(
        cls, tree: Tree, shared: SharedGradient, predictions: Predictions, following: Sequence[set[int]]
    ) -> _Asked:
        open_ = sorted(predictions.open)
        if len(tree.beginnings) > tree.span.rank:
            # What makes nothing of the last layer's gradient isn't in the batch.
            open_ = [n for n in open_ if predictions.shares[n]]
        counts = whole_numbers(predictions.shares, _total(tree, shared))
        once = tuple(
            {label: 1 for label in shares if label not in known}
            for shares, known in zip(predictions.shares, following, strict=True)
        )
        return cls(
            following=following,
            counts=once if counts is None else counts,
            counted=counts is not None,
            open=tuple(tree.beginnings[n] for n in open_),
            scale=sum(share for labels in predictions.shares for share in labels.values()),
        )

    @property
    def certain(self) -> bool:
        """Whether all that was asked for is told."""
        return self.counted and not self.open


def _following(tree: Tree) -> list[set[int]]:
    """Tokens that go on from each beginning: labels there, in a language model."""
    following: list[set[int]] = [set() for _ in tree.beginnings]
    if tree.predicts:
        index = {row: n for n, row in enumerate(tree.beginnings)}
        for row in tree.beginnings:
            if len(row) > 1:
                following[index[tree.place(row[:-1])]].add(row[-1])
    return following


def _total(tree: Tree, shared: SharedGradient) -> int | None:
    """How many predictions the loss is the mean of, where that is known."""
    if not tree.predicts:
        return shared.known.batch_size
    return sum(length - 1 for length in shared.known.lengths) if shared.known.lengths else None


# The sentences


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batch:
    """Whole sentences, as far as the labels tell, each as often as the batch holds it; as in `Found`."""

    rows: Sequence[Row]
    classes: Sequence[int] = ()
    complete: bool = False
    notes: Sequence[str] = ()


def _classified(tree: Tree, asked: _Asked) -> _Batch:
    """A classifier's: a sentence for every class that was asked for."""
    ends = [
        (row, label)
        for row, labels in zip(tree.beginnings, asked.counts, strict=True)
        for label, count in labels.items()
        for _ in range(count)
    ]
    return _Batch(
        rows=[*(row for row, _ in ends), *asked.open],
        classes=[label for _, label in ends] if asked.certain else (),
        complete=asked.certain,
    )


def _uncounted(tree: Tree, asked: _Asked) -> _Batch:
    """A language model's, each once: every label that nothing goes on from ends one, and open ends stay open."""
    ends = [
        (*row, label)
        for row, labels, known in zip(tree.beginnings, asked.counts, asked.following, strict=True)
        for label in labels
        if label not in known
    ]
    return _Batch(rows=ends + [(*row, OPEN) for row in asked.open])


def _counted(tree: Tree, asked: _Asked, shared: SharedGradient) -> _Batch:
    """A language model's, as often as the labels' counts say and the batch's size, where that is known, asks."""
    ends, consistent = _ends(tree, asked.counts)
    rows, known = list(ends.elements()), shared.known
    size = known.batch_size or (len(known.lengths) if known.lengths else None)
    if size is None or size == len(rows) or not rows:
        return _Batch(rows=rows, complete=consistent)
    if size % len(rows) == 0 and not known.lengths:
        # The gradient is a mean: the same sentences, each twice, have the same one.
        return _Batch(rows=rows * (size // len(rows)), complete=consistent)
    if size > len(rows):
        note = "A sentence of one token leaves no trace in a language model's gradient."
        return _Batch(rows=rows + [(OPEN,)] * (size - len(rows)), complete=consistent, notes=(note,))
    return _Batch(rows=rows, notes=(f"{len(rows)} sentences were found in a batch of {size}.",))


def _ends(tree: Tree, counts: Sequence[dict[int, int]]) -> tuple[Counter[Row], bool]:
    """Whole sentences with how often each is in the batch, and whether the counts agree with one another.

    A label that stands somewhere more often than sentences go on with it ends the others.
    """
    asked = dict(zip(tree.beginnings, counts, strict=True))
    through = {row: sum(labels.values()) for row, labels in asked.items()}
    left = {row: Counter(labels) for row, labels in asked.items()}
    for row in tree.beginnings:
        if len(row) > 1:
            place = tree.place(row[:-1])
            left[place][row[-1]] -= through[row]
            # The predictions of a first token's repetitions all stand at its own place.
            left[place][row[0]] -= through[row] * (len(row) - 1 - len(place))
    ends: Counter[Row] = Counter()
    for row, labels in left.items():
        repeated = labels.pop(row[0], 0) if tree.place(row * 2) == row else 0
        for label, count in labels.items():
            ends[(*row, label)] += max(0, count)
        if repeated > 0:
            # Any of them can be longer by that: one of the sentences that end here, or one by itself.
            ended_by = [label for label, count in labels.items() if count > 0][:1]
            if ended_by:
                ends[(*row, *ended_by)] -= 1
            ends[(*row * (1 + repeated), *ended_by)] += 1
    return +ends, all(count >= 0 for labels in left.values() for count in labels.values())


# What a person is told


def _missing(tree: Tree) -> list[str]:
    if len(tree.beginnings) >= tree.span.rank:
        return []
    return [
        f"{len(tree.beginnings)} beginnings of sentences were found; the gradient of the next block spans "
        f"{tree.span.rank} in {tree.span.size} dimensions."
    ]


def _why_no_labels(predictions: Predictions | None) -> str:
    if predictions is not None:
        return "The beginnings found don't make all of the last layer's gradient."
    return (
        "Which beginnings are whole sentences, and what ends them, shows in the last block's gradients: they were "
        "not shared, or don't tell."
    )


def _doubts(tree: Tree, asked: _Asked) -> list[str]:
    notes = []
    if asked.open:
        notes.append(f"What {len(asked.open)} beginnings end with couldn't be told.")
    if abs(asked.scale - 1) > _SCALED and tree.model.language.reduction != "sum":
        notes.append(
            f"The gradient is {asked.scale:.3g} times what these sentences make, as if the client had scaled it."
        )
    if not asked.counted:
        notes.append("How often each sentence stands in the batch couldn't be told.")
    return notes
