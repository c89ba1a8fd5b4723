"""When is a guess the answer, behind a defense? There no distance falls to 0, but a guess can still be put to the test.

Where all that the defenses did can be repeated, a guess is certified as ever. Where they added noise of known strength,
what a guess leaves of the gradient must look like that noise (`likelihood`), and what the nearest other texts leave
must not: then they could not have been mistaken for it. Their likelihoods say how sure that is.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import View
from textleak.events import Sentence
from textleak.matching.discrete import Guess, Scores
from textleak.models.decoding import to_sentence, unreachable_tokens
from textleak.proof.certificate import Certificate, certify, own_gradient
from textleak.proof.likelihood import Fit, fit
from textleak.proof.rivals import alike

# How many of a guess's rivals, those of the smallest distance, are put to the test (our choice).
_RIVALS = 3
# Confidence from which a guess is taken for the answer (our choice).
_SURE = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be said of a guess.

    Attributes:
        certificate: whether its own gradient becomes the shared one by the defenses; None where they added noise.
        fit: how it explains a noisy gradient; None where there is no noise, or something hides it.
        confidence: its likelihood over that of all rivals and itself.
        rivals_excluded: whether noise couldn't have left what any of its rivals leaves.
        better: a rival of higher likelihood.
    """

    certificate: Certificate | None = None
    fit: Fit | None = None
    confidence: float = 0.0
    rivals_excluded: bool = False
    better: Guess | None = None

    @property
    def likeliest(self) -> bool:
        """Whether noise leaves one sure of the answer."""
        plausible = self.fit is not None and self.fit.plausible and self.rivals_excluded
        return plausible and self.confidence >= _SURE


class Judge:
    """Puts guesses to the test, each once.

    Args:
        problem: what they are guesses at.
    """

    def __init__(self, problem: TextProblem) -> None:
        self.problem = problem
        self._verdicts: dict[Guess, Verdict] = {}
        self._fits: dict[Guess, Fit | None] = {}

    @cached_property
    def _exact(self) -> View:
        """The view in float64: made only where a likelihood is asked for."""
        return self.problem.view.double()

    def has_judged(self, guess: Guess) -> bool:
        """Whether it has been put to the test."""
        return guess in self._verdicts

    def verdict(self, guess: Guess, scores: Scores) -> Verdict:
        """Put a guess to the test.

        Args:
            guess: the best one.
            scores: distances, to tell which rivals are the nearest.
        """
        if guess not in self._verdicts:
            self._verdicts[guess] = self._judge(guess, scores)
        return self._verdicts[guess]

    def _judge(self, guess: Guess, scores: Scores) -> Verdict:
        if self.problem.shared.noise_sigma == 0:
            return Verdict(certificate=certify(self.problem.view, self._sentences(guess)))
        mine = self._fit(guess)
        if mine is None or not mine.plausible:
            return Verdict(fit=mine)
        rivals = alike(
            self.problem.model,
            guess,
            classes=self.problem.shared.known.labels is None,
            excluded=unreachable_tokens(self.problem.model),
        )
        scored = scores(rivals)
        nearest = sorted(scored, key=scored.__getitem__)[:_RIVALS]
        fits = {rival: found for rival in nearest if (found := self._fit(rival)) is not None}
        best = max(fits, key=lambda rival: fits[rival].log_likelihood, default=None)
        if best is not None and fits[best].log_likelihood > mine.log_likelihood:
            return Verdict(fit=mine, better=best)
        odds = sum(math.exp(found.log_likelihood - mine.log_likelihood) for found in fits.values())
        return Verdict(
            fit=mine,
            confidence=1 / (1 + odds),
            rivals_excluded=bool(fits) and not any(found.plausible for found in fits.values()),
        )

    def _fit(self, guess: Guess) -> Fit | None:
        if guess not in self._fits:
            own = own_gradient(self._exact, self._sentences(guess))
            self._fits[guess] = fit(self.problem.shared, own)
        return self._fits[guess]

    def _sentences(self, guess: Guess) -> tuple[Sentence, ...]:
        return tuple(
            to_sentence(
                self.problem.model,
                symbols,
                label=guess.classes[row] if guess.classes else None,
            )
            for row, symbols in enumerate(guess.rows)
        )

    def notes(self, guess: Guess) -> tuple[str, ...]:
        """What a person is told of an answer to a noisy gradient."""
        shared = self.problem.shared
        if shared.noise_sigma == 0:
            return ()
        found, verdict = self._fit(guess), self._verdicts.get(guess)
        if found is None:
            return ("What else was done to the gradient hides how likely the answer is.",)
        if not found.plausible:
            return (
                f"The answer isn't the text: what it leaves of the gradient stands {found.excess:.0f} standard "
                "deviations out of the noise. A longer search may find a better one.",
            )
        if verdict is None or not verdict.likeliest:
            return (
                "The answer explains the gradient as well as the noise lets one tell, but so does a text near it.",
            )
        return (
            f"What the answer leaves of the gradient is noise; that of the nearest {_RIVALS} texts isn't. "
            f"Confidence {min(verdict.confidence, 0.9999):.4f}.",
        )
