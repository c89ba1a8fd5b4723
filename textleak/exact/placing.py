"""Where the tokens of the embeddings' rows stand, as far as equal sums tell it.

Tokens and positions that belong to each other and to nothing else have equal sums. All such groups come out of the
rows' linear relations at once; at B = 1 each position's group holds one token, so the whole order is read off.

Shapes: L tokens that were looked up, T positions, E embedding size, N rows of either, R relations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.exact.lookups import ERROR_RATE, SLACK, LookedUp, PositionRows
from textleak.numerics import svd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Tokens and positions, by index, that belong together and weren't told apart; both lists shrink."""

    words: list[int]
    positions: list[int]


@dataclasses.dataclass(kw_only=True, eq=False)
class Placed:
    """What was placed so far, and what of the rows isn't explained yet.

    Attributes:
        ids: the tokens that were looked up; everything else names them by index.
        words_LE, word_errors_L: what is left of their rows, and its rounding.
        sums_TE, sum_errors_T: likewise of the positions' rows; zeros where those weren't shared.
        faint_L, faint_T: which of both are too faint to be told from those of tokens that don't show.
        shown: whether they were.
        at: the tokens found at each position, with their confidence.
        closed: for each position whether nothing else stands there.
        done: tokens all of whose positions are known.
        groups: what belongs together, unresolved.
    """

    ids: list[int]
    words_LE: Tensor
    word_errors_L: Tensor
    sums_TE: Tensor
    sum_errors_T: Tensor
    faint_L: Tensor
    faint_T: Tensor
    shown: bool
    at: list[dict[int, float]]
    closed: list[bool]
    done: set[int] = dataclasses.field(default_factory=set)
    groups: list[Group] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, looked_up: LookedUp, positions: PositionRows | None, *, count: int) -> Placed:
        """Nothing placed yet.

        Args:
            looked_up: the tokens' rows.
            positions: the positions' rows; None where they weren't shared.
            count: positions that there could be then.
        """
        if positions is not None:
            sums_TE, sum_errors_T = positions.rows_TE.clone(), positions.errors_T.clone()
            faint_T = positions.faint_T
        else:
            sums_TE = torch.zeros(count, looked_up.rows_LE.shape[1]).double()
            sum_errors_T = torch.zeros(count).double()
            faint_T = torch.zeros(count, dtype=torch.bool)
        return cls(
            ids=looked_up.ids,
            words_LE=looked_up.rows_LE.clone(),
            word_errors_L=looked_up.errors_L.clone(),
            sums_TE=sums_TE,
            sum_errors_T=sum_errors_T,
            faint_L=looked_up.faint_L,
            faint_T=faint_T,
            shown=positions is not None,
            at=[{} for _ in sums_TE],
            closed=[False] * len(sums_TE),
        )

    @property
    def open_words(self) -> list[int]:
        """Tokens some of whose positions aren't known."""
        return [w for w in range(len(self.ids)) if w not in self.done]

    @property
    def hides(self) -> bool:
        """Whether the rounding of a step may hide what rows are short of, or whole ones."""
        return bool(self.faint_L.any()) or bool(self.faint_T.any())

    @property
    def reach(self) -> int:
        """Positions up to the last one at which a token was found."""
        return max((t + 1 for t, here in enumerate(self.at) if here), default=0)

    def settle(self, words: Sequence[int], positions: Sequence[int], confidence: float = 1.0) -> None:
        """A group of tokens and positions with equal sums: told apart where one side has one member."""
        if len(words) > 1 and len(positions) > 1:
            self.groups.append(Group(words=list(words), positions=list(positions)))
            return
        for t in positions:
            self.at[t] = dict.fromkeys(words, confidence)
            self.closed[t] = True
        self.done |= set(words)

    def take_off(self, word: int, t: int, *, by_position: bool) -> None:
        """Place a token, and take off both rows all that is left of one: the position's, or its own."""
        rows, errors = (
            (self.sums_TE, self.sum_errors_T) if by_position else (self.words_LE, self.word_errors_L)
        )
        index = t if by_position else word
        part_E = rows[index].clone()
        self.words_LE[word] -= part_E
        self.word_errors_L[word] += errors[index]
        if self.shown:
            self.sums_TE[t] -= part_E
            self.sum_errors_T[t] += errors[index]  # a token's own counts twice by now: rather too much

    def word_explained(self, word: int) -> bool:
        """Whether only rounding is left of a token's row."""
        return bool(self.words_LE[word].norm() <= SLACK * self.word_errors_L[word])

    def position_explained(self, t: int) -> bool:
        """Whether positions show, and only rounding is left of this one's row."""
        return self.shown and bool(self.sums_TE[t].norm() <= SLACK * self.sum_errors_T[t])


