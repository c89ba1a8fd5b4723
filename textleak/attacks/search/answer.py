"""Whether a run's best guess is the answer: by its own gradient, or by likelihood behind a defense."""

from __future__ import annotations

from collections.abc import Callable

from textleak.attacks.search.judge import Judge
from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.search import Search
from textleak.events import Sentence, Stop
from textleak.matching.discrete import Guess, SearchStep
from textleak.proof.certificate import Certificate

# A cosine distance that float32 rounding alone makes (measured: 1e-8 to 1e-7 at the truth).
_ROUNDING = 1e-6

Test = Callable[[tuple[Sentence, ...]], Certificate]
"""Puts an answer to the exact test."""


class Answer:
    """What tests have shown of a run's best guesses so far.

    Args:
        problem: what they are guesses at.
        test: the exact one.

    Attributes:
        settled: why the best guess can't be bettered; None where it can.
        gradient_distance: relative, of a guess that was verified.
    """

    def __init__(self, problem: TextProblem, test: Test) -> None:
        self.problem = problem
        self.settled: Stop | None = None
        self.gradient_distance: float | None = None
        self._test = test
        self._judge = Judge(problem)
        self._judged_at = -1
        self._refuted: set[Guess] = set()

    @property
    def certain(self) -> bool:
        """Whether the best guess is the answer, by its gradient or by likelihood."""
        return self.settled in (Stop.VERIFIED, Stop.LIKELIEST)

    def parallel(self, search: Search) -> bool:
        """Whether the best guess's gradient points exactly the shared one's way, and yet isn't equal to it.

        Behind noise that says nothing: no gradient is equal to the shared one there.
        """
        if self.problem.shared.noise_sigma > 0:
            return False
        return search.beam[0][1] <= _ROUNDING and self.settled is None

    def is_refuted(self, guess: Guess) -> bool:
        """Whether the exact test has shown that it isn't the answer."""
        return guess in self._refuted

    def judge_step(self, search: Search, step: SearchStep) -> bool:
        """Behind a defense, where no distance falls to 0: whether the best guess is the answer all the same.

        It is put to the test at the start, and after each expansion that brought a better one.
        """
        best = search.beam[0][0]
        if (
            not self.problem.shared.effects
            or not step.begun
            or self._judge.has_judged(best)
            or step.expanded == self._judged_at
        ):
            return False
        self._judged_at = step.expanded
        return self.judge(search, best)

    def judge_once(self, search: Search) -> None:
        """Put the best guess to the test behind a defense, if it wasn't yet."""
        best = search.beam[0][0]
        if not self._judge.has_judged(best):
            self.judge(search, best)

    def judge(self, search: Search, guess: Guess) -> bool:
        """Whether a guess, or a likelier one near it, is the answer behind a defense."""
        verdict = self._judge.verdict(guess, search.scores)
        while verdict.better is not None:
            search.put_first(verdict.better)
            verdict = self._judge.verdict(verdict.better, search.scores)
        self.settled = None
        if verdict.certificate is not None:
            self._note(verdict.certificate)
        elif verdict.likeliest:
            self.settled = Stop.LIKELIEST
        return self.settled is not None

    def certify(self, search: Search) -> None:
        """Put the best guess to the exact test; refuted where it isn't settled by that."""
        self._note(self._test(search.sentences()))
        if self.settled is None:
            self._refuted.add(search.beam[0][0])

    def _note(self, certificate: Certificate) -> None:
        """Keep what the exact test says of the best guess."""
        stop = certificate.stop(Stop.CONVERGED)
        self.settled = stop if stop.settled else None
        self.gradient_distance = certificate.gradient_distance if certificate.verified else None

    def notes(self, search: Search) -> tuple[str, ...]:
        """What a person is told of an answer to a noisy gradient."""
        return self._judge.notes(search.beam[0][0])
