"""Which sentences a client's steps came to first, where each step takes a part of the batch (our choice).

A later step's gradient is taken at weights that the earlier ones moved. So an update of steps of SGD is, to the second
order, a sum of each sentence's gradient g_i and of its changes H_i g_j, these as often as a step with i comes after one
with j. Least squares tells how often: who comes after the others is later.

Shapes: B sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from textleak.attacks.replaying.scores import Replayed
from textleak.clients.base import gradient_of
from textleak.clients.view import View
from textleak.matching.discrete import Guess
from textleak.models.base import Tensors
from textleak.models.copies import copy_of
from textleak.models.guesses import examples_of
from textleak.numerics import exact, least_squares

# Part of the weights' norm that a sentence's gradient moves them by, to see how others' change: about what a step moves
# minilm by (our choice). Of the compared entries about so many are looked at.
_MOVED, _ENTRIES = 2e-4, 300_000


def in_turn(view: View, guess: Guess) -> Guess:
    """The guess with its sentences in the order in which the client's steps came to them.

    Args:
        view: what the server sees.
        guess: the batch's sentences with their labels, in any order.

    Returns:
        The same guess where time was up before.
    """
    later_BB = _how_often_later(view, guess)
    if later_BB is None:
        return guess
    # In one step with others a sentence is no later than they are; which of them comes first makes no difference.
    lateness_B = (later_BB - later_BB.T).sum(1)
    order = lateness_B.argsort().tolist()
    return Guess(tuple(guess.rows[b] for b in order), tuple(guess.classes[b] for b in order))


def _how_often_later(view: View, guess: Guess) -> Tensor | None:
    """About how often a step with one sentence follows one with another, up to a factor, (B, B); None if cut off."""
    model, names = view.model, list(Replayed(view).norms)
    whole = gradient_of([*dict.fromkeys([*names, *model.trainable])], loss_scale=view.client.loss_scale)
    some = gradient_of(names, loss_scale=view.client.loss_scale)
    alone = [
        view.client.running(examples_of(view.text_model, [row], guess.classes[b : b + 1]))
        for b, row in enumerate(guess.rows)
    ]
    count = len(alone)
    own = [whole(model, examples) for examples in alone]
    moved = model.with_network(copy_of(model.network))
    rows = [_row(gradient, names) for gradient in own]
    changes_BB = [[torch.empty(0)] * count for _ in range(count)]
    for j in range(count):
        if view.clock.over:
            return None
        part = _move(moved.parameters, model.parameters, own[j])
        for i in range(count):
            changes_BB[i][j] = (_row(some(moved, alone[i]), names) - rows[i]) / part
    columns = torch.stack([*rows, *(change for changes in changes_BB for change in changes)], 1)
    sizes = columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
    wanted = _row(view.shared.gradients, names).to(columns.device)
    parts: Tensor = least_squares(columns / sizes, wanted[:, None])[:, 0] / sizes
    return parts[count:].view(count, count)


def _move(moved: Mapping[str, Tensor], before: Mapping[str, Tensor], gradient: Tensors) -> float:
    """Put weights a little down a gradient; by how much of it."""
    size = sum(float(before[name].detach().square().sum()) for name in gradient) ** 0.5
    length = sum(float(value.square().sum()) for value in gradient.values()) ** 0.5
    part: float = _MOVED * size / max(length, torch.finfo(torch.float32).tiny)
    with torch.no_grad():
        for name, value in gradient.items():
            moved[name].copy_(before[name] - part * value)
    return part


def _row(gradients: Tensors, names: Sequence[str]) -> Tensor:
    """Some of the entries of tensors, in one row, float64."""
    every = max(1, sum(gradients[name].numel() for name in names) // _ENTRIES)
    return torch.cat([exact(gradients[name].flatten()[::every]) for name in names])
