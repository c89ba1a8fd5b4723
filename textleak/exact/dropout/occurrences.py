"""Which tokens stand where although entries of the first layers' inputs are dropped (our choice).

A token is tested by looking for a vector of the span that equals its input in most entries and is 0 in all others
(`fits`); whether that proves it is judged by `evidence`. A token that stands at a place of several sentences has a
vector for each of its masks; other starts find one after the other.

Shapes: C tokens, N fits, I the layer's input size, R rank of the span.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textleak.clients.view import Clock
from textleak.exact.dropout.evidence import Court, Evidence
from textleak.exact.dropout.fits import SparseFits
from textleak.exact.dropout.frame import Frame
from textleak.models.decoding import fixed_tokens
from textleak.shared.known import SideInformation

# Tokens kept at a place, those whose input lies most in the span (our choice; measured on minilm: true ones are among
# the first 24 for one sentence, 68 for eight), and how many of them are tried at once.
_LISTED, _AT_ONCE = 256, 16
# Part of the entries that two masks of one token differ in where noise makes one vector's of both (our choice: masks of
# a rate of 0.1 differ in 0.18).
_ALIKE = 0.05
# Places without any token after which no sentence is taken to be longer (our choice).
_EMPTY = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Effort:
    """How hard a round tries: rounds get harder as long as inputs are missing (our choice).

    Attributes:
        depth: tokens tried at a place from the plain start.
        starts: other starts of a token.
        others: tokens not found at a place yet that get them: those that their best fit explains best.
    """

    depth: int
    starts: int
    others: int


_EFFORTS = (
    _Effort(depth=64, starts=8, others=2),
    _Effort(depth=128, starts=32, others=4),
    _Effort(depth=_LISTED, starts=64, others=4),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Occurrence:
    """A token that stands at a position of one sentence, with what the network read there.

    Attributes:
        position, token: where, and which; of a text's second part as id + V (`TextModel.marked`).
        input_I: the layer's input with its mask, float64.
        kept_I: the mask.
        agreeing: entries that equal the token's own.
        dropped: entries that are 0.
        chance: logarithm of a bound on the chance that any wrong token would have fitted so well.
        proved: whether it is the token; False where another one fits nearly as well.
    """

    position: int
    token: int
    input_I: Tensor
    kept_I: Tensor
    agreeing: int
    dropped: int
    chance: float
    proved: bool


@dataclasses.dataclass(kw_only=True, eq=False)
class Place:
    """What could stand at a position.

    Attributes:
        position: where.
        tokens: which, likeliest first.
        targets_CI: what entries of each are where they aren't dropped, in scales.
        promise_C: part of the entries that each one's best fit explains; below 0 where it wasn't tried.
        open: whether it may be in a sentence that isn't found yet.
    """

    position: int
    tokens: list[int]
    targets_CI: Tensor
    promise_C: Tensor

    @property
    def best(self) -> int:
        """The token that stands there most likely, as far as fits tell."""
        return self.tokens[int(self.promise_C.argmax())]


class Occurrences:
    """The search for the inputs of a batch: as many as the span has dimensions.

    Attributes:
        found: those found so far.
        places: positions looked at.
        parted: whether what ends a sentence may stand within one too, between its parts.
    """

    def __init__(
        self, frame: Frame, known: SideInformation, clock: Clock, *, ends_early: bool = False
    ) -> None:
        """Nothing is found yet.

        Args:
            frame: what is compared.
            known: what the server was told of the batch.
            clock: when to end.
            ends_early: whether a sentence's last token leaves nothing in the gradient, as in a causal language model.
        """
        self.frame, self.model, self.known, self.clock = frame, frame.model, known, clock
        self.ends_early = ends_early
        self.fits = SparseFits(frame.columns_IK, moving=frame.moving)
        self.court = Court(frame, self.fits)
        self.inside = frame.inside(self.fits.basis_IK)
        self.generator = torch.Generator().manual_seed(0)
        suffix = self.model.suffix_ids
        # What ends a text of two parts is in the second one, and in the first one something that may not.
        self.suffix_ids = (
            [*suffix, *(id_ + self.model.vocab_size for id_ in suffix)] if self.model.pairs else suffix
        )
        self.parted = False
        self.found: list[Occurrence] = []
        self.places: list[Place] = []

    @property
    def complete(self) -> bool:
        """Whether every input that the gradient shows is one of those found; of one sentence's steps, one a place."""
        if self.frame.moving and self.known.lengths is not None:
            return len(self.found) == sum(self.known.lengths) - self.ends_early
        return len(self.found) == self.frame.span.rank

    def first_looks(self) -> Iterator[str]:
        """The likeliest tokens at every position that a sentence reaches; a line of words after each."""
        lengths, rank = self.known.lengths, self.frame.span.rank
        count = min(max(lengths) - self.ends_early if lengths else rank, rank)
        empty = 0
        for position in range(min(count, self.model.max_length)):
            place = self._listed(position)
            self.places.append(place)
            self._try(place, range(min(_AT_ONCE, len(place.tokens))))
            yield self.words
            empty = 0 if self.here(position) else empty + 1
            if self._over() or (empty == _EMPTY and lengths is None):
                return

    def further(self) -> Iterator[str]:
        """More tokens, and other starts, at the positions looked at; a line of words after every step."""
        if self.frame.moving and not self.found:
            return  # an optimizer's steps leave no such vectors
        depth = _AT_ONCE
        for effort in _EFFORTS:
            for start in range(depth, effort.depth, _AT_ONCE):
                for place in self.places:
                    self._try(place, range(start, min(start + _AT_ONCE, len(place.tokens))))
                    if self._over():
                        return
                yield self.words
            depth = effort.depth
            yield from self._restarted(effort)

    def ends_in_second(self) -> bool:
        """Whether what ends a text of two parts is proved to stand at a position; no other token is looked for."""
        end = torch.tensor(self.suffix_ids[-1:], device=self.model.device)
        longest = max(self.known.lengths) if self.known.lengths else self.frame.span.rank
        for position in range(min(longest, self.frame.span.rank, self.model.max_length)):
            place = self._place(position, end)
            self.places.append(place)
            self._try(place, [0])
            if self.found or self.clock.over:
                break
        return bool(self.found)

    @property
    def words(self) -> str:
        """How far it got."""
        return f"{len(self.found)} of {self.frame.span.rank} inputs explained"

    def _over(self) -> bool:
        return self.complete or self.clock.over

    def reaching(self, position: int) -> int | None:
        """How many sentences reach a position, at most; None where that isn't known."""
        if self.known.lengths is not None:
            return sum(length - self.ends_early > position for length in self.known.lengths)
        if self.known.batch_size is None:
            return None
        if self.parted:
            return self.known.batch_size
        ended = sum(o.position < position and o.token in self.suffix_ids[-1:] for o in self.found)
        return self.known.batch_size - ended

    def here(self, position: int) -> list[Occurrence]:
        """What was found at a position."""
        return [o for o in self.found if o.position == position]

    # Candidates

    def _listed(self, position: int) -> Place:
        """The tokens whose input lies mostly in the span, most first."""
        ids_C = self._fixed(position)
        if ids_C is None:
            ids_C = torch.arange(self.model.marks, device=self.model.device)
            if self.inside is not None:
                inside_V = self.inside(position)
                ids_C = inside_V.topk(min(2 * _LISTED, len(inside_V))).indices
        return self._place(position, ids_C)

    def _place(self, position: int, ids_C: Tensor) -> Place:
        """Some tokens there, those first whose input lies most in the span."""
        targets_CI = self.frame.targets(ids_C, position)
        inside_C = (targets_CI @ self.fits.basis_IK).square().sum(1) / targets_CI.square().sum(1)
        order_C = inside_C.argsort(descending=True)[:_LISTED]
        return Place(
            position=position,
            tokens=ids_C.cpu()[order_C].tolist(),
            targets_CI=targets_CI[order_C],
            promise_C=torch.full((len(order_C),), -1.0),
        )

    def _fixed(self, position: int) -> Tensor | None:
        """The tokens that the tokenizer puts there in every sentence that reaches it; None where text stands there."""
        reaching = [length for length in self.known.lengths or () if length > position]
        here = {fixed_tokens(self.model, length).get(position) for length in reaching}
        if position < len(self.model.prefix_ids):
            here = {self.model.prefix_ids[position]}
        if not here or None in here:
            return None
        fixed = sorted(token for token in here if token is not None)
        if self.model.pairs and position >= len(self.model.prefix_ids):
            fixed += [token + self.model.vocab_size for token in fixed]
        return torch.tensor(fixed, device=self.model.device)

    def _open(self, position: int) -> bool:
        """Whether a sentence that isn't found yet may have a token there."""
        most = self.reaching(position)
        return most is None or len(self.here(position)) < most

    def _restarted(self, effort: _Effort) -> Iterator[str]:
        """Other starts while they find anything: of what may be in another sentence too, then of what isn't found."""
        before = -1
        while before < len(self.found):
            before = len(self.found)
            yield from self._again(self._repeated(), effort.starts)
            if len(self.found) == before:
                yield from self._again(self._new(effort.others), effort.starts)
            if self._over():
                return

    def _again(self, candidates: Sequence[tuple[Place, int]], starts: int) -> Iterator[str]:
        for place, index in candidates:
            if self._over():
                return
            if self._open(place.position):
                self._try(place, [index] * starts, again=True)
                yield self.words

    def _repeated(self) -> list[tuple[Place, int]]:
        """Tokens found that may stand there in another sentence too, first those that the tokenizer puts there."""
        if self.known.batch_size == 1:
            return []
        special = {*self.model.prefix_ids, *self.suffix_ids}
        found = [
            (place, place.tokens.index(token))
            for place in self.places
            for token in dict.fromkeys(o.token for o in self.here(place.position))
        ]
        return sorted(found, key=lambda pair: pair[0].tokens[pair[1]] not in special)

    def _new(self, count: int) -> list[tuple[Place, int]]:
        """Tokens not found at a place yet: so many that fits explain best, and so many whose input lies most inside."""
        chosen: dict[tuple[int, int], tuple[Place, int]] = {}
        for place in self.places:
            known = {o.token for o in self.here(place.position)}
            by_promise = place.promise_C.argsort(descending=True).tolist()
            for order in (by_promise, range(len(place.tokens))):
                for index in [i for i in order if place.tokens[i] not in known][:count]:
                    chosen[place.position, index] = (place, index)
        return list(chosen.values())

    # Fits

    def _try(self, place: Place, chosen: Sequence[int], *, again: bool = False) -> None:
        """Fit tokens, each from the plain start or from a random one, and keep those that are proved."""
        if not len(chosen) or not self._open(place.position):
            return
        targets_NI = place.targets_CI[list(chosen)]
        if again:
            kept_NI = torch.stack([self._kept(place, index) for index in chosen])
            fit = self.fits.again(targets_NI, kept_NI, self.generator)
        else:
            fit = self.fits.plain(targets_NI)
        explained_N = (fit.agrees_NI | fit.zero_NI).float().mean(1)
        for index, explained in zip(chosen, explained_N.tolist(), strict=True):
            place.promise_C[index] = max(float(place.promise_C[index]), explained)
        for n, evidence in self.court.whole(fit, targets_NI):
            if self._open(place.position):
                self._judge(place, chosen[n], evidence)

    def _kept(self, place: Place, index: int) -> Tensor:
        """The entries that no occurrence of the token found there has dropped."""
        kept_I = torch.ones(place.targets_CI.shape[1], dtype=torch.bool)
        for o in self.here(place.position):
            if o.token == place.tokens[index]:
                kept_I &= o.kept_I
        return kept_I

    def _judge(self, place: Place, index: int, evidence: Evidence) -> None:
        """Keep a token whose fit is no accident, unless it was found with the same mask before."""
        position, token = place.position, place.tokens[index]
        if not self.court.proves(evidence, places=len(self.places)):
            return
        apart = _ALIKE if self.frame.moving else 0.0
        if any(evidence.differs(o.kept_I) <= apart for o in self.here(position)):
            return
        alike = {
            (other.position, other.tokens[twin])
            for other in self.places
            for twin in evidence.twins(other.targets_CI).nonzero().flatten().tolist()
        }
        self.found.append(
            Occurrence(
                position=position,
                token=token,
                input_I=self.frame.dropped.read(token, position, evidence.kept_I),
                kept_I=evidence.kept_I,
                agreeing=evidence.agreeing,
                dropped=evidence.dropped,
                chance=evidence.chance(
                    columns=len(self.fits.turn_KK), tokens=self.model.marks * len(self.places)
                ),
                proved=alike <= {(position, token)},
            )
        )