def place_by_sums(placed: Placed, noise_sigma: float, *, alone: bool) -> None:
    """Place what the rows' sums tell: pairs that are equal, then whole groups; the rest becomes one group.

    Where a step may hide rows, sums of several may lack a part, and of several sentences a single one may, too.

    Args:
        placed: nothing placed yet; changed.
        noise_sigma: standard deviation of the noise on each entry.
        alone: whether the batch is known to be one sentence.
    """
    if placed.shown and noise_sigma > 0:
        _place_pairs(placed, _equal_under_noise(placed, noise_sigma), 1 - ERROR_RATE)
    elif placed.shown and (alone or not placed.hides):
        _place_pairs(placed, _equal(placed), 1.0)
        if not placed.hides:
            _place_groups(placed)
    grouped_words = {w for group in placed.groups for w in group.words}
    grouped_positions = {t for group in placed.groups for t in group.positions}
    words = [w for w in placed.open_words if w not in grouped_words]
    if words:
        positions = [t for t, closed in enumerate(placed.closed) if not closed and t not in grouped_positions]
        placed.groups.append(Group(words=words, positions=positions))


def _equal(placed: Placed) -> Tensor:
    """Whether each token's and each position's rows are equal, (L, T), and no other token's can have been."""
    equal_LT = _apart(placed) <= SLACK * (placed.word_errors_L[:, None] + placed.sum_errors_T)
    return equal_LT & ~placed.faint_L[:, None] & ~placed.faint_T


def _equal_under_noise(placed: Placed, noise_sigma: float) -> Tensor:
    """Whether they differ by no more than twice the noise, (L, T)."""
    from scipy.special import chdtri  # chi2.isf, without all of scipy.stats

    apart_LT = _apart(placed)
    quantile = float(chdtri(placed.words_LE.shape[1], ERROR_RATE / max(1, apart_LT.numel())))
    return apart_LT.square() <= 2 * noise_sigma**2 * quantile


def _apart(placed: Placed) -> Tensor:
    apart_LT: Tensor = torch.cdist(
        placed.words_LE, placed.sums_TE, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return apart_LT


def _place_pairs(placed: Placed, equal_LT: Tensor, confidence: float) -> None:
    """One token and one position that are equal to each other and to nothing else."""
    single_LT = equal_LT & (equal_LT.sum(0) == 1) & (equal_LT.sum(1, keepdim=True) == 1)
    for word, t in single_LT.nonzero().tolist():
        placed.settle([word], [t], confidence)


def _place_groups(placed: Placed) -> None:
    """Groups of tokens and positions with equal sums: the rows' linear relations, as many as there are groups.

    The projector onto them joins two rows just where they are in one group.
    """
    words, positions = placed.open_words, [t for t, closed in enumerate(placed.closed) if not closed]
    count = len(words) + len(positions)
    if not words or not positions or count > placed.words_LE.shape[1]:
        return
    rows_NE = torch.cat([placed.words_LE[words], -placed.sums_TE[positions]])
    errors_N = torch.cat([placed.word_errors_L[words], placed.sum_errors_T[positions]]).clamp_min(1e-300)
    left_NN, s_N, _ = svd(rows_NE / errors_N[:, None], full=True)
    relations_NR = left_NN[:, s_N <= SLACK]
    projector_NN = relations_NR @ relations_NR.T
    own_N = projector_NN.diagonal().clamp_min(1e-300).sqrt()
    together_NN = projector_NN.abs() / own_N[:, None] / own_N > 0.5
    seen: set[int] = set()
    for n in range(count):
        members = together_NN[n].nonzero().flatten().tolist()
        if n in seen or not members or seen & set(members):
            continue
        seen |= set(members)
        if rows_NE[members].sum(0).norm() > SLACK * errors_N[members].sum():
            continue
        inside = [words[m] for m in members if m < len(words)]
        where = [positions[m - len(words)] for m in members if m >= len(words)]
        if inside and where:
            placed.settle(inside, where)
