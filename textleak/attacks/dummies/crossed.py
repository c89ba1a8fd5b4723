"""Several starts of a batch whose best pictures are put together, as trials of one picture tell.

As `matching.Crossing`, on networks where an evaluation is dear: a picture of another start is tried beside the
others of the best one, which are held, so that a trial costs the evaluations of one picture and not of the batch.

Shapes: K candidates, B pictures, C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

import torch
from torch import Tensor

from textleak.attacks.dummies.beside import HeldBatch
from textleak.attacks.dummies.onward import Matching, Onward
from textleak.attacks.dummies.pictures import DummyPictures, PictureSettings
from textleak.attacks.dummies.problem import DummyProblem
from textleak.clients.view import Clock
from textleak.events import Phase, Progress, Stop
from textleak.matching import Leaves, Optimizer, minimize
from textleak.words import count_of

# Evaluations of a trial (our choice, as of `matching.Crossing`).
_TRIAL = 40
# How many of the others' are compared with the best start's own, the nearest; in how many other starts (our choice).
_NEAREST, _GROUNDS = 3, 3


def can_be_crossed(problem: DummyProblem) -> bool:
    """Whether trials of one picture tell: of three candidates or more, from a gradient that nothing was done to."""
    dummies = problem.stand_ins
    return (
        isinstance(dummies, DummyPictures)
        and len(dummies.parts) > 1
        and problem.candidates > 2
        and not dummies.shared.defenses
        and not dummies.shared.effects
    )


def match_crossed(
    onward: Onward,
    optimizer: Optimizer,
    pictures: PictureSettings,
    *,
    candidates: int,
    labels_KB: Tensor | None,
    begin: int,
    steps: int,
) -> Matching:
    """Match candidates, cross them, and go on from what that made of the best one.

    Args:
        onward: matches.
        optimizer: of every descent.
        pictures: what pictures are matched with.
        candidates: K.
        labels_KB: classes that are held fixed, the same in all candidates; None where the server knows them.
        begin: evaluations of each candidate before they are crossed.
        steps: of the batch, at most.
    """
    begun = yield from onward.matched(
        optimizer, candidates=candidates, steps=min(begin, steps), labels_KB=labels_KB, pictures=pictures
    )
    if begun.recovery.stop is Stop.MATCHED or begin >= steps or onward.view.clock.over:
        return begun
    assert begun.pixels_KBCHW is not None
    assert begun.labels_KB is not None
    nearest = begun.nearest(candidates).pixels_KBCHW
    assert nearest is not None
    crossed = Crossed(
        dummies=DummyPictures(
            view=onward.view, objective=onward.objective, settings=pictures, labels_KB=begun.labels_KB
        ),
        optimizer=optimizer,
        clock=onward.view.clock,
        pixels_KBCHW=nearest,
    )
    pixels_BCHW = yield from onward.totals.followed(crossed.run())
    found = yield from onward.from_pictures(
        "continuous",
        optimizer,
        steps=steps - begin,
        labels_KB=begun.labels_KB[:1],
        pictures=dataclasses.replace(pictures, start_KBCHW=pixels_BCHW[None]),
    )
    if found is None or found.losses_K.min() > begun.losses_K.min():
        return begun
    return found


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Crossed:
    """Which pictures of other starts are nearer than the best start's own.

    Attributes:
        dummies: of the batch.
        optimizer: of each trial.
        clock: when to end.
        pixels_KBCHW: the starts' pictures, the nearest start first.
    """

    dummies: DummyPictures
    optimizer: Optimizer
    clock: Clock
    pixels_KBCHW: Tensor

    def run(self) -> Generator[Phase | Progress, None, Tensor]:
        """The best start (B, C, H, W) with the pictures that were nearer; as it is where time is up.

        A start's own pictures are fitted to each other's errors, so that any exchange makes the loss larger at first:
        the nearest of the others' are compared with the start's own in other starts, all on the same ground, and the
        mean over these of the loss's logarithm decides.
        """
        starts = list(range(1, len(self.pixels_KBCHW)))
        size = self.dummies.batch_size
        yield Phase(
            name="crossing", detail=f"{count_of(size, 'picture')}, each from {len(starts)} other starts"
        )
        chosen_BCHW, evaluations = self.pixels_KBCHW[0].clone(), 0
        for b in range(size):
            if self.clock.over:
                break
            losses_K, ends_KCHW, taken = self._tried(0, b, starts)
            order = losses_K.argsort().tolist()
            near = order[: min(_NEAREST, len(order) - 1)]
            compared, grounds = [0, *(starts[k] for k in near)], [starts[k] for k in order if k not in near]
            found = [self._tried(ground, b, compared) for ground in sorted(grounds)[:_GROUNDS]]
            evaluations += taken + sum(more for _, _, more in found)
            mean_K = torch.stack([losses.log() for losses, _, _ in found]).mean(0)
            nearest = int(mean_K.argmin())
            if nearest:
                chosen_BCHW[b] = ends_KCHW[near[nearest - 1]]
            yield Progress(
                phase="crossing",
                step=b + 1,
                steps=size,
                loss=float(losses_K.min()),
                losses=tuple(losses_K.tolist()),
                evaluations=evaluations // size,
                detail=f"picture {b} {f'from start {compared[nearest]}' if nearest else 'stays'}",
            )
        return chosen_BCHW

    def _tried(self, ground: int, b: int, starts: list[int]) -> tuple[Tensor, Tensor, int]:
        """Where picture b of these starts leads beside the others of one start: losses, pixels, evaluations."""
        dummies, name = self.dummies, f"pixels {b}"
        beside = HeldBatch.at(dummies, self.pixels_KBCHW[ground]).beside(b)
        begin: Leaves = {name: dummies.as_leaf(self.pixels_KBCHW[starts, b])}
        limits = self.clock.limits(_TRIAL)
        for here in minimize(beside.value_and_gradient, begin, self.optimizer, limits=limits):
            last = here
        losses_K = last.best_losses_K.nan_to_num(torch.inf)
        return losses_K, dummies.as_pixels(last.best[name]), last.evaluations
