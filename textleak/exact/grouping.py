"""Sentences of an encoder's batch, one by one: which of the tokens that the gradient shows stand together.

1. Pairs: every position and token whose first-layer input lies in the gradient's span (`pairs`).
2. From a loud pair, the pairs that stand in its sentence (`sentence_search`), so that the inputs further in lie in
   their spans too (`checks`).
3. A sentence so found is proved to be in the batch, its label and how often it is there come out, and its gradient is
   taken off (`remainder`). What is left is a smaller batch: begin again, until nothing is left. Sentences that are too
   faint in places to be proved one by one are proved together, where they make all that is left.

Which sentence is found first doesn't matter, and each one found makes the others easier.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Generator, Iterator, Sequence

import torch

from textleak.clients.view import View
from textleak.events import Label, Phase, Progress, Sentence
from textleak.exact.found import OPEN, Found
from textleak.exact.orders import ordered_sentence
from textleak.exact.own_remainder import OwnRemainder
from textleak.exact.pairs import Pair, Pairs, find_pairs, pair_gradients
from textleak.exact.remainder import LayerRemainder, Member, Remainder, batch_counts
from textleak.exact.sentence_search import EFFORTS, SentenceSearch, has_parts
from textleak.exact.subspace import NOISE_COVERS, InputSpan, layer_span, shared_spans, why_no_span
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.decoding import to_sentence
from textleak.models.probes.attention import FirstAttention, first_attention
from textleak.models.probes.layers import following_layers

# Inputs further in that are asked: in a transformer the first block's other three, and the second block's.
_INPUTS = 4
# Sentences that are tried together for all that is left (our choice).
_TOGETHER = 8
# Part of the dimensions from which on a batch is said to fill them (our choice).
_FULL = 0.9
_NO_CHECK = (
    "No layer beyond the first ones has a gradient of its own among the shared ones (blocks that share their weights, "
    "as ALBERT's, sum theirs), so nothing tells which tokens stand together: one sentence at most can be read off."
)
_NO_OUTPUT = (
    "Which tokens there are shows in matrices that are no layer's own, so that what they make of a sentence doesn't: "
    "one sentence at most can be read off."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batch:
    """What was found of the batch.

    Attributes:
        rows: sentences, each as often as the batch holds it.
        classes: their labels.
        size: how many there are in all, where that shows.
    """

    rows: tuple[Row, ...] = ()
    classes: tuple[Label, ...] = ()
    size: int | None = None


def encoder_sentences(view: View) -> Generator[Phase | Progress, None, Found]:
    """The sentences of an encoder's batch, exactly, as far as its gradients' spans tell them.

    Those found before the view's clock ends are returned.
    """
    model, shared = view.text_model, view.shared
    yield Phase(name="span", detail="tokens whose layer inputs the gradient spans")
    spans = shared_spans(model, shared)
    if not spans:
        return Found(notes=(why_no_span(model, shared),))
    layers, span = max(spans, key=lambda pair: pair[1].room)
    full = f"The batch fills {span.rank} of {span.size} dimensions of the first layers' input (n/D)"
    if shared.noise_sigma > 0:
        return Found(rows=(), notes=(NOISE_COVERS,))
    if not span.clear:
        return Found(rows=(), notes=(f"{full}, without a clear end: the span tells nothing for certain.",))
    lengths = shared.known.lengths
    pairs = find_pairs(model, layers[0], span, longest=max(lengths) if lengths else None)
    notes = (
        (f"{full}: close to all of them, so false tokens may look true.",)
        if span.rank > _FULL * span.size
        else ()
    )
    if not len(pairs):
        return Found(rows=(), notes=(*notes, f"{full}, but no token's input lies in them."))
    if not layers[0].depends_on_position and _labeled(model) and shared.known.size in (None, 1):
        ordered = yield from _in_order(view, pairs)
        if ordered is not None:
            return ordered
    if layers[0].bare:
        return Found(rows=(), notes=(*notes, _NO_OUTPUT))
    yield Phase(name="grouping", detail="which of these tokens stand in one sentence")
    grouping = _Grouping(view, LayerRemainder.of(shared, layers, span), pairs)
    yield from grouping.run()
    return grouping.found(notes)


def _in_order(view: View, pairs: Pairs) -> Generator[Phase | Progress, None, Found | None]:
    """The only sentence, where the first layers tell its tokens and not where they stand; None where it isn't found."""
    yield Phase(name="order", detail="where these tokens stand, by what layers further in read")
    for tries, found in enumerate(ordered_sentence(view.text_model, view.shared, pairs)):
        if found is not None:
            return Found(rows=(found.row,), classes=(found.label,), batch_size=1, complete=True)
        yield Progress(phase="order", step=tries)
        if view.clock.over:
            return None
    return None


