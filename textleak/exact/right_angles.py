"""Where tokens stand, told by right angles (our choice).

Where the sum of embeddings is normalized at once, as in most encoders, the gradient at it is at right angles to it
(`models.probes.sums`). That tests a single token at a single position, so tokens that stand at one position only find
it in a batch of any size. They are taken away, and what is left of the rows is looked at again.

Shapes: W tokens, P positions, E embedding size, V vocabulary, R rows by C things that each could fit.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.exact.lookups import PositionRows
from textleak.exact.placing import Group, Placed
from textleak.models import TextModel
from textleak.numerics import exact

# A cosine within the first of these many unit roundoffs of zero is zero, where no other one is within the second (our
# choice; measured in float32 on toys of four encoders, three kernels each: of 486 tokens at their one position half are
# within 0.4, 99 % within 2.8 and all within 4.7; of 5,346 wrong positions one is within 86, none else within 1,200).
_RIGHT_ANGLE, _PERHAPS = 8.0, 32.0
# The same among a whole vocabulary, where more would pass by accident (our choice).
_AMONG_ALL = 4.0
# How sure it must be that the cosine of no wrong position would have been as small by accident (our choice).
_SURE = 0.999
# Tokens of the vocabulary that are looked at at once: bounds the memory.
_TOKENS_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fit:
    """A token and a position that fit each other and nothing else.

    Attributes:
        word, position: which ones, by index.
        confidence: that no accident made them fit.
        by_position: whether the position's row shows it; else the token's does.
    """

    word: int
    position: int
    confidence: float
    by_position: bool


def place_by_angles(placed: Placed, group: Group, tokens_LE: Tensor, offset_TE: Tensor) -> None:
    """Place tokens that stand at one position only, and those at positions where one is left, until none is found.

    Args:
        placed: what was placed so far; changed.
        group: tokens and positions to tell apart; what is told is taken out.
        tokens_LE: the embedding of each token that was looked up, float64.
        offset_TE: what is added to it at each position, float64.
    """
    while group.words and group.positions:
        fit = _lone_word(placed, group, tokens_LE, offset_TE)
        if fit is None and placed.shown:
            fit = _lone_position(placed, group, tokens_LE, offset_TE)
        if fit is None:
            return
        word, t = fit.word, fit.position
        placed.at[t][word] = fit.confidence
        placed.take_off(word, t, by_position=fit.by_position)
        if placed.word_explained(word):
            placed.done.add(word)
            group.words.remove(word)
        if placed.position_explained(t):
            placed.closed[t] = True
            group.positions.remove(t)
            if not fit.by_position:  # all of the row is explained: that is a proof
                placed.at[t] = dict.fromkeys(placed.at[t], 1.0)


def _lone_word(placed: Placed, group: Group, tokens_LE: Tensor, offset_TE: Tensor) -> _Fit | None:
    """A token whose row is at right angles to its embedding's sum at exactly one position."""
    words, positions = group.words, group.positions
    rows_WE, tokens_WE, there_PE = placed.words_LE[words], tokens_LE[words], offset_TE[positions]
    along_WP = (rows_WE * tokens_WE).sum(1, keepdim=True) + rows_WE @ there_PE.T
    norms_W = rows_WE.norm(dim=1)
    cosine_WP = along_WP.abs() / _sum_norms(tokens_WE, there_PE) / norms_W[:, None]
    open_WP = torch.tensor([[word not in placed.at[t] for t in positions] for word in words])
    fit = _lone(cosine_WP, placed.word_errors_L[words] / norms_W, open_WP)
    if fit is None:
        return None
    w, p, sure = fit
    return _Fit(word=words[w], position=positions[p], confidence=sure, by_position=False)


def _lone_position(placed: Placed, group: Group, tokens_LE: Tensor, offset_TE: Tensor) -> _Fit | None:
    """A position whose remaining row is at right angles to exactly one token's sum there."""
    words, positions = group.words, group.positions
    rows_PE, there_PE, tokens_WE = placed.sums_TE[positions], offset_TE[positions], tokens_LE[words]
    along_PW = (rows_PE * there_PE).sum(1, keepdim=True) + rows_PE @ tokens_WE.T
    norms_P = rows_PE.norm(dim=1).clamp_min(1e-300)
    cosine_PW = along_PW.abs() / _sum_norms(tokens_WE, there_PE).T / norms_P[:, None]
    open_PW = torch.tensor([[word not in placed.at[t] for word in words] for t in positions])
    fit = _lone(cosine_PW, placed.sum_errors_T[positions] / norms_P, open_PW)
    if fit is None:
        return None
    p, w, sure = fit
    return _Fit(word=words[w], position=positions[p], confidence=sure, by_position=True)


def _lone(cosine_RC: Tensor, roundoff_R: Tensor, open_RC: Tensor) -> tuple[int, int, float] | None:
    """The first row at right angles to exactly one of its columns, that column, and how sure that is."""
    perhaps_RC = open_RC & (cosine_RC <= _PERHAPS * roundoff_R[:, None])
    for r in (perhaps_RC.sum(1) == 1).nonzero().flatten().tolist():
        c = int(perhaps_RC[r].nonzero())
        allowed = _RIGHT_ANGLE * float(roundoff_R[r])
        sure = _surety(cosine_RC, allowed)
        if cosine_RC[r, c] <= allowed and sure >= _SURE:
            return r, c, sure
    return None


def _surety(cosine_RC: Tensor, allowed: float) -> float:
    """The chance that none of a row's others would have passed by accident, from how the cosines are spread."""
    others = cosine_RC.shape[1] - 1
    spread = float(cosine_RC.median())
    if not others:
        return 1.0
    # Where half of them are 0, as where nothing was shared but zeros, passing says nothing.
    return max(0.0, 1 - others * allowed / spread) if spread > 0 else 0.0


def _sum_norms(tokens_WE: Tensor, there_PE: Tensor) -> Tensor:
    """Norm of each token's embedding plus what each position adds: (W, P)."""
    squared_WP = (
        tokens_WE.square().sum(1, keepdim=True) + 2 * tokens_WE @ there_PE.T + there_PE.square().sum(1)
    )
    return squared_WP.clamp_min(1e-300).sqrt()


def fitting_tokens(
    model: TextModel, positions: PositionRows, offset_TE: Tensor
) -> tuple[tuple[int, ...], ...]:
    """Of the whole vocabulary, the tokens whose sum at each position its row is at right angles to."""
    count = len(positions.rows_TE)
    table_VE = model.word_embedding.weight.detach()
    norms_T = positions.rows_TE.norm(dim=1)
    there_TE = offset_TE[:count].cpu()
    passed: list[list[int]] = [[] for _ in range(count)]
    for start in range(0, model.vocab_size, _TOKENS_AT_ONCE):
        tokens_WE = exact(table_VE[start : start + _TOKENS_AT_ONCE]).cpu()
        along_WT = tokens_WE @ positions.rows_TE.T + (there_TE * positions.rows_TE).sum(1)
        cosine_WT = along_WT.abs() / _sum_norms(tokens_WE, there_TE) / norms_T
        for w, t in (cosine_WT <= _AMONG_ALL * positions.errors_T / norms_T).nonzero().tolist():
            passed[t].append(start + w)
    return tuple(tuple(ids) for ids in passed)
