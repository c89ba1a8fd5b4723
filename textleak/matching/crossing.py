"""L-BFGS from several starts, of whose points parts are exchanged: the best one goes on with each part the best found.

Where a loss is about a sum over parts (pictures of a batch), each start settles every part for itself, well or badly
and early, and no start has them all well. A part of another start is put in its place and told by where that leads in
a few evaluations. A start's own parts are fitted to each other's errors, so that any exchange makes the loss larger at
first: only exchanged parts are compared with each other, on the same ground.

Shapes: K candidates, D numbers a candidate.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from textleak.matching.lbfgs import LBFGS, Descent, LBFGSState, Told


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """L-BFGS, crossed once; of fewer than three candidates each goes on by itself.

    Attributes:
        optimizer: the descents' hyper-parameters.
        parts: numbers of a point that are exchanged together.
        begin: evaluations of each start before that.
        trial: evaluations from each point with an exchanged part.
    """

    optimizer: LBFGS
    parts: Sequence[slice]
    begin: int
    trial: int = 40  # our choice; measured: tests/figures, pictures

    def start(self, point_KD: Tensor) -> LBFGSState:
        """A run from these points."""
        return _CrossingState(self, point_KD) if len(point_KD) > 2 else LBFGSState(self.optimizer, point_KD)


class _CrossingState(LBFGSState):
    """As `LBFGSState`; the first candidate goes on as the best when the others have ended."""

    def __init__(self, crossing: Crossing, point_KD: Tensor) -> None:
        self.crossing = crossing
        self.descents: dict[int, Descent] = {}
        self.waiting = set(range(1, len(point_KD)))
        super().__init__(crossing.optimizer, point_KD)

    def _candidate(self, k: int, point_D: Tensor) -> Generator[Tensor, Told, bool]:
        descent = self.descents[k] = Descent(self.rule, point_D)
        finite = yield from descent.steps(self.crossing.begin)
        if not finite:
            return False
        self.waiting.discard(k)
        if k:
            return True
        while self.waiting:
            if descent.ended:
                yield descent.point_D
            else:
                yield from descent.steps(1)
        descent = yield from crossed(self.crossing, list(self.descents.values()))
        self.descents.clear()  # their memories are large
        yield from descent.steps()
        return True


def crossed(crossing: Crossing, descents: Sequence[Descent]) -> Generator[Tensor, Told, Descent]:
    """The lowest descent, with those parts of others that did better than its own where neither was at home."""
    lowest, *others = sorted(descents, key=lambda descent: descent.value)
    taken: list[tuple[slice, Descent]] = []
    for part in crossing.parts:
        nearest, child = others[0], (yield from _tried(crossing, lowest, part, others[0]))
        for other in others[1:]:
            tried = yield from _tried(crossing, lowest, part, other)
            if tried.value < child.value:
                nearest, child = other, tried
        ground = next(other for other in others if other is not nearest)
        own = yield from _tried(crossing, ground, part, lowest)
        its = yield from _tried(crossing, ground, part, nearest)
        if its.value < own.value:
            taken.append((part, child))
    if taken:
        (_, lowest), *rest = taken  # its other parts have come on meanwhile
        for part, child in rest:
            lowest = lowest.with_part(part, child.point_D)
    return lowest


def _tried(
    crossing: Crossing, ground: Descent, part: slice, other: Descent
) -> Generator[Tensor, Told, Descent]:
    """Where a descent leads with a part of another one in place of its own."""
    child = ground.with_part(part, other.point_D)
    yield from child.steps(crossing.trial)
    return child
