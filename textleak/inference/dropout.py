"""Dropout: a clean input of the first layer lies in the span of its gradient, a dropped one doesn't.

How often entries are dropped shows where a layer was used once: what was dropped of its output or input got no gradient
at all.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from textleak.inference.base import Seen, Told, measured, per_cent
from textleak.inference.estimates import estimate_of
from textleak.inference.head import head_of
from textleak.inference.heads import read_heads
from textleak.inference.inputs import coarse_span, first_inputs
from textleak.inference.masks import masked
from textleak.inference.optimizer import optimizer_of
from textleak.inference.pairs import pairs_of
from textleak.inference.single import alone, linears_of, moves_of
from textleak.inference.steps import steps_of
from textleak.words import count_of

WHAT = "dropout"
# Entries that tell that nothing was dropped, where none was: with a rate of 0.05 that had a chance of 6e-6.
_LEAST = 240
# Standard deviations that a rate may be off its estimate, and how near that has to be for it to be told (our choice).
_SURE, _NEAR = 2.5, 0.02
# What people set rates to a multiple of, as 0.1 and 0.05 are, the largest of these, and the deviations that one may be
# off. Of other rates four in five are within `_NEAR` of one.
_SET, _LARGEST, _SURE_OF_SET = 0.05, 0.5, 3.5
# How many times likelier than any other it has to be, and where the model's configuration has it (our choice).
_LIKELIER, _AS_CONFIGURED = 100.0, 20.0
# Deviations of an entry's error up to which it may be 0, and the chance that a sum over sentences is that small anyway
# (our choice).
_HIDDEN, _BY_CHANCE = 4.0, 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout:
    """Whether entries were dropped, and how often one was; None where it can't be told."""

    on: bool | None
    rate: float | None
    evidence: str


@measured
def dropout_of(seen: Seen) -> Dropout:
    """Dropout of the first layer's input, or of a layer that was used once."""
    span, pairs = first_inputs(seen), pairs_of(seen)
    if pairs is not None and span is not None and pairs.inside:
        return Dropout(
            on=False,
            rate=0.0,
            evidence=f"{len(pairs.inside)} clean inputs lie in the span of the first layer's {span.rank} directions: "
            "nothing was dropped from them.",
        )
    heads = read_heads(seen)
    if heads is not None:
        return Dropout(
            on=True,
            rate=round(heads.dropout, 3),
            evidence=f"What the head read of {count_of(len(heads.labels), 'sentence')} is 0 or "
            f"{1 / (1 - heads.dropout):.4f} times what the layer before makes of it: 1/(1 − rate).",
        )
    dropped, looked_at = (sum(column) for column in zip((0, 0), zeros_of(seen), masked(seen), strict=True))
    if looked_at >= _LEAST:
        if not dropped:
            return Dropout(
                on=False, rate=0.0, evidence=f"None of {looked_at:,} entries beside dropout were set to 0."
            )
        return _rated(seen, dropped, looked_at)
    empty = empty_columns(seen)
    if empty:
        return Dropout(
            on=True,
            rate=None,
            evidence=f"{count_of(empty[0], 'input')} of {empty[1]} of the head got no gradient: dropped from all "
            "sentences. From how many each was dropped doesn't show, so the rate doesn't.",
        )
    if span is None or pairs is None:
        several = optimizer_of(seen).name == "adamw" and not steps_of(seen).single
        why = ": several of Adam's steps add up to none" if several else " beside its tokens"
        return Dropout(on=None, rate=None, evidence=f"No span of a first layer's inputs shows{why}.")
    if span.filled:
        return Dropout(
            on=None,
            rate=None,
            evidence=f"All {span.rank} dimensions that adapters of this rank have are filled, so that no input lies "
            "outside; nor do the head's inputs show it. Only the text can tell.",
        )
    figure = f"No clean input lies in the span of the first layer's {span.rank} directions"
    if pairs.unclear or not pairs.outside:
        return Dropout(on=None, rate=None, evidence=f"{figure}, and {pairs.unclear} of them can't be told.")
    if not span.clear:
        return Dropout(on=None, rate=None, evidence=f"{figure}, which has no clear end.")
    if coarse_span(seen, span):
        return Dropout(
            on=None,
            rate=None,
            evidence=f"{figure}, and rounding of the type it was computed in may hide more.",
        )
    return Dropout(
        on=True, rate=None, evidence=f"{figure}, though {pairs.outside} tokens at positions are possible."
    )


