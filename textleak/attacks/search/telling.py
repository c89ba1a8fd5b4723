"""What viewers are told of a run of `match`: where it stands, and what it ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from textleak.attacks.search.answer import Answer
from textleak.attacks.search.budget import Budget
from textleak.attacks.search.decoding import Decoder
from textleak.attacks.search.opened import Opening
from textleak.attacks.search.search import Search
from textleak.events import Progress, Recovery, Sentence, Stop, Tokens, main_channel
from textleak.matching import Iterate
from textleak.matching.discrete import Guess
from textleak.models import TextModel

# Every so many steps all candidates are decoded, for those who watch; the best one is at every step.
_OTHERS_EVERY = 10
_PARALLEL = (
    "The answer's own gradient points the same way as the shared one, but isn't equal to it: the client may have "
    "scaled, clipped or rounded it."
)


@dataclasses.dataclass(kw_only=True, eq=False)
class Teller:
    """Tells of one run.

    Attributes:
        model: whose tokenizer names the tokens.
        budget: what was spent.
        answer: whether the best guess is the answer.
        expansions: guesses that one search expands.
        stages: the answer as it stood when a stage ended, by the stage's name.
    """

    model: TextModel
    budget: Budget
    answer: Answer
    expansions: int
    stages: dict[str, tuple[Sentence, ...]] = dataclasses.field(default_factory=dict)
    _others: tuple[Tokens, ...] = ()

    def discrete(self, search: Search, phase: str, step: int) -> Progress:
        """Where a search stands."""
        return Progress(
            phase=phase,
            step=step,
            steps=self.expansions,
            loss=search.beam[0][1],
            losses=tuple(score for _, score in search.beam),
            evaluations=self.budget.evaluations,
            total_steps=self.budget.steps,
            sentences=search.sentences(verified=self.answer.certain),
            others=tuple(self._tokens(guess) for guess, _ in search.beam),
        )

    def continuous(self, opening: Opening, here: Iterate, decoder: Decoder) -> Progress:
        """Where dummies stand: the best guess that a search has scored, or what they decode to before the first."""
        if here.step == 1 or here.step % _OTHERS_EVERY == 0:
            self._others = tuple(
                self._tokens(decoder.guess(opening, here, k)) for k in range(len(opening.bases))
            )
        losses = here.best_losses_K.tolist()
        scored = [search for search in reversed(self.budget.searches) if search.beam]
        return Progress(
            phase="continuous",
            step=here.step,
            steps=opening.steps,
            loss=min(losses),
            losses=tuple(losses),
            candidate=losses.index(min(losses)),
            evaluations=self.budget.evaluations,
            total_steps=self.budget.steps,
            sentences=scored[0].sentences() if scored else decoder.sentences(opening, here),
            others=self._others,
        )

    def _tokens(self, guess: Guess) -> Tokens:
        """A guess's tokens, a row a sentence."""
        rows = [[symbol % self.model.vocab_size for symbol in row] for row in guess.rows]
        return tuple(tuple(zip(row, self.model.token_texts(row), strict=True)) for row in rows)

    def recovery(self, search: Search, notes: Sequence[str]) -> Recovery:
        """What the run ends with.

        Args:
            search: the last one.
            notes: what else a person is told.
        """
        answer = self.answer
        sentences = search.sentences(verified=answer.certain)
        return Recovery(
            sentences=sentences,
            stop=self._stop(),
            final_loss=search.beam[0][1],
            steps=self.budget.steps,
            evaluations=self.budget.evaluations,
            channel=main_channel(sentences),
            stages=self.stages,
            gradient_distance=answer.gradient_distance,
            notes=(*((_PARALLEL,) if answer.parallel(search) else ()), *notes, *answer.notes(search)),
        )

    def _stop(self) -> Stop:
        if self.answer.settled is not None:
            return self.answer.settled
        if self.budget.spent:
            return Stop.STEPS if self.budget.clock.deadline is None else Stop.TIME
        return Stop.CONVERGED
