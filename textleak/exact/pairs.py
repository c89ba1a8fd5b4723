"""Which tokens stand where in a batch, as the first layers' gradients tell it (Petrov et al. 2024; rest our choice).

Every (position, token) pair whose input lies in the span is a candidate. With many sentences there are false ones: the
inputs are norms of sums, so where tokens and positions are linked by enough true pairs, sums and differences of true
inputs make others exactly. Which of them are true is not decided here; `loudness` says which are likely, and
`partners` which of them stand in one sentence with a given one.

Where texts may be of two parts, a token in a second one is another input than in the first: another pair.

Shapes: N pairs, T positions, V vocabulary, R rank, I and O a layer's input and output size, H heads, A a head's size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from textleak.exact.remainder import LayerRemainder
from textleak.exact.subspace import InputSpan
from textleak.exact.vocabulary import Vocabulary
from textleak.models import TextModel
from textleak.models.probes.attention import FirstAttention, project
from textleak.models.probes.layers import LocalLayer
from textleak.numerics import exact

# Reweighted least squares (Gorodnitsky & Rao 1997; for several measurements Cotter et al. 2005): the power of a row's
# size that becomes its weight, and rounds (our choice; measured on minilm).
_LOUDNESS_POWER, _LOUDNESS_ROUNDS = 1.0, 60
# Once sentences are taken off, what those left were before makes a start: rounds from there, and the part of the
# loudest one that each begins with more (our choice; measured on minilm with 8 sentences of Rotten Tomatoes: as many of
# the loudest pairs are true as after all rounds from one).
_ROUNDS_AGAIN, _BEGINS_WITH = 15, 1e-3
_PARTNER_ROUNDS, _PARTNER_RIDGE = 25, 1e-10
# Which pairs are partners is only guessed here, and put to the proof later: float32 does, in fewer rounds, with a ridge
# for its rounding; from the second round on, every few rounds the columns below this part of the largest one are left
# out (our choice; measured on minilm with 8 and 16 sentences: as many of the likeliest tokens are right, or a few more,
# in a fifth of the time; after 10 rounds about as many as after 15).
_GUESS_ROUNDS, _GUESS_RIDGE, _LEFT_OUT, _EVERY = 10, 1e-7, 1e-2, 3
# Pairs that can be partners: so many times the inputs that the gradient shows, the loudest ones.
_PARTNERS_A_RANK = 8
# Taking sentences off leaves rounding that isn't spread evenly, and a false pair more costs little (measured on minilm:
# up to 150 inside, 3e5 and more outside).
_OUTSIDE_LATER = 1e4
_RIDGE, _LEAST_WEIGHT = 1e-13, 1e-12

Pair = tuple[int, int, bool]
"""A position, a token, and whether that is of a second part."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of a position and a token whose input lies in a span, by position, then token.

    Attributes:
        positions_N, tokens_N: the pairs.
        inputs_NI: the layer's input for each, float64.
        second_N: which of them are of a text's second part; None for none.
        parts: whether what ends a sentence may stand within one too, as between a question and its text.
    """

    positions_N: Tensor
    tokens_N: Tensor
    inputs_NI: Tensor
    second_N: Tensor | None = None
    parts: bool = False

    def __len__(self) -> int:
        """N."""
        return len(self.tokens_N)

    @cached_property
    def longest(self) -> int:
        """Positions that have a pair, from the first on."""
        return int(self.positions_N.max()) + 1 if len(self) else 0

    @cached_property
    def by_position(self) -> list[list[int]]:
        """Indices of the pairs at each position."""
        found: list[list[int]] = [[] for _ in range(self.longest)]
        for index, position in enumerate(self.positions_N.tolist()):
            found[position].append(index)
        return found

    @cached_property
    def second(self) -> list[bool]:
        """Whether each of them is of a text's second part."""
        return [False] * len(self) if self.second_N is None else self.second_N.tolist()

    @cached_property
    def index(self) -> dict[Pair, int]:
        """Index of each (position, token, whether that is of a second part)."""
        pairs = zip(self.positions_N.tolist(), self.tokens_N.tolist(), self.second, strict=True)
        return {pair: index for index, pair in enumerate(pairs)}

    def row(self, model: TextModel, tokens: Sequence[int]) -> list[int]:
        """The indices of a text's tokens."""
        marked = model.marked(torch.tensor(tokens)).tolist()
        size = model.vocab_size
        return [self.index[t, token % size, token >= size] for t, token in enumerate(marked)]

    def inside(self, span: InputSpan, eps: float) -> Pairs:
        """Those whose input lies in a narrower span too."""
        kept_N = span.misfit(self.inputs_NI, eps=eps) <= _OUTSIDE_LATER
        return Pairs(
            positions_N=self.positions_N[kept_N],
            tokens_N=self.tokens_N[kept_N],
            inputs_NI=self.inputs_NI[kept_N],
            second_N=None if self.second_N is None else self.second_N[kept_N],
        )


