"""Replay (our choice): what an update spans, then the client's own procedure replayed on each guess.

What several local steps or an optimizer make of a gradient still has the tokens' inputs in its row spaces, blurred:
they rank the vocabulary at each position. Which of the first ones it was is told by what the client would have sent.

One sentence of known length:
1. The vocabulary is ranked by the leading directions of the first layer's updates, as many as there are tokens. Of the
   first ones those are taken whose inputs together hold most of the updates (`replaying.together`).
2. The label whose replayed update points nearest to the one seen; a cheaper client stands in where there is one
   (`Client.proxy`). The answer is certified by the whole procedure.
3. Where it isn't verified: tokens of which most lies in the spans of inputs further in (`replaying.further`), then at
   one position after the other the one whose replayed update is nearest.
A decoder's of which adapters alone are trained, and their A has moved: from left to right, by what of the beginnings'
inputs further in lies in what A moved along (`replaying.by_adapters`), which is a guess.
Where the client drops entries in each step anew, its steps make nothing twice: tokens are proved by the spans where
these allow it (`exact.dropout`), and the others are those whose inputs together hold most, which is likely, not proved.
Several of these, where the word embedding is trained: by the rows that moved (`replaying.looked_up`), likely too.
Several, or of unknown length: sentences whose inputs further in lie in their spans too, put together by replaying them
(`replaying.batches`); where that proves none, by the rows that moved, and then put to the proof.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.attacks.base import ATTACKS, Steps, certified
from textleak.attacks.replaying import TOGETHER
from textleak.attacks.replaying.batches import ReplayedBatch
from textleak.attacks.replaying.by_adapters import adapted_text, reads_adapters
from textleak.attacks.replaying.further import FurtherIn
from textleak.attacks.replaying.lists import FirstUpdate, ranked_tokens
from textleak.attacks.replaying.looked_up import looked_up_batch
from textleak.attacks.replaying.scores import Replayed, sentences_of
from textleak.attacks.replaying.together import Together
from textleak.attacks.span import answer, marked
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Phase, Progress, Recovery, Sentence, Stop
from textleak.exact.adaptive.rows import BlurredRows
from textleak.exact.dropout.sentences import dropped_sentences
from textleak.exact.found import Found
from textleak.matching.discrete import Guess, Row, Scores, substitutions
from textleak.models.base import Modality
from textleak.proof.certificate import Certificate, certify
from textleak.shared.traits import Trait
from textleak.words import count_of

# Tokens at each position whose inputs are looked at together (our choice; measured on minilm after 4 and 10 steps of
# AdamW with dropout: true tokens are among the first 15 of their lists).
_LISTED = 48
_NOTHING = "replay finds no sentences in this update."
# Of sentences whose inputs hold about as much another one is taken where it is nearer by so much (our choice; on minilm
# after 4 steps of AdamW with dropout a true sentence that held less was nearer by 0.05, a false one by 0.003).
_CLEARLY = 1e-2
# By which part of an update less that others hold a token grows by 1 - 1/e surer (our choice; see `SURE`).
_SURER = 3e-4
_LIKELY = (
    "Tokens that aren't proved are those whose inputs together hold most of the update: likely, no more."
)
_NO_SIGN = (
    "That nothing was found is no sign of safety; with one sentence, tell its length "
    "(--know lengths,batch-size)."
)


@ATTACKS.register("replay")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What an update spans, then the client's own steps replayed on each guess.

    Attributes:
        proposals: tokens whose update is replayed at each position of one sentence.
        sweeps: rounds over all positions, at most.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    when: ClassVar[str] = "several local steps, or an optimizer"
    paper: ClassVar[str] = "ours"

    # Measured on minilm: after one clipped AdamW step, or ten, true tokens are among the first 12 of their lists.
    proposals: Annotated[int, Field(ge=1)] = 24
    sweeps: Annotated[int, Field(ge=1)] = 4
    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Raises:
            InputError: no first layer's gradient, spans that tell nothing, or an update that is zero.
        """
        del generator  # nothing is drawn
        if not any(bool(gradient.any()) for gradient in view.shared.gradients.values()):
            raise InputError("Every number of the update is zero.", why="No step is replayed from nothing.")
        lengths = view.shared.known.lengths
        alone = lengths[0] if lengths is not None and len(lengths) == 1 else None
        found = Found()
        if not view.has(Trait.REPEATABLE):
            if not view.has(Trait.ONE_POINT):
                found = yield from dropped_sentences(view)
            if found.settled or (found.rows and alone is None):
                return answer(view, found)
        if alone is None:
            if view.has(Trait.REPEATABLE):
                return (yield from _batch_or_rows(view))
            looked_up = yield from looked_up_batch(view)
            if isinstance(looked_up, str):
                raise _not_repeated((*found.notes, looked_up))
            return looked_up
        if alone > 1 and reads_adapters(view):
            return (yield from adapted_text(view, alone))
        return (yield from self._of_length(view, alone, found))

    def _of_length(self, view: View, length: int, found: Found) -> Steps:
        """One sentence of that length, some of whose tokens may be proved."""
        yield Phase(name="proposals", detail="tokens ranked by the directions of the first layer's update")
        update = FirstUpdate.of(view)
        lists = ranked_tokens(view, update, length, max(self.proposals, _LISTED))
        if not lists:  # time is up
            nothing = Recovery.from_progress(Progress(phase="proposals", step=0), Stop.TIME)
            return answer(view, found) if found.rows else nothing
        proved = found.proved[0] if found.proved else (False,) * len(lists)
        for position, sure in enumerate(proved):
            lists[position] = [found.rows[0][position]] if sure else lists[position]
        recovery = yield from self._one_sentence(view, update, lists)
        sentences = tuple(marked(sentence, proved) for sentence in recovery.sentences)
        if view.has(Trait.REPEATABLE):
            return dataclasses.replace(recovery, sentences=sentences, notes=(*found.notes, *recovery.notes))
        return dataclasses.replace(
            recovery,
            sentences=tuple(map(_likely, sentences)),
            notes=(*found.notes, _LIKELY, *recovery.notes),
        )

    def _one_sentence(self, view: View, update: FirstUpdate, lists: Sequence[Sequence[int]]) -> Steps:
        """The token at each position whose inputs hold most, and the label whose replayed update is nearest."""
        repeatable = view.has(Trait.REPEATABLE)
        yield Phase(
            name="together", detail="tokens whose inputs together hold most of the first layer's update"
        )
        rows, clear = _together(view, update, lists)
        yield Phase(name="replay", detail="the client's procedure replayed on guesses")
        scores = Scores(Replayed(view).scores)
        best = _nearest(scores, _labeled(view, rows[0]))
        others = rows[1:]
        if repeatable:
            others.append(tuple(tokens[0] for tokens in lists))
        yield self._progress(view, scores, best)
        if others:
            best = _clearly_nearer(scores, best, [best.with_row(0, row) for row in others])
            yield self._progress(view, scores, best)
        yield Phase(name="verify", detail="the answer's own update")
        certificate = certify(view, sentences_of(view, best))
        if repeatable and not certificate.verified:
            few = [tokens[: self.proposals] for tokens in lists]
            yield Phase(name="replay", detail="the client's procedure replayed on guesses")
            best = _nearest(scores, [best, best.with_row(0, FurtherIn(view, few).nearest())])
            best = yield from self._swept(view, few, scores, best)
            yield Phase(name="verify", detail="the answer's own update")
            certificate = certify(view, sentences_of(view, best))
        recovery = _recovery(view, best, certificate, scores)
        return recovery if repeatable or best.rows[0] != rows[0] else _sure(recovery, clear)

    def _swept(
        self, view: View, lists: Sequence[Sequence[int]], scores: Scores, best: Guess
    ) -> Generator[Progress, None, Guess]:
        """One position after the other, the token whose replayed update is nearest, until none changes."""
        for sweep in range(1, self.sweeps + 1):
            before = best
            best = _nearest(scores, [best, *_labeled(view, best.rows[0])])
            for turn, tokens in enumerate(lists):
                if len(tokens) > 1:
                    best = _nearest(scores, [best, *substitutions(best, 0, turn, tokens)])
                    yield self._progress(view, scores, best, sweep=sweep)
                if view.clock.over:
                    return best
            if best == before:
                break
        return best

    def _progress(self, view: View, scores: Scores, best: Guess, *, sweep: int = 0) -> Progress:
        return Progress(
            phase="replay",
            step=sweep,
            steps=self.sweeps,
            loss=scores([best])[best],
            evaluations=scores.evaluations,
            sentences=sentences_of(view, best),
        )


