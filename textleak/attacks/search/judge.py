"""When is a guess the answer, behind a defense? There no distance falls to 0, but a guess can still be put to the test.

Where all that the defenses did can be repeated, a guess is certified as ever. Where they added noise of known strength,
what a guess leaves of the gradient must look like that noise (`likelihood`), and what the nearest other texts leave
must not: then they could not have been mistaken for it. Their likelihoods say how sure that is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from functools import cached_property

import torch

from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import View
from textleak.events import Sentence
from textleak.matching.discrete import Guess, Scores, class_changes, substitutions
from textleak.models.decoding import nearest_tokens, to_sentence, unreachable_tokens
from textleak.proof.certificate import certify, own_gradient
from textleak.proof.likelihood import Fit, fit

# Rivals of a guess: tokens tried at each place, the nearest by embedding; and how many of all rivals, those of the
# smallest distance, are put to the test (our choice).
_NEAREST, _RIVALS = 2, 3
# Confidence from which a guess is taken for the answer (our choice).
_SURE = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be said of a guess.

    Attributes:
        verified: its own gradient becomes the shared one by the defenses.
        gradient_distance: relative, where that was computed.
        fit: how it explains a noisy gradient; None where there is no noise, or something hides it.
        confidence: its likelihood over that of all rivals and itself.
        rivals_excluded: whether noise couldn't have left what any of its rivals leaves.
        better: a rival of higher likelihood.
    """

    verified: bool = False
    gradient_distance: float | None = None
    fit: Fit | None = None
    confidence: float = 0.0
    rivals_excluded: bool = False
    better: Guess | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more can be asked of an answer."""
        likeliest = self.fit is not None and self.fit.plausible and self.rivals_excluded
        return self.verified or (likeliest and self.confidence >= _SURE)


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
            certificate = certify(self.problem.view, self._sentences(guess))
            return Verdict(
                verified=bool(certificate.verified),
                gradient_distance=certificate.gradient_distance if certificate.verified else None,
            )
        mine = self._fit(guess)
        if mine is None or not mine.plausible:
            return Verdict(fit=mine)
        scored = scores(self._rivals(guess))
        nearest = sorted(scored, key=scored.__getitem__)[:_RIVALS]
        fits = {rival: found for rival in nearest if (found := self._fit(rival)) is not None}
        best = max(fits, key=lambda rival: fits[rival].log_likelihood, default=None)
        if best is not None and fits[best].log_likelihood > mine.log_likelihood:
            return Verdict(fit=mine, better=best)
        odds = sum(math.exp(found.log_likelihood - mine.log_likelihood) for found in fits.values())
        return Verdict(
            fit=mine,
            confidence=1 / (1 + odds),
            rivals_excluded=not any(found.plausible for found in fits.values()),
        )

    def _fit(self, guess: Guess) -> Fit | None:
        if guess not in self._fits:
            own = own_gradient(self._exact, self._sentences(guess))
            self._fits[guess] = fit(self.problem.shared, own)
        return self._fits[guess]

    def _rivals(self, guess: Guess) -> Iterator[Guess]:
        """The texts that are nearest to a guess: a similar token at one place, two neighbors swapped, another class."""
        model, V = self.problem.model, self.problem.vocab_size
        head, tail = len(model.prefix_ids), len(model.suffix_ids)
        barred = unreachable_tokens(model)
        for row, symbols in enumerate(guess.rows):
            places = range(head, len(symbols) - tail)
            tokens = torch.tensor([symbols[t] % V for t in places], device=self.problem.table_VE.device)
            near = nearest_tokens(
                self.problem.table_VE[tokens], self.problem.table_VE, candidates=_NEAREST + 1, excluded=barred
            )
            for t, ids in zip(places, near.ids_NC.tolist(), strict=True):
                shift = symbols[t] - symbols[t] % V
                yield from substitutions(guess, row, t, [id_ + shift for id_ in ids])
            for t, after in itertools.pairwise(places):
                if symbols[t] != symbols[after]:
                    swapped = guess.with_symbol(row, t, symbols[after])
                    yield swapped.with_symbol(row, after, symbols[t])
            if guess.classes and self.problem.shared.known.labels is None:
                yield from class_changes(guess, row, range(model.num_labels or 0))

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
        if verdict is None or not verdict.settled:
            return (
                "The answer explains the gradient as well as the noise lets one tell, but so does a text near it.",
            )
        return (
            f"What the answer leaves of the gradient is noise; that of the nearest {_RIVALS} texts isn't. "
            f"Confidence {min(verdict.confidence, 0.9999):.4f}.",
        )
