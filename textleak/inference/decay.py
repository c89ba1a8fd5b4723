"""Weight decay: untouched rows shrink by rate times decay."""

from __future__ import annotations

from textleak.inference.base import Seen, Told, roundest
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import first_step
from textleak.inference.rate import rate_of
from textleak.inference.repeated import repeated_of
from textleak.inference.shrinking import decay_of
from textleak.inference.steps import steps_of

WHAT = "weight decay"
# An interval this narrow around a number tells it (our choice).
_NARROW = 0.3


def ask(seen: Seen) -> Told | None:
    """Weight decay, where the rate is known too; None of a gradient, as weights shrink in the optimizer."""
    if sent_as(seen).kind == "gradient":
        return None
    decay, first, rate = decay_of(seen), first_step(seen), rate_of(seen).rate
    if decay is None:
        if first is None:
            return Told(
                what=WHAT, value=None, evidence="No rows of an embedding show what moves without a gradient."
            )
        product, half, where = first.product, first.product / 20 + 3e-8, "a fit over all entries"
    else:
        product, half = decay.product, decay.half
        where = f"{decay.rows:,} rows of {decay.table} that nothing else moved"
    repeated, count = repeated_of(seen), steps_of(seen).count
    if repeated is not None:
        product, half = repeated.product, repeated.half
        where += f", in each of {repeated.steps} steps"
    elif isinstance(count, int) and count > 1:
        product, half = product / count, half / count
        where += f", in each of {count} steps alike"
    if rate is None:
        if product > half:
            return Told(
                what=WHAT,
                value={"rate × decay": float(f"{product:.6g}")},
                evidence=f"Weights shrank by {product:.4g} ({where}): rate times decay, together"
                + (", over all steps." if count is None or isinstance(count, str) else "."),
            )
        return Told(what=WHAT, value=0.0, evidence=f"Nothing shrank by {half:.1g} or more ({where}).")
    low, high = max(0.0, product - half) / rate, (product + half) / rate
    if product <= half:
        return Told(
            what=WHAT,
            value=0.0,
            evidence=f"Nothing shrank by {half:.1g} or more ({where}): at most {high:.2g}.",
        )
    value = roundest(low, high) if high - low < _NARROW * high else None
    return Told(
        what=WHAT,
        value=value,
        evidence=f"Weights shrank by {product:.4g} ({where}): between {low:.3g} and {high:.3g} over the rate"
        + ("; the roundest number there." if value is not None else ", too wide to tell."),
    )
