"""The number of tokens: dimensions of what the first layer read, each a token at a position of its own."""

from __future__ import annotations

import dataclasses

from textleak.inference.base import Seen, Told, measured
from textleak.inference.dropout import dropout_of
from textleak.inference.inputs import FirstInputs, coarse_span, first_inputs, spectrum_of
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import optimizer_of
from textleak.inference.pairs import pairs_of
from textleak.inference.sentences import sentences_of
from textleak.inference.single import linears_of
from textleak.inference.steps import MORE, steps_of
from textleak.inference.vocabulary import places_of
from textleak.models.probes.layers import local_layers

WHAT = "tokens"
# Deeper layers that are looked at, how many of them have to agree where nothing else says that tokens differ, and the
# size up to which they are decomposed (our choice; measured on minilm: of adapters all but the last two of 11).
_LOOKED_AT, _AGREE, _LARGEST = 8, 4, 1_000_000


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
        return _of_several(seen, span)
    places = _of_one_sentence(seen)
    if places and (span is None or span.rank <= places):
        return Tokens(
            count=places,
            evidence=f"Positions 0 to {places - 1} of the position embedding moved, and no other.",
        )
    if span is None:
        return Tokens(
            count=None, evidence="No gradient of a first layer can be had, in which inputs could be counted."
        )
    if span.filled:
        return Tokens(
            count=None,
            evidence=f"All {span.rank} dimensions that adapters of this rank have are filled, by as many tokens or "
            "more, or by rounding in bfloat16: only the text can tell.",
        )
    figure = f"The first layer's gradient has {span.rank} dimensions beyond rounding"
    if not span.clear:
        return Tokens(count=None, evidence=f"{figure}, without a clear end.")
    if coarse_span(seen, span):
        return Tokens(
            count=None, evidence=f"{figure}, and rounding of the type it was computed in may hide more."
        )
    return _counted(seen, span, figure)


def _counted(seen: Seen, span: FirstInputs, figure: str) -> Tokens:
    """Of one step, whose inputs' dimensions are known to be so many: whether equal tokens share one."""
    if sentences_of(seen).count == 1 and span.layers[0].depends_on_position:
        return Tokens(count=span.rank, evidence=f"{figure}: one for each of one sentence's tokens.")
    ranks = _deeper(seen, span)
    most = max(ranks, default=0)
    deeper = ranks.count(most) if most == span.rank else 0
    if deeper >= _AGREE:
        return Tokens(
            count=span.rank,
            evidence=f"{figure}, and so have {deeper} deeper layers', where no two tokens' inputs are equal.",
        )
    dropout, pairs = dropout_of(seen), pairs_of(seen)
    shared = _shared(seen) if dropout.on is False else 0
    if shared and most == span.rank + shared and ranks.count(most) >= _AGREE:
        return Tokens(
            count=span.rank,
            evidence=f"{figure}, and {ranks.count(most)} deeper layers' have {most}: the {shared} more are what every "
            "sentence begins with, so that no other two tokens share an input.",
        )
    if dropout.on is None:
        return Tokens(count=None, evidence=f"{figure}; whether equal tokens share one isn't known.")
    if dropout.on and not deeper:
        return Tokens(
            count=None,
            evidence=f"{figure}, and no deeper layer's as many: weak ones may be lost in rounding.",
        )
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


def _of_several(seen: Seen, span: FirstInputs | None) -> Tokens:
    """Of several steps of SGD, whose gradients add up: what is dropped makes every token's input one of its own."""
    known = steps_of(seen).count == MORE and optimizer_of(seen).name == "sgd" and dropout_of(seen).on
    # A B starts at 0, where the grid of weights is too fine to count its roundings, and to hide anything.
    rounded = None if span is None else span.rounding if span.down_AI is None else 1.0
    if span is None or rounded is None or not known or not _ends(span, rounded):
        return Tokens(
            count=None,
            evidence="Inputs of several steps, or of an unknown number, can't be told apart without the text.",
        )
    return Tokens(
        count=span.rank,
        evidence=f"The first layer's gradient has {span.rank} dimensions beyond rounding: with dropout every token of "
        "every step has its own.",
    )


def _ends(span: FirstInputs, roundings: float) -> bool:
    return span.ends_after(roundings) and not span.filled


def _shared(seen: Seen) -> int:
    """Tokens that surely have the input of another one: what all sentences begin with, of all of these but one."""
    sentences = sentences_of(seen).count
    return 0 if sentences is None else (sentences - 1) * len(seen.model.prefix_ids)


def _deeper(seen: Seen, span: FirstInputs) -> list[int]:
    """The dimensions of deeper layers' gradients, of those that end clearly.

    Deeper inputs hold what surrounds a token, so equal tokens of several sentences differ there: as many dimensions as
    in the first layer mean that no two inputs of that one were equal either.
    """
    first = {layer.weight_name for layer in span.layers}
    adapted = {layer.name.removesuffix(".base_layer") for layer in local_layers(seen.model)}
    ups = [name for name in seen.sent if ".lora_B." in name and name.partition(".lora_B.")[0] not in adapted]
    names = ups or [layer.weight for layer in linears_of(seen.model) if layer.weight not in first]
    fit = [name for name in names if name in seen.sent and seen.sent[name].numel() <= _LARGEST]
    spectra = (spectrum_of(seen, name) for name in fit[:: max(1, len(fit) // _LOOKED_AT)])
    return [one.rank for one in spectra if one is not None and one.clear]


def _of_one_sentence(seen: Seen) -> int:
    """How many positions one sentence reached; 0 where that doesn't show.

    Of SGD a small move may be lost in decay and rounding; Adam's are all of one size.
    """
    places = places_of(seen).rows
    whole = sent_as(seen).kind == "gradient" or optimizer_of(seen).name == "adamw"
    if not places or not whole or sentences_of(seen).count != 1 or places != tuple(range(len(places))):
        return 0
    return len(places)


def ask(seen: Seen) -> Told:
    """How many tokens."""
    found = tokens_of(seen)
    return Told(what=WHAT, value=found.count, evidence=found.evidence)
