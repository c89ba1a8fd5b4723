"""Exact recovery from the span of the layers' inputs (Petrov et al. 2024; grouping, proof and counting: our choice).

A decoder's sentences are built token by token (`prefixes`), an encoder's are told apart by its attention (`grouping`).
Where the client drops entries of these inputs, each is looked for up to zeros (`dropout`). What LoRA's adapters show is
too little for a span: it is taken apart by sparse regression (`adapters`).
Neither labels, lengths nor the batch size need be known. Nothing is optimized, and nothing is filled in that the
gradient doesn't show: where exactness ends, sentences found so far are the answer, the rest stays open.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.attacks.base import ATTACKS, Steps, certified
from textleak.attacks.search.unsaid import spoken, told
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Sentence, Stop
from textleak.exact.adapters.measured import FIRST_ROUND, in_first_round, measures
from textleak.exact.adapters.narrow_text import narrow_text
from textleak.exact.adapters.sentences import adapter_sentences
from textleak.exact.dropout.sentences import dropped_sentences
from textleak.exact.found import OPEN, Found
from textleak.exact.grouping import encoder_sentences
from textleak.exact.own_labels import with_own_labels
from textleak.exact.padded import padded_sentences
from textleak.exact.prefixes import causal_sentences
from textleak.models import TextModel
from textleak.models.base import Modality
from textleak.models.decoding import fixed_tokens, to_sentence
from textleak.models.losses.classes import Classes, smoothing_of, weighed
from textleak.models.losses.language import PLAIN, Language, Padding
from textleak.models.own_labels import solved_labels
from textleak.models.probes.reach import reads_padding, sees_ahead
from textleak.proof.certificate import Certificate, certify
from textleak.proof.scaled import scaled
from textleak.shared.effects import Rounded
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

# Tokens shown for a position that stays open.
_SHOWN = 16
# How near weights of classes are to whole numbers that are taken for counts (our choice; 1e-6 is usual).
_WHOLE = 1e-3
# What else padding can be than left out, where nobody said.
_PADDINGS: tuple[Padding, ...] = ("counted", "left")
_UNFIT = (
    "Their own gradient isn't the shared one: the client's loss is no mean over all tokens. If you know it, tell it: "
    "--client loss:reduction=sum, reduction=mean-of-means, prompt=N, padding=counted, padding=left or smoothing=S."
)
_ADAPTED_PAIRS = "Texts of two parts, each with a token type of its own, aren't read behind adapters."
_UNREAD = (
    "What some sentences end with couldn't be told: no layer reads it, and the norm before the head, whose gradient "
    "shows it, has none here, or the client's loss is another one."
)


@ATTACKS.register("span")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Whole sentences from the spans of the first layers' inputs; nothing is optimized, nothing guessed.

    Attributes:
        time_limit: seconds after which the sentences found so far are returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT})
    any_loss: ClassVar[bool] = True
    first_layers: ClassVar[bool] = True
    when: ClassVar[str] = "fewer tokens than the hidden size; proofs"
    paper: ClassVar[str] = "after Petrov et al. 2024"

    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how."""
        del generator  # nothing is drawn
        found = yield from spanned_sentences(view)
        yield Phase(name="verify", detail="the answer's own gradient")
        recovery = answer(view, found)
        yield Progress(
            phase="verify",
            step=1,
            steps=1,
            loss=recovery.final_loss,
            evaluations=1,
            sentences=recovery.sentences,
        )
        return recovery


def spanned_sentences(view: View) -> Generator[Phase | Progress, None, Found]:
    """The sentences of a batch, as far as the spans of its layers' inputs tell them."""
    if not (view.has(Trait.IN_SPAN) and view.has(Trait.ADDITIVE)) or _one_rounded(view):
        return (yield from _between_bounds(view))
    if measures(view):
        if view.text_model.pairs:
            return Found(notes=(_ADAPTED_PAIRS,))
        return (yield from adapter_sentences(view))
    if sees_ahead(view.text_model):
        return (yield from encoder_sentences(view))
    return (yield from _decoder_sentences(view))


def _between_bounds(view: View) -> Generator[Phase | Progress, None, Found]:
    """Those behind a step that left bounds of the gradient, or behind dropped inputs."""
    found = yield from narrow_text(view)
    if found.rows or found.sets:
        return found
    first_round = in_first_round(view)
    if not (first_round and found.notes):
        dropped = yield from dropped_sentences(view)
        found = dataclasses.replace(dropped, notes=(*found.notes, *dropped.notes))
    return dataclasses.replace(found, notes=(FIRST_ROUND, *found.notes)) if first_round else found


