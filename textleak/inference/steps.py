"""How many steps the optimizer took: each one rounds the weights once more."""

from __future__ import annotations

import dataclasses

from textleak.inference.adapters import moved_downs
from textleak.inference.base import Seen, Told, measured
from textleak.inference.inputs import first_inputs
from textleak.inference.kind import sent_as
from textleak.inference.levels import levels_of
from textleak.inference.optimizer import clustered, first_step, optimizer_of
from textleak.inference.repeated import repeated_of
from textleak.inference.shrinking import decay_of

WHAT = "steps"
MORE = "more than 1"
# Variance of the rounding over that of one step, up to which it is one and from which it is more (our choice; measured
# on minilm and bert-tiny: 0.90 to 1.06 after one, 1.6 to 2.1 after two, 4.8 after five).
_ONE, _TWO = (0.8, 1.2), 1.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """How many, or `MORE`, or None where it can't be told; 0 for a gradient."""

    count: int | str | None
    evidence: str

    @property
    def single(self) -> bool:
        """Whether one gradient is all that the update holds."""
        return self.count in (0, 1)


@measured
def steps_of(seen: Seen) -> Steps:
    """How many steps were taken since the optimizer was fresh."""
    sent, optimizer = sent_as(seen).kind, optimizer_of(seen).name
    if sent == "gradient":
        return Steps(count=0, evidence="A gradient was sent: no step was taken.")
    if sent is None:
        return Steps(count=None, evidence="Whether an optimizer was at work can't be told.")
    counted = _of_adam(seen) if optimizer == "adamw" else None
    if counted is not None:
        return counted
    downs = moved_downs(seen)
    if downs is not None:
        how = "moved" if downs else "did not move but for decay"
        return Steps(
            count=MORE if downs else 1,
            evidence=f"The adapters' A {how}: as B was 0, their gradient is 0 until the second step.",
        )
    if clustered(seen) is not None:
        return Steps(
            count=None,
            evidence="Entries cluster at one size, less sharply than Adam's first step leaves them where gradients are "
            "far above its ε: of small gradients, or of several steps on one batch.",
        )
    if optimizer == "adamw" and decay_of(seen) is not None:
        return Steps(
            count=MORE,
            evidence="Adam's first step would have moved entries by one size; these are of many. All steps since the "
            "optimizer was fresh count, whether or not this update holds all of them.",
        )
    return _of_rounding(seen)


def _of_adam(seen: Seen) -> Steps | None:
    """By how far Adam's steps moved and shrank entries; None where that doesn't show."""
    if first_step(seen) is not None:
        return Steps(
            count=1,
            evidence="Entries cluster at the rate and none exceeds it, as in Adam's first step alone.",
        )
    levels = levels_of(seen)
    if levels is not None:
        return Steps(count=levels.steps, evidence=levels.evidence)
    repeated = repeated_of(seen)
    if repeated is not None:
        return Steps(count=repeated.steps, evidence=repeated.evidence)
    return None


def _of_rounding(seen: Seen) -> Steps:
    """By how often the weights were rounded."""
    found, decay = (first_inputs(seen) if optimizer_of(seen).name == "sgd" else None), decay_of(seen)
    seen_in = {
        "what no token's input explains": None if found is None else found.rounding,
        "rows that only shrank": None if decay is None else decay.rounding,
    }
    told = {where: variance for where, variance in seen_in.items() if variance is not None}
    for where, variance in told.items():
        figure = f"The variance of {where} is {variance:.2f} times that of rounding the weights once"
        if variance >= _TWO:
            return Steps(count=MORE, evidence=f"{figure}: each step rounds once.")
        if _ONE[0] <= variance <= _ONE[1]:
            return Steps(count=1, evidence=f"{figure}, as after one step.")
    return Steps(
        count=None, evidence="Too few entries moved far enough to count how often the weights were rounded."
    )


def ask(seen: Seen) -> Told:
    """How many steps."""
    found = steps_of(seen)
    return Told(what=WHAT, value=found.count, evidence=found.evidence)
