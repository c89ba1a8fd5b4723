"""The labels of sentences that were found, where the head has a loss of its own: solved for, nothing is tried."""

from __future__ import annotations

import dataclasses

from textleak.clients.view import View
from textleak.exact.found import OPEN, Found
from textleak.models.own_labels import solved_labels
from textleak.shared.traits import Trait

_OPEN = "The labels stay open: what was shared doesn't show them."


def with_own_labels(view: View, found: Found) -> Found:
    """What was found with its labels; as it is where they are known, or aren't the head's own.

    Args:
        view: what the server sees.
        found: its sentences are all of the batch's, or its labels stay open.
    """
    model, known = view.text_model, view.shared.known.labels
    if model.own_loss is None or not found.rows or found.classes:
        return found
    if known is not None and len(known) == len(found.rows) == 1:
        return dataclasses.replace(found, classes=known)
    whole = found.complete and not any(OPEN in row for row in found.rows)
    if whole and view.has(Trait.SCALED) and not view.shared.seen_effects:
        solved = solved_labels(model.double(), view.shared.gradients, found.rows)
        if solved.labels is not None:
            return dataclasses.replace(found, classes=solved.labels)
    return dataclasses.replace(found, notes=(*found.notes, _OPEN))
