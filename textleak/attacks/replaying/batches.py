"""A batch of several sentences: found one by one in blurred spans, put together by what the client would have sent.

1. Sentences whose inputs lie in the update's spans (`exact.adaptive.rows`).
2. The labels that replaying them is nearest with; where the batch has more sentences, which of them are there twice,
   unless that isn't verified: then those that were found are the answer, and the others are missing.
3. Where steps take parts of the batch, in which order they came (`turns`); unless that is verified, exchanges of two,
   all of the procedure replayed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Sequence

from textleak.attacks.replaying.scores import Replayed, sentences_of
from textleak.attacks.replaying.turns import in_turn
from textleak.clients.view import View
from textleak.events import Phase, Progress
from textleak.exact.adaptive.rows import BlurredRows
from textleak.matching.discrete import Guess, Row, Scores, class_changes
from textleak.proof.certificate import Certificate, certify

# Rounds over all labels (our choice).
_SWEEPS = 4
# Rounds over all exchanges of two sentences (our choice).
_EXCHANGES = 3


class ReplayedBatch:
    """One run.

    Attributes:
        guess: the best one so far; None while no sentence was found.
        size: sentences of the batch, where that is known.
        certificate: of it.
        scores: of guesses, by the cheaper client.
    """

    def __init__(self, view: View, blurred: BlurredRows) -> None:
        self.view, self.model, self.blurred = view, view.text_model, blurred
        self.guess: Guess | None = None
        self.certificate = Certificate(gradient_distance=None, verified=False)
        self.size = view.shared.known.batch_size
        self.scores = Scores(Replayed(view).scores)

    def run(self) -> Generator[Phase | Progress, None, None]:
        """Look for sentences until they make the update; the guess is what was found, in any case."""
        size, rows = self.size, self.blurred.rows
        for step, row in enumerate(self.blurred.look(), 1):
            yield self._progress("grouping", step, f"{len(rows)} found")
            if self.view.clock.over:
                break
            if row is not None and size is not None and len(rows) >= size:
                yield from self._put_together(rows)
                if self.certificate.verified:
                    return
        if rows and (self.guess is None or size is None):
            yield from self._put_together(rows)

    def _put_together(self, rows: Sequence[Row]) -> Generator[Phase | Progress, None, None]:
        """Which sentences are there, how often, with which labels, and in which order."""
        yield Phase(name="replay", detail="the client's procedure replayed on guesses")
        size = self.size or len(rows)
        best = Guess(tuple(rows), (0,) * len(rows))
        if len(rows) > size:
            best = Guess(())
        else:
            best = yield from self._labeled(best)
        while len(best.rows) < size and not self.view.clock.over:
            best = self._best(
                [
                    Guess((*best.rows, row), (*best.classes, label))
                    for row in rows
                    for label in range(self._classes)
                ]
            )
            best = yield from self._labeled(best)
        self.guess = best
        ordered = len(best.rows) == size and self.view.client.in_turn(size)
        if ordered and not self.view.clock.over:
            yield Phase(name="order", detail="which sentences the client's steps came to first")
            self.guess = best = in_turn(self.view, best)
        self.certificate = certify(self.view, sentences_of(self.view, best))
        if not self.certificate.verified and len(set(best.rows)) < len(best.rows):
            self.guess = _once(best)
            self.certificate = certify(self.view, sentences_of(self.view, self.guess))
        if not self.certificate.verified and len(rows) == size and ordered:
            yield from self._in_order(best)

    def _labeled(self, guess: Guess) -> Generator[Progress, None, Guess]:
        """The guess with the labels that are nearest, one after the other."""
        for sweep in range(_SWEEPS):
            before = guess
            for b in range(len(guess.rows)):
                guess = self._best([guess, *class_changes(guess, b, range(self._classes))])
                self.guess = guess
                yield self._progress("replay", sweep + 1)
                if self.view.clock.over:
                    return guess
            if guess == before:
                break
        return guess

    def _in_order(self, guess: Guess) -> Generator[Progress, None, None]:
        """Exchange two sentences as long as that brings the update nearer."""
        for _ in range(_EXCHANGES):
            before = guess
            for a, b in itertools.combinations(range(len(guess.rows)), 2):
                scored = self._whole([guess, _exchanged(guess, a, b)])
                guess = self.guess = min(scored, key=scored.__getitem__)
                yield self._progress("replay", 1)
                if self.view.clock.over:
                    return
            if guess == before:
                break
        self.certificate = certify(self.view, sentences_of(self.view, guess))

    @functools.cached_property
    def _whole(self) -> Scores:
        """Scores of guesses by all of the client's procedure."""
        return Scores(Replayed(self.view, whole=True).scores)

    @property
    def _classes(self) -> int:
        return self.model.num_labels or 1

    def _best(self, guesses: Sequence[Guess]) -> Guess:
        scored = self.scores(guesses)
        return min(scored, key=scored.__getitem__)

    def _progress(self, phase: str, step: int, detail: str = "") -> Progress:
        guess = self.guess or Guess(tuple(self.blurred.rows), (0,) * len(self.blurred.rows))
        return Progress(
            phase=phase,
            step=step,
            evaluations=self.scores.evaluations,
            sentences=sentences_of(self.view, guess),
            detail=detail,
        )


def _once(guess: Guess) -> Guess:
    """The guess with each of its sentences only once."""
    first = [b for b, row in enumerate(guess.rows) if row not in guess.rows[:b]]
    return Guess(tuple(guess.rows[b] for b in first), tuple(guess.classes[b] for b in first))


def _exchanged(guess: Guess, a: int, b: int) -> Guess:
    order = list(range(len(guess.rows)))
    order[a], order[b] = order[b], order[a]
    return Guess(tuple(guess.rows[i] for i in order), tuple(guess.classes[i] for i in order))