def _decoder_sentences(view: View) -> Generator[Phase | Progress, None, Found]:
    """Those of a decoder, grown token by token; with padding as the client has it, or as is seen to fit."""
    model, shared = view.text_model, view.shared
    as_text = model.language.padding == "left" and reads_padding(model)
    if model.language.padding != "masked" and not as_text:
        return (yield from padded_sentences(model, shared, view.clock))
    if as_text:
        model = model.spoken_with(dataclasses.replace(model.language, padding="masked"))
    found = yield from causal_sentences(model, shared, view.clock)
    if model.first_layers is not None:
        return found
    if as_text:
        return _unpadded(model, found)
    several = model.task == "causal-lm" and shared.known.size != 1 and not shared.seen_effects
    if not several or told(view) or not found.rows:
        return found
    if not all(OPEN in row for row in found.rows):
        return _unpadded(model, found) if _padded_as_text(model, found) else found
    fitting = found
    for padding in _PADDINGS:
        model = model.spoken_with(dataclasses.replace(PLAIN, padding=padding))
        other = yield from padded_sentences(model, shared, view.clock)
        if other.rows and next(spoken(view, other), None) is not None:
            return other
        fitting = other if other.rows and fitting is found else fitting
    return fitting


def _padded_as_text(model: TextModel, found: Found) -> bool:
    """Whether some sentences look like padding and text that a network reads alike: all of one length, it seems."""
    padded = any(row[:1] == (model.pad_id,) for row in found.rows)
    return padded and len({*map(len, found.rows)}) == 1 and reads_padding(model)


def _unpadded(model: TextModel, found: Found) -> Found:
    """Sentences of a network that reads padding on the left as text, without it."""
    rows = tuple(tuple(itertools.dropwhile(lambda token: token == model.pad_id, row)) for row in found.rows)
    left = dataclasses.replace(model.language, padding="left")
    return Found(rows=rows, channel=found.channel, language=left) if all(rows) else found


def _one_rounded(view: View) -> bool:
    """Whether it is one sentence, and an encoder's gradient ended in a short type, so that no span has a clear end."""
    rounded = any(isinstance(effect, Rounded) for effect in view.shared.seen_effects)
    return rounded and view.shared.known.batch_size == 1 and sees_ahead(view.text_model)


def answer(view: View, found: Found) -> Recovery:
    """What was found as a recovery, put to the exact test where it is whole."""
    model, shared = view.text_model, view.shared
    found = with_own_labels(view, found)
    sentences = shown(model, shared, found)
    certificate = Certificate(gradient_distance=None, verified=False)
    recovery = Recovery(
        sentences=sentences,
        stop=Stop.READ,
        final_loss=None,
        steps=1,
        channel=found.channel,
        grouped=found.grouped,
        notes=found.notes,
    )
    if found.settled:
        return dataclasses.replace(recovery, stop=Stop.PROVED)
    if model.first_layers is not None:
        return dataclasses.replace(recovery, stop=Stop.TIME if view.clock.over else Stop.READ)
    if found.proved and not view.has(Trait.REPEATABLE):
        return dataclasses.replace(recovery, stop=Stop.TIME if view.clock.over else Stop.READ)
    filled = bool(found.rows) and not any(token == OPEN for row in found.rows for token in row)
    if (found.complete or found.proved) and filled:
        certificate = certify(view, sentences)
    if certificate.verified is False and filled and shared.known.size == len(found.rows):
        softened = _softened(view, found)
        if softened is not None:
            return softened
    if (
        certificate.verified is False and filled and model.task != "causal-lm"
    ):  # whose factor its own channel says
        note = scaled(view, sentences)
        recovery = dataclasses.replace(recovery, notes=(*recovery.notes, *(() if note is None else (note,))))
    if model.task == "causal-lm" and found.rows and not certificate.stop(Stop.READ).settled:
        return _respoken(view, found, certified(recovery, certificate))
    return certified(dataclasses.replace(recovery, evaluations=1), certificate)


def _respoken(view: View, found: Found, recovery: Recovery) -> Recovery:
    """The same texts with the loss that the gradient shows, where it is another one; else the recovery."""
    # What alters a gradient after the loss is no loss.
    if view.shared.seen_effects or not view.has(Trait.ONE_POINT):
        return recovery
    founds = [found]
    if found.language is None and found.complete and view.shared.known.size != 1 and not told(view):
        # A network whose padding leaves nothing behind but its predictions.
        founds.append(dataclasses.replace(found, language=dataclasses.replace(PLAIN, padding="left")))
    for count, (other, ended) in enumerate(itertools.chain(*(spoken(view, one) for one in founds))):
        sentences = shown(other.text_model, view.shared, ended)
        certificate = certify(other, sentences)
        if certificate.stop(Stop.READ).settled:
            said = () if told(view) else tuple(_how_spoken(other.text_model.language))
            return certified(
                dataclasses.replace(recovery, sentences=sentences, evaluations=2 + count, notes=said),
                certificate,
            )
    return _unfit(view, found, recovery)


def _unfit(view: View, found: Found, recovery: Recovery) -> Recovery:
    """The recovery with a word on the loss, where texts were found whole and it isn't known."""
    fits = list(found.language.described()) if found.language is not None else []
    unread = any(row[-1:] == (OPEN,) for row in found.rows)
    if not (fits or found.complete) or (told(view) and not unread):
        return recovery
    said = (f"The client {' and '.join(fits)}, it seems.",) if fits and not told(view) else ()
    return dataclasses.replace(recovery, notes=(*recovery.notes, *said, _UNREAD if unread else _UNFIT))