def _together(
    view: View, update: FirstUpdate, lists: Sequence[Sequence[int]]
) -> tuple[list[Row], list[float]]:
    """Sentences whose inputs hold most, the first one that does, and how clear each of its places is.

    A language model reads all but the last token.
    """
    read = len(lists) - (view.text_model.task == "causal-lm")
    together = Together(view, update, lists[:read])
    last = tuple(tokens[0] for tokens in lists[read:])
    rivals, clear = together.rivals(together.nearest())
    return [(*row, *last) for row in rivals], [*clear, *(0.0 for _ in last)]


def _labeled(view: View, row: Row) -> list[Guess]:
    """A sentence with each label that it may have."""
    model = view.text_model
    if model.num_labels is None:
        return [Guess((row,))]
    return [Guess((row,), (label,)) for label in view.shared.known.labels or range(model.num_labels)]


def _clearly_nearer(scores: Scores, best: Guess, others: Sequence[Guess]) -> Guess:
    """The nearest of others where it is clearly nearer than the best one so far, which stays otherwise."""
    other = _nearest(scores, others)
    return other if scores([other])[other] < scores([best])[best] - _CLEARLY else best


def _nearest(scores: Scores, guesses: Sequence[Guess]) -> Guess:
    found = scores(guesses)
    return min(found, key=found.__getitem__)


