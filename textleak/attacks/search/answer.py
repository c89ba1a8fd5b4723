"""Whether a run's best guess is the answer: by its own gradient, or by likelihood behind a defense."""

from __future__ import annotations

from textleak.attacks.search.judge import Judge, Verdict
from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.search import Search
from textleak.matching.discrete import Guess, SearchStep
from textleak.proof.certificate import certify

# A cosine distance that float32 rounding alone makes (measured: 1e-8 to 1e-7 at the truth).
_ROUNDING = 1e-6


class Answer:
    """What tests have shown of a run's best guesses so far.

    Args:
        problem: what they are guesses at.

    Attributes:
        verified: whether the best guess's own gradient becomes the shared one.
        gradient_distance: relative, of a guess that was verified.
    """

    def __init__(self, problem: TextProblem) -> None:
        self.problem = problem
        self.verified = False
        self.gradient_distance: float | None = None
        self._judge = Judge(problem)
        self._verdict: Verdict | None = None
        self._judged_at = -1
        self._refuted: set[Guess] = set()

    @property
    def certain(self) -> bool:
        """Whether the best guess is the answer, by its gradient or by likelihood."""
        return self.verified or (self._verdict is not None and self._verdict.settled)

    def parallel(self, search: Search) -> bool:
        """Whether the best guess's gradient points exactly the shared one's way, and yet isn't equal to it.

        Behind noise that says nothing: no gradient is equal to the shared one there.
        """
        if self.problem.shared.noise_sigma > 0:
            return False
        return search.beam[0][1] <= _ROUNDING and not self.verified

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
        self._verdict = verdict
        self.verified, self.gradient_distance = verdict.verified, verdict.gradient_distance
        return verdict.settled

    def certify(self, search: Search) -> None:
        """Compare the best guess's own gradient with the shared one; refuted where they differ."""
        certificate = certify(self.problem.view, search.sentences())
        self.verified = bool(certificate.verified)
        self.gradient_distance = certificate.gradient_distance if self.verified else None
        if not self.verified:
            self._refuted.add(search.beam[0][0])

    def notes(self, search: Search) -> tuple[str, ...]:
        """What a person is told of an answer to a noisy gradient."""
        return self._judge.notes(search.beam[0][0])
