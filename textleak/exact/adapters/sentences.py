"""A batch from the gradients of LoRA's adapters, at any rank (our choice; the idea of a span is Petrov et al.'s, 2024).

dL/dA of an adapter is r combinations of what its layer reads: too few rows to span the batch's inputs, but those are
sparse in a dictionary that is known. So the tokens come first (`bag`), then beginnings of sentences, each from the one
before it (`growth`), then what ends them (`endings`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Phase, Progress
from textleak.exact.adapters.bag import Bag, find_bag
from textleak.exact.adapters.batches import encoder_batch
from textleak.exact.adapters.endings import read_endings
from textleak.exact.adapters.growth import Growth
from textleak.exact.adapters.measured import (
    FIRST_ROUND,
    Measured,
    first_layers,
    in_first_round,
    later_measured,
)
from textleak.exact.adapters.narrow_text import narrow_text
from textleak.exact.adapters.places import placed
from textleak.exact.classes import single_class
from textleak.exact.found import OPEN, Found
from textleak.matching.discrete import Row
from textleak.models.decoding import to_sentence
from textleak.models.probes.reach import sees_ahead

# The relative norm that the right ends of sentences leave of the gradient (our choice; as `endings` measures it).
_ENDED = 1e-4

_MASKED = "Which tokens are masked was not found: only what the network reads shows in the first layers."
_ENDS_OPEN = (
    "What the sentences end with was not found; two of them may begin alike, or one with all of another."
)


def adapter_sentences(view: View) -> Generator[Phase | Progress, None, Found]:
    """The sentences of a batch, as far as its adapters' gradients tell them.

    Args:
        view: what the server sees; `measures` holds.
    """
    if in_first_round(view):
        found = yield from narrow_text(view)
        if found.rows or found.sets:
            return found
        return Found(notes=(FIRST_ROUND, *found.notes))
    model, shared = view.text_model, view.shared
    first = Measured.of(shared, first_layers(model, shared))
    yield Phase(name="tokens", detail="which tokens the adapters' gradients are made of")
    lengths = shared.known.lengths
    longest = max(lengths) - (model.task == "causal-lm") if lengths else None
    steps = find_bag(model, first, longest=longest, clock=view.clock)
    while True:
        try:
            count = next(steps)
        except StopIteration as end:
            bag: Bag | None = end.value
            break
        yield Progress(phase="tokens", step=count, detail=f"{count} tokens")
    if bag is None or not bag.complete:
        return Found(notes=(_no_bag(bag, first),))
    if sees_ahead(model):
        return (yield from _encoder(view, bag))
    return (yield from _decoder(view, bag, longest))


def _no_bag(bag: Bag | None, first: Measured) -> str:
    rows, size = first.gradient_MI.shape
    if bag is None:
        return "What the first layers read isn't made of tokens and positions in a way that can be listed."
    return (
        f"The adapters measure {rows} combinations of inputs in {size} dimensions. Tokens that make all of them were "
        "not found: there are too many, or the gradient was changed."
    )


def _unordered(bag: Bag, longest: int | None) -> Found:
    note = f"{len(bag.tokens)} distinct tokens were found; in which order they stand was not."
    return Found(sets=(bag.tokens,) * (longest or 1), notes=(note,))


def _encoder(view: View, bag: Bag) -> Generator[Phase | Progress, None, Found]:
    """An encoder's sentences from the tokens and positions of its batch."""
    model, shared = view.text_model, view.shared
    size = shared.known.size
    row = placed(bag) if size in (None, 1) else None
    if row is None:
        if size is not None and bag.places_TM.any() and model.task == "classification":
            yield Phase(name="grouping", detail="which of these tokens stand in one sentence, and where")
            return (yield from encoder_batch(view, bag, size))
        return _unordered(bag, max(shared.known.lengths, default=1) if shared.known.lengths else None)
    if model.task != "classification":
        hidden = tuple(OPEN if token == model.mask_id else token for token in row)
        return Found(rows=(hidden,), confidence=(_sure(hidden),), notes=(_MASKED,) if OPEN in hidden else ())
    try:
        label = single_class(shared, model, torch.Generator().manual_seed(0))
    except InputError as error:  # the head wasn't shared
        return Found(rows=(row,), notes=(" ".join(str(error).splitlines()),))
    return Found(rows=(row,), classes=(label,), complete=True)


def _decoder(view: View, bag: Bag, longest: int | None) -> Generator[Phase | Progress, None, Found]:
    """A decoder's sentences from the tokens of its batch."""
    model, shared = view.text_model, view.shared
    measured = later_measured(model, shared)
    if not measured:
        return _unordered(bag, longest)
    yield Phase(
        name="prefixes", detail="beginnings of sentences that the later adapters' gradients are made of"
    )
    growth = Growth(model, measured, bag.tokens, longest=longest, single=shared.known.size == 1)
    for count in growth.grow(view.clock):
        yield Progress(
            phase="prefixes",
            step=count,
            sentences=tuple(to_sentence(model, row, confidence=_sure(row)) for row in _open(growth.leaves)),
            detail=f"{count} beginnings",
        )
    if not growth.complete:
        return _unordered(bag, longest)
    rows = growth.leaves
    if model.task != "causal-lm":
        return Found(rows=tuple(rows))
    yield Phase(name="labels", detail="what the sentences end with")
    ended, off = _open(rows), 1.0
    for step, (ends, off) in enumerate(read_endings(model, shared.gradients, rows, view.clock), 1):
        ended = [(*row, token) for row, token in zip(rows, ends, strict=True)]
        sentences = tuple(to_sentence(model, row, confidence=_sure(row)) for row in ended)
        yield Progress(phase="labels", step=step, loss=off, sentences=sentences)
    if off <= _ENDED:
        return Found(rows=tuple(ended), complete=True)
    rows = _open(rows)
    return Found(rows=tuple(rows), confidence=tuple(map(_sure, rows)), notes=(_ENDS_OPEN,))


def _open(rows: Sequence[Row]) -> list[Row]:
    """Sentences whose last tokens aren't known."""
    return [(*row, OPEN) for row in rows]


def _sure(row: Row) -> tuple[float, ...]:
    return tuple(float(token != OPEN) for token in row)
