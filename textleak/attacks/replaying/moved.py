"""What the rows of a trained word embedding say of steps that took different sentences (our choice).

A row moves when its token is looked up, and in an optimizer with momentum goes on moving after it. Adam's step has the
size of the rate whatever the gradient's was. So all entries of a row that one step alone looked up have moved by one
size, which that step and those after it make: tokens whose rows moved by the same size stood in the same step. And each
entry has the sign of its gradient, which depends on all of the sentence.

Shapes: L tokens that were looked up, P positions that were reached, E embedding size, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.exact.lookups import denser_than_noise, tied
from textleak.models.probes.sums import embedding_sum
from textleak.numerics import exact, grid_step

# A row's entries have one size where a tenth of them is no smaller than this part of the largest (our choice; measured
# on minilm after a Trainer's four steps: 0.99 and more of one step's, 0.05 to 0.25 of several steps').
_EVEN = 0.8
# Part of the rows that have one size at least, where steps took different sentences (our choice: function words alone
# stand in several; measured likewise: 41 of 46).
_MOST_EVEN = 0.5
# Sizes of two rows that are one step's differ by this part at most (our choice; measured likewise: 2e-4 within a step.
# By calculation, at a constant rate the sizes of 20 steps are 4 % apart and more, and of 50 some are the same).
_ALIKE = 2e-3
# Rows of the table that tell how much all of them shrank, at most (our choice).
_ROWS = 4096
# Of what is left of a row's entries beside decay, so many steps of the weights' grid are rounding (our choice).
_ROUNDING = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MovedRows:
    """Rows that were looked up, and in which steps.

    Attributes:
        rows_LE: what moved each token's row, as a gradient points, by token; float32, of norm 1.
        places_PE: the same of the positions from the first one on; None where they weren't shared or don't stand out.
        steps: tokens that one step alone looked up, the largest moves first; one group of all tokens where these don't
            show.
        several: tokens that more than one step looked up.
    """

    rows_LE: dict[int, Tensor]
    places_PE: Tensor | None
    steps: tuple[tuple[int, ...], ...]
    several: tuple[int, ...]


def moved_rows(view: View) -> MovedRows | str:
    """Which rows of the word embedding were looked up; else a sentence why that doesn't show."""
    model = view.text_model
    table = model.word_embedding.weight
    name = next((name for name, parameter in model.parameters.items() if parameter is table), "")
    if name not in view.shared.gradients:
        return "The word embedding wasn't shared, or isn't trained."
    if tied(model):
        return "The output head is tied to the word embedding, and moves every row."
    if view.shared.defended_effects or view.shared.noise_sigma:
        return "A defense changed the rows of the word embedding."
    moved = _beyond_decay(view.shared.gradients[name], table.detach())
    special = set(model.special_ids)
    found = {token: row_E for token, row_E in moved.items() if token not in special}
    if not found or len(moved) == len(table):
        return "Which rows of the word embedding were looked up doesn't show."
    sizes = {token: _one_size(row_E) for token, row_E in found.items()}
    even = {token: size for token, size in sizes.items() if size is not None}
    if len(even) < _MOST_EVEN * len(found):  # the same sentences in several steps: a few are even by accident
        even = {}
    several = tuple(token for token in found if token not in even)
    steps = _alike(even)
    return MovedRows(
        rows_LE={token: _unit(row_E) for token, row_E in found.items()},
        places_PE=_places(view),
        steps=steps or (several,),
        several=several if steps else (),
    )


def _beyond_decay(moved_VE: Tensor, weights_VE: Tensor) -> dict[int, Tensor]:
    """Rows that did more than shrink as all do, by their number."""
    chosen = torch.linspace(0, len(weights_VE) - 1, min(_ROWS, len(weights_VE))).long().to(weights_VE.device)
    weights_RE, moved_RE = exact(weights_VE[chosen]), exact(moved_VE[chosen])
    shrunk_R = (weights_RE * moved_RE).sum(1) / weights_RE.square().sum(1).clamp_min(1e-30)
    decay = float(shrunk_R.median())
    left_VE, off_VE = moved_VE, moved_VE != 0
    if decay:
        left_VE = moved_VE - decay * weights_VE
        steps_VE = left_VE.abs() / grid_step(weights_VE, weights_VE.dtype)
        off_VE = steps_VE > _ROUNDING * steps_VE.amax(1).median()
    rows = denser_than_noise(off_VE.sum(1).cpu(), off_VE.shape[1])
    return {row: exact(left_VE[row]).cpu() for row in rows}


def _one_size(row_E: Tensor) -> float | None:
    """What all entries of a row moved by; None where they moved by different sizes."""
    sizes_E = row_E.abs()
    low, middle = torch.quantile(sizes_E, torch.tensor([0.1, 0.5], dtype=sizes_E.dtype)).tolist()
    return float(middle) if low >= _EVEN * float(sizes_E.max()) else None


def _alike(sizes: dict[int, float]) -> tuple[tuple[int, ...], ...]:
    """Tokens in groups of one size, the largest first."""
    groups: list[list[int]] = []
    last = float("inf")
    for token in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if sizes[token] < (1 - _ALIKE) * last:
            groups.append([])
        groups[-1].append(token)
        last = sizes[token]
    return tuple(map(tuple, groups))


def _places(view: View) -> Tensor | None:
    """What moved the rows of the positions that were reached, of norm 1 each; None where that doesn't show."""
    places = embedding_sum(view.text_model)
    name = places.position_name
    if name is None or name not in view.shared.gradients:
        return None
    moved = _beyond_decay(view.shared.gradients[name], view.text_model.parameters[name].detach())
    reached = [row for row in places.rows if row in moved]
    if not reached or len(reached) == len(places.rows) or reached != list(places.rows[: len(reached)]):
        return None
    return torch.stack([_unit(moved[row]) for row in reached])


def _unit(row_E: Tensor) -> Tensor:
    return torch.nn.functional.normalize(row_E, dim=0).float()
