"""The search for one more sentence of an encoder's batch among the pairs that are left.

From a loud pair, the pairs tied to it by the attention's gradient (`pairs.Partners`) are most of its sentence; the rest
comes by descent (`checks`), with more effort the longer nothing is found.

Shapes: N pairs, T positions, K sentences.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textleak.exact.checks import Check, Exchange, LayerCheck, descend
from textleak.exact.context_check import ContextCheck
from textleak.exact.pairs import PairGradients, Pairs, Partners, pair_gradients
from textleak.exact.remainder import LayerRemainder
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.attention import FirstAttention

# A mean part outside below which a sentence is put to the proof (our choice; measured on minilm: 1e-13 to 1e-9 for
# true sentences, above 1e-3 for all others).
_SOLVED = 1e-6
# A part outside beyond which the network isn't run for a row that the cheap check was left with (our choice).
_HOPELESS = 0.2
# A pair has a vote where its own tie is above this part of the strongest one; the ties to it count for half of its own.
_HAS_A_VOTE, _OTHER_WAY = 0.15, 0.5
_MOST_VOTERS = 12
# Starts whose ends are compared before the most promising ones go on (our choice).
_HANDFUL = 6
# Starts that lead to no sentence until those found are proved: without these the others are found sooner (our choice;
# measured on minilm and bert-base).
_FAILED = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard starts are tried: rounds get harder as long as nothing is found (our choice).

    Attributes:
        starts: pairs tried as starts that lead to nothing, as a part of the inputs that are left.
        votes: rounds in which the pairs found so far say which others they are tied to.
        lengths: sentence lengths tried.
        options: tokens tried at a place, the likeliest ones.
        further: likewise, where the network is run.
        finished: of each handful of starts, how many the network is run for, the most promising ones.
        scored: times that a descent from a start scores other rows, at most; None for no limit (measured on minilm
            with Rotten Tomatoes: 36 of 37 that lead to sentences take 42 or fewer, and those that don't up to 127).
        all_lengths: whether lengths are still tried once one of them has led to a sentence.
    """

    starts: float
    votes: int
    lengths: int
    options: int
    further: int
    finished: int
    scored: int | None = None
    all_lengths: bool = False


