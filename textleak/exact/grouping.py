"""Sentences of an encoder's batch, one by one: which of the tokens that the gradient shows stand together.

1. Pairs: every position and token whose first-layer input lies in the gradient's span (`pairs`).
2. From a loud pair, the pairs tied to it by the attention's gradient (`pairs.Partners`): most of its sentence.
3. The rest of the sentence by descent: the inputs further in must lie in their spans too (`checks`).
4. A sentence so found is proved to be in the batch, its label and how often it is there come out, and its gradient is
   taken off (`remainder`). What is left is a smaller batch: begin again, until nothing is left. Sentences that are too
   faint in places to be proved one by one are proved together, where they make all that is left.

Which sentence is found first doesn't matter, and each one found makes the others easier.

Shapes: N pairs, T positions, K sentences.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from textleak.events import Phase, Progress, Sentence
from textleak.exact.checks import Check, ContextCheck, LayerCheck, descend
from textleak.exact.found import OPEN, Found
from textleak.exact.pairs import Pairs, Partners, find_pairs, pair_gradients
from textleak.exact.remainder import LayerRemainder, Member, Remainder, batch_counts
from textleak.exact.subspace import InputSpan, layer_span, shared_spans
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.decoding import to_sentence
from textleak.models.probes.attention import FirstAttention, first_attention
from textleak.models.probes.layers import following_layers
from textleak.shared.gradient import SharedGradient

# Inputs further in that are asked: in a transformer the first block's other three, and the second block's.
_INPUTS = 4
# A mean part outside below which a sentence is put to the proof (our choice; measured on minilm: 1e-13 to 1e-9 for
# true sentences, above 1e-3 for all others).
_SOLVED = 1e-6
# A part outside beyond which the network isn't run for a row that the cheap check was left with (our choice).
_HOPELESS = 0.2
# A pair has a vote where its own tie is above this part of the strongest one; the ties to it count for half of its own.
_HAS_A_VOTE, _OTHER_WAY = 0.15, 0.5
_MOST_VOTERS = 12
# Sentences that are tried together for all that is left (our choice).
_TOGETHER = 8
# Part of the dimensions from which on a batch is said to fill them (our choice).
_FULL = 0.9
_NO_CHECK = (
    "No layer beyond the first ones has a gradient of its own among the shared ones (blocks that share their weights, "
    "as ALBERT's, sum theirs), so nothing tells which tokens stand together: one sentence at most can be read off."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Effort:
    """How hard starts are tried: rounds get harder as long as nothing is found (our choice).

    Attributes:
        starts: pairs tried as starts, as a part of the inputs that are left.
        votes: rounds in which the pairs found so far say which others they are tied to.
        lengths: sentence lengths tried.
        options: tokens tried at a place, the likeliest ones.
        further: likewise, where the network is run.
        finished: of each handful of starts, how many the network is run for, the most promising ones.
    """

    starts: float
    votes: int
    lengths: int
    options: int
    further: int
    finished: int


_EFFORTS = (
    _Effort(starts=0.1, votes=0, lengths=3, options=8, further=12, finished=2),
    _Effort(starts=1.0, votes=2, lengths=4, options=12, further=12, finished=2),
    _Effort(starts=2.0, votes=3, lengths=12, options=24, further=48, finished=4),
)
_HANDFUL = 6

_Batch = tuple[list[Row], list[int], int | None]
"""Sentences, each as often as the batch holds it, their labels, and the batch's size where that shows."""


def encoder_sentences(
    model: TextModel, shared: SharedGradient, *, time_limit: float | None = None
) -> Generator[Phase | Progress, None, Found]:
    """The sentences of an encoder's batch, exactly, as far as its gradients' spans tell them.

    Args:
        model: the public model, an encoder.
        shared: the shared gradient.
        time_limit: seconds after which the sentences found so far are returned; None for no limit.
    """
    yield Phase(name="span", detail="tokens whose layer inputs the gradient spans")
    spans = shared_spans(model, shared)
    if not spans:
        return Found(
            rows=(), notes=("No first layer's weight gradient was shared: there is no span to read.",)
        )
    layers, span = max(spans, key=lambda pair: pair[1].room)
    full = f"The batch fills {span.rank} of {span.size} dimensions of the first layers' input (n/D)"
    if shared.noise_sigma > 0:
        return Found(rows=(), notes=("Noise covers the span of the first layers' inputs.",))
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
    yield Phase(name="grouping", detail="which of these tokens stand in one sentence")
    grouping = _Grouping(model, shared, LayerRemainder.of(shared, layers, span), pairs, time_limit)
    yield from grouping.run()
    return grouping.found(notes)


