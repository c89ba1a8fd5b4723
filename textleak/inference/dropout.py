"""Dropout: a clean input of the first layer lies in the span of its gradient, a dropped one doesn't."""

from __future__ import annotations

import dataclasses

from textleak.inference.base import Seen, Told, measured
from textleak.inference.inputs import first_inputs
from textleak.inference.pairs import pairs_of

WHAT = "dropout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout:
    """Whether entries were dropped, and how often one was; None where it can't be told."""

    on: bool | None
    rate: float | None
    evidence: str


@measured
def dropout_of(seen: Seen) -> Dropout:
    """Dropout of the first layer's input."""
    span, pairs = first_inputs(seen), pairs_of(seen)
    if span is None or pairs is None:
        return Dropout(
            on=None, rate=None, evidence="No span of a first layer's inputs shows beside its tokens."
        )
    figure = f"{len(pairs.inside)} clean inputs lie in the span of the first layer's {span.rank} directions"
    if pairs.inside:
        return Dropout(on=False, rate=0.0, evidence=f"{figure}: nothing was dropped from them.")
    if pairs.unclear or not span.clear:
        return Dropout(on=None, rate=None, evidence=f"{figure}, and {pairs.unclear} of them can't be told.")
    return Dropout(
        on=True, rate=None, evidence=f"{figure}, though {pairs.outside} tokens and positions moved."
    )


def ask(seen: Seen) -> Told:
    """Whether dropout was on, by its rate."""
    found = dropout_of(seen)
    return Told(
        what=WHAT, value=found.rate if found.rate is not None else found.on and "on", evidence=found.evidence
    )