EFFORTS = (
    Effort(starts=0.1, votes=0, lengths=3, options=8, further=12, finished=2, scored=48),
    Effort(starts=1.0, votes=2, lengths=4, options=12, further=12, finished=2, scored=96),
    Effort(starts=2.0, votes=3, lengths=12, options=24, further=48, finished=4, all_lengths=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _End:
    """Where a descent ended.

    Attributes:
        row: a pair at each position.
        outside: the mean part of its inputs that lies outside.
        ranked: the pairs at each position, likeliest first, that it went by.
    """

    row: list[int]
    outside: float
    ranked: list[list[int]]


class SentenceSearch:
    """The search for one more sentence among the pairs that are left."""

    def __init__(
        self,
        model: TextModel,
        pairs: Pairs,
        inputs: Sequence[LayerRemainder],
        attention: FirstAttention | None,
        ends: dict[Row, float],
        *,
        solved: float = _SOLVED,
        gradients: PairGradients | None = None,
    ) -> None:
        """Nothing is tried yet.

        Args:
            model: the public model.
            pairs: those that are left.
            inputs: what is left of the gradient at the first input, and at those further in.
            attention: the first one, where it was found.
            ends: where descents end is noted here, with their mean parts outside.
            solved: mean part outside below which a row is given out.
            gradients: the pairs'; None for the sparsest that make all that is left.
        """
        self.model, self.pairs, self.ends, self.solved = model, pairs, ends, solved
        first, *further = inputs
        assert first.span is not None
        self.rank = first.span.rank
        self.gradients = gradients or pair_gradients(pairs, first)
        self.partners: Partners | None = None
        self.context: Check | None = None
        shared = {layer.name for layer in first.layers}
        if attention is not None and shared & {attention.query.name, attention.key.name}:
            self.partners = Partners(model, attention, first, pairs, self.gradients)
            for left in further:
                span = left.span
                if span is None or not span.clear or span.rank < self.rank:
                    continue
                if left.layers[0].name == attention.output.name:
                    self.context = ContextCheck(model, attention, pairs, span)
        # What is the same at the first input is apart further in: fewer directions were lost in rounding.
        self.network = LayerCheck.of(model, pairs, further, least=self.rank)
        self.check: Check | None = self.context or self.network
        special = {*model.prefix_ids, *model.suffix_ids}
        # Where parts are embedded as such, a text's shape says where its separator is (`_cut`).
        parted = special - set(model.prefix_ids) if pairs.parts and not model.pairs else set()
        if model.pairs and model.parts is not None:
            special.add(model.parts.separator)
        if model.own_loss is not None and model.own_loss.pads:  # padding shows, and is no sentence's
            special.add(model.pad_id)
        tokens = pairs.tokens_N.tolist()
        self.inner = [
            [i for i in indices if tokens[i] not in special or tokens[i] in parted]
            for indices in pairs.by_position
        ]
        self.parted = {i for i, token in enumerate(tokens) if token in parted}
        self.seen: set[tuple[int, ...]] = set()
        self.known_ties: dict[int, Tensor] = {}
        self.solved_rows: dict[Row, list[int]] = {}  # found and not yet given out, as indices of pairs

    def starts(self) -> list[int]:
        """Pairs to start from, the loudest first."""
        inner = {i for indices in self.inner for i in indices}
        loudest = self.gradients.loudness_N.argsort(descending=True).tolist()
        return [i for i in loudest if i in inner and i not in self.parted]

    def rows(self, effort: Effort) -> Iterator[tuple[Row, ...]]:
        """Sentences that nothing found so far speaks against; none after a start that leads to none.

        Those found are kept, and so proved together, until a second start leads to none.
        """
        if self.check is None:
            return
        tokens = self.pairs.tokens_N
        left, failed = max(_HANDFUL, round(effort.starts * self.rank)), 0
        ended: list[_End] = []
        for start in filter(self._unsolved, self.starts()):
            ends = list(self._ends_of(start, effort))
            ended += ends
            more = {tuple(tokens[end.row].tolist()): end.row for end in ends if end.outside <= self.solved}
            self.solved_rows |= more
            if not more:
                failed += 1
                yield ()
            if failed == left:
                break
            if self._all_solved or failed >= (_FAILED if self.solved_rows else _HANDFUL):
                yield from self._tried(ended, effort)
                left -= failed
                failed = 0
                ended.clear()
        yield from self._tried(ended, effort)

    def _tried(self, ended: Sequence[_End], effort: Effort) -> Iterator[tuple[Row, ...]]:
        """The sentences that are kept; and where nothing proves those, what the most promising ends lead to."""
        if self.solved_rows:
            yield self.given_out()
        for row in self._finished(ended, effort):
            yield (tuple(self.pairs.tokens_N[row].tolist()),)
            yield ()

    def _unsolved(self, start: int) -> bool:
        """Whether no sentence that is kept holds a pair."""
        return not any(start in row for row in self.solved_rows.values())

    @property
    def _all_solved(self) -> bool:
        """Whether the sentences that are kept hold as many pairs as there are inputs left."""
        return len({i for row in self.solved_rows.values() for i in row}) >= self.rank

    def given_out(self) -> tuple[Row, ...]:
        """The sentences that are kept, which are kept no longer."""
        rows = tuple(self.solved_rows)
        self.solved_rows.clear()
        return rows

    def _ends_of(self, start: int, effort: Effort) -> Iterator[_End]:
        """Where descents from one start end; no others once one has led to a sentence, but for the last effort."""
        for end in self._ends(start, self._ranked(start, effort.votes), effort):
            yield end
            if end.outside <= self.solved and not effort.all_lengths:
                return

    def from_start(self, start: int, effort: Effort) -> Iterator[Row]:
        """Sentences that one start leads to and nothing speaks against."""
        if self.check is None:
            return
        for end in self._ends(start, self._ranked(start, effort.votes), effort):
            if end.outside <= self.solved:
                yield tuple(self.pairs.tokens_N[end.row].tolist())

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

    def _ends(self, start: int, ranked: list[list[int]], effort: Effort) -> Iterator[_End]:
        """Where descents from the likeliest tokens end, at several lengths."""
        assert self.check is not None
        place = int(self.pairs.positions_N[start])
        scored = sorted(self._scored(self._cut(ranked, place)))
        for _, row in scored[: effort.lengths]:
            options = self._options(row, ranked, effort.options)
            options[place] = []
            end, outside = descend(
                self.check,
                row,
                options,
                sweeps=8,
                solved_at=self.solved,
                exchanges=self._exchanges,
                most=effort.scored,
            )
            self._note(end, outside)
            yield _End(row=end, outside=outside, ranked=ranked)

    def _finished(self, ended: Sequence[_End], effort: Effort) -> Iterator[list[int]]:
        """The most promising ends, carried on with all tokens, then with the network itself as a check."""
        open_ = {tuple(end.row): end for end in ended if tuple(end.row) not in self.seen}
        promising = sorted(open_.values(), key=lambda end: end.outside)
        for start in promising[: effort.finished]:
            if start.outside > _HOPELESS:
                return
            self.seen.add(tuple(start.row))
            row, outside = list(start.row), start.outside
            for check, most in ((self.check, None), (self.network, effort.further)):
                if check is not None and outside > self.solved:
                    options = self._options(row, start.ranked, most)
                    row, outside = descend(
                        check, row, options, sweeps=4, solved_at=self.solved, exchanges=self._exchanges
                    )
            self._note(row, outside)
            if outside <= self.solved:
                yield row

    def _scored(self, rows: Iterator[list[int]]) -> Iterator[tuple[float, list[int]]]:
        """Rows with their mean parts outside; those of one length come one after the other, and are run together."""
        assert self.check is not None
        for _, some in itertools.groupby(rows, len):
            alike = list(some)
            yield from zip(self.check.outside(torch.tensor(alike)).mean(1).tolist(), alike, strict=True)

    def _cut(self, ranked: Sequence[Sequence[int]], place: int) -> Iterator[list[int]]:
        """The likeliest tokens as rows of every length at which a sentence with that place can end.

        Where parts are embedded as such, of every place too at which the first one can.
        """
        head, tail = self.model.prefix_ids, self.model.suffix_ids
        index, longest, second = self.pairs.index, self.pairs.longest, self.pairs.second
        first = [index.get((t, id_, False)) for t, id_ in enumerate(head)]
        by_part = [
            [next((i for i in options if second[i] == part), None) for options in ranked]
            for part in (False, True)
        ]
        for length in range(place + 1 + len(tail), longest + 1):
            inner, end = range(len(head), length - len(tail)), range(length - len(tail), length)
            for split in (None, *self._splits(inner, place, in_second=second[ranked[place][0]])):
                parted = split is not None
                last = [index.get((t, id_, parted)) for t, id_ in zip(end, tail, strict=True)]
                middle = [by_part[split is not None and t > split][t] for t in inner]
                if split is not None and self.model.parts is not None:
                    middle[split - len(head)] = index.get((split, self.model.parts.separator, False))
                row = [i for i in (*first, *middle, *last) if i is not None]
                if len(row) == length and row[place] == ranked[place][0]:
                    yield row

    def _splits(self, inner: Sequence[int], place: int, *, in_second: bool) -> Iterator[int]:
        """Where the first part of a text can end, with something before and behind it and one place in its part."""
        parts = self.model.parts if self.model.pairs else None
        if parts is None:
            return
        for t in inner[1:-1]:
            if (t < place if in_second else t > place) and (t, parts.separator, False) in self.pairs.index:
                yield t

    def _exchanges(self, row: Sequence[int]) -> list[Exchange]:
        """How two tokens of a row may change places, where they are pairs there too."""
        index, tokens = self.pairs.index, self.pairs.tokens_N[list(row)].tolist()
        second = [self.pairs.second[i] for i in row]
        head, end = len(self.model.prefix_ids), len(row) - len(self.model.suffix_ids)
        found = []
        for t, u in itertools.combinations([t for t in range(head, end) if not self._separates(row[t])], 2):
            one, other = index.get((t, tokens[u], second[t])), index.get((u, tokens[t], second[u]))
            if tokens[t] != tokens[u] and one is not None and other is not None:
                found.append(((t, one), (u, other)))
        return found

    def _options(
        self, row: Sequence[int], ranked: Sequence[Sequence[int]], most: int | None
    ) -> list[list[int]]:
        """What is tried at each place: of the part that the row has there."""
        head, tail, second = len(self.model.prefix_ids), len(self.model.suffix_ids), self.pairs.second
        return [
            [i for i in ranked[t] if second[i] == second[now]][:most]
            if head <= t < len(row) - tail and not self._separates(now)
            else []
            for t, now in enumerate(row)
        ]

    def _separates(self, pair: int) -> bool:
        """Whether a pair is what stands between the parts of a text."""
        parts = self.model.parts if self.model.pairs else None
        return parts is not None and int(self.pairs.tokens_N[pair]) == parts.separator

    def _note(self, row: Sequence[int], outside: float) -> None:
        tokens = tuple(self.pairs.tokens_N[list(row)].tolist())
        self.ends[tokens] = min(outside, self.ends.get(tokens, outside))


def has_parts(model: TextModel, pairs: Pairs, size: int | None) -> bool:
    """Whether what ends a sentence stands within one: at more places than there are sentences, or alone at one.

    Args:
        model: the public model.
        pairs: those that are left.
        size: how many sentences are left; None where that isn't known.
    """
    if not model.suffix_ids:
        return False
    tokens, last = pairs.tokens_N.tolist(), model.suffix_ids[-1]
    here = [{tokens[i] for i in indices} for indices in pairs.by_position]
    ends = sum(last in tokens_here for tokens_here in here)
    if ends == len(here):  # where they stand doesn't show at all
        return False
    inside = here[len(model.prefix_ids) : len(here) - len(model.suffix_ids)]
    return (size is not None and ends > size) or any(one <= {*model.suffix_ids} for one in inside)
