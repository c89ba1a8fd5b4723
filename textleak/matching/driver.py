"""The one loop of continuous optimization: it asks the optimizer, keeps the best, and knows when to end.

What else a run may do (begin stuck candidates anew, let the worse ones rest) wraps the optimizer: policies.py.

Shapes: K candidates, D numbers a candidate (its optimized leaves, flattened).
"""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textleak.matching.factored import Leaves
from textleak.matching.optimizers import Optimizer, State

ObjectiveFunction = Callable[[Leaves], tuple[Tensor, dict[str, Tensor]]]
"""Losses (K,) and their gradients with regard to the optimized leaves: `Matcher.value_and_gradient`, say."""

Reinitialize = Callable[[int], dict[str, Tensor]]
"""New values of candidate k's optimized leaves, without the leading K."""

Project = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""The nearest allowed values of the optimized leaves."""


class Ending(enum.Enum):
    """Why a run ended, in a sentence."""

    STEPS = "All steps were taken."
    TOLERANCE = "A candidate came under the tolerance."
    TIME = "Time was up."
    CONVERGED = "Every candidate converged."


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run ends, if its candidates don't converge before.

    Attributes:
        steps: evaluations of each candidate, at most.
        seconds: looked at between steps; None for no limit.
        clock: of these seconds.
        tolerance: end as soon as a candidate's loss is at most this; None for never.
    """

    steps: int
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    tolerance: float | None = None

    def reached_by(self, losses_K: Tensor) -> bool:
        """Whether a candidate came under the tolerance."""
        return self.tolerance is not None and bool((losses_K <= self.tolerance).any())

    def ending(self, step: int, seconds: float, losses_K: Tensor, active_K: Tensor) -> Ending | None:
        """Why this step is the last; None as long as the run goes on."""
        if self.reached_by(losses_K):
            return Ending.TOLERANCE
        if not active_K.any():
            return Ending.CONVERGED
        if self.seconds is not None and seconds >= self.seconds:
            return Ending.TIME
        return Ending.STEPS if step == self.steps else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Iterate:
    """Where a run stands after a step.

    Attributes:
        step: steps taken.
        losses_K: of the points evaluated in this step (a finished or resting candidate's last).
        best_losses_K: lowest so far, inf where a candidate never had a finite one.
        best: the leaves at those; a copy that is the reader's own.
        points: the leaves that are evaluated next, to be read before the next step.
        evaluations: candidates evaluated so far.
        restarted: candidates that had diverged or were stuck and began anew.
        ending: why this is the last step, None as long as the run goes on.
    """

    step: int
    losses_K: Tensor
    best_losses_K: Tensor
    best: dict[str, Tensor]
    points: dict[str, Tensor]
    evaluations: int
    restarted: tuple[int, ...]
    ending: Ending | None


