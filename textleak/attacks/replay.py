"""Replay (our choice): what an update spans, then the client's own procedure replayed on each guess.

What several local steps or an optimizer make of a gradient still has the tokens' inputs in its row spaces, blurred:
they rank the vocabulary at each position. Which of the first ones it was is told by what the client would have sent.

One sentence of known length:
1. The vocabulary is ranked by the leading directions of the first layer's updates, as many as there are tokens; where
   the first ones aren't it, those of which most lies in the spans of inputs further in (`replaying.further`).
2. From these and every label, one position after the other takes the token whose replayed update points nearest to the
   one seen; a cheaper client stands in where there is one (`Client.proxy`).
3. The answer is certified by the whole procedure.
Where the client drops entries in each step anew, its steps make nothing twice: tokens are proved by the spans where
these allow it (`exact.dropout`), and the others are what steps without dropout come nearest with, which isn't proved.
Several, or of unknown length: sentences whose inputs further in lie in their spans too, put together by replaying them
(`replaying.batches`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.attacks.base import ATTACKS, Steps, certified
from textleak.attacks.replaying.batches import ReplayedBatch
from textleak.attacks.replaying.further import FurtherIn
from textleak.attacks.replaying.lists import ranked_tokens
from textleak.attacks.replaying.scores import Replayed, sentences_of
from textleak.attacks.span import answer, marked
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Phase, Progress, Recovery, Stop
from textleak.exact.adaptive.rows import BlurredRows
from textleak.exact.dropout.sentences import dropped_sentences
from textleak.exact.found import Found
from textleak.matching.discrete import Guess, Scores, substitutions
from textleak.models.base import Modality
from textleak.proof.certificate import Certificate, certify
from textleak.shared.traits import Trait
from textleak.words import count_of

_NOTHING = "replay finds no sentences in this update."
_NO_SIGN = (
    "That nothing was found is no sign of safety; with one sentence, tell its length "
    "(--know lengths,batch-size)."
)


@ATTACKS.register("replay")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What an update spans, then the client's own steps replayed on each guess.

    Attributes:
        proposals: tokens tried at each position of one sentence.
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
            InputError: no first layer's gradient, or spans that tell nothing.
        """
        del generator  # nothing is drawn
        lengths = view.shared.known.lengths
        alone = lengths[0] if lengths is not None and len(lengths) == 1 else None
        found = Found()
        if not view.has(Trait.REPEATABLE):
            if not view.has(Trait.ONE_POINT):
                found = yield from dropped_sentences(view)
            if found.settled or (found.rows and alone is None):
                return answer(view, found)
        if alone is None:
            if not view.has(Trait.REPEATABLE):
                raise _not_repeated(found.notes)
            return (yield from _batch(view))
        yield Phase(name="proposals", detail="tokens ranked by the directions of the first layer's update")
        lists = ranked_tokens(view, alone, self.proposals)
        proved = found.proved[0] if found.proved else (False,) * len(lists)
        for position, sure in enumerate(proved):
            lists[position] = [found.rows[0][position]] if sure else lists[position]
        recovery = yield from self._one_sentence(view, lists)
        return dataclasses.replace(
            recovery,
            sentences=tuple(marked(sentence, proved) for sentence in recovery.sentences),
            notes=(*found.notes, *recovery.notes),
        )

    def _one_sentence(self, view: View, lists: Sequence[Sequence[int]]) -> Steps:
        """The token at each position, and the label, whose replayed update is nearest."""
        model = view.text_model
        scores = Scores(Replayed(view).scores)
        labels = () if model.num_labels is None else view.shared.known.labels or (0,)
        best = Guess((tuple(tokens[0] for tokens in lists),), labels)
        turns = [turn for turn, tokens in enumerate(lists) if len(tokens) > 1]
        if model.num_labels is not None and view.shared.known.labels is None:
            turns.insert(0, -1)
        yield Phase(name="replay", detail="the client's procedure replayed on guesses")
        certificate = Certificate(gradient_distance=None, verified=False)
        for sweep in range(1, self.sweeps + 1):
            before = best
            for turn in turns:
                found = scores([best, *_followers(best, lists, turn, model.num_labels or 0)])
                best = min(found, key=found.__getitem__)
                yield Progress(
                    phase="replay",
                    step=sweep,
                    steps=self.sweeps,
                    loss=found[best],
                    evaluations=scores.evaluations,
                    sentences=sentences_of(view, best),
                )
                if turn < 0 and sweep == 1:  # the first tokens of all lists may be it
                    certificate = certify(view, sentences_of(view, best))
                    if not certificate.verified:
                        found = scores([best, best.with_row(0, FurtherIn(view, lists).nearest())])
                        best = min(found, key=found.__getitem__)
                if view.clock.over or certificate.verified:
                    break
            if best == before or view.clock.over or certificate.verified:
                break
        if not certificate.verified:
            yield Phase(name="verify", detail="the answer's own update")
            certificate = certify(view, sentences_of(view, best))
        return _recovery(view, best, certificate, scores)


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


def _followers(guess: Guess, lists: Sequence[Sequence[int]], turn: int, classes: int) -> list[Guess]:
    """What is tried in a guess's place: at turn −1 every label, else the tokens of a position."""
    if turn < 0:
        return [guess.with_class(0, label) for label in range(classes)]
    return list(substitutions(guess, 0, turn, lists[turn]))