def _rated(seen: Seen, dropped: int, looked_at: int) -> Dropout:
    """The rate: by what the configuration has, where that is as likely as the share itself."""
    share = dropped / looked_at
    middle, half = _interval(share, looked_at, _SURE)
    figure = f"{dropped:,} of {looked_at:,} entries ({per_cent(share)}) beside dropout were set to 0"
    figure += f": a rate between {middle - half:.3f} and {middle + half:.3f}"
    if half > _NEAR:
        rate, times = _set_to(seen, dropped, looked_at)
        if not times:
            return Dropout(on=True, rate=None, evidence=f"{figure}.")
        figure += (
            f"; of multiples of {_SET:g}, {rate:g} is {min(times, 1e6):,.0f} times likelier than any other"
        )
        return Dropout(on=True, rate=rate, evidence=f"{figure}.")
    usual = [rate for rate in _configured(seen) if abs(rate - middle) <= half]
    if len(usual) == 1:
        return Dropout(
            on=True, rate=usual[0], evidence=f"{figure}; the model's configuration has {usual[0]:g}."
        )
    return Dropout(on=True, rate=round(middle, 3), evidence=f"{figure}.")


def _set_to(seen: Seen, dropped: int, looked_at: int) -> tuple[float, float]:
    """The multiple of `_SET` that is likeliest by far, and how many times; 0 times where none is."""
    share = dropped / looked_at
    rates = [round(n * _SET, 3) for n in range(1, round(_LARGEST / _SET) + 1)]
    chances = {rate: dropped * math.log(rate) + (looked_at - dropped) * math.log1p(-rate) for rate in rates}
    rate, other = sorted(rates, key=lambda one: -chances[one])[:2]
    times = math.exp(chances[rate] - chances[other])
    middle, half = _interval(share, looked_at, _SURE_OF_SET)
    enough = times >= (_AS_CONFIGURED if rate in _configured(seen) else _LIKELIER)
    return rate, times if enough and abs(rate - middle) <= half else 0.0


def _interval(share: float, count: int, deviations: float) -> tuple[float, float]:
    """Middle and half of the interval that a share's own rate is in; Wilson's, 1927, which holds for few as well."""
    spread = deviations**2 / count
    middle = (share + spread / 2) / (1 + spread)
    return middle, (spread * (share * (1 - share) + spread / 4)) ** 0.5 / (1 + spread)


def _configured(seen: Seen) -> list[float]:
    values = {key: value for key, value in vars(seen.model.network.config).items() if "drop" in key}
    return sorted({value for value in values.values() if isinstance(value, float) and value > 0})


@measured
def zeros_of(seen: Seen) -> tuple[int, int]:
    """Entries without any gradient beside a dropout, of layers that were used once, and how many were looked at."""
    used_once = set(alone(seen))
    if not used_once:
        return 0, 0
    dropped = looked_at = 0
    for layer in linears_of(seen.model):
        if layer.dropped_after and layer.weight in used_once and layer.bias in seen.sent:
            found = moves_of(seen, layer.bias)
            lines = None if found is None else found[0].abs() <= found[1]
        elif layer.dropped_before and layer.weight in seen.sent and not layer.dropped_after:
            found = moves_of(seen, layer.weight)
            head = seen.model.num_labels is not None and len(seen.sent[layer.weight]) == seen.model.num_labels
            lines = (found[0].abs() <= found[1]).all(0) if head and found is not None else None
        else:
            continue
        if lines is not None and not bool(lines.all()):
            dropped += int(lines.sum())
            looked_at += len(lines)
    return dropped, looked_at


@measured
def empty_columns(seen: Seen) -> tuple[int, int] | None:
    """Inputs of the head without any gradient, of one step on several sentences, and of how many; None for none.

    A sum over sentences is as small as what rounding hides by chance alone, which has to be a hundredth at most for all
    of them together.
    """
    head = head_of(seen)
    if head is None or not head.dropped_before or not steps_of(seen).single:
        return None
    found = estimate_of(seen, head.weight)
    if found is None:
        return None
    sizes_O = found.value.abs().amax(0)
    hidden_O = torch.zeros_like(sizes_O) if found.error is None else _HIDDEN * found.error.amax(0)
    empty_O = sizes_O <= hidden_O
    count, usual = int(empty_O.sum()), float(sizes_O.median())
    if not count or not usual or float(hidden_O[empty_O].max()) * len(sizes_O) > _BY_CHANCE * usual:
        return None
    return count, len(sizes_O)


def ask(seen: Seen) -> Told:
    """Whether dropout was on, by its rate."""
    found = dropout_of(seen)
    return Told(
        what=WHAT, value=found.rate if found.rate is not None else found.on and "on", evidence=found.evidence
    )
