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

from textleak.exact.checks import Check, Descent, Exchange, LayerCheck
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
# Times that a descent scores other rows before the next one begins, and before the lowest of all goes on (our choice).
_AT_FIRST, _AT_A_TIME = 8, 8
# Such times that descents go on in vain before the sentences found are proved, which takes longer (our choice).
_SOON = 4


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


@dataclasses.dataclass(kw_only=True, eq=False)
class _Try:
    """A descent from a start.

    Attributes:
        start: the pair.
        descent: how far it got.
        ranked: the pairs at each position, likeliest first, that it goes by.
        all_tokens: whether all of them are tried by now.
    """

    start: int
    descent: Descent
    ranked: list[list[int]]
    all_tokens: bool = False


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
        left, failed = max(_HANDFUL, round(effort.starts * self.rank)), 0
        since = 0  # starts that failed since the last sentence was found
        tries: list[_Try] = []
        for start in filter(self._unsolved, self.starts()):
            solved = False
            for one in self._tries(start, effort):
                one.descent.go_on(_AT_FIRST)
                self._see(one)
                tries.append(one)
                solved = solved or one.descent.solved
                if solved and not effort.all_lengths:
                    break
            since = 0 if solved else since + 1
            if not solved:
                failed += 1
                yield ()
            if failed == left:
                break
            if self._all_solved or since >= (_FAILED if self.solved_rows else _HANDFUL):
                yield from self._raced(tries, effort)
                left -= failed
                failed = since = 0
                tries.clear()
        yield from self._raced(tries, effort)

    def _raced(self, tries: Sequence[_Try], effort: Effort) -> Iterator[tuple[Row, ...]]:
        """What descents lead to, the lowest one first; sentences are given out when others don't follow soon."""
        wider, since = effort.finished, 0
        while True:
            going = [one for one in tries if not one.descent.over or (wider and self._may_widen(one))]
            going = [one for one in going if self._unsolved(one.start)]
            if self.solved_rows and (not going or since == _SOON or self._all_solved):
                since = 0
                yield self.given_out()
                continue  # nothing proved them
            if not going:
                break
            one = min(going, key=lambda one: one.descent.outside)
            if one.descent.over:
                self._widen(one)
                wider -= 1
            one.descent.go_on(_AT_A_TIME)
            self._see(one)
            since = 0 if one.descent.solved else since + 1
            yield ()
        for row in self._finished(tries, effort):
            yield (self._tokens(row),)
            yield ()

    def _see(self, one: _Try) -> None:
        """Keep the sentence that a descent has found, and note where it has ended."""
        descent = one.descent
        if descent.over:
            self._note(descent.row, descent.outside)
        if descent.solved:
            self.solved_rows[self._tokens(descent.row)] = list(descent.row)

    def _tokens(self, row: Sequence[int]) -> Row:
        return tuple(self.pairs.tokens_N[list(row)].tolist())

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

    def from_start(self, start: int, effort: Effort) -> Iterator[Row]:
        """Sentences that one start leads to and nothing speaks against."""
        if self.check is None:
            return
        for one in self._tries(start, effort):
            one.descent.go_on()
            self._note(one.descent.row, one.descent.outside)
            if one.descent.solved:
                yield self._tokens(one.descent.row)

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

    def _tries(self, start: int, effort: Effort) -> Iterator[_Try]:
        """Descents from the likeliest tokens, at several lengths."""
        assert self.check is not None
        place, ranked = int(self.pairs.positions_N[start]), self._ranked(start, effort.votes)
        scored = sorted(self._scored(self._cut(ranked, place)))
        for _, row in scored[: effort.lengths]:
            options = self._options(row, ranked, effort.options)
            options[place] = []
            descent = self._descent(self.check, row, options, sweeps=8, most=effort.scored)
            yield _Try(start=start, descent=descent, ranked=ranked)

    def _descent(
        self,
        check: Check,
        row: Sequence[int],
        options: list[list[int]],
        *,
        sweeps: int,
        most: int | None = None,
    ) -> Descent:
        return Descent(
            check, row, options, sweeps=sweeps, solved_at=self.solved, exchanges=self._exchanges, most=most
        )

    def _may_widen(self, one: _Try) -> bool:
        """Whether a descent that has ended is near enough to go on with all tokens, and no other one did from there."""
        near = self.solved < one.descent.outside <= _HOPELESS
        return near and not one.all_tokens and tuple(one.descent.row) not in self.seen

    def _widen(self, one: _Try) -> None:
        """Have a descent go on with all tokens."""
        assert self.check is not None
        row = one.descent.row
        self.seen.add(tuple(row))
        options = self._options(row, one.ranked, None)
        one.descent, one.all_tokens = self._descent(self.check, row, options, sweeps=4), True

    def _finished(self, tries: Sequence[_Try], effort: Effort) -> Iterator[list[int]]:
        """The most promising ends, carried on with all tokens, then with the network itself as a check."""
        promising = sorted(
            (one for one in tries if one.all_tokens or self._may_widen(one)),
            key=lambda one: one.descent.outside,
        )
        for one in promising[: effort.finished]:
            if one.descent.outside > _HOPELESS:
                return
            if not one.all_tokens:
                self._widen(one)
            one.descent.go_on()
            if self.network is not None and not one.descent.solved:
                row = one.descent.row
                options = self._options(row, one.ranked, effort.further)
                one.descent = self._descent(self.network, row, options, sweeps=4)
                one.descent.go_on()
            self._note(one.descent.row, one.descent.outside)
            if one.descent.solved:
                yield one.descent.row

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
