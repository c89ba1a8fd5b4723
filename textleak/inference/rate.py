"""The learning rate."""

from __future__ import annotations

import dataclasses

from textleak.inference.base import Seen, Told, measured
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import first_step, optimizer_of

WHAT = "learning rate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate; None where it can't be told."""

    rate: float | None
    evidence: str


@measured
def rate_of(seen: Seen) -> Rate:
    """The learning rate of the optimizer."""
    if sent_as(seen).kind == "gradient":
        return Rate(rate=None, evidence="A gradient was sent: no rate is in it.")
    first = first_step(seen)
    if first is not None:
        return Rate(
            rate=first.rate,
            evidence=f"Adam's first step moves entries by the rate: {first.rate:.5g}, which no entry exceeds.",
        )
    if optimizer_of(seen).name == "sgd":
        return Rate(rate=None, evidence="SGD's moves are rate times gradient, and only their product shows.")
    return Rate(rate=None, evidence="No cluster of entries shows the rate.")


def ask(seen: Seen) -> Told:
    """The learning rate."""
    found = rate_of(seen)
    return Told(
        what=WHAT, value=None if found.rate is None else float(f"{found.rate:.4g}"), evidence=found.evidence
    )
