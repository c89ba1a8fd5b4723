"""One run of `match`: what its parts share, and the discrete search that all of them end in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from textleak.attacks.search.answer import Answer, Test
from textleak.attacks.search.budget import Budget
from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.search import Search
from textleak.attacks.search.shapes import Shape
from textleak.attacks.search.telling import Teller
from textleak.events import Progress
from textleak.exact.proposals import Proposals
from textleak.matching import Matcher
from textleak.matching.discrete import Guess


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How wide and how long the run searches.

    Attributes:
        width: guesses that a beam keeps.
        listed: tokens proposed for each position.
        expansions: guesses that one search expands.
        solved_at: a distance at or below which a guess is put to the exact test.
    """

    width: int
    listed: int
    expansions: int
    solved_at: float


class Run:
    """What a run has found so far, and may still spend.

    Args:
        problem: scores guesses.
        settings: of its searches.
        budget: of evaluations and time.
        generator: the only source of randomness.
        test: the exact one, that answers are put to.
    """

    def __init__(
        self,
        *,
        problem: TextProblem,
        settings: SearchSettings,
        budget: Budget,
        generator: torch.Generator,
        test: Test,
    ) -> None:
        self.problem = problem
        self.settings = settings
        self.budget = budget
        self.generator = generator
        self.answer = Answer(problem, test)
        self.teller = Teller(
            model=problem.model, budget=budget, answer=self.answer, expansions=settings.expansions
        )

    @property
    def search(self) -> Search | None:
        """The newest search."""
        return self.budget.searches[-1] if self.budget.searches else None

    def finished(self) -> bool:
        """Whether there is an answer that nothing can better, or no more to spend."""
        return self.answer.settled is not None or self.budget.spent

    def begin_search(
        self,
        matcher: Matcher,
        *,
        proposals: Proposals | None,
        shapes: list[Shape],
        barred: frozenset[int] = frozenset(),
        pool: frozenset[int] = frozenset(),
    ) -> Search:
        """A new search, which becomes the newest."""
        search = Search(
            problem=self.problem,
            matcher=matcher,
            proposals=proposals,
            shapes=shapes,
            generator=self.generator,
            barred=barred,
            width=self.settings.width,
            listed=self.settings.listed,
            pool=set(pool),
        )
        self.budget.searches.append(search)
        return search

    def searched(
        self, search: Search, start: Sequence[Guess], *, expansions: int | None = None
    ) -> Iterator[Progress]:
        """Search from `start`, and put what looks solved to the exact test."""
        solved_at = self.settings.solved_at
        while True:
            expanded = expansions or self.settings.expansions
            for step in search.run(start, expansions=expanded, solved_at=solved_at):
                yield self.teller.discrete(search, "discrete", step.expanded)
                if self.answer.judge_step(search, step) or self.budget.spent:
                    break
            if self.finished():
                return
            best, loss = search.beam[0]
            if loss > solved_at or self.answer.is_refuted(best):
                return
            yield self.teller.discrete(search, "verify", 0)
            if self.problem.shared.effects:
                self.answer.judge_once(search)  # it was found right after another one was
                yield self.teller.discrete(search, "verify", 1)
                return
            self.answer.certify(search)
            yield self.teller.discrete(search, "verify", 1)
            if self.finished():
                return
            start, solved_at = [best], loss / 2  # close, but not it: look further from here
