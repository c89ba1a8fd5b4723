"""Matching that goes on from pictures that were found: short descents from moved ones, and rounds of refinement.

The sign of a gradient weighs what hardly shows in the distance like what does: it finds a picture's parts, perhaps in
the wrong place (`moves`), and then stops short. Both are beyond the papers; their constants are our choice, measured
(README, the photograph-like pictures).

Shapes: K candidates, B pictures, C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator

import torch
from torch import Tensor

from textleak.attacks.base import Totals
from textleak.attacks.dummies.matched import Matched, match_dummies
from textleak.attacks.dummies.moves import distance_of_places, moved
from textleak.attacks.dummies.pictures import PictureSettings
from textleak.attacks.dummies.problem import DummyProblem
from textleak.clients.view import View
from textleak.events import Phase, Progress
from textleak.matching import Adam, MilestoneDecay, Objective, Optimizer

# Each descent's kinks, and each round's kinks, total variation and learning rate, in units of those before.
_NARROWER = 0.3
# Of the descent from a moved picture: steps as a part of the attack's, and the rate, × 0.1 for the second half.
_MOVE_STEPS, _MOVE_RATE = 0.04, 0.03
# Rounds of the refinement, each with the nearer half of the candidates before it and twice the steps.
_ROUNDS = 3
# Of its first round: rate, total variation in units of the attack's, and the waves' units (`PictureSettings.smooth`).
_WAVES_RATE, _ROUGH, _SMOOTH = 0.09, 2.0, 4.0

Matching = Generator[Phase | Progress, None, Matched]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Onward:
    """Matching of one gradient, run after run.

    Attributes:
        view: what the server sees.
        objective: the distance.
        generator: draws where candidates start.
        totals: steps and evaluations of all runs.
    """

    view: View
    objective: Objective
    generator: torch.Generator
    totals: Totals

    def matched(
        self,
        optimizer: Optimizer,
        *,
        candidates: int,
        steps: int,
        labels_KB: Tensor | None,
        pictures: PictureSettings,
        phase: str = "continuous",
    ) -> Matching:
        """One run, counted on from those before."""
        problem = DummyProblem.of(
            self.view, self.objective, candidates=candidates, labels_KB=labels_KB, pictures=pictures
        )
        run = match_dummies(problem, optimizer, steps=steps, generator=self.generator, phase=phase)
        return (yield from self.totals.followed(run))

    def from_pictures(
        self,
        phase: str,
        optimizer: Optimizer,
        *,
        steps: int,
        labels_KB: Tensor | None,
        pictures: PictureSettings,
    ) -> Generator[Phase | Progress, None, Matched | None]:
        """What the pictures that `pictures` starts from come to; None where there is no time for it."""
        if not steps or self.view.clock.over:
            return None
        assert pictures.start_KBCHW is not None
        return (
            yield from self.matched(
                optimizer,
                candidates=len(pictures.start_KBCHW),
                steps=steps,
                labels_KB=labels_KB,
                pictures=pictures,
                phase=phase,
            )
        )


def from_moves(
    onward: Onward, found: Matched, pictures: PictureSettings, *, steps: int, rounds: int, signed: bool
) -> Matching:
    """Each candidate, or what a short descent from one of its moves led nearer than that from itself.

    Args:
        onward: matches.
        found: the candidates.
        pictures: as they were found with.
        steps: of the attack.
        rounds: at most; none after one in which all candidates stay.
        signed: whether Adam sees the gradient's sign alone.
    """
    distance = distance_of_places(onward.view.image_model)
    if distance is None:
        return found
    taken, candidates = int(_MOVE_STEPS * steps), len(found.losses_K)
    optimizer = Adam(learning_rate=_MOVE_RATE, schedule=stepped(taken, 1 / 2), signed=signed)
    for _ in range(rounds):
        stays = True
        for b in range(len(found.recovery.image)):
            assert found.pixels_KBCHW is not None
            start_KBCHW = torch.cat([moved(pixels, b, distance) for pixels in found.pixels_KBCHW])
            start = dataclasses.replace(pictures, start_KBCHW=start_KBCHW, kinks=_NARROWER * pictures.kinks)
            moves = len(start_KBCHW) // candidates
            labels_KB = None if found.labels_KB is None else found.labels_KB.repeat_interleave(moves, 0)
            tried = yield from onward.from_pictures(
                "moves", optimizer, steps=taken, labels_KB=labels_KB, pictures=start
            )
            if tried is None:
                return found
            best_K = tried.losses_K.view(candidates, moves).argmin(1)
            stays = stays and not best_K.any()
            found = tried.only(moves * torch.arange(candidates, device=best_K.device) + best_K)
        if stays:
            break
    return found


def refined(onward: Onward, found: Matched, pictures: PictureSettings, *, steps: float) -> Matching:
    """The best candidate after all rounds, each of which half of the candidates don't survive.

    Args:
        onward: matches.
        found: the candidates.
        pictures: as they were found with.
        steps: of all rounds together.
    """
    first, candidates = steps / (2**_ROUNDS - 1), len(found.losses_K)
    for number in range(_ROUNDS):
        part = _NARROWER**number
        nearest = found.nearest(math.ceil(candidates / 2**number))
        start = dataclasses.replace(
            pictures,
            start_KBCHW=nearest.pixels_KBCHW,
            smooth=_SMOOTH,
            total_variation=part * _ROUGH * pictures.total_variation,
            kinks=part * _NARROWER * pictures.kinks,
        )
        tried = yield from onward.from_pictures(
            "refinement",
            Adam(learning_rate=part * _WAVES_RATE),
            steps=round(first * 2**number),
            labels_KB=nearest.labels_KB,
            pictures=start,
        )
        if tried is None:
            return found
        found = tried
    return found


def stepped(steps: int, *parts: float) -> MilestoneDecay:
    """A learning rate × 0.1 after some parts of the steps."""
    return MilestoneDecay(milestones=tuple(int(part * steps) for part in parts))
