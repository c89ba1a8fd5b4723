"""Tokens, and where they stand, from the gradients of the embeddings alone (see `rows` for how they are read).

The bag of tokens is FILM's (Gupta et al. 2022, sec. 3). At B = 1 the order comes with it, and the whole sentence is
certified; in larger batches what the rows leave open stays open. Nothing is optimized and nothing is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch

from textleak.attacks.base import ATTACKS, Steps, certified
from textleak.attacks.search.labels import rank_labels
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Label, Phase, Progress, Recovery, Sentence, Stop
from textleak.exact.classes import single_class
from textleak.exact.found import OPEN, Found
from textleak.exact.own_labels import with_own_labels
from textleak.exact.rows import EmbeddingRows, known_alone, read_rows
from textleak.matching import CosinePerTensor
from textleak.matching.discrete import Guess, Row
from textleak.models import TextModel
from textleak.models.base import Modality
from textleak.models.decoding import fixed_tokens, to_sentence
from textleak.proof.certificate import Certificate, certify
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

# Tokens shown for a position that stays open.
_SHOWN = 16
# Classes that are put to the exact test where the head's gradient wasn't shared (our choice).
_CLASSES_TRIED = 8


def found_in(view: View, seen: EmbeddingRows) -> Found | None:
    """Sentences of the batch as far as the embeddings' rows tell them; None where they tell nothing.

    In masked language modeling a token behind a mask is written as its id + V, as in `Guess`.
    """
    model, shared = view.text_model, view.shared
    lengths, notes = _lengths(model, shared, seen), list(seen.notes)
    if not lengths:
        return None
    rows = [_row(model, shared, seen, length, alone=len(lengths) == 1) for length in lengths]
    classes: tuple[Label, ...] = shared.known.labels or ()
    if len(rows) == 1:
        if model.num_labels is not None and not classes:
            classes = _class(model, shared, notes)
        if model.num_labels is None:
            rows = [_with_labels(view, rows[0], notes)]
    else:
        rows = [_masks_open(model, row) for row in rows]
        if model.num_labels is not None and not classes:
            notes.append("Which sentence has which label doesn't show in the embeddings' rows.")
    whole = all(token != OPEN for row in rows for token in row)
    if model.own_loss is not None and whole and len(rows) == 1:
        solved = with_own_labels(view, Found(rows=tuple(rows), complete=True))
        classes, more = solved.classes, solved.notes
        notes += more
    sure = dict(enumerate(seen.confidence))
    return Found(
        rows=tuple(rows),
        confidence=()
        if whole and all(c == 1 for c in seen.confidence)
        else tuple(
            tuple(0.0 if token == OPEN else sure.get(t, 1.0) for t, token in enumerate(row)) for row in rows
        ),
        classes=classes,
        complete=seen.complete and whole,
        channel="embedding",
        sets=()
        if whole
        else tuple(
            (*here, *could) for here, could in zip(seen.places, seen.could_be or seen.places, strict=True)
        ),
        notes=tuple(notes),
    )


# Sentences


def _lengths(model: TextModel, shared: SharedGradient, seen: EmbeddingRows) -> tuple[int, ...]:
    """Tokens of each sentence to answer with: what is known, else what shows; at least so many where neither tells.

    None where nothing shows.
    """
    if shared.known.lengths is not None:
        return shared.known.lengths
    last = int(model.task == "causal-lm")  # whose input leaves no trace
    longest = len(seen.places) + last
    if known_alone(shared) or seen.complete or not seen.places:
        tokens = max(longest, sum(count or 1 for count in seen.bag.values()) + last)
        return (tokens,) if tokens else ()
    at_least = max(map(len, seen.places))
    size = shared.known.batch_size or len(shared.known.labels or ()) or max(2, at_least)
    reached_by_all = max(
        (t + 1 for t, here in enumerate(seen.places) if seen.closed[t] and len(here) == size), default=0
    )
    shortest = min(longest, max(reached_by_all + last, len(model.prefix_ids) + len(model.suffix_ids) + 1))
    return (longest, *(shortest,) * (size - 1))


def _row(model: TextModel, shared: SharedGradient, seen: EmbeddingRows, length: int, *, alone: bool) -> Row:
    """One sentence: positions where only one token stands have it, all others are open."""
    row = [OPEN] * length
    shown = bool(seen.places)
    if shared.known.lengths is not None or (alone and shown):
        for t, token in fixed_tokens(model, length).items():
            row[t] = token
    for t, here in enumerate(seen.places[: length - (model.task == "causal-lm")]):
        if len(here) == 1 and (alone or seen.closed[t]):
            row[t] = here[0]
        elif alone and not here and shared.noise_sigma == 0 and len(seen.could_be[t]) == 1 and not seen.bag:
            row[t] = seen.could_be[t][0]
    return tuple(row)


def _with_labels(view: View, row: Row, notes: list[str]) -> Row:
    """Tokens that are labels only (a causal model's last one, those behind masks), where the last norm tells them."""
    model = view.text_model
    hidden = [t for t, token in enumerate(row) if model.task == "masked-lm" and token == model.mask_id]
    open_ = hidden or [len(row) - 1]
    read = [token for t, token in enumerate(row) if t not in open_]
    if OPEN in read or not (hidden or model.task == "causal-lm"):
        return _masks_open(model, row)
    behind = model.vocab_size if hidden else 0  # symbols of `Guess`
    places = [(0, t if hidden else t - 1) for t in open_]
    filled = tuple(behind if t in open_ else token for t, token in enumerate(row))
    problem = TextProblem(view=view, objective=CosinePerTensor())
    ranked = rank_labels(problem, Guess((filled,)), places, keep=1)
    if not ranked:
        notes.append(
            f"{len(open_)} tokens are labels only and never read; the last norm's gradient, which tells them, was not "
            "shared."
        )
        return _masks_open(model, row)
    for t, place in zip(open_, places, strict=True):
        filled = (*filled[:t], behind + ranked[place][0], *filled[t + 1 :])
    return filled


def _masks_open(model: TextModel, row: Row) -> Row:
    hidden = model.mask_id if model.task == "masked-lm" else None
    return tuple(OPEN if token == hidden else token for token in row)


def _class(model: TextModel, shared: SharedGradient, notes: list[str]) -> tuple[int, ...]:
    try:
        return (single_class(shared, model, torch.Generator().manual_seed(0)),)
    except InputError as error:
        notes.append(str(error).splitlines()[0])
        return ()


# The attack


@ATTACKS.register("embedding")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """Tokens and their order from the gradients of the embeddings alone; nothing is optimized, nothing guessed."""

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.ADDITIVE})
    any_loss: ClassVar[bool] = True
    when: ClassVar[str] = "the embeddings' gradients were shared"
    paper: ClassVar[str] = "ours"

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Raises:
            InputError: no embedding's gradient was shared.
        """
        del generator  # nothing is drawn
        yield Phase(name="rows", detail="tokens and positions in the embeddings' gradients")
        model = view.text_model
        seen = read_rows(view)
        if seen is None:
            raise _nothing_shared(model)
        found = found_in(view, seen)
        sentences = () if found is None else _sentences(model, seen, found)
        yield Progress(phase="rows", step=1, steps=1, total_steps=1, sentences=sentences)
        certificate, evaluations = Certificate(gradient_distance=None, verified=None), 0
        if found is not None and all(token != OPEN for row in found.rows for token in row):
            yield Phase(name="verify", detail="the answer's own gradient")
            for labeled in _labeled(model, sentences):
                evaluations += 1
                certificate = certify(view, labeled)
                if certificate.stop(Stop.READ).settled:
                    sentences = labeled
                    break
            yield Progress(
                phase="verify",
                step=evaluations,
                loss=certificate.gradient_distance,
                evaluations=evaluations,
                total_steps=1,
                sentences=sentences,
            )
        recovery = Recovery(
            sentences=sentences,
            stop=Stop.READ,
            final_loss=None,
            steps=1,
            evaluations=evaluations,
            channel="embedding",
            notes=(found or seen).notes,
        )
        return certified(recovery, certificate)


def _labeled(model: TextModel, sentences: tuple[Sentence, ...]) -> Iterator[tuple[Sentence, ...]]:
    """The answer with each class that its one sentence can have, where that isn't known."""
    (first, *rest) = sentences
    if model.num_labels is None or first.label is not None or rest:
        yield sentences
        return
    for label in range(min(model.num_labels, _CLASSES_TRIED)):
        yield (dataclasses.replace(first, label=label),)


def _sentences(model: TextModel, seen: EmbeddingRows, found: Found) -> tuple[Sentence, ...]:
    """What was found, as events carry it: open positions with the tokens that could stand there."""
    sentences = []
    for b, row in enumerate(found.rows):
        candidates = []
        for t, symbol in enumerate(row):
            could: Iterable[int] = ()
            if symbol == OPEN:
                could = found.sets[t] if t < len(found.sets) else () if seen.places else seen.bag
            shown = list(could)[:_SHOWN]
            candidates.append([(token, 1 / len(shown)) for token in shown])
        sure = found.confidence[b] if found.confidence else (1.0,) * len(row)
        sentences.append(
            to_sentence(
                model,
                row,
                confidence=sure,
                channels=["" if symbol == OPEN else "embedding" for symbol in row],
                candidates=candidates,
                label=found.classes[b] if found.classes else None,
            )
        )
    return tuple(sentences)


def _nothing_shared(model: TextModel) -> InputError:
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    word = names[id(model.word_embedding.weight)]
    return InputError(
        "No embedding's gradient was shared.",
        why="This attack reads the rows of the word and position embeddings, and nothing else.",
        fix=f"Share all, or an expression that matches {word}; or choose --attack match, which needs neither.",
    )
