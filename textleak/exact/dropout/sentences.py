"""Sentences of a client that trains with dropout, from a server's view (our choice).

The first layers' gradients span what these layers read, dropped entries and all. Which token at which position each of
these vectors is comes out of `occurrences`, with a proof; a batch's are put together by `arrangement`, and the label of
one sentence is read off the head.

Shapes: B sentences, T positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence

import torch

from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Phase, Progress
from textleak.exact.adaptive.rounded import rounded_span
from textleak.exact.adaptive.spans import bounded_span, first_layers
from textleak.exact.classes import single_class
from textleak.exact.dropout.arrangement import arranged
from textleak.exact.dropout.attention import attended
from textleak.exact.dropout.frame import Frame
from textleak.exact.dropout.last import endings
from textleak.exact.dropout.occurrences import Occurrences
from textleak.exact.dropout.passes import behind_copies
from textleak.exact.dropout.rules import dropped_by
from textleak.exact.found import OPEN, Found
from textleak.exact.subspace import NO_SPAN, NOISE_COVERS, shared_spans, stacked, why_no_span
from textleak.matching.discrete import Row
from textleak.shared.known import SideInformation
from textleak.shared.traits import Trait
from textleak.words import count_of

# Part of the dimensions beyond which the inputs of several steps leave too few entries to prove anything by (our
# choice; measured on minilm: of 15 tokens all are proved after 4 steps of SGD, 0.16, and 11 at once after 8, 0.31).
_FULL = 0.5
_UNREAD = "The client changes the first layers' inputs in a way that no channel here reads."


def dropped_sentences(view: View) -> Generator[Phase | Progress, None, Found]:
    """The sentences of a batch whose inputs were dropped, as far as the first layers' gradients tell them.

    Args:
        view: what the server sees; the client's procedure is run to tell how it drops.
    """
    yield Phase(
        name="span", detail="tokens behind dropout or an optimizer's step: inputs that the gradient spans"
    )
    laid_out = _laid_out(view)
    if isinstance(laid_out, str):
        return Found(notes=(laid_out,))
    causal = view.text_model.task == "causal-lm"
    search = Occurrences(laid_out, _looked_for(view), view.clock, ends_early=causal)
    yield from _steps(search.first_looks())
    if not search.complete and not view.clock.over and (pairs := _read_in_pairs(view)) is not None:
        return (yield from dropped_sentences(pairs))
    yield from _steps(search.further())
    single = search.known.batch_size == 1
    if single and not search.complete and search.reaching(len(search.places)) == 0:
        # The only sentence goes on behind what seemed to be its end.
        search.parted = True
        search.places.clear()
        yield from _steps(search.first_looks())
        yield from _steps(search.further())
    if search.found and not single:
        yield Phase(name="grouping", detail="which of these tokens stand in one sentence")
    found = _one_sentence(view, search) if single else _several(view, search)
    if causal and found.rows:
        yield Phase(name="labels", detail="the last tokens, which are labels only")
        return _ended(view, found)
    return found


def _steps(search: Iterator[str]) -> Iterator[Progress]:
    """A search's steps."""
    for step, words in enumerate(search, 1):
        yield Progress(phase="span", step=step, detail=words)


def _read_in_pairs(view: View) -> View | None:
    """The view, read with texts of two parts, where what ends a second part is proved to stand at some place."""
    model = view.text_model
    if model.pairs or model.parts is None:
        return None
    pairs = dataclasses.replace(view, model=model.in_pairs())
    laid_out = _laid_out(pairs)
    if isinstance(laid_out, str):
        return None
    return pairs if Occurrences(laid_out, _looked_for(pairs), pairs.clock).ends_in_second() else None


def _looked_for(view: View) -> SideInformation:
    """What is known of the inputs: of several sentences each step shows others, as if there were so many more."""
    known = view.shared.known
    if view.has(Trait.ONE_POINT) or known.batch_size is None or (known.batch_size == 1 and known.lengths):
        return known
    return SideInformation(batch_size=view.client.taken(known.batch_size))


