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
from textleak.models.sentence_parts import Known, moved_by
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
    *,
    known: Known | None = None,
) -> dict[Guess, float]:
    """How far each rival of other classes is at the last few tensors, which the whole distance can't be below.

    Args:
        model: a classifier, in the precision wanted; nothing is told of others.
        guess: the answer, each of whose sentences is one part of its loss.
        rivals: others; nothing is told of those whose texts are others.
        own: the answer's gradient.
        distance: of a gradient of a few tensors.
        known: parts of sentences that were run on the model already.
    """
    labels = other_labels(guess, rivals)
    hard = all(isinstance(label, int) for one in (guess, *labels) for label in one.classes)
    if not labels or model.num_labels is None or model.own_loss is not None or not hard:
        return {}
    moved: dict[Change, dict[str, Tensor]] = {}
    wanted = sorted({change for changes in labels.values() for change in changes})
    names = _known_moved(model, guess, wanted, own, moved, known) if known else []
    for rows in [] if names else _passes(guess, sorted({row for row, _, _ in wanted})):
        some = [change for change in wanted if change[0] in rows]
        names = _moved(model, guess, rows, some, own, moved)
    if not names:
        return {}
    mine, found = {name: exact(own[name]) for name in names}, {}
    for rival, changes in labels.items():
        here = {name: sum((moved[change][name] for change in changes), start=mine[name]) for name in names}
        found[rival] = distance(here)
    return found


def _known_moved(
    model: TextModel,
    guess: Guess,
    changes: Sequence[Change],
    own: Mapping[str, Tensor],
    moved: dict[Change, dict[str, Tensor]],
    known: Known,
) -> list[str]:
    """As `_moved`, of what is known already; no names where that isn't all."""
    shapes = {name: model.parameters[name].shape for name in small_ones(model, own)}
    share, names = _share(model, guess), []
    for row, old, new in changes:
        parts = known.get(guess.rows[row])
        if parts is None or not isinstance(old, int) or not isinstance(new, int):
            return []
        change = moved_by(parts, old, new, shapes, most=LAST)
        if not change:
            return []
        moved[row, old, new] = {name: share * exact(one) for name, one in change.items()}
        names = list(change)
    return names


def _share(model: TextModel, guess: Guess) -> float:
    """How much of the batch's loss is a sentence's."""
    return 1.0 if model.language.reduction == "sum" else 1 / len(guess.rows)


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
    share = _share(model, guess)
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
