"""Labels: the head's bias gets p − y, so a class with a negative entry occurs (Zhao et al. 2020, iDLG, sec. 3)."""

from __future__ import annotations

from textleak.inference.base import Seen, Told
from textleak.inference.head import head_of
from textleak.inference.heads import read_heads
from textleak.inference.kind import sent_as
from textleak.inference.sentences import sentences_of
from textleak.inference.single import moves_of
from textleak.inference.steps import steps_of

WHAT = "labels"


def ask(seen: Seen) -> Told:
    """Classes that occur for certain."""
    layer = head_of(seen)
    moved = None if layer is None or layer.bias is None else moves_of(seen, layer.bias)
    if layer is None or moved is None:
        return Told(
            what=WHAT,
            value=None,
            evidence="No bias of a classification head was sent, or its move isn't known.",
        )
    if not steps_of(seen).single:
        return Told(what=WHAT, value=None, evidence="Labels of several steps can't be told apart.")
    heads = read_heads(seen)
    if heads is not None:
        return Told(
            what=WHAT,
            value=sorted(heads.labels),
            evidence=f"Each sentence's part of {layer.weight} is what the head's prediction makes of its class.",
        )
    gradient_C = moved[0] if sent_as(seen).kind == "gradient" else -moved[0]
    classes = (gradient_C < 0).nonzero().flatten().tolist()
    if sentences_of(seen).count == 1 and len(classes) == 1:
        return Told(
            what=WHAT,
            value=classes,
            evidence=f"Of one sentence, only its own class {classes[0]} pulls {layer.bias} up.",
        )
    listed = ", ".join(map(str, classes))
    return Told(
        what=WHAT,
        value=None,
        evidence=f"Only more than one sentence shows in {layer.bias}; class {listed} occurs for certain.",
    )