def _laid_out(view: View) -> Frame | str:
    """The widest first span, ready for comparison; else a sentence that says why there is none."""
    if not view.has(Trait.ONE_POINT):
        return _laid_out_of_steps(view)
    if not view.has(Trait.ADDITIVE) or view.shared.seen_effects:
        between = _laid_out_between_bounds(view)
        if isinstance(between, Frame) or not view.has(Trait.ADDITIVE):
            return between
    spans = shared_spans(view.text_model, view.shared)
    if not spans:
        return why_no_span(view.text_model, view.shared)
    if view.shared.noise_sigma > 0:
        return NOISE_COVERS
    told = ((layers, span, dropped_by(view, layers[0])) for layers, span in spans)
    readable = [(layers, span, dropped) for layers, span, dropped in told if dropped is not None]
    if not readable:
        return _UNREAD
    layers, span, dropped = max(readable, key=lambda entry: entry[1].room)
    if not span.clear:
        return (
            f"The batch fills {span.rank} of {span.size} dimensions of the first layers' input (n/D), "
            "without a clear end: behind dropout, the span tells nothing for certain."
        )
    return Frame.of(view.text_model, dropped, layers, span, stacked(view.shared.gradients, layers))


def _laid_out_between_bounds(view: View) -> Frame | str:
    """The same where a step or rounding left each entry of the gradient between bounds."""
    if view.shared.known.batch_size != 1 and view.has(Trait.REPEATABLE):
        return "Where entries are only told between bounds, inputs of several sentences are told apart by masks alone."
    layers = first_layers(view)
    found = bounded_span(view, layers)
    if isinstance(found, str):
        return found
    dropped = dropped_by(view, layers[0])
    if dropped is None:
        return _UNREAD
    return Frame.of(
        view.text_model, dropped, layers, found.span, found.gradient_OI, unsure_RI=found.unsure_RI
    )


def _laid_out_of_steps(view: View) -> Frame | str:
    """The same where several steps were taken, each with masks of its own: their inputs lie beside each other."""
    layers = first_layers(view)
    if not layers:
        return NO_SPAN
    if view.shared.defended_effects:
        return "A defense changed the update, so what rounding did to it isn't known."
    dropped = dropped_by(view, layers[0])
    if dropped is None:
        return _UNREAD
    stacked_OI = stacked(view.shared.gradients, layers)
    rounded = rounded_span(stacked_OI, [layer.name for layer in layers])
    if rounded is None:
        return "All of the update is rounding."
    rank, size = rounded.span.rank, rounded.span.size
    if rank > _FULL * size:
        return f"The steps' inputs fill {rank} of {size} dimensions of the first layers' input."
    return Frame.of(view.text_model, dropped, layers, rounded.span, stacked_OI, moving=True)


def _one_sentence(view: View, search: Occurrences) -> Found:
    """The only sentence: what was proved, and the likeliest tokens at its other places."""
    model, known = view.text_model, view.shared.known
    length = known.lengths[0] - search.ends_early if known.lengths else search.frame.span.rank
    row, proved, confidence = [OPEN] * length, [False] * length, [0.0] * length
    for place in search.places[:length]:
        row[place.position], confidence[place.position] = place.best, float(place.promise_C.max())
    for occurrence in search.found:
        if occurrence.position < length:
            row[occurrence.position], proved[occurrence.position] = occurrence.token, occurrence.proved
            confidence[occurrence.position] = 1.0 if occurrence.proved else 0.5
    row = _ids(view, row)
    label, notes = _label(view)
    if model.task == "masked-lm":
        shown = [token != model.mask_id for token in row]
        row = [token if seen else OPEN for token, seen in zip(row, shown, strict=True)]
        proved = [sure and seen for sure, seen in zip(proved, shown, strict=True)]
        notes = (*notes, "What stands behind the masks is a label, which no span shows.")
    return Found(
        rows=(tuple(row),),
        confidence=(tuple(confidence),),
        classes=() if label is None else (label,),
        batch_size=1,
        complete=search.complete,
        proved=(tuple(proved),),
        settled=search.complete and all(proved),
        notes=(*_notes(search), *notes),
    )


def _ended(view: View, found: Found) -> Found:
    """Sentences with their last tokens, which no layer reads: the likeliest ones, or open."""
    last = endings(view, found.rows)
    tokens = [OPEN] * len(found.rows) if last is None else [ending.token for ending in last]
    surest = [0.0] * len(found.rows) if last is None else [ending.confidence for ending in last]
    confidence = found.confidence or tuple((1.0,) * len(row) for row in found.rows)
    note = "The last token of each sentence is a label only: "
    note += "it stays open." if last is None else "the likeliest one is shown, which isn't proved."
    return dataclasses.replace(
        found,
        rows=tuple((*row, token) for row, token in zip(found.rows, tokens, strict=True)),
        confidence=tuple((*row, sure) for row, sure in zip(confidence, surest, strict=True)),
        proved=tuple((*row, False) for row in found.proved),
        settled=False,
        notes=(*found.notes, note),
    )


