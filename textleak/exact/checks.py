"""How far a sentence is from being one of the batch: what its tokens' inputs further in have outside the spans.

Shapes: K sentences, T positions, L layers, N pairs, I a layer's input size, M places changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from textleak.exact.pairs import Pairs
from textleak.exact.remainder import LayerRemainder
from textleak.models import TextModel
from textleak.models.probes.layers import layer_inputs

# Layers whose inputs are checked (our choice: two tell about as much as four, in a third of the time).
_LAYERS = 2
# Tokens of all sentences that run through the first block at once.
_TOKENS_A_PASS = 2048
# Places at which other pairs are tried at once to begin with (our choice: a few take hardly longer than one).
_AHEAD = 4


Exchange = tuple[tuple[int, int], tuple[int, int]]
"""Two places, and the pair that each of them gets."""


class Check(Protocol):
    """Scores sentences of one length, given as indices of pairs, one a position.

    Attributes:
        ahead: places at which other pairs are tried at once, at most, as long as none of them is better.
    """

    ahead: ClassVar[int]

    def outside(self, rows_KT: Tensor) -> Tensor:
        """For each token the part of its input's squared norm that lies outside, (K, T)."""
        ...

    def changed(self, row: Sequence[int], places_KM: Tensor, pairs_KM: Tensor) -> Tensor:
        """The same, (K, T), of K sentences that each differ from a row at M places."""
        ...