class _Grouping:
    """One run: what was found so far, and what is left."""

    def __init__(
        self,
        model: TextModel,
        shared: SharedGradient,
        first: LayerRemainder,
        pairs: Pairs,
        time_limit: float | None,
    ) -> None:
        self.model, self.shared, self.pairs, self.every_pair = model, shared, pairs, pairs
        self.notes: list[str] = []
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        further = [
            (shared_ones, span)
            for layers in following_layers(model, _INPUTS)
            if (shared_ones := tuple(layer for layer in layers if layer.weight_name in shared.gradients))
            and (span := layer_span(shared, shared_ones)) is not None
        ]
        if not further:
            self.notes.append(_NO_CHECK)
        inputs = (first, *(LayerRemainder.of(shared, layers, span) for layers, span in further))
        self.left = Remainder.of(model, inputs, judge=_judge([span for _, span in further], first.span))
        self.members: list[Member] = []
        self.batch: _Batch = ([], [], None)
        self.attention: FirstAttention | None = None
        self.tries = 0
        self.ends: dict[Row, float] = {}  # where descents ended, with their mean parts outside

    # The loop

    def run(self) -> Iterator[Progress]:
        """Find one sentence after the other."""
        if self.model.num_labels is None:  # what the loss asks for is hidden, so nothing can be proved here
            return
        while self._unexplained is not None and self._time():
            found = yield from self._next()
            if not found:
                return
            yield self._progress()

    def _next(self) -> Generator[Progress, None, bool]:
        """Whether there was one more sentence of the batch, or all the rest of it: proved and taken off."""
        only = self._only()
        if only is not None:
            if self._proved(only):
                return True
            self.ends[only] = 0.0
        search = _Search(self)
        for effort in _EFFORTS:
            for row in search.rows(effort):
                if row is not None and self._proved(row):
                    return True
                if not self._time():
                    break
                self.tries += 1
                yield self._progress()
            if self._proved_together():
                return True
            if not self._time():
                break
        return False

    @property
    def _unexplained(self) -> InputSpan | None:
        """The span of what is left; None where that is rounding, however much more than foreseen.

        So it is where the sentences found are all of the batch, or no token makes it.
        """
        rows, _, size = self.batch
        return self.left.inputs[0].span if len(self.pairs) and len(rows) != size else None

    def _only(self) -> Row | None:
        """The only sentence that the pairs leave: one at each position."""
        by_position = self.pairs.by_position
        if by_position and all(len(pairs) == 1 for pairs in by_position):
            return tuple(self.pairs.tokens_N.tolist())
        return None

    def _proved(self, row: Row) -> bool:
        """Whether the sentence is in the batch; it is taken off if so."""
        found = self.left.member(row, self.members, self.shared.known.batch_size)
        if found is None:
            return False
        member, left = found
        self._take_off([member], left)
        return True

    def _proved_together(self) -> bool:
        """Whether some of the likeliest sentences make all that is left; they are taken off if so."""
        likeliest = sorted(self.ends, key=self.ends.__getitem__)[:_TOGETHER]
        found = (
            self.left.members(likeliest, self.members, self.shared.known.batch_size) if likeliest else None
        )
        if found is not None:
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
        self.batch = self._batch()

    def _time(self) -> bool:
        return self.deadline is None or time.monotonic() < self.deadline

    # What it shows

    def found(self, notes: Sequence[str]) -> Found:
        """What is known at the end."""
        rows, classes, size = self.batch
        if self.model.num_labels is None and (only := self._only()) is not None:
            hidden = self.model.mask_id if self.model.task == "masked-lm" else None
            rows = [tuple(OPEN if token == hidden else token for token in only)]
            notes = (*notes, "What stands behind the masks is a label, which no span shows.")
        notes = (*notes, *self.notes)
        left = self._unexplained
        if left is not None and self.model.num_labels is not None:
            known = "" if size is None else f" and {size - len(rows)} of {size} sentences"
            notes = (*notes, f"{left.rank} of the inputs that the gradient shows{known} were not found.")
            notes = (*notes, *self._full())
        elif left is None and size is not None and len(rows) < size:
            notes = (*notes, f"{size - len(rows)} of {size} sentences leave no gradient beyond rounding.")
        return Found(
            rows=tuple(rows),
            classes=tuple(classes),
            batch_size=size,
            complete=left is None and len(rows) == size,
            channel="span",
            sets=self._sets() if left is not None else (),
            notes=tuple(notes),
        )

    def _full(self) -> tuple[str, ...]:
        """Whether the batch is too large for the inputs that tell its sentences apart."""
        span = self.left.inputs[self.left.judge].span
        if span is None or span.rank <= _FULL * span.size:
            return ()
        return (
            f"Further in, the batch fills {span.rank} of {span.size} dimensions (n/D): "
            "hardly anything tells its sentences apart.",
        )

    def _batch(self) -> _Batch:
        """All sentences, each as often as the batch holds it, their labels, and the batch's size where that shows."""
        rows, classes = [], []
        size = self.shared.known.batch_size
        counted = batch_counts(self.members, batch_size=size) if self.members else None
        if counted is None and self.members and self._unexplained is None:
            # Nothing is missing, so the parts add up to 1, unless the client scaled its gradient.
            scale = sum(sum(member.parts) for member in self.members)
            unscaled = [
                dataclasses.replace(member, parts=tuple(part / scale for part in member.parts))
                for member in self.members
            ]
            counted = batch_counts(unscaled, batch_size=size)
        if counted is None:  # the proportions fit no batch: each one once, with its likeliest label
            for member in self.members:
                rows.append(member.row)
                classes.append(max(range(len(member.parts)), key=member.parts.__getitem__))
            return rows, classes, None
        size, counts = counted
        for member, by_class in zip(self.members, counts, strict=True):
            for label, count in enumerate(by_class):
                rows += [member.row] * count
                classes += [label] * count
        return rows, classes, size

    def _sets(self) -> tuple[tuple[int, ...], ...]:
        tokens = self.pairs.tokens_N.tolist()
        return tuple(tuple(tokens[i] for i in indices) for indices in self.pairs.by_position)

    def _progress(self) -> Progress:
        rows, classes, _ = self.batch
        sentences: list[Sentence] = [
            to_sentence(
                self.model,
                row,
                confidence=[1.0] * len(row),
                channels=["span"] * len(row),
                label=label,
            )
            for row, label in zip(rows, classes, strict=True)
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


class _Search:
    """The search for one more sentence among the pairs that are left."""

    def __init__(self, grouping: _Grouping) -> None:
        self.grouping, self.model, self.pairs = grouping, grouping.model, grouping.pairs
        first, *further = grouping.left.inputs
        assert first.span is not None
        self.rank = first.span.rank
        self.gradients = pair_gradients(self.pairs, first)
        self.partners: Partners | None = None
        self.context: Check | None = None
        if grouping.attention is None:
            grouping.attention = first_attention(self.model)
        attention = grouping.attention
        shared = {layer.name for layer in first.layers}
        if attention is not None and shared & {attention.query.name, attention.key.name}:
            self.partners = Partners(self.model, attention, first, self.pairs, self.gradients)
            for left in further:
                span = left.span
                if span is None or not span.clear or span.rank < self.rank:
                    continue
                if left.layers[0].name == attention.output.name:
                    self.context = ContextCheck(self.model, attention, self.pairs, span)
        # What is the same at the first input is apart further in: fewer directions were lost in rounding.
        self.network = LayerCheck.of(self.model, self.pairs, further, least=self.rank)
        self.check: Check | None = self.context or self.network
        head, tail = self.model.prefix_ids, self.model.suffix_ids
        special = {*head, *tail}
        tokens = self.pairs.tokens_N.tolist()
        self.inner = [[i for i in indices if tokens[i] not in special] for indices in self.pairs.by_position]
        self.seen: set[tuple[int, ...]] = set()
        self.known_ties: dict[int, Tensor] = {}

    def starts(self) -> list[int]:
        """Pairs to start from, the loudest first."""
        inner = {i for indices in self.inner for i in indices}
        return [i for i in self.gradients.loudness_N.argsort(descending=True).tolist() if i in inner]

    def rows(self, effort: _Effort) -> Iterator[Row | None]:
        """Sentences that nothing found so far speaks against; None after every start, found or not."""
        if self.check is None:
            return
        tokens = self.pairs.tokens_N
        starts = iter(self.starts()[: max(_HANDFUL, round(effort.starts * self.rank))])
        while handful := list(itertools.islice(starts, _HANDFUL)):
            ends: list[tuple[float, list[int], list[list[int]]]] = []
            for start in handful:
                ranked = self._ranked(start, effort.votes)
                for outside, row in self._ends(start, ranked, effort):
                    if outside <= _SOLVED:
                        yield tuple(tokens[row].tolist())
                    ends.append((outside, row, ranked))
                yield None
            for row in self._finished(ends, effort):
                yield tuple(tokens[row].tolist())
                yield None

    def _ranked(self, start: int, votes: int) -> list[list[int]]:
        """The pairs at each position, those first that are tied most strongly to one of them."""
        place = int(self.pairs.positions_N[start])
        tied_N = self._ties(start)
        for _ in range(votes if self.partners is not None else 0):
            strength = tied_N.tolist()
            likeliest = [max(indices, key=strength.__getitem__) for indices in self.inner if indices]
            likeliest = [i for i in likeliest if i != start and self.pairs.positions_N[i] != place]
            strongest = max((strength[i] for i in likeliest), default=0.0)
            voters = sorted(likeliest, key=lambda i: -strength[i])[:_MOST_VOTERS]
            tied_N = self._ties(start)
            for voter in voters:
                weight = strength[voter] / strongest if strongest > 0 else 0.0
                if weight > _HAS_A_VOTE:
                    tied_N = tied_N + weight * self._ties(voter)
                    tied_N[voter] += _OTHER_WAY * weight
        # Pairs that nothing ties to the start come last, the loudest of them first.
        floor_N = 1e-9 * self.gradients.loudness_N / self.gradients.loudness_N.max()
        strength = (tied_N + floor_N).tolist()
        ranked = [sorted(indices, key=lambda i: -strength[i]) for indices in self.inner]
        ranked[place] = [start]
        return ranked

    def _ties(self, pair: int) -> Tensor:
        """How strongly each pair is tied to one, 0 to 1; without the attention's gradient how loud it is."""
        if pair not in self.known_ties:
            tied_N = (
                self.partners.of(pair) if self.partners is not None else self.gradients.loudness_N.clone()
            )
            tied_N[pair] = 0
            self.known_ties[pair] = tied_N / tied_N.max().clamp_min(torch.finfo(tied_N.dtype).tiny)
        return self.known_ties[pair]

    def _ends(
        self, start: int, ranked: list[list[int]], effort: _Effort
    ) -> Iterator[tuple[float, list[int]]]:
        """Where descents from the likeliest tokens end, at several lengths, with the part outside."""
        assert self.check is not None
        place = int(self.pairs.positions_N[start])
        rows = self._cut(ranked, place)
        scored = sorted((float(self.check.outside(torch.tensor([row])).mean()), row) for row in rows)
        for _, row in scored[: effort.lengths]:
            options = self._options(row, ranked, effort.options)
            options[place] = []
            end, outside = descend(
                self.check, row, options, sweeps=8, solved_at=_SOLVED, exchanges=self._exchanges
            )
            self._note(end, outside)
            yield outside, end

    def _finished(
        self, ends: list[tuple[float, list[int], list[list[int]]]], effort: _Effort
    ) -> Iterator[list[int]]:
        """The most promising ends, carried on with all tokens, then with the network itself as a check."""
        open_ = {
            tuple(row): (outside, ranked) for outside, row, ranked in ends if tuple(row) not in self.seen
        }
        promising = sorted(open_, key=lambda row: open_[row][0])
        for row in promising[: effort.finished]:
            outside, ranked = open_[row]
            if outside > _HOPELESS:
                return
            self.seen.add(row)
            end = list(row)
            for check, most in ((self.check, None), (self.network, effort.further)):
                if check is not None and outside > _SOLVED:
                    options = self._options(end, ranked, most)
                    end, outside = descend(
                        check, end, options, sweeps=4, solved_at=_SOLVED, exchanges=self._exchanges
                    )
            self._note(end, outside)
            if outside <= _SOLVED:
                yield end

    def _cut(self, ranked: Sequence[Sequence[int]], place: int) -> Iterator[list[int]]:
        """The likeliest tokens as rows of every length at which a sentence with that place can end."""
        head, tail = self.model.prefix_ids, self.model.suffix_ids
        index, longest = self.pairs.index, self.pairs.longest
        first = [index.get((t, id_)) for t, id_ in enumerate(head)]
        for length in range(place + 1 + len(tail), longest + 1):
            last = [index.get((length - len(tail) + i, id_)) for i, id_ in enumerate(tail)]
            inner = ranked[len(head) : length - len(tail)]
            if None in first or None in last or not all(inner):
                continue
            yield [i for i in (*first, *(options[0] for options in inner), *last) if i is not None]

    def _exchanges(self, row: Sequence[int]) -> list[list[int]]:
        """The row with two of its tokens in each other's place, where those are pairs too."""
        index, tokens = self.pairs.index, self.pairs.tokens_N[list(row)].tolist()
        head, end = len(self.model.prefix_ids), len(row) - len(self.model.suffix_ids)
        found = []
        for t, u in itertools.combinations(range(head, end), 2):
            one, other = index.get((t, tokens[u])), index.get((u, tokens[t]))
            if tokens[t] != tokens[u] and one is not None and other is not None:
                changed = list(row)
                changed[t], changed[u] = one, other
                found.append(changed)
        return found

    def _options(
        self, row: Sequence[int], ranked: Sequence[Sequence[int]], most: int | None
    ) -> list[list[int]]:
        head, tail = len(self.model.prefix_ids), len(self.model.suffix_ids)
        return [list(ranked[t][:most]) if head <= t < len(row) - tail else [] for t in range(len(row))]

    def _note(self, row: Sequence[int], outside: float) -> None:
        ends, tokens = self.grouping.ends, tuple(self.pairs.tokens_N[list(row)].tolist())
        ends[tokens] = min(outside, ends.get(tokens, outside))
