"""L-BFGS that tries moves where it hardly gets on: maps of a point between which the loss is nearly the same.

A descent that found the right parts in the wrong place stalls there, and the way to the right place is not downhill.
A move takes it there, but what was fitted to the wrong place makes the loss larger at first, and hundreds of
evaluations would be spent to learn the curvature anew. As the loss hardly changes with the move, its curvature moves
along: what the descent remembers is moved as the point is.

Shapes: D numbers a candidate, M pairs that are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from textleak.matching.lbfgs import LBFGS, Descent, LBFGSState, RowMap, Told


@dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """A map of points.

    Attributes:
        of: what it moves; moves of different things can be made together.
        point: maps points (1, D).
        steps: the linear map by which steps between points (M, D) move.
        changes: what it does to gradients (M, D), so that products of steps and changes stay.
    """

    of: str
    point: RowMap
    steps: RowMap
    changes: RowMap

    def of_descent(self, descent: Descent) -> Descent:
        """A descent that begins where the move leads, and remembers what this one does."""
        return Descent(
            descent.rule,
            self.point(descent.point_D[None])[0],
            descent.memory.carried(self.steps, self.changes),
        )


@dataclass(frozen=True, kw_only=True)
class Moving:
    """L-BFGS and moves.

    Attributes:
        optimizer: the descents' hyper-parameters.
        moves: that are tried.
        patience: evaluations that have to lower the loss to `progress` of what it was, or moves are tried. Twice as
            many each time that none leads lower.
        progress: part of the loss.
        rounds: of trials in a row in which no move leads lower, after which the candidate counts as converged.
        trials: evaluations from each moved point, then from those of each thing's nearest third, then of a third of
            these, and so on, always beside as many from where it stalled.
    """

    optimizer: LBFGS
    moves: Sequence[Move]
    # Our choice, as all of these. Of a picture's moves the one towards where it belongs was nearest from the first
    # evaluation to the 13th, but another picture's were nearer still (measured: tests/figures, pictures).
    patience: int = 100
    progress: float = 0.5
    rounds: int = 3
    trials: tuple[int, ...] = (3, 12, 100)

    def start(self, point_KD: Tensor) -> _MovingState:
        """A run from these points."""
        return _MovingState(self, point_KD)


class _MovingState(LBFGSState):
    """As `LBFGSState`, of candidates that are moved."""

    def __init__(self, moving: Moving, point_KD: Tensor) -> None:
        self.moving = moving
        super().__init__(moving.optimizer, point_KD)

    def _candidate(self, point_D: Tensor) -> Generator[Tensor, Told, bool]:
        return _moved(self.moving, Descent(self.rule, point_D))


def _moved(moving: Moving, descent: Descent) -> Generator[Tensor, Told, bool]:
    """One candidate, until nothing lower is found from it nor from any move."""
    patience, left = moving.patience, moving.rounds
    while left:
        before = descent.value
        if not (yield from descent.steps(patience)):
            return False
        if descent.value < moving.progress * before and not descent.ended:
            continue
        found = yield from _lowest(moving, descent)
        if found is not descent:
            descent, patience, left = found, moving.patience, moving.rounds
        elif descent.ended:
            break
        else:
            patience, left = 2 * patience, left - 1
    return True


def _lowest(moving: Moving, stays: Descent) -> Generator[Tensor, Told, Descent]:
    """The descent itself after the trials, or the one from its moves that led lower than that."""
    origin, moves, had = stays.copy(), list(moving.moves), 0
    lowest, values = stays, dict.fromkeys(moves, math.inf)
    for number, evaluations in enumerate(moving.trials, 1):
        yield from stays.steps(evaluations - had)
        had, lowest = evaluations, stays
        for move in moves:
            moved = move.of_descent(origin)
            yield from moved.steps(evaluations)
            values[move] = moved.value
            lowest = min(lowest, moved, key=lambda descent: descent.value)
        if number < len(moving.trials):
            moves = _nearest(moves, values)
    lower: dict[str, Move] = {}
    for move in sorted(moves, key=values.__getitem__):
        if values[move] < stays.value:
            lower.setdefault(move.of, move)
    if len(lower) > 1:  # each of them by itself leads lower: all together
        together = origin
        for move in lower.values():
            together = move.of_descent(together)
        yield from together.steps(had)
        lowest = min(lowest, together, key=lambda descent: descent.value)
    return lowest


def _nearest(moves: Sequence[Move], values: Mapping[Move, float]) -> list[Move]:
    """The nearest third of the moves of each thing, as those of one are soon nearer than those of another."""
    of: dict[str, list[Move]] = {}
    for move in sorted(moves, key=values.__getitem__):
        of.setdefault(move.of, []).append(move)
    return [move for some in of.values() for move in some[: math.ceil(len(some) / 3)]]
