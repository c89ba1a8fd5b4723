"""How many sentences: a classifier's last layers read one position of each, so their gradients have that rank."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from textleak.inference.base import Seen, Told, measured
from textleak.inference.head import head_of
from textleak.inference.inputs import spectrum_of
from textleak.inference.single import DOMINANT, alone, linears_of, read_once
from textleak.inference.steps import steps_of
from textleak.inference.vocabulary import places_of, words_of

WHAT = "sentences"
# Last layers that are looked at, how many of them have to agree, and the size up to which they are decomposed (our
# choice).
_LAST, _AGREE, _LARGEST = 6, 2, 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences:
    """How many; None where it can't be told."""

    count: int | None
    evidence: str


@measured
def sentences_of(seen: Seen) -> Sentences:
    """How many different sentences a batch for classification had."""
    if seen.model.task != "classification":
        return Sentences(
            count=None, evidence="Every position has a loss of its own, so no layer reads one a sentence."
        )
    used_once = alone(seen)
    if used_once and not _more_words_than_places(seen):
        return Sentences(
            count=1,
            evidence=f"The signs of {used_once[-1]} are one outer product's: it was used at one position, or all that "
            "it read was alike to a thousandth.",
        )
    if not steps_of(seen).single:
        return Sentences(
            count=None, evidence="Sentences of several steps, or of an unknown number, can't be told apart."
        )
    ups = {name: name.partition(".lora_B.")[0] for name in seen.sent if ".lora_B." in name}
    adapted = _read_once(seen, ups)
    if adapted is not None:
        return adapted
    head = head_of(seen)
    ranks: Counter[int] = Counter()
    weights = [
        layer.weight for layer in linears_of(seen.model) if head is None or layer.weight != head.weight
    ]
    sent = [name for name in weights if name in seen.sent and seen.sent[name].numel() <= _LARGEST]
    for name in sent[-_LAST:]:
        spectrum = spectrum_of(seen, name)
        if spectrum is not None and spectrum.clear and 2 * spectrum.rank < min(seen.sent[name].shape):
            ranks[spectrum.rank] += 1
    least = min(ranks, default=0)
    if ranks[least] < _AGREE:
        once = _read_once(seen, {name: name.removesuffix(".weight") for name in sent})
        return once or Sentences(
            count=None, evidence="No two of the last layers agree on how many positions they read."
        )
    return Sentences(
        count=least,
        evidence=f"The gradients of {ranks[least]} of the last {_LAST} layers have rank {least} (equal ones once).",
    )


def _more_words_than_places(seen: Seen) -> bool:
    """Whether more tokens were looked up than one sentence has positions, as far as the embeddings show."""
    words, places = words_of(seen).rows, places_of(seen).rows
    return words is not None and places is not None and len(words) > len(places)


def _read_once(seen: Seen, modules: Mapping[str, str]) -> Sentences | None:
    """By layers that are read at one position of a sentence; None where none of them ends clearly.

    Args:
        seen: the update.
        modules: of weights or adapters, by the parameter's name.
    """
    once, ranks = read_once(seen.model), []
    for name, module in modules.items():
        spectrum = spectrum_of(seen, name) if module in once else None
        # Rounding in bfloat16 fills nearly all of an adapter's rank.
        few = spectrum is not None and 2 * spectrum.rank < min(seen.sent[name].shape)
        if spectrum is not None and few and spectrum.clear and spectrum.least >= DOMINANT:
            ranks.append((spectrum.rank, name))
    if not ranks:
        return None
    count, name = max(ranks)
    return Sentences(
        count=count,
        evidence=f"{name} reads one position of each sentence, and its gradient has rank {count} (equal ones once).",
    )


def ask(seen: Seen) -> Told:
    """How many sentences."""
    found = sentences_of(seen)
    return Told(what=WHAT, value=found.count, evidence=found.evidence)