def find_pairs(
    model: TextModel,
    layer: LocalLayer,
    span: InputSpan,
    *,
    longest: int | None,
    rounded: torch.dtype | None = None,
    most: int | None = None,
) -> Pairs:
    """All pairs whose input lies in the span, position by position until one has none.

    Args:
        model: the public model.
        layer: a layer that shows the span.
        span: where its inputs lie.
        longest: tokens of the longest sentence, where that is known.
        rounded: what the layer rounds its inputs to; None for nothing.
        most: of a position at most, the surest; None for all of them.
    """
    vocabulary = Vocabulary(model, layer, span, rounded=rounded, most=most)
    # Each position of the longest sentence adds an input of its own.
    positions = range(min(longest or span.rank, span.rank, model.max_length))
    found = list(itertools.takewhile(lambda here: len(here[0]) > 0, map(vocabulary.inside, positions)))
    if not found:
        empty = torch.zeros(0, dtype=torch.long)
        return Pairs(positions_N=empty, tokens_N=empty, inputs_NI=span.basis_RI[:0])
    marked_N = torch.cat([ids_N for ids_N, _ in found])
    return Pairs(
        positions_N=torch.cat([torch.full_like(ids_N, t) for t, (ids_N, _) in enumerate(found)]),
        tokens_N=marked_N % model.vocab_size,
        inputs_NI=torch.cat([exact(inputs_NI) for _, inputs_NI in found]),
        second_N=marked_N >= model.vocab_size if model.pairs else None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairGradients:
    """What the gradient says about each pair, as far as it can be told.

    Attributes:
        deltas_NO: the loss gradient at the layers' outputs; exact for pairs that no cycle of pairs leaves open.
        loudness_N: its norm, all layers counted alike: near zero for most pairs that aren't true.
    """

    deltas_NO: Tensor
    loudness_N: Tensor

    def by_pair(self, pairs: Pairs) -> dict[Pair, float]:
        """The loudness of each of the pairs that it is of."""
        return dict(zip(pairs.index, self.loudness_N.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Whitened:
    """What a gradient's pairs have to make, all layers counted alike: each tells of other pairs.

    Attributes:
        known_RN: the pairs' inputs in the span's coordinates.
        wanted_RR: what they make. Only the sizes of Δ's rows matter, so O is rotated down to R.
        turn_OR: back from that.
        sizes_O: of the layer's gradient that each output belongs to.
    """

    known_RN: Tensor
    wanted_RR: Tensor
    turn_OR: Tensor
    sizes_O: Tensor

    def as_gradients(self, deltas_NR: Tensor) -> PairGradients:
        """The pairs' parts as they are at the layers' outputs."""
        return PairGradients(
            deltas_NO=(deltas_NR @ self.turn_OR.T) * self.sizes_O, loudness_N=deltas_NR.norm(dim=1)
        )


def whitened(pairs: Pairs, left: LayerRemainder) -> Whitened:
    """What the pairs have to make of what is left of a gradient."""
    assert left.span is not None
    basis_RI = left.span.basis_RI
    sizes_O = left.sizes_O.clamp_min(torch.finfo(basis_RI.dtype).tiny)
    turn_OR, wanted_RR = torch.linalg.qr((left.stacked_OI / sizes_O[:, None]) @ basis_RI.T)
    return Whitened(
        known_RN=basis_RI @ pairs.inputs_NI.T, wanted_RR=wanted_RR.T, turn_OR=turn_OR, sizes_O=sizes_O
    )


def pair_gradients(
    pairs: Pairs, left: LayerRemainder, before: Mapping[Pair, float] | None = None
) -> PairGradients:
    """The sparsest Δ with ΔᵀX = G over all candidate pairs X, by reweighted least squares.

    Args:
        pairs: X.
        left: what is left of a gradient G.
        before: how loud pairs were when more of it was left; None where that isn't known.
    """
    white = whitened(pairs, left)
    known_RN = white.known_RN
    weights_N, rounds = torch.ones_like(known_RN[0]), _LOUDNESS_ROUNDS
    before_N = weights_N.new_tensor([(before or {}).get(pair, 0.0) for pair in pairs.index])
    if before_N.any():
        weights_N, rounds = before_N + _BEGINS_WITH * before_N.max(), _ROUNDS_AGAIN
    identity_RR = torch.eye(len(known_RN), dtype=known_RN.dtype, device=known_RN.device)
    for _ in range(rounds):
        weighted_RN = known_RN * weights_N
        gram_RR = weighted_RN @ known_RN.T
        gram_RR += _RIDGE * gram_RR.trace() * identity_RR
        deltas_NR = weighted_RN.T @ torch.linalg.solve(gram_RR, white.wanted_RR)
        loudness_N = deltas_NR.norm(dim=1)
        weights_N = loudness_N**_LOUDNESS_POWER + _LEAST_WEIGHT * loudness_N.max()
    return white.as_gradients(deltas_NR)


class Partners:
    """Which pairs stand in one sentence with a given one.

    With S the scores of a head in one sentence, the gradient at a token's query is the sum of dS times the keys of its
    own sentence, and the gradient at its key the sum of dSᵀ times their queries, over all heads with the same few
    partners; and each row of dS sums to zero, as the softmax doesn't change when a constant is added.
    """

    def __init__(
        self,
        model: TextModel,
        attention: FirstAttention,
        left: LayerRemainder,
        pairs: Pairs,
        gradients: PairGradients,
    ) -> None:
        """Lay out queries, keys and their gradients by head, of the loudest pairs."""
        assert left.span is not None
        count = min(len(pairs), _PARTNERS_A_RANK * left.span.rank)
        loudness_N = gradients.loudness_N
        self.chosen_M = loudness_N.topk(count).indices.sort().values
        self.start_M = (loudness_N[self.chosen_M] / loudness_N.max()).sqrt().float()
        self.pairs = len(pairs)
        inputs_MI = pairs.inputs_NI[self.chosen_M]
        sides: list[Tensor] = []
        self.wanted: list[Tensor] = []
        deltas = left.by_layer(gradients.deltas_NO)
        for own, other in ((attention.query, attention.key), (attention.key, attention.query)):
            if own.name not in deltas:  # its gradient wasn't shared
                continue
            columns_MHA = torch.unflatten(project(model, other, inputs_MI), -1, (attention.heads, -1))
            wanted_NHA = torch.unflatten(deltas[own.name], -1, (attention.heads, -1))
            if own is attention.query:  # a heavy entry for the zero sum
                ones_MH1 = columns_MHA.abs().mean() * 10 * torch.ones_like(columns_MHA[..., :1])
                columns_MHA = torch.cat([columns_MHA, ones_MH1], -1)
                wanted_NHA = torch.cat([wanted_NHA, torch.zeros_like(wanted_NHA[..., :1])], -1)
            columns_HMA = columns_MHA.transpose(0, 1)
            sides.append((columns_HMA / columns_HMA.norm(dim=2).mean()).float())
            self.wanted.append(wanted_NHA)
        self.columns_HMA = joined(sides)
        # The same for all pairs, unlike what follows from it.
        self.first = _Weighed.of(self.columns_HMA, self.start_M, _GUESS_RIDGE)

    def of(self, pair: int) -> Tensor:
        """How strongly each pair is tied to one, (N,): the sparsest dS that explains its gradients."""
        tied_M = sparsest(
            self.columns_HMA,
            [_unit(wanted_NHA[pair]).float() for wanted_NHA in self.wanted],
            self.start_M,
            rounds=_GUESS_ROUNDS,
            ridge=_GUESS_RIDGE,
            left_out=_LEFT_OUT,
            first=self.first,
        )
        tied_N = torch.zeros(self.pairs, dtype=torch.float64, device=tied_M.device)
        tied_N[self.chosen_M] = tied_M.double()
        return tied_N


def joined(sides: Sequence[Tensor]) -> Tensor:
    """Columns of several sides, (H, M, A) each, as those of all their heads: zeros where one's head is smaller."""
    size = max(columns_HMA.shape[2] for columns_HMA in sides)
    return torch.cat([_filled(columns_HMA, size) for columns_HMA in sides])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Weighed:
    """Columns by their weights (H, M, A), and their Gram matrices, factored, with how their rows were exchanged."""

    columns_HMA: Tensor
    factored_HAA: Tensor
    exchanged_HA: Tensor

    @classmethod
    def of(cls, columns_HMA: Tensor, weights_M: Tensor, ridge: float) -> Self:
        weighted_HMA = columns_HMA * weights_M[:, None]
        gram_HAA = columns_HMA.transpose(1, 2) @ weighted_HMA
        diagonal_HA = gram_HAA.diagonal(dim1=1, dim2=2)
        diagonal_HA += ridge * diagonal_HA.sum(1, keepdim=True)
        factored_HAA, exchanged_HA, _ = torch.linalg.lu_factor_ex(gram_HAA)
        return cls(columns_HMA=weighted_HMA, factored_HAA=factored_HAA, exchanged_HA=exchanged_HA)

    def parts(self, wanted_HA1: Tensor) -> Tensor:
        """How large each column's part is in what they must make, all heads together, (M,)."""
        # A head whose few columns leave it singular says nothing.
        solved_HA1 = torch.linalg.lu_solve(self.factored_HAA, self.exchanged_HA, wanted_HA1)
        solved_HA1 = solved_HA1.nan_to_num(0.0, 0.0, 0.0)
        parts_M: Tensor = (self.columns_HMA @ solved_HA1)[..., 0].square().sum(0).sqrt()
        return parts_M


def sparsest(
    columns_HMA: Tensor,
    wanted: Sequence[Tensor],
    start_M: Tensor,
    *,
    rounds: int = _PARTNER_ROUNDS,
    ridge: float = _PARTNER_RIDGE,
    left_out: float = 0.0,
    first: _Weighed | None = None,
) -> Tensor:
    """How large the fewest columns' parts are in what they must make, all heads and sides with the same few: (M,).

    Args:
        columns_HMA: of all sides, as `joined`.
        wanted: what those of each side must make, (heads, size) each.
        start_M: weights to begin with, of the columns' type.
        rounds: of reweighted least squares.
        ridge: for its rounding.
        left_out: columns below this part of the largest one are left out on the way; 0 for none.
        first: the columns by the weights to begin with, where that is known.
    """
    kept_M = torch.arange(len(start_M), device=start_M.device)
    weights_M = tied_M = start_M
    wanted_HA1 = torch.cat([_filled(_unit(wanted_HA), columns_HMA.shape[2]) for wanted_HA in wanted])[
        ..., None
    ]
    for round_ in range(rounds):
        if left_out and round_ % _EVERY == _EVERY - 1:
            large_M = (weights_M >= left_out * weights_M.max()).nonzero().flatten()
            columns_HMA = columns_HMA.index_select(1, large_M)
            weights_M, kept_M = weights_M[large_M], kept_M[large_M]
        weighed = first if first is not None and not round_ else _Weighed.of(columns_HMA, weights_M, ridge)
        tied_M = weighed.parts(wanted_HA1)
        largest = tied_M.max().clamp_min(torch.finfo(tied_M.dtype).tiny)
        weights_M = tied_M / largest + 1e-9 * 0.8**round_
    found_M = torch.zeros_like(start_M)
    found_M[kept_M] = tied_M
    return found_M


def _filled(values: Tensor, size: int) -> Tensor:
    """Values with zeros behind them in the last dimension."""
    return functional.pad(values, (0, size - values.shape[-1]))


def _unit(wanted_HA: Tensor) -> Tensor:
    """What columns must make, scaled to a norm of 1."""
    unit_HA: Tensor = wanted_HA / wanted_HA.norm().clamp_min(torch.finfo(wanted_HA.dtype).tiny)
    return unit_HA