def _labeled(model: TextModel) -> bool:
    """Whether what the loss asks for stands apart from the text, and is no part of it."""
    return model.num_labels is not None or model.own_loss is not None


class _Grouping:
    """One run: what was found so far, and what is left."""

    def __init__(self, view: View, first: LayerRemainder, pairs: Pairs) -> None:
        self.view = view
        self.model, self.shared = model, shared = view.text_model, view.shared
        self.pairs = self.every_pair = pairs
        self.notes: list[str] = []
        likely = 0 if first.span is None else first.span.rank
        further = [
            (shared_ones, span)
            for layers in following_layers(model, _INPUTS)
            if (shared_ones := tuple(layer for layer in layers if layer.weight_name in shared.gradients))
            and (span := layer_span(shared, shared_ones, likely=likely)) is not None
        ]
        if not further:
            self.notes.append(_NO_CHECK)
        inputs = (first, *(LayerRemainder.of(shared, layers, span) for layers, span in further))
        judge = _judge([span for _, span in further], first.span)
        self.left: Remainder
        if model.own_loss is None:
            self.left = Remainder.of(view, inputs, judge=judge)
        else:
            longest = len(pairs.by_position) if model.own_loss.pads else 0
            own = OwnRemainder.of(view, inputs, judge=judge)
            self.left = dataclasses.replace(own, longest=longest)
        self.whole = self.left
        self.members: list[Member] = []
        self.batch = _Batch()
        self.tries = 0
        self.loudness: dict[Pair, float] = {}  # of the last search's pairs
        self.ends: dict[Row, float] = {}  # where descents ended, with their mean parts outside

    # The loop

    def run(self) -> Iterator[Progress]:
        """Find one sentence after the other."""
        if not _labeled(self.model):  # what the loss asks for is hidden, so nothing can be proved here
            return
        only = self._only()
        if self.model.own_loss is not None and self.shared.known.size == 1 and only is not None:
            self.batch = _Batch(rows=(only,), size=1)
        while self._unexplained is not None and self._time():
            found = yield from self._next()
            if not found:
                return
            yield self._progress()

    def _next(self) -> Generator[Progress, None, bool]:
        """Whether there was one more sentence of the batch, or all the rest of it: proved and taken off."""
        only = self._only()
        if only is not None:
            if self._proved([only]):
                return True
            self.ends[only] = 0.0
        for parts in self._parts():
            pairs = dataclasses.replace(self.pairs, parts=parts)
            gradients = pair_gradients(pairs, self.left.inputs[0], self.loudness)
            self.loudness = gradients.by_pair(pairs)
            search = SentenceSearch(
                self.model, pairs, self.left.inputs, self._attention, self.ends, gradients=gradients
            )
            if (yield from self._searched(search)):
                return True
        return False

    def _searched(self, search: SentenceSearch) -> Generator[Progress, None, bool]:
        """Whether a search came to sentences of the batch: proved and taken off."""
        for effort in EFFORTS:
            if not self._time():
                return False
            for rows in search.rows(effort):
                if rows and self._proved(rows):
                    return True
                if not self._time():
                    kept = search.given_out()
                    if kept and self._proved(kept):
                        return True
                    break
                self.tries += 1
                yield self._progress()
            if self._proved_together() or self._proved_weighed():
                return True
        return False

    def _parts(self) -> tuple[bool, ...]:
        """Whether sentences may be of several parts; both, where nobody knows how many sentences are left.

        Where parts are embedded as such, the search knows by itself.
        """
        if self.model.pairs:
            return (False,)
        shows = has_parts(self.model, self.pairs, self._left_in_batch)
        return (shows,) if shows or self._left_in_batch is not None else (False, True)

    @functools.cached_property
    def _attention(self) -> FirstAttention | None:
        return first_attention(self.model)

    @property
    def _left_in_batch(self) -> int | None:
        """How many sentences are still to be found; None where that isn't known."""
        size = self.shared.known.size
        return None if size is None else max(1, size - len(self.batch.rows))

    @property
    def _unexplained(self) -> InputSpan | None:
        """The span of what is left; None where that is rounding, however much more than foreseen.

        So it is where the sentences found are all of the batch, or no token makes it.
        """
        whole = len(self.batch.rows) == self.batch.size
        return self.left.inputs[0].span if len(self.pairs) and not whole else None

    def _only(self) -> Row | None:
        """The only sentence that the pairs leave: one at each position."""
        by_position = self.pairs.by_position
        if by_position and all(len(pairs) == 1 for pairs in by_position):
            return tuple(self.pairs.tokens_N.tolist())
        return None

    def _proved(self, rows: Sequence[Row]) -> bool:
        """Whether some of the sentences are in the batch; these are taken off."""
        found = self.left.among(rows, self.members, self.shared.known.batch_size)
        if found is not None:
            self._take_off(*found)
        return found is not None

    @property
    def _likeliest(self) -> list[Row]:
        """Sentences that searches ended at and nothing proved, as far as they are tried together."""
        return sorted(self.ends, key=self.ends.__getitem__)[:_TOGETHER]

    def _proved_together(self) -> bool:
        """Whether some of the likeliest sentences make all that is left; they are taken off if so."""
        likeliest, size = self._likeliest, self.shared.known.batch_size
        found = self.left.members(likeliest, self.members, size) if likeliest else None
        if found is not None:
            self._take_off(*found)
        return found is not None

    def _proved_weighed(self) -> bool:
        """Whether the sentences found and some of the likeliest make all of the gradient, whatever each one's part.

        Where a loss weighs sentences, their parts are no whole numbers, and what rounding leaves of one that is taken
        off by itself can hide the others.
        """
        size = self.shared.known.batch_size
        if self.members and batch_counts(self.members, batch_size=size) is not None:
            return False
        rows = [*dict.fromkeys([*(member.row for member in self.members), *self._likeliest])]
        found = self.whole.members(rows, (), size, weighed=True) if rows else None
        if found is not None:
            self.members = []
            self._take_off(*found)
        return found is not None

    def _take_off(self, members: Sequence[Member], left: Remainder) -> None:
        self.members += members
        self.left = left
        for member in members:
            self.ends.pop(member.row, None)
        span = self.left.inputs[0].span
        if span is not None:
            # Of all pairs: a span with a faint direction can leave out a true one for a while.
            self.pairs = self.every_pair.inside(span, torch.finfo(self.model.dtype).eps)
        self.batch = self._counted()

    def _time(self) -> bool:
        return not self.view.clock.over

    # What it shows

    def found(self, notes: Sequence[str]) -> Found:
        """What is known at the end."""
        batch, left = self.batch, self._unexplained
        rows = batch.rows
        more = [*notes]
        if not _labeled(self.model) and (only := self._only()) is not None:
            hidden = self.model.mask_id if self.model.task == "masked-lm" else None
            rows = (tuple(OPEN if token == hidden else token for token in only),)
            more.append("What stands behind the masks is a label, which no span shows.")
        whole = batch.size if self.model.own_loss is None else batch.size or len(rows)
        complete = left is None and bool(rows) and len(rows) == whole
        return Found(
            rows=rows,
            classes=batch.classes,
            batch_size=batch.size,
            complete=complete,
            channel="span",
            sets=self._sets() if left is not None else (),
            notes=(*more, *(() if complete else self.notes), *self._missing(len(rows))),
        )

    def _missing(self, count: int) -> tuple[str, ...]:
        """What was not found, where `count` sentences were."""
        left, size = self._unexplained, self.batch.size
        if left is not None and _labeled(self.model):
            known = "" if size is None else f" and {size - count} of {size} sentences"
            return (
                f"{left.rank} of the inputs that the gradient shows{known} were not found.",
                *self._full(),
            )
        if left is None and size is not None and count < size:
            return (f"{size - count} of {size} sentences leave no gradient beyond rounding.",)
        return ()

    def _full(self) -> tuple[str, ...]:
        """Whether the batch is too large for the inputs that tell its sentences apart."""
        span = self.left.inputs[self.left.judge].span
        if span is None or span.rank <= _FULL * span.size:
            return ()
        return (
            f"Further in, the batch fills {span.rank} of {span.size} dimensions (n/D): "
            "hardly anything tells its sentences apart.",
        )

    def _counted(self) -> _Batch:
        """The sentences found, as often as their parts in the gradient say."""
        size, members = self.shared.known.batch_size, self.members
        if self.model.own_loss is not None:  # labels are solved for, and how often each is there stays open
            return _Batch(rows=tuple(member.row for member in members), size=size)
        more = self.left.clear_beside(self.whole)
        counted = batch_counts(members, batch_size=size, more=more) if members else None
        if counted is None and members and self._unexplained is None:
            # Nothing is missing, so the parts add up to 1, unless the client scaled its gradient.
            scale = sum(sum(member.parts) for member in members)
            unscaled = [
                dataclasses.replace(member, parts=tuple(part / scale for part in member.parts))
                for member in members
            ]
            counted = batch_counts(unscaled, batch_size=size)
        if counted is None:  # the proportions fit no batch: each one once, with its likeliest label
            all_found = self._unexplained is None and size == len(members)
            return _Batch(
                size=size if all_found else None,
                rows=tuple(member.row for member in members),
                classes=tuple(max(range(len(m.parts)), key=m.parts.__getitem__) for m in members),
            )
        size, counts = counted
        labeled = [
            (member.row, label)
            for member, by_class in zip(members, counts, strict=True)
            for label, count in enumerate(by_class)
            for _ in range(count)
        ]
        return _Batch(
            rows=tuple(row for row, _ in labeled), classes=tuple(label for _, label in labeled), size=size
        )

    def _sets(self) -> tuple[tuple[int, ...], ...]:
        tokens = self.pairs.tokens_N.tolist()
        return tuple(tuple(tokens[i] for i in indices) for indices in self.pairs.by_position)

    def _progress(self) -> Progress:
        sentences: list[Sentence] = [
            to_sentence(
                self.model,
                row,
                confidence=[1.0] * len(row),
                channels=["span"] * len(row),
                label=label,
            )
            for row, label in itertools.zip_longest(self.batch.rows, self.batch.classes)
        ]
        left = self._unexplained
        best = min(self.ends, key=self.ends.__getitem__, default=None)
        if left is not None and best is not None:
            row, outside = best, self.ends[best]
            sentences.append(to_sentence(self.model, row, confidence=[max(0.0, 1 - outside)] * len(row)))
        return Progress(
            phase="grouping",
            step=self.tries,
            loss=None if best is None else self.ends[best],
            sentences=tuple(sentences),
            detail=f"{len(self.members)} found, {0 if left is None else left.rank} inputs left",
        )


def _judge(further: Sequence[InputSpan], first: InputSpan | None) -> int:
    """Which of the first input and those further in is to prove sentences.

    The proof needs the least noise of all: the most room. But what is the same at the first input is apart further in,
    so an input that shows fewer directions than the first has lost some in rounding.
    """
    least = 0 if first is None else first.rank
    return 1 + max(
        range(len(further)), key=lambda i: (further[i].rank >= least, *further[i].room), default=-1
    )
