"""Many dummies of one batch compared at once: starts, and orders of the same tokens.

Shapes: K candidates, M starts or orders compared, B sentences, T tokens, E embedding size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from textleak.attacks.dummies.orders import (
    Order,
    inner_places,
    random_order,
    reordered,
    tried_orders,
    whole_order,
)
from textleak.attacks.dummies.text import Dummies
from textleak.attacks.search.problem import TextProblem
from textleak.events import Progress
from textleak.matching import Leaves, Matcher

Start = tuple[dict[str, Tensor], float]
"""One candidate's leaves (1, ...), and their distance."""


class Prior(Protocol):
    """Judges texts."""

    def losses(self, batches: Sequence[Sequence[str]]) -> list[float]:
        """A loss for each batch of texts."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Tells how far dummies' gradients are from the shared one.

    Attributes:
        problem: what the server sees.
        dummies: of the batch.
        matcher: compares gradients.
        generator: draws starts and orders.
    """

    problem: TextProblem
    dummies: Dummies
    matcher: Matcher
    generator: torch.Generator

    @cached_property
    def _given(self) -> dict[str, Tensor]:
        return self.dummies.given(1)

    def distances(self, free: Leaves) -> Tensor:
        """How far each of M candidates' gradients is from the shared one, (M,); inf where that is no number."""
        count = len(free["embeddings"])
        given = {name: leaf[:1].expand(count, *leaf.shape[1:]) for name, leaf in self._given.items()}
        distances_M = self.matcher.evaluate(self.dummies.losses, {**given, **free})
        return distances_M.nan_to_num(torch.inf, posinf=torch.inf)

    def passes(self, count: int) -> Iterator[int]:
        """How many candidates each pass of the network takes, of `count` in all."""
        lengths = self.dummies.lengths
        size = self.problem.candidates_a_pass(len(lengths) * max(lengths))
        for start in range(0, count, size):
            yield min(size, count - start)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Starts:
    """The best of Gaussian starts, then the best of permutations of it.

    Attributes:
        trials: compares them.
        candidates: K, each with starts of its own.
        count: of starts, and of permutations.
        norm: that the best one's embeddings are brought to.
    """

    trials: Trials
    candidates: int
    count: int
    norm: float

    def best(self) -> Generator[Progress, None, dict[str, Tensor]]:
        """The leaves that are optimized, (K, ...)."""
        chosen = []
        for k in range(self.candidates):
            best = yield from self.best_of(self._gaussians(), k, None)
            best = yield from self.best_of(self._permutations(best[0]), k, best)
            chosen.append(best[0])
        begin = {name: torch.cat([free[name] for free in chosen]) for name in self.trials.dummies.free}
        norms = begin["embeddings"].norm(dim=-1, keepdim=True)
        return {**begin, "embeddings": begin["embeddings"] * (self.norm / norms)}

    def _gaussians(self) -> Iterator[dict[str, Tensor]]:
        """Starts from N(0, 1), some at a time."""
        for size in self.trials.passes(self.count):
            yield self.trials.dummies.draw(size, self.trials.generator)

    def _permutations(self, free: Leaves) -> Iterator[dict[str, Tensor]]:
        """The same dummies in random orders, each sentence in its own, some at a time."""
        dummies, generator = self.trials.dummies, self.trials.generator
        for size in self.trials.passes(self.count):
            rows = [
                [
                    whole_order(
                        dummies.model,
                        random_order(len(inner_places(dummies.model, length)), generator),
                        length,
                    )
                    for length in dummies.lengths
                ]
                for _ in range(size)
            ]
            yield reordered(dummies, free, rows)

    def best_of(
        self, batches: Iterator[dict[str, Tensor]], k: int, best: Start | None
    ) -> Generator[Progress, None, Start]:
        """The leaves of least distance, and that distance; at least the first ones even when time is up."""
        tried = 2 * k * self.count + (0 if best is None else self.count)
        for free in batches:
            if best is not None and self.trials.problem.view.clock.over:
                break
            distances_M = self.trials.distances(free)
            m = int(distances_M.argmin())
            if best is None or float(distances_M[m]) < best[1]:
                best = {name: leaf[m : m + 1] for name, leaf in free.items()}, float(distances_M[m])
            tried += len(distances_M)
            yield Progress(
                phase="initialize",
                step=tried,
                steps=2 * self.candidates * self.count,
                loss=best[1],
                candidate=k,
                evaluations=self.trials.matcher.evaluations,
                sentences=self.trials.dummies.decode(best[0], 0),
            )
        assert best is not None
        return best


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moves:
    """Rounds in which whole tokens are moved, as the distance and a language model judge.

    Attributes:
        trials: compares orders.
        tries: orders of each sentence tried in a round, the one that it has among them.
        prior: judges texts; None for the distance alone.
        weight: of the prior's loss.
    """

    trials: Trials
    tries: int
    prior: Prior | None
    weight: float

    def round(self, points: Leaves) -> tuple[dict[str, Tensor], str]:
        """One round for every candidate: where the leaves go, and what happened in words."""
        moved, words = [], []
        for k in range(len(points["embeddings"])):
            free, changed = self.of_candidate({name: leaf[k : k + 1] for name, leaf in points.items()})
            moved.append(free)
            words += [f"candidate {k}, sentence {b}" for b in changed]
        detail = f"moved: {'; '.join(words)}" if words else "no order was better"
        return {name: torch.cat([free[name] for free in moved]) for name in points}, detail

    def of_candidate(self, free: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
        """A candidate with each sentence in the best order found, and which sentences that changed."""
        dummies, changed = self.trials.dummies, []
        rows = [[p.id for p in sentence.positions] for sentence in dummies.decode(free, 0)]
        for b, length in enumerate(dummies.lengths):
            count = len(inner_places(dummies.model, length))
            inner = tried_orders(count, self.tries, self.trials.generator)
            orders = [whole_order(dummies.model, order, length) for order in inner]
            stay: list[Order] = [tuple(range(other)) for other in dummies.lengths]
            batches = [[*stay[:b], order, *stay[b + 1 :]] for order in orders]
            losses = self._judged(free, rows, batches)
            best = min(range(len(losses)), key=losses.__getitem__)
            if best:
                changed.append(b)
                free = reordered(dummies, free, [batches[best]])
                rows[b] = [rows[b][t] for t in orders[best]]
        return free, changed

    def _judged(
        self, free: Leaves, rows: Sequence[Sequence[int]], batches: Sequence[Sequence[Order]]
    ) -> list[float]:
        """Distance + weight · the prior's loss of a batch in several orders."""
        dummies = self.trials.dummies
        distances: list[float] = []
        for size in self.trials.passes(len(batches)):
            part = batches[len(distances) : len(distances) + size]
            distances += self.trials.distances(reordered(dummies, free, part)).tolist()
        if self.prior is None or self.weight == 0:
            return distances
        texts = [
            [dummies.model.decode([row[t] for t in order]) for row, order in zip(rows, orders, strict=True)]
            for orders in batches
        ]
        losses = self.prior.losses(texts)
        return [distance + self.weight * loss for distance, loss in zip(distances, losses, strict=True)]