def _how_spoken(language: Language) -> Iterator[str]:
    """What the loss is, for a person."""
    words = list(language.described())
    if words:
        yield f"The client's loss, as its gradient shows: it {' and '.join(words)}."


def _softened(view: View, found: Found) -> Recovery | None:
    """The same texts with soft labels, where a classifier's gradient is of these; None where it isn't."""
    model = view.text_model
    if model.num_labels is None or view.shared.known.labels is not None:
        return None
    soft = dataclasses.replace(view, model=model.trained_with(Classes()))
    solved = with_own_labels(soft, dataclasses.replace(found, classes=(), complete=True, notes=()))
    notes = tuple(_how_soft(solved))
    if not solved.classes and (other := _weighed(soft, found)) is not None:
        soft, solved, notes = other
    sentences = shown(model, view.shared, solved)
    certificate = certify(soft, sentences)
    if not certificate.stop(Stop.READ).settled:
        return None
    recovery = Recovery(
        sentences=sentences, stop=Stop.READ, final_loss=None, steps=1, evaluations=2, channel=found.channel
    )
    return certified(dataclasses.replace(recovery, notes=notes), certificate)


def _weighed(soft: View, found: Found) -> tuple[View, Found, tuple[str, ...]] | None:
    """The view with weighted classes, the texts with theirs, and a note; None where no weights make the gradient."""
    if not soft.has(Trait.SCALED) or soft.shared.seen_effects:
        return None
    model = soft.text_model
    solved = solved_labels(model.double(), soft.shared.gradients, found.rows)
    if solved.deltas_BLC is None or solved.logits_BLC is None:
        return None
    fitting = weighed(solved.deltas_BLC[:, 0], solved.logits_BLC[:, 0].softmax(-1))
    if fitting is None:
        return None
    classes, weights = fitting
    there = ", ".join(f"{weights[c]:.3g} for {c}" for c in sorted(set(classes)))
    loss = Classes(weights=weights)
    view = dataclasses.replace(soft, model=dataclasses.replace(model, changed_loss=loss))
    note = f"The client weighed its classes, as its gradient shows: {there}."
    if all(math.isclose(weights[c], round(weights[c]), rel_tol=_WHOLE) for c in set(classes)):
        note += " Where nobody told the batch size, it may hold the sentences of a class so many times over instead."
    return view, dataclasses.replace(found, classes=classes, complete=True, notes=()), (note,)


def _how_soft(found: Found) -> Iterator[str]:
    """What the soft labels are, for a person; nothing where they are classes after all."""
    if not any(isinstance(label, tuple) for label in found.classes):
        return
    made = {smoothing_of(label) if isinstance(label, tuple) else None for label in found.classes}
    factors = {round(one[1], 3) for one in made if one is not None}
    if None not in made and len(factors) == 1:
        yield f"The client smoothed its labels by {factors.pop():g}."
    else:
        yield "The client's labels are soft, probabilities of all classes; or its loss weighs or scales what it sums."


def shown(model: TextModel, shared: SharedGradient, found: Found) -> tuple[Sentence, ...]:
    """What was found, as events carry it; where no sentence was, open positions with what could stand there."""
    if not found.rows:
        if shared.known.lengths is not None:
            known = [fixed_tokens(model, length) for length in shared.known.lengths]
            return tuple(
                _open_sentence(model, length, fixed, found.sets)
                for length, fixed in zip(shared.known.lengths, known, strict=True)
            )
        return (_open_sentence(model, len(found.sets), {}, found.sets),) if found.sets else ()
    sentences = tuple(
        to_sentence(
            model,
            row,
            confidence=found.confidence[b] if found.confidence else [float(token != OPEN) for token in row],
            channels=["" if token == OPEN else found.channel for token in row],
            label=found.classes[b] if found.classes else None,
        )
        for b, row in enumerate(found.rows)
    )
    return tuple(map(marked, sentences, found.proved)) if found.proved else sentences


def marked(sentence: Sentence, proved: Sequence[bool]) -> Sentence:
    """A sentence with the tokens marked that the channel itself proves."""
    marks = zip(sentence.positions, proved, strict=True)
    positions = tuple(dataclasses.replace(position, proved=sure) for position, sure in marks)
    return dataclasses.replace(sentence, positions=positions)


def _open_sentence(
    model: TextModel, length: int, fixed: Mapping[int, int], sets: tuple[tuple[int, ...], ...]
) -> Sentence:
    listed = [sets[t] if t < len(sets) and t not in fixed else () for t in range(length)]
    return to_sentence(
        model,
        [fixed.get(t, OPEN) for t in range(length)],
        confidence=[float(t in fixed) for t in range(length)],
        candidates=[[(token, 1 / len(here)) for token in here[:_SHOWN]] for here in listed],
    )
