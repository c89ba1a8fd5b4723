"""Which rows of the embeddings were looked up, and what of them is the look-up's own: the evidence that `rows` reads.

Rows of absent tokens are zero (Gupta et al. 2022, FILM, sec. 3). Noise fills all of them: those that stand out of it
were looked up. An output head tied to the embeddings adds predictions times last hidden states to every row: few
dimensions, which the rows of absent tokens show; what lies outside of them was looked up.

Shapes: L tokens that were looked up, T positions, E embedding size, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.exact.subspace import input_span
from textleak.models import TextModel
from textleak.models.probes.sums import EmbeddingSum
from textleak.numerics import exact
from textleak.shared.gradient import SharedGradient

# A token's row whose part outside the head's dimensions is this much larger than the next one's was looked up (our
# choice; measured on gpt2 and smollm2: steps of 10 to 1e4).
_CLEAR_STEP = 8.0
SLACK = 16.0
"""Sums that should be equal may differ by this many unit roundoffs of their largest terms (our choice; measured: at
most 1, while sums that aren't equal differ by 1e3 and more)."""
# Rows are told by a step's bounds where they are so many times longer than these let them be off: two such within the
# bounds of each other are then within 15 degrees of one direction, which unequal ones are by no accident (our choice;
# on toys of 16 dimensions with 1.4 times a wrong token was nearest).
_LOUD = 8.0
# The chance that any row of nothing but pruned noise is taken for one that was looked up (our choice).
_NEVER = 1e-6
ERROR_RATE = 0.01
"""Under noise: the chance that any row of nothing but noise is taken for a token, and that a true pair is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LookedUp:
    """Rows of tokens that were looked up, without what a tied head adds to them.

    Attributes:
        ids: the tokens.
        rows_LE: their rows, float64.
        errors_L: rounding of each row, as a norm.
        faint_L: rows too short to be told from others, behind the rounding of a step.
        head_RE: the dimensions that a tied head fills; none where there is no such head.
    """

    ids: list[int]
    rows_LE: Tensor
    errors_L: Tensor
    faint_L: Tensor
    head_RE: Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PositionRows:
    """Rows of the positions that were reached: sums over the sentences, float64, and their rounding; as `LookedUp`."""

    rows_TE: Tensor
    errors_T: Tensor
    faint_T: Tensor


def _errors(
    gradient: Tensor, rows_NE: Tensor, between: tuple[Tensor, Tensor] | None, at: Tensor
) -> tuple[Tensor, Tensor]:
    """Rounding of some of a gradient's rows as a norm, (N,): of what it was computed in, or of the step that hides it.

    And which rows are too short for that to tell them from any other.

    Args:
        gradient: the embedding's.
        rows_NE: its rows, float64.
        between: what its entries lay between; None where it is the gradient itself.
        at: the rows' numbers, (N,).
    """
    norms_N: Tensor = rows_NE.norm(dim=1)
    computed_N = torch.finfo(gradient.dtype).eps / 2 * norms_N
    if between is None:
        return computed_N, torch.zeros_like(norms_N, dtype=torch.bool)
    low_NE, high_NE = (exact(bound[at.to(bound.device)]).cpu() for bound in between)
    # As far as the bounds let a row be from the gradient's, which is `SLACK` of its errors.
    farthest_N = (high_NE - low_NE).norm(dim=1) / 2
    return torch.maximum(computed_N, farthest_N / SLACK), norms_N <= _LOUD * farthest_N


def tied(model: TextModel) -> bool:
    """Whether the output head reads the word embedding's own table."""
    head = model.network.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is model.word_embedding.weight


def denser_than_noise(counts_V: Tensor, width: int) -> list[int]:
    """Rows of a table with more entries left than pruning leaves of noise alone; all that aren't empty, mostly.

    What is left of noise lies anywhere: from how many rows nothing is left follows how likely an entry was left, and
    how many of them no row of noise has.

    Args:
        counts_V: of each row, its entries that aren't 0.
        width: E.
    """
    from scipy.special import bdtrc, gammaincinv

    empty = int((counts_V == 0).sum())
    if not empty:
        return []
    expected = float(gammaincinv(empty, _NEVER))  # of empty rows, at least (Poisson)
    kept = 1 - (expected / len(counts_V)) ** (1 / width)
    beyond_E = len(counts_V) * bdtrc(list(range(width)), width, kept)  # rows of more entries than that many
    return (counts_V > int((beyond_E >= _NEVER).sum())).nonzero().flatten().tolist()


def looked_up_rows(
    model: TextModel,
    shared: SharedGradient,
    gradient_VE: Tensor,
    notes: list[str],
    *,
    between: tuple[Tensor, Tensor] | None = None,
) -> LookedUp | None:
    """The tokens whose rows show a look-up; None where they can't be told from the others.

    Args:
        model: the public model.
        shared: the shared gradient.
        gradient_VE: the word embedding's.
        notes: sentences for a person; more are added.
        between: what its entries lay between, where a step hides them; None where it is the gradient itself.
    """
    if tied(model):
        return _looked_up_beside_a_head(shared, gradient_VE, notes)
    sigma = shared.noise_sigma
    size = gradient_VE.shape[1]
    if sigma > 0:
        from scipy.special import chdtri  # chi2.isf, without all of scipy.stats

        energy_V = exact(gradient_VE).square().sum(1)
        floor = sigma**2 * float(chdtri(size, ERROR_RATE / len(gradient_VE)))
        ids = (energy_V > floor).nonzero().flatten().tolist()
        notes.append(
            f"{len(ids)} rows of the word embedding stand out of the noise (norm above {floor**0.5:.2g}, which noise "
            f"alone exceeds once in {1 / ERROR_RATE:.0f} gradients)."
        )
        errors_L = torch.full((len(ids),), sigma * size**0.5, dtype=torch.float64)
        faint_L = torch.zeros_like(errors_L, dtype=torch.bool)
        return LookedUp(ids=ids, rows_LE=exact(gradient_VE[ids]).cpu(), errors_L=errors_L, faint_L=faint_L)
    ids = gradient_VE.any(1).nonzero().flatten().tolist()
    if len(ids) == len(gradient_VE):
        notes.append("No row of the word embedding is zero, so they don't tell which tokens were looked up.")
        return None
    rows_LE = exact(gradient_VE[ids]).cpu()
    errors_L, faint_L = _errors(gradient_VE, rows_LE, between, torch.tensor(ids, dtype=torch.long))
    return LookedUp(ids=ids, rows_LE=rows_LE, errors_L=errors_L, faint_L=faint_L)


def _looked_up_beside_a_head(
    shared: SharedGradient, gradient_VE: Tensor, notes: list[str]
) -> LookedUp | None:
    """Rows that leave the dimensions which a tied head's part fills.

    That part is predictions times last hidden states, so it has as many dimensions as there were predictions, and
    labels add to their rows in the same ones.
    """
    size = gradient_VE.shape[1]
    if shared.noise_sigma > 0:
        notes.append(
            "The output head is tied to the word embedding, and noise hides what was looked up in it."
        )
        return None
    norms_V = exact(gradient_VE).norm(dim=1)
    # Rows of absent tokens are mere predictions; those that were looked up are among the largest.
    most = norms_V.argsort()[len(norms_V) // 10 : len(norms_V) * 9 // 10]
    drawn = most[torch.linspace(0, len(most) - 1, min(len(most), 2 * size)).long()]
    scaled_NE = (exact(gradient_VE[drawn]) / norms_V[drawn, None].clamp_min(1e-300)).to(gradient_VE.dtype)
    span = input_span([scaled_NE], ["head"])
    if span is None or not span.clear:
        notes.append(
            f"The output head is tied to the word embedding and fills all of its {size} dimensions: too many "
            "predictions to tell which tokens were looked up."
        )
        return None
    basis_RE = span.basis_RI.to(norms_V.device)
    left_V = torch.cat(
        [_outside(exact(part), basis_RE).norm(dim=1) for part in torch.split(gradient_VE, 8192)]
    )
    share_V = left_V / norms_V.clamp_min(1e-300)
    order = share_V.argsort(descending=True)
    top = share_V[order[: len(order) // 2]].clamp_min(1e-300)
    step = top[:-1] / top[1:]
    count = int(step.argmax()) + 1
    if float(step[count - 1]) < _CLEAR_STEP:
        notes.append("The output head is tied to the word embedding and hides which tokens were looked up.")
        return None
    ids = sorted(order[:count].tolist())
    level = float(share_V[order[count]])  # what rounding leaves of rows that weren't looked up
    return LookedUp(
        ids=ids,
        rows_LE=_outside(exact(gradient_VE[ids]), basis_RE).cpu(),
        errors_L=level * norms_V[ids].cpu(),
        faint_L=torch.zeros(len(ids), dtype=torch.bool),
        head_RE=basis_RE.cpu(),
    )


def _outside(rows_NE: Tensor, basis_RE: Tensor | None) -> Tensor:
    if basis_RE is None:
        return rows_NE
    return rows_NE - (rows_NE @ basis_RE.T) @ basis_RE


def position_rows(
    shared: SharedGradient,
    places: EmbeddingSum,
    gradient: Tensor,
    looked_up: LookedUp | None,
    *,
    between: tuple[Tensor, Tensor] | None = None,
) -> PositionRows:
    """The positions that were reached, from the first to the last one; `between` as for `looked_up_rows`."""
    whole_TE = exact(gradient[list(places.rows)]).cpu()
    norms_T = whole_TE.norm(dim=1)
    errors_T, faint_T = _errors(gradient, whole_TE, between, torch.tensor(places.rows, dtype=torch.long))
    if shared.noise_sigma > 0:
        from scipy.special import chdtri

        floor = shared.noise_sigma * float(chdtri(whole_TE.shape[1], ERROR_RATE / len(norms_T))) ** 0.5
        errors_T = torch.full_like(norms_T, shared.noise_sigma * whole_TE.shape[1] ** 0.5)
    else:
        floor = 0.0
    reached = (norms_T > floor).nonzero().flatten().tolist()
    count = reached[-1] + 1 if reached else 0
    head_RE = looked_up.head_RE if looked_up is not None else None
    rows_TE = _outside(whole_TE[:count], head_RE)
    return PositionRows(rows_TE=rows_TE, errors_T=errors_T[:count], faint_T=faint_T[:count])