def _batch_or_rows(view: View) -> Generator[Phase | Progress, None, Recovery]:
    """A batch by spans and replaying; where that proves none, by the rows of the word embedding that moved.

    Raises:
        InputError: neither tells a sentence.
    """
    recovery: Recovery | None = None
    try:
        recovery = yield from _batch(view)
    except InputError as error:
        refused = error
    if recovery is not None and (recovery.stop.settled or view.clock.over):
        return recovery
    looked_up = yield from looked_up_batch(view)
    if isinstance(looked_up, str):
        if recovery is None:
            raise refused
        return recovery
    yield Phase(name="verify", detail="the answer's own update")
    certificate = certify(view, looked_up.sentences)
    if certificate.verified:
        looked_up = dataclasses.replace(looked_up, notes=())
    return certified(looked_up, certificate) if certificate.verified or recovery is None else recovery


def _batch(view: View) -> Generator[Phase | Progress, None, Recovery]:
    """Sentences found one by one, put together by what the client would have sent."""
    yield Phase(name="grouping", detail="sentences whose inputs lie in the update's spans")
    blurred = BlurredRows.of(view)
    if isinstance(blurred, str):
        raise InputError(
            f"replay finds no sentences in this update: {blurred}",
            why="They are read off the spans of its layers' inputs, and replaying the client's steps tells the rest.",
            fix="Share more (--share no-embeddings), or tell one sentence's length (--know lengths,batch-size).",
        )
    batch = ReplayedBatch(view, blurred)
    yield from batch.run()
    if batch.guess is None:
        raise InputError(
            _NOTHING,
            why="Tokens have inputs that it spans, but no sentence of them does.",
            fix=_NO_SIGN,
        )
    return _recovery(view, batch.guess, batch.certificate, batch.scores)


def _likely(sentence: Sentence) -> Sentence:
    """A sentence whose tokens that aren't proved are those whose inputs together hold most."""
    positions = tuple(p if p.proved else dataclasses.replace(p, channel=TOGETHER) for p in sentence.positions)
    return dataclasses.replace(sentence, positions=positions)


def _sure(recovery: Recovery, clear: Sequence[float]) -> Recovery:
    """A recovery of one sentence whose tokens are as sure as their places are clear."""
    (sentence,) = recovery.sentences
    positions = tuple(
        dataclasses.replace(position, confidence=1 - math.exp(-apart / _SURER))
        for position, apart in zip(sentence.positions, clear, strict=True)
    )
    return dataclasses.replace(recovery, sentences=(dataclasses.replace(sentence, positions=positions),))


def _not_repeated(notes: Sequence[str]) -> InputError:
    """The error for several sentences that no span tells, of a client whose steps differ each time."""
    return InputError(
        f"{_NOTHING[:-1]}: {' '.join(notes)}" if notes else _NOTHING,
        why="The client draws what it drops, so its steps can't be repeated on a guess of several sentences.",
        fix=_NO_SIGN,
    )


def _recovery(view: View, guess: Guess, certificate: Certificate, scores: Scores) -> Recovery:
    size = view.shared.known.batch_size
    missing = (size or 0) - len(guess.rows)
    notes = (f"{count_of(missing, 'sentence')} of {size} were not found.",) if missing > 0 else ()
    recovery = Recovery(
        sentences=sentences_of(view, guess),
        stop=Stop.TIME if view.clock.over else Stop.CONVERGED,
        final_loss=scores([guess])[guess],
        evaluations=scores.evaluations,
        channel="replay",
        notes=(*notes, *certificate.notes),
    )
    return certified(recovery, certificate)