def minimize(
    objective_fn: ObjectiveFunction,
    leaves: Leaves,
    optimizer: Optimizer,
    *,
    limits: Limits,
    wrt: Iterable[str] | None = None,
    reinitialize: Reinitialize | None = None,
    project: Project | None = None,
) -> Generator[Iterate, dict[str, Tensor] | None, None]:
    """Minimize every candidate's loss on its own.

    Args:
        objective_fn: losses and gradients of the candidates it is given, which may be some of them.
        leaves: all tensors that `objective_fn` reads, K first; they are left as they are.
        optimizer: its hyper-parameters, in policies where these are wanted.
        limits: when to end.
        wrt: names of the leaves to be optimized, floating-point ones of one dtype; default all of these.
        reinitialize: where a diverged candidate begins anew; default its own best point, if it has one.
        project: applied to the points after each step, if they have to stay in some range.

    Yields:
        An `Iterate` after each step; the last one says why it is the last. A caller that knows better sends leaves:
        these are evaluated next in place of `points`, and the optimizer remembers everything else.
    """
    flat = _Flattening.of(leaves, wrt)
    fixed = {name: leaf.detach() for name, leaf in leaves.items() if name not in flat.shapes}
    began, evaluations = limits.clock(), 0
    best = _Best(flat.of_leaves(leaves).detach())
    losses_K = best.losses_K
    state = optimizer.start(best.points_KD)
    for step in range(1, limits.steps + 1):
        points_KD = state.ask()
        chosen = state.active_K.nonzero().flatten().to(points_KD.device)
        part = {name: leaf[chosen] for name, leaf in fixed.items()} | flat.leaves(points_KD[chosen])
        some_losses, some_gradients = objective_fn(part)
        evaluations += len(chosen)
        gradients_KD = torch.zeros_like(points_KD)
        gradients_KD[chosen] = flat.of_leaves(some_gradients).to(gradients_KD)
        losses_K = losses_K.index_copy(0, chosen, some_losses.detach().to(losses_K))
        best.keep(points_KD, losses_K)
        state.tell(losses_K, gradients_KD)
        if project is not None:
            state.place(flat.of_leaves(project(flat.leaves(state.ask()))))
        restarted = () if limits.reached_by(best.losses_K) else _restart(state, best, flat, reinitialize)
        ending = limits.ending(step, limits.clock() - began, best.losses_K, state.active_K)
        moved = yield Iterate(
            step=step,
            losses_K=losses_K.clone(),
            best_losses_K=best.losses_K.clone(),
            best={name: leaf.clone() for name, leaf in flat.leaves(best.points_KD).items()},
            points=flat.leaves(state.ask()),
            evaluations=evaluations,
            restarted=restarted,
            ending=ending,
        )
        if ending is not None:
            return
        if moved is not None:
            state.place(flat.of_leaves(moved))


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Leaves that are optimized one group after the other, over and over.

    Attributes:
        groups: names of the leaves that are optimized together.
        each: steps of a turn.
    """

    groups: tuple[tuple[str, ...], ...]
    each: int


def minimize_in_turns(
    objective_fn: ObjectiveFunction, leaves: Leaves, optimizer: Optimizer, *, limits: Limits, turns: Turns
) -> Iterator[Iterate]:
    """As `minimize`, some leaves at a time: the optimizer begins anew with each turn, from the best point so far.

    Args:
        objective_fn: as for `minimize`.
        leaves: likewise.
        optimizer: likewise.
        limits: likewise, over all turns.
        turns: whose turn it is, and for how long.

    Yields:
        An `Iterate` after each step, counted over all turns.
    """
    began = limits.clock()
    current = dict(leaves)
    free = [name for group in turns.groups for name in group]
    done = evaluations = 0
    for group in itertools.cycle(turns.groups):
        left = None if limits.seconds is None else max(0.0, limits.seconds - (limits.clock() - began))
        turn = replace(limits, steps=min(turns.each, limits.steps - done), seconds=left)
        for here in minimize(objective_fn, current, optimizer, limits=turn, wrt=group):
            over = done + here.step >= limits.steps or here.ending in (Ending.TOLERANCE, Ending.TIME)
            yield replace(
                here,
                step=done + here.step,
                evaluations=evaluations + here.evaluations,
                best={name: here.best.get(name, current[name]) for name in free},
                ending=None if not over else here.ending or Ending.STEPS,
            )
            if over:
                return
        done, evaluations = done + here.step, evaluations + here.evaluations
        current.update(here.best)


class _Best:
    """The lowest loss of each candidate so far, and where it was."""

    def __init__(self, points_KD: Tensor) -> None:
        self.points_KD = points_KD
        self.losses_K = points_KD.new_full((len(points_KD),), torch.inf)

    def keep(self, points_KD: Tensor, losses_K: Tensor) -> None:
        """What is lower than before; a NaN never is."""
        better_K = losses_K < self.losses_K
        self.losses_K = torch.where(better_K, losses_K, self.losses_K)
        self.points_KD = torch.where(better_K.unsqueeze(1), points_KD, self.points_KD)


def _restart(
    state: State, best: _Best, flat: _Flattening, reinitialize: Reinitialize | None
) -> tuple[int, ...]:
    """Let diverged candidates begin anew, but for those that have nowhere to begin."""
    restarted = []
    for k in state.diverged_K.nonzero().flatten().tolist():
        if reinitialize is not None:
            again = {name: leaf.detach().unsqueeze(0) for name, leaf in reinitialize(k).items()}
            state.restart(k, flat.of_leaves(again)[0].to(best.points_KD))
        elif best.losses_K[k].isfinite():
            state.restart(k, best.points_KD[k])
        else:
            continue
        restarted.append(k)
    return tuple(restarted)


@dataclass(frozen=True)
class _Flattening:
    """The optimized leaves as one row of numbers a candidate, and back.

    Attributes:
        shapes: of each leaf, by name, without the leading K.
    """

    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, leaves: Leaves, wrt: Iterable[str] | None) -> _Flattening:
        """Of the named leaves; of all floating-point ones where none is named."""
        floating = (name for name, leaf in leaves.items() if leaf.is_floating_point())
        return cls({name: leaves[name].shape[1:] for name in (floating if wrt is None else wrt)})

    def of_leaves(self, leaves: Leaves) -> Tensor:
        """(K, D)."""
        return torch.cat([leaves[name].flatten(1) for name in self.shapes], 1)

    def leaves(self, points_KD: Tensor) -> dict[str, Tensor]:
        """Views of the points."""
        parts = torch.split(points_KD, [shape.numel() for shape in self.shapes.values()], 1)
        return {
            name: part.reshape(-1, *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
