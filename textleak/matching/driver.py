"""The one loop of continuous optimization: best so far, restarts, limits.

Shapes: K candidates, D numbers a candidate (its optimized leaves, flattened).
"""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from textleak.matching.factored import Leaves, candidates_of
from textleak.matching.optimisers import Optimiser

ObjectiveFunction = Callable[[Leaves], tuple[Tensor, dict[str, Tensor]]]
"""Losses (K,) and their gradients with regard to the optimized leaves: `Matcher.value_and_gradient`, say."""

Reinitialise = Callable[[int, torch.Generator | None], dict[str, Tensor]]
"""New values of candidate k's optimized leaves, without the leading K."""

Project = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""The nearest allowed values of the optimized leaves."""

# A loss that fell to less than this part of an earlier one is on its way (our choice).
PROGRESS = 0.9


class Stop(enum.Enum):
    """Why a run ended, in a sentence."""

    STEPS = "All steps were taken."
    TOLERANCE = "A candidate came under the tolerance."
    TIME = "Time was up."
    CONVERGED = "Every candidate converged."


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Where a run stands after a step.

    Attributes:
        step: steps taken.
        losses_K: of the points evaluated in this step (a finished or resting candidate's last).
        best_losses_K: lowest so far, inf where a candidate never had a finite one.
        best: the leaves at those; a copy that is the reader's own.
        points: the leaves that are evaluated next, to be read before the next step.
        evaluations: candidates evaluated so far.
        restarted: candidates that had diverged or were stuck and began anew.
        stop: why this is the last step, None as long as the run goes on.
    """

    step: int
    losses_K: Tensor
    best_losses_K: Tensor
    best: dict[str, Tensor]
    points: dict[str, Tensor]
    evaluations: int
    restarted: tuple[int, ...]
    stop: Stop | None


def minimise(
    objective_fn: ObjectiveFunction,
    leaves: Leaves,
    optimiser: Optimiser,
    *,
    steps: int,
    wrt: Iterable[str] | None = None,
    generator: torch.Generator | None = None,
    reinitialise: Reinitialise | None = None,
    time_limit: float | None = None,
    tolerance: float | None = None,
    patience: int | None = None,
    survivors: Mapping[int, int] = MappingProxyType({}),
    project: Project | None = None,
) -> Generator[Step, dict[str, Tensor] | None, None]:
    """Minimize every candidate's loss on its own.

    A caller that knows better sends leaves: these are evaluated next in place of `points`, and the optimizer remembers
    everything else.

    Args:
        objective_fn: losses and gradients of the candidates it is given, which may be some of them.
        leaves: all tensors that `objective_fn` reads, K first; they are left as they are.
        optimiser: its hyper-parameters.
        steps: evaluations of each candidate, at most.
        wrt: names of the leaves to be optimized, floating-point ones of one dtype; default all of these.
        generator: handed to `reinitialise`.
        reinitialise: where a diverged candidate begins anew; default its own best point, if it has one.
        time_limit: seconds, looked at between steps.
        tolerance: end as soon as a candidate's loss is at most this.
        patience: a candidate begins anew at `reinitialise` when it has converged, or when so many evaluations have
            not brought its loss below `PROGRESS` of what it was. None to let it be.
        survivors: how many candidates, those with the lowest losses, go on after some steps; the others rest for good
            (as in successive halving: Jamieson & Talwalkar 2016).
        project: applied to the points after each step, if they have to stay in some range.

    Yields:
        A `Step` after each; the last one says why it is the last.
    """
    names = tuple(wrt) if wrt is not None else tuple(n for n, x in leaves.items() if x.is_floating_point())
    fixed = {name: leaf.detach() for name, leaf in leaves.items() if name not in names}
    shapes = {name: leaves[name].shape[1:] for name in names}
    candidates = candidates_of(leaves)
    started = time.monotonic()

    best_KD = _flat([leaves[name].detach() for name in names])
    best_losses_K = best_KD.new_full((candidates,), torch.inf)
    losses_K = best_losses_K.clone()
    state = optimiser.start(best_KD)
    evaluations = 0
    racing_K = torch.ones(candidates, dtype=torch.bool)
    lowest_K, lowered_K = losses_K.clone(), [0] * candidates  # since the candidate began, and when
    for step in range(1, steps + 1):
        points_KD = state.ask()
        chosen = (state.active_K & racing_K).nonzero().flatten().to(points_KD.device)
        part = {name: leaf[chosen] for name, leaf in fixed.items()} | _leaves(points_KD[chosen], shapes)
        some_losses, some_gradients = objective_fn(part)
        evaluations += len(chosen)
        gradients_KD = torch.zeros_like(points_KD)
        gradients_KD[chosen] = _flat([some_gradients[name] for name in names]).to(gradients_KD)
        losses_K = losses_K.index_copy(0, chosen, some_losses.detach().to(losses_K))
        better_K = losses_K < best_losses_K  # a NaN never is
        best_losses_K = torch.where(better_K, losses_K, best_losses_K)
        best_KD = torch.where(better_K.unsqueeze(1), points_KD, best_KD)
        state.tell(losses_K, gradients_KD)
        if project is not None:
            state.place(_flat(list(project(_leaves(state.ask(), shapes)).values())))
        for k in (losses_K < PROGRESS * lowest_K).nonzero().flatten().tolist():
            lowest_K[k], lowered_K[k] = losses_K[k], step

        restarted = []
        stuck = {
            k
            for k in range(candidates)
            if patience is not None and (step - lowered_K[k] >= patience or not state.active_K[k])
        }
        if tolerance is not None and bool((best_losses_K <= tolerance).any()):
            stuck = set()
        for k in sorted({*state.diverged_K.nonzero().flatten().tolist(), *stuck}):
            if not racing_K[k]:
                continue
            if reinitialise is not None:
                again = reinitialise(k, generator)
                point_D = _flat([again[name].detach().unsqueeze(0) for name in names])[0].to(best_KD)
            elif best_losses_K[k].isfinite():
                point_D = best_KD[k]
            else:
                continue
            state.restart(k, point_D)
            lowest_K[k], lowered_K[k] = torch.inf, step
            restarted.append(k)
        if step in survivors:
            racing_K[best_losses_K.argsort()[survivors[step] :].to(racing_K.device)] = False

        stop = None
        if tolerance is not None and bool((best_losses_K <= tolerance).any()):
            stop = Stop.TOLERANCE
        elif not (state.active_K & racing_K).any():
            stop = Stop.CONVERGED
        elif time_limit is not None and time.monotonic() - started >= time_limit:
            stop = Stop.TIME
        elif step == steps:
            stop = Stop.STEPS
        moved = yield Step(
            step=step,
            losses_K=losses_K.clone(),
            best_losses_K=best_losses_K.clone(),
            best={name: leaf.clone() for name, leaf in _leaves(best_KD, shapes).items()},
            points=_leaves(state.ask(), shapes),
            evaluations=evaluations,
            restarted=tuple(restarted),
            stop=stop,
        )
        if stop is not None:
            return
        if moved is not None:
            state.place(_flat([moved[name] for name in names]))


