"""How far a classifier's gradient is where a sentence has another class: without running it again.

A sentence's class is asked for and never read. So one pass of the answer gives each sentence's loss with every class,
and a short way back what the last tensors' gradients change by.

Shapes: B sentences, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from textleak.events import Label
from textleak.matching.discrete import Guess
from textleak.models import Targets, TextModel
from textleak.models.gradient import last_of, noted_modules, opened
from textleak.models.guesses import padded
from textleak.models.targets import cross_entropies
from textleak.numerics import exact
from textleak.proof.rivals import LAST, TOKENS_A_PASS, small_ones

Change = tuple[int, Label, Label]
"""A sentence's number, its class, and another."""


def other_labels(guess: Guess, rivals: Sequence[Guess]) -> dict[Guess, tuple[Change, ...]]:
    """The rivals that differ from a guess in classes alone, with what they differ in."""
    return {
        rival: tuple(
            (row, old, new)
            for row, (old, new) in enumerate(zip(guess.classes, rival.classes, strict=True))
            if old != new
        )
        for rival in rivals
        if rival.rows == guess.rows and rival.classes != guess.classes
    }


def label_distances(
    model: TextModel,
    guess: Guess,
    rivals: Sequence[Guess],
    own: Mapping[str, Tensor],
    distance: Callable[[Mapping[str, Tensor]], float],
) -> dict[Guess, float]:
    """How far each rival of other classes is at the last few tensors, which the whole distance can't be below.

    Args:
        model: a classifier, in the precision wanted; nothing is told of others.
        guess: the answer, each of whose sentences is one part of its loss.
        rivals: others; nothing is told of those whose texts are others.
        own: the answer's gradient.
        distance: of a gradient of a few tensors.
    """
    labels = other_labels(guess, rivals)
    hard = all(isinstance(label, int) for one in (guess, *labels) for label in one.classes)
    if not labels or model.num_labels is None or model.own_loss is not None or not hard:
        return {}
    moved: dict[Change, dict[str, Tensor]] = {}
    names: list[str] = []
    for rows in _passes(guess, sorted({row for changes in labels.values() for row, _, _ in changes})):
        wanted = {change for changes in labels.values() for change in changes if change[0] in rows}
        names = _moved(model, guess, rows, sorted(wanted), own, moved)
    if not names:
        return {}
    mine, found = {name: exact(own[name]) for name in names}, {}
    for rival, changes in labels.items():
        here = {name: sum((moved[change][name] for change in changes), start=mine[name]) for name in names}
        found[rival] = distance(here)
    return found


def _moved(
    model: TextModel,
    guess: Guess,
    rows: Sequence[int],
    changes: Sequence[Change],
    own: Mapping[str, Tensor],
    moved: dict[Change, dict[str, Tensor]],
) -> list[str]:
    """Fill in what each change adds to the gradient of the last tensors; these tensors' names."""
    small = small_ones(model, own)
    ids_BT, mask_BT = padded(model, [guess.rows[row] for row in rows])
    share = 1.0 if model.language.reduction == "sum" else 1 / len(guess.rows)
    with opened(model, small), noted_modules(model) as ran, torch.enable_grad():
        logits_B1C = model.logits(ids_BT, mask_BT).to(model.loss_dtype)
        names = last_of(model, small, ran)[:LAST]
        parameters = [model.parameters[name] for name in names]
        for row, old, new in changes:
            logits_21C = logits_B1C[rows.index(row)].expand(2, 1, -1)
            asked = torch.tensor([[new], [old]], device=model.device)
            targets = Targets(labels=asked, weights=torch.ones_like(asked, dtype=model.loss_dtype))
            after, before = cross_entropies(logits_21C, targets, model.language.smoothing)
            slopes = torch.autograd.grad(share * (after - before).sum(), parameters, retain_graph=True)
            moved[row, old, new] = {name: exact(slope) for name, slope in zip(names, slopes, strict=True)}
    return names


def _passes(guess: Guess, rows: Sequence[int]) -> Iterator[list[int]]:
    """Some of a guess's sentences, as many at once as a pass takes."""
    longest = max(len(guess.rows[row]) for row in rows)
    step = max(1, TOKENS_A_PASS // longest)
    for start in range(0, len(rows), step):
        yield list(rows[start : start + step])
