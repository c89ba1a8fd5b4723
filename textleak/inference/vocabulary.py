"""The vocabulary and the longest sentence, by the rows of the embeddings that moved beyond weight decay.

Shapes: V vocabulary, E embedding size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor

from textleak.exact.lookups import denser_than_noise, looked_up_rows, tied
from textleak.inference.altered import altered, levels_of, zeroed
from textleak.inference.base import Seen, Told, measured
from textleak.inference.kind import sent_as
from textleak.inference.shrinking import decay_of, off_the_grid
from textleak.models.probes.sums import embedding_sum
from textleak.numerics import exact
from textleak.shared.gradient import SharedGradient
from textleak.words import count_of, readable

WHAT = "vocabulary"
# Tokens that the evidence names (our choice).
_NAMED = 12
_CHUNK = 4096
# Sizes that signs have, with one scale a tensor or none.
_SIGNS = (1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of an embedding that were looked up; None where they can't be told."""

    rows: tuple[int, ...] | None
    evidence: str


@measured
def words_of(seen: Seen) -> Rows:
    """Tokens that were looked up."""
    table = seen.model.word_embedding.weight
    name = next((name for name, parameter in seen.model.parameters.items() if parameter is table), "")
    if name not in seen.sent:
        return Rows(rows=None, evidence="The word embedding was not sent.")
    if sent_as(seen).kind == "gradient":
        return _of_gradient(seen, name)
    if tied(seen.model):
        return Rows(rows=None, evidence="The output head is tied to the word embedding and moves every row.")
    return _of_update(seen, name)


@measured
def places_of(seen: Seen) -> Rows:
    """Positions that were reached."""
    places = embedding_sum(seen.model)
    name = places.position_name
    if name is None or name not in seen.sent:
        return Rows(rows=None, evidence="No position embedding was sent.")
    if sent_as(seen).kind == "gradient":
        rows: tuple[int, ...] | None = tuple(_filled(seen.sent[name]))
    else:
        rows = _of_update(seen, name).rows
    if rows is None or len(rows) == len(seen.sent[name]):
        return Rows(rows=None, evidence="Which positions moved by more than decay doesn't show.")
    where = {row: place for place, row in enumerate(places.rows)}
    found = tuple(sorted(where[row] for row in rows if row in where))
    return Rows(rows=found, evidence=f"{count_of(len(found), 'row')} of {name} moved.")


def _of_gradient(seen: Seen, name: str) -> Rows:
    notes: list[str] = []
    shared = SharedGradient(gradients=seen.sent, model=seen.model.public(), share="all")
    found = looked_up_rows(seen.model, shared, seen.sent[name], notes)
    if found is None:
        return Rows(rows=None, evidence=" ".join(notes) or "No row stands out.")
    if levels_of(seen) in _SIGNS:  # which of equal sizes were left, if some were set to 0, is no accident
        return Rows(rows=None, evidence="Entries have one size, which hides it.")
    if not tied(seen.model):
        return _told(name, {*_filled(seen.sent[name])} & {*found.ids}, "were looked up")
    if zeroed(seen).pruned:
        return Rows(
            rows=None, evidence="Entries were set to 0, so rows beside the tied output head's don't show."
        )
    return _told(name, found.ids, "were looked up")


def _of_update(seen: Seen, name: str) -> Rows:
    hidden = altered(seen)
    if hidden is not None:  # of what all weights shrink by, more is left where they are large
        return Rows(rows=None, evidence=hidden)
    weights, decay = seen.weights(name), decay_of(seen)
    if weights is None or decay is None:
        return Rows(rows=None, evidence=f"Which rows of {name} moved by more than weight decay doesn't show.")
    sent = seen.sent[name]
    parts: list[Tensor] = []
    for start in range(0, len(weights), _CHUNK):
        before, moved = (exact(t[start : start + _CHUNK]).cpu() for t in (weights, sent))
        parts.append((off_the_grid(moved, before, decay.product, weights.dtype).abs() > decay.off).sum(1))
    rows = denser_than_noise(torch.cat(parts), sent.shape[1])
    beyond = "moved" if not decay.product else f"moved by more than weight decay's {decay.product:.2g}"
    return _told(name, rows, beyond)


def _filled(gradient_NE: Tensor) -> list[int]:
    """Rows that more than noise left of."""
    return denser_than_noise((gradient_NE != 0).sum(1).cpu(), gradient_NE.shape[1])


def _told(name: str, rows: Collection[int], what: str) -> Rows:
    if not rows:
        return Rows(
            rows=None, evidence=f"No row of {name} stands out of what noise may have left of the others."
        )
    return Rows(rows=tuple(sorted(rows)), evidence=f"{count_of(len(rows), 'row')} of {name} {what}.")


def ask(seen: Seen) -> Told:
    """The tokens that occur."""
    found = words_of(seen)
    if found.rows is None:
        return Told(what=WHAT, value=None, evidence=found.evidence)
    texts = seen.model.token_texts(found.rows)
    content = [
        readable(text)
        for id_, text in zip(found.rows, texts, strict=True)
        if id_ not in seen.model.special_ids
    ]
    own = len(texts) - len(content)
    beside = f" (beside {own} of the tokenizer's own)" if own else ""
    named = ", ".join(content[:_NAMED]) + (" …" if len(content) > _NAMED else "") + beside
    return Told(what=WHAT, value=list(found.rows), evidence=f"{found.evidence[:-1]}: {named}.")
