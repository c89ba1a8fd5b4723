"""The number of tokens: dimensions of what the first layer read, each a token at a position of its own."""

from __future__ import annotations

import dataclasses
import re

from textleak.inference.base import Seen, Told, measured
from textleak.inference.dropout import dropout_of
from textleak.inference.inputs import first_inputs, spectrum_of
from textleak.inference.pairs import pairs_of
from textleak.inference.sentences import sentences_of
from textleak.inference.steps import steps_of
from textleak.models.probes.layers import local_layers

WHAT = "tokens"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """How many; None where it can't be told."""

    count: int | None
    evidence: str


@measured
def tokens_of(seen: Seen) -> Tokens:
    """Distinct inputs of the first layer: all tokens with dropout, tokens that differ in word or position without."""
    span = first_inputs(seen)
    if not steps_of(seen).single:
        return Tokens(
            count=None, evidence="Inputs of several steps, or of an unknown number, can't be told apart."
        )
    if span is None:
        return _behind_adapters(seen)
    figure = f"The first layer's gradient has {span.rank} dimensions beyond rounding"
    if not span.clear:
        return Tokens(count=None, evidence=f"{figure}, without a clear end.")
    if sentences_of(seen).count == 1 and span.layers[0].depends_on_position:
        return Tokens(count=span.rank, evidence=f"{figure}: one for each of one sentence's tokens.")
    dropout, pairs = dropout_of(seen), pairs_of(seen)
    if dropout.on is None:
        return Tokens(count=None, evidence=f"{figure}; whether equal tokens share one isn't known.")
    if dropout.on:
        return Tokens(count=span.rank, evidence=f"{figure}: with dropout every token has its own.")
    if pairs is None or not pairs.positions:
        return Tokens(count=None, evidence=f"{figure}: so many different tokens, equal ones counted once.")
    if len(pairs.inside) != span.rank or pairs.unclear:
        return Tokens(
            count=None,
            evidence=f"{figure}, and {len(pairs.inside)} tokens at their positions fit: no one-to-one count.",
        )
    return Tokens(
        count=span.rank,
        evidence=f"{figure}, and just so many tokens at their positions lie in it (equal ones once).",
    )


def _behind_adapters(seen: Seen) -> Tokens:
    """By the first layers' adapters, where their rank is above the number of tokens: B's gradient has that of both."""
    found: dict[int, str] = {}
    rank = 0
    for layer in local_layers(seen.model):
        for name in seen.sent:
            if layer.depends_on_position and re.fullmatch(
                re.escape(layer.name) + r"\.lora_B(\.default)?\.weight", name
            ):
                spectrum = spectrum_of(seen, name)
                rank = min(seen.sent[name].shape)
                if spectrum is not None and spectrum.clear and spectrum.rank < rank:
                    found[spectrum.rank] = name
    if not rank:
        return Tokens(
            count=None, evidence="No gradient of a first layer can be had, in which inputs could be counted."
        )
    if not found:
        return Tokens(
            count=None,
            evidence=f"Adapters of rank {rank} show no more than {rank} inputs, and they are full.",
        )
    most = max(found)
    figure = f"The gradient of {found[most]} has {most} of {rank} dimensions"
    if sentences_of(seen).count == 1 or dropout_of(seen).on:
        return Tokens(count=most, evidence=f"{figure}: one for each token.")
    return Tokens(count=None, evidence=f"{figure}; whether equal tokens share one isn't known.")


def ask(seen: Seen) -> Told:
    """How many tokens."""
    found = tokens_of(seen)
    return Told(what=WHAT, value=found.count, evidence=found.evidence)