def minimise_in_turns(
    objective_fn: ObjectiveFunction,
    leaves: Leaves,
    optimiser: Optimiser,
    *,
    steps: int,
    turns: Sequence[tuple[str, ...]],
    each: int,
    time_limit: float | None = None,
    tolerance: float | None = None,
) -> Iterator[Step]:
    """As `minimise`, some leaves at a time: the optimizer begins anew with each turn, from the best point so far.

    Args:
        objective_fn: as for `minimise`.
        leaves: likewise.
        optimiser: likewise.
        steps: likewise, over all turns.
        turns: names of the leaves that are optimized together, one turn after the other, over and over.
        each: steps of a turn.
        time_limit: as for `minimise`.
        tolerance: likewise.

    Yields:
        A `Step` after each, counted over all turns.
    """
    started = time.monotonic()
    current = dict(leaves)
    free = [name for turn in turns for name in turn]
    done = evaluations = 0
    for turn in itertools.cycle(turns):
        left = None if time_limit is None else max(0.0, time_limit - (time.monotonic() - started))
        taken = min(each, steps - done)
        run = minimise(
            objective_fn, current, optimiser, steps=taken, wrt=turn, time_limit=left, tolerance=tolerance
        )
        for step in run:
            over = done + step.step >= steps or step.stop in (Stop.TOLERANCE, Stop.TIME)
            best = {name: step.best.get(name, current[name]) for name in free}
            yield replace(
                step,
                step=done + step.step,
                evaluations=evaluations + step.evaluations,
                best=best,
                stop=None if not over else step.stop or Stop.STEPS,
            )
            if over:
                return
        done, evaluations = done + step.step, evaluations + step.evaluations
        current.update(step.best)


def _flat(leaves: list[Tensor]) -> Tensor:
    return torch.cat([leaf.flatten(1) for leaf in leaves], 1)


def _leaves(points_KD: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    sizes = [shape.numel() for shape in shapes.values()]
    parts = torch.split(points_KD, sizes, 1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