class LayerCheck:
    """The inputs of some layers further in, by running the network as far as them."""

    ahead: ClassVar[int] = 1

    def __init__(self, model: TextModel, pairs: Pairs, bases: dict[str, Tensor]) -> None:
        """Keep, for each layer, the directions (R, I) of its span."""
        self.model, self.tokens_N, self.bases = model, pairs.tokens_N.to(model.device), bases

    @classmethod
    def of(
        cls, model: TextModel, pairs: Pairs, inputs: Sequence[LayerRemainder], *, least: int
    ) -> LayerCheck | None:
        """Of the first of some layers whose spans are clear; None where none is.

        Those with `least` directions, or where none has so many, those with the most.
        """
        spans = {
            left.layers[0].name: left.span for left in inputs if left.span is not None and left.span.clear
        }
        least = min(least, max((span.rank for span in spans.values()), default=0))
        bases = {
            name: span.basis_RI.to(model.device, model.dtype)
            for name, span in spans.items()
            if span.rank >= least
        }
        return cls(model, pairs, dict(itertools.islice(bases.items(), _LAYERS))) if bases else None

    def outside(self, rows_KT: Tensor) -> Tensor:
        """See `Check`; the mean over the layers."""
        ids_KT = self.tokens_N[rows_KT.to(self.tokens_N.device)]
        at_once = max(1, _TOKENS_A_PASS // ids_KT.shape[1])
        return parts_outside(self.model, ids_KT, self.bases, at_once=at_once).mean(0).clamp_min(0)

    def changed(self, row: Sequence[int], places_KM: Tensor, pairs_KM: Tensor) -> Tensor:
        """See `Check`."""
        return self.outside(torch.tensor(row).repeat(len(places_KM), 1).scatter_(1, places_KM, pairs_KM))


def parts_outside(model: TextModel, ids_KT: Tensor, bases: Mapping[str, Tensor], *, at_once: int) -> Tensor:
    """For each layer and token the part of its input's squared norm that lies outside, up to rounding: (L, K, T).

    Args:
        model: the public model.
        ids_KT: the sentences.
        bases: for each of L layers the directions (R, I) of its span.
        at_once: sentences that run through the network at once.
    """
    found = []
    for part_KT in torch.split(ids_KT, at_once):
        inputs = layer_inputs(model, part_KT, list(bases))
        parts = [
            1 - (x_KTI @ bases[name].T).square().sum(-1) / x_KTI.square().sum(-1)
            for name, x_KTI in inputs.items()
        ]
        found.append(torch.stack(parts))
    return torch.cat(found, 1)


class Descent:
    """Replaces one token after the other, the worst first, by what leaves the least outside; then exchanges two.

    Two tokens in each other's place hardly change what the attention mixes, and neither can be mended alone.

    Attributes:
        row: a pair at each position, as far as it got.
        outside: the mean part of its inputs that lies outside.
        over: whether it has ended.
    """

    def __init__(
        self,
        check: Check,
        row: Sequence[int],
        options: Sequence[Sequence[int]],
        *,
        sweeps: int,
        solved_at: float,
        exchanges: Callable[[Sequence[int]], list[Exchange]] | None = None,
        most: int | None = None,
    ) -> None:
        """Nothing is replaced yet.

        Args:
            check: scores sentences.
            row: pair indices to start from.
            options: for each position the pairs tried there; none where it is fixed.
            sweeps: rounds over all positions, at most.
            solved_at: mean part outside at which it is found.
            exchanges: how two tokens of a row may change places.
            most: times that other rows are scored, at most; None for no limit.
        """
        self._check, self._options, self._exchanges = check, options, exchanges
        self._sweeps, self._solved_at, self._most = sweeps, solved_at, most
        self.row = list(row)
        self._outside_T = check.outside(torch.tensor([self.row]))[0]
        self.outside = float(self._outside_T.mean())
        self.over = False
        self._scorings = self._scored()
        self.go_on(1)  # as far as the first time

    @property
    def solved(self) -> bool:
        """Whether it has found a sentence."""
        return self.outside <= self._solved_at

    def go_on(self, times: int | None = None) -> None:
        """Score other rows so many times, or until it ends."""
        for _ in itertools.islice(self._scorings, times):
            pass

    def _scored(self) -> Iterator[None]:
        """The descent, which halts each time before other rows are scored."""
        yield from self._swept()
        self.over = True

    def _swept(self) -> Iterator[None]:
        check, options, row = self._check, self._options, self.row
        asked = 0
        fine: set[int] = set()  # places at which nothing is better as long as the others stay as they are
        for _ in range(self._sweeps):
            before = list(row)
            worst = self._outside_T.argsort(descending=True).tolist()
            left = [t for t in worst if options[t] and t not in fine]
            ahead = min(_AHEAD, check.ahead)
            while left:
                if asked == self._most:
                    return
                asked += 1
                yield
                some = left[:ahead]
                tried = [(t, option) for t in some for option in options[t] if option != row[t]]
                better = _first_better(check, row, self.outside, tried)
                ahead = min(2 * ahead, check.ahead)
                left = left[len(some) :]
                if better is None:
                    fine.update(some)
                else:
                    (place, row[place]), self.outside, self._outside_T = better
                    left, fine = [*some[some.index(place) + 1 :], *left], {place}
                    ahead = min(_AHEAD, check.ahead)
                if self.solved:
                    return
            if row == before and self._exchanges is not None and (tried_both := self._exchanges(row)):
                yield
                if self._exchanged(tried_both):
                    fine = set()
            if row == before or self.solved:
                return

    def _exchanged(self, tried: Sequence[Exchange]) -> bool:
        """Whether the best of some exchanges is better than what is there, which it then replaces."""
        places_K2, pairs_K2 = torch.tensor(tried).unbind(2)
        outside_KT = self._check.changed(self.row, places_K2, pairs_K2)
        means_K = outside_KT.mean(1)
        k = int(means_K.argmin())
        if not float(means_K[k]) < self.outside:
            return False
        self.outside, self._outside_T = float(means_K[k]), outside_KT[k]
        for place, pair in tried[k]:
            self.row[place] = pair
        return True


def _first_better(
    check: Check, row: Sequence[int], best: float, tried: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], float, Tensor] | None:
    """The best pair at the first of some places where one is better than what is there: mean and parts outside.

    Args:
        check: scores sentences.
        row: what is there.
        best: its mean part outside.
        tried: places and pairs tried there, place by place.
    """
    if not tried:
        return None
    places_K1, pairs_K1 = torch.tensor(tried)[..., None].unbind(1)
    outside_KT = check.changed(row, places_K1, pairs_K1)
    means = outside_KT.mean(1).tolist()
    first = next((place for (place, _), mean in zip(tried, means, strict=True) if mean < best), None)
    if first is None:
        return None
    k = min((k for k, (place, _) in enumerate(tried) if place == first), key=means.__getitem__)
    return tried[k], means[k], outside_KT[k]