def _label(view: View) -> tuple[int | None, tuple[str, ...]]:
    """The class of one sentence, where the head tells it; a note where it doesn't."""
    if view.text_model.num_labels is None:
        return None, ()
    if view.shared.known.classes is not None:
        return view.shared.known.classes[0], ()
    try:
        return single_class(view.shared, view.text_model, torch.Generator().manual_seed(0)), ()
    except InputError:
        return None, ("The classification head's gradient was not shared, so the label stays open.",)


def _several(view: View, search: Occurrences) -> Found:
    """The sentences of a batch, by what ties their tokens; what stands where if nothing does."""
    attention = None
    if search.found:
        inputs_NI = torch.stack([o.input_I for o in search.found])
        positions_N = torch.tensor([o.position for o in search.found])
        attention = attended(search.frame, inputs_NI, positions_N)
    if attention is None:
        sets = tuple(
            tuple(dict.fromkeys(_ids(view, [o.token for o in search.here(p.position)])))
            for p in search.places
        )
        while sets and not sets[-1]:
            sets = sets[:-1]
        return Found(sets=sets, notes=_notes(search))
    ends = search.suffix_ids[-1] if search.suffix_ids else None
    arrangement = arranged(search.found, attention, ends, search.known.batch_size)
    rows, proved = [], []
    for row in arrangement.rows:
        places = range(max(row) + 1)
        rows.append(tuple(search.found[row[t]].token if t in row else OPEN for t in places))
        proved.append(tuple(t in row and search.found[row[t]].proved for t in places))
    if search.frame.moving:
        return _copied(view, search, rows, ends)
    grouped = sum(arrangement.proved)
    known = view.shared.known.batch_size
    settled = search.complete and all(map(all, proved)) and grouped == len(rows) and known in (None, grouped)
    if search.complete and grouped < len(rows):
        left = count_of(len(rows) - grouped, "sentence")
        note = f"Which tokens stand together is likely, but not proved, in {left}."
    return Found(
        rows=tuple(tuple(_ids(view, row)) for row in rows),
        batch_size=known or (len(rows) if settled else None),
        complete=search.complete,
        proved=tuple(proved),
        grouped=arrangement.proved,
        settled=settled,
        notes=(*_notes(search), *((note,) if search.complete and grouped < len(rows) else ())),
    )


def _copied(view: View, search: Occurrences, copies: Sequence[Row], ends: int | None) -> Found:
    """The sentences of a batch of which every step shows copies."""
    size = view.shared.known.batch_size
    rows = behind_copies(copies, size, ends=ends)
    sure = {(o.position, o.token) for o in search.found if o.proved}
    note = "Which tokens stand together is likely, but not proved."
    return Found(
        rows=tuple(tuple(_ids(view, row)) for row in rows),
        batch_size=size,
        proved=tuple(tuple(pair in sure for pair in enumerate(row)) for row in rows),
        grouped=(False,) * len(rows),
        notes=(*_notes(search), note),
    )


def _ids(view: View, tokens: Sequence[int]) -> list[int]:
    """Tokens as ids, of whatever part of a text they are."""
    return [token if token == OPEN else token % view.text_model.vocab_size for token in tokens]


def _notes(search: Occurrences) -> tuple[str, ...]:
    """What the channel gave, in plain words."""
    proved, rank = sum(o.proved for o in search.found), search.frame.span.rank
    rate = search.frame.dropped.rate
    hides = f"The client drops {rate:.0%} of the first layers' inputs" if rate > 0 else ""
    if search.frame.bounded:
        between = "an optimizer's step or rounding leaves each entry of the gradient between bounds"
        hides = f"{hides}, and {between}" if hides else between.capitalize()
    if search.frame.moving:
        hides += ", in each of several steps anew"
    if not proved:
        return (f"{hides}; no token could be proved behind that.",)
    alone = search.frame.moving and search.known.lengths is not None
    shown = "tokens" if alone else f"{rank} inputs that the gradient shows"
    notes = [
        f"{hides}, which hides no token: {proved} of the {shown} are proved, each by "
        "far more entries that equal its token's own than could by accident."
    ]
    if len(search.found) > proved:
        alike = count_of(len(search.found) - proved, "input")
        notes.append(f"Tokens fit so nearly alike at {alike} that which of them it was can't be told.")
    return tuple(notes)
