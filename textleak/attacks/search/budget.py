"""What a run of `match` may spend, and what it has spent."""

from __future__ import annotations

import dataclasses

from textleak.attacks.search.search import Search
from textleak.clients.view import Clock

# A step of the continuous stage costs about as much as this many evaluations (two passes more, measured).
_STEP_COST = 2.4


@dataclasses.dataclass(kw_only=True, eq=False)
class Budget:
    """Gradient evaluations and time.

    Attributes:
        limit: evaluations after which nothing new is begun.
        clock: when the run has to end.
        searches: those that are paid from it, the newest last.
        steps: optimizer steps so far.
        optimized: candidates evaluated in these.
    """

    limit: int
    clock: Clock
    searches: list[Search] = dataclasses.field(default_factory=list)
    steps: int = 0
    optimized: int = 0

    def pay_step(self, candidates: int) -> None:
        """One optimizer step of so many candidates."""
        self.steps += 1
        self.optimized += candidates

    @property
    def evaluations(self) -> int:
        """Gradient evaluations so far."""
        return sum(search.evaluations for search in self.searches) + self.optimized

    @property
    def spent(self) -> bool:
        """Whether the budget or the time is used up."""
        return self.clock.over or self.evaluations + (_STEP_COST - 1) * self.optimized >= self.limit
