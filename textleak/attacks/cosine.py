"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053; JonasGeiping/invertinggradients).

The distance is 1 − the cosine of all layers' gradients as one vector (eq. 4), minimized by Adam on the sign
of the dummies' gradient. On pictures, total variation is added and values are kept between 0 and 1; neither has a
counterpart on embeddings. Classes are inferred, not optimized: for a batch of one by iDLG's
rule as in the released code, for several by counting them (our choice), each candidate trying its own order.

Beyond the paper: a vision transformer's picture is read off first where that is possible (Lu et al. 2022), a ReLU's
kinks count as having a width, many starts are given up early, the picture is moved to where a pooling network hardly
tells it from (`layout`), and the candidates are refined: the sign of a gradient weighs what hardly shows in the
distance like what does, which finds a picture's parts and then stops short.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from textleak.attacks.base import ATTACKS, Steps, Totals
from textleak.attacks.dummies.matched import Matched, match_dummies
from textleak.attacks.dummies.moves import distance_of_places, moved
from textleak.attacks.dummies.pictures import PictureSettings, batch_size
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Stop
from textleak.exact.classes import class_counts, single_class
from textleak.exact.patches import read_patches
from textleak.matching import Adam, CosineGlobal, MilestoneDecay
from textleak.models import TextModel
from textleak.models.base import Modality
from textleak.models.vision import ImageModel
from textleak.proof.certificate import certify_pictures
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

# Geiping et al. 2020, released code: the learning rate × 0.1 after these parts of the steps.
_MILESTONES = (3 / 8, 5 / 8, 7 / 8)
# Pictures, our choice: so many candidates begin, and so many go on after a part of the steps. Starts lead to different
# arrangements of a picture's parts and soon show how good: of sixteen for a photograph, the four with the nearest
# gradients after 150 steps were at 12.8 to 14.1 dB, the four furthest at 10.7 to 12.3. Later on the distance can't tell
# (of four that were brought to 15.3 to 20.2 dB, these two were nearest) until two rounds of refinement are done.
_BEGIN, _GO_ON, _EARLY = 16, 4, 0.06
# Kinks after the published steps are this part of what they were, our choice.
_NARROWER = 0.3
# Moves, our choice as measured in the README: steps as a part of the attack's, and the rate, × 0.1 for the second half.
# After 60 steps a drawing that was 4 pixels off (16.9 dB) had the larger distance, 2.31e-3 against 2.19e-3 moved.
_MOVE_STEPS, _MOVE_RATE = 0.04, 0.03
# Refinement, our choice as measured in the README: so many rounds, each with kinks, total variation and learning rate
# `_NARROWER` of the round's before, the nearer half of its candidates and twice its steps; the first one's rate, its
# total variation in units of the attack's, and the waves' units (`PictureSettings.smooth`). With 4 in place of 2 a
# drawing came to 27.4 dB in 1,200 steps, a photograph to 22.0; with 1.2 the photograph to 23.0; with 0.3 in 2,000 steps
# the drawing to 21.1. After 400 steps each, 500 more of the last round led from 23.5 and 21.8 dB to 23.9 and 22.0, 500
# of a round further to 23.6 and 21.8.
_ROUNDS = 3
_WAVES_RATE, _ROUGH, _SMOOTH = 0.09, 2.0, 4.0

Matching = Generator[Phase | Progress, None, Matched]
Onward = Callable[
    [str, PictureSettings, Tensor | None, int, Adam], Generator[Phase | Progress, None, Matched | None]
]


@ATTACKS.register("cosine")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """1 − cosine over all layers, dummy embeddings or pictures, inferred classes, Adam on the gradient's sign.

    Attributes:
        restarts: candidates K, optimized at once; the best by its own distance is the answer. None for one of sentences
            and sixteen of pictures. Of pictures the nearest four go on when 6 % of the steps are done, and half of
            these after each round of the refinement.
        steps: optimizer steps.
        learning_rate: of Adam at the start, stepped down three times.
        signed: whether Adam sees the gradient's sign alone.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
        total_variation: weight of the difference between neighboring pixels; pictures only.
        boxed: whether a picture's values are kept between 0 and 1.
        kinks: width that the kinks of ReLUs count as having where the loss is differentiated, in deviations of what
            they read: descent then knows of units that it would switch on or off. 0 as published; pictures only.
        moves: rounds, at most, in which each candidate's picture is moved eight ways by the distance of the last
            feature map's places, to be kept where a short descent comes nearer from there. 0 as published; pictures
            only, and only on networks that read the mean over these places.
        refinement: further steps as a part of `steps`, by which the answer is refined: Adam on waves (as `dlg` has
            them) in rounds with kinks, total variation and learning rate smaller from one to the next. 0 as
            published; pictures only.
        closed_form: whether a transformer's picture is first read off the gradients of its patches and positions
            (`textleak.exact.patches`), where they tell: matching then starts from it, or has nothing left to do.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset(Modality)
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.REPEATABLE})

    restarts: Annotated[int, Field(ge=1)] | None = None  # our choice; the paper's experiments take 1 to 16
    # Our choice, as many as LAMP's re-runs of DLG and TAG on text; images: up to 24,000.
    steps: Annotated[int, Field(ge=1)] = 2500
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # Geiping et al. 2020, sec. 4
    signed: bool = True
    time_limit: Annotated[float, Field(gt=0)] | None = None
    # Our choice, of pixels as the network reads them; Geiping et al. 2020, sec. 5 take 0.1 to 0.2, with which ResNet-20
    # stays at 12 dB.
    total_variation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0025
    boxed: bool = True
    # Our choice, as measured in the README. A photograph, ResNet-20: 16.7 dB after 300 steps, 15.8 with a width of 0.3;
    # in longer runs 0.3 was no worse (18.7 dB after 2,000, one run). Begun at the truth with noise of 0.1, 20.6 dB, 300
    # steps without total variation lead to 21.9 dB with 0.3, and to 16.6 with 0.
    kinks: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    moves: Annotated[int, Field(ge=0)] = 1  # our choice
    # Our choice. From an answer at 17.0 dB (a photograph, ResNet-20) 500 steps with a rate from 0.1 to 0.01 led to 18.2
    # to 18.5 dB, 2,000 to 19.5; a rate from 0.003 to 17.3; momentum alone to 18.2 in 500, to 20.3 in 2,500.
    refinement: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.2
    closed_form: bool = True  # our choice: with it matching alone can be measured too

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how."""
        shared, model = view.shared, view.model
        candidates = self.restarts or (1 if isinstance(model, TextModel) else _BEGIN)
        labels_KB = None
        if model.num_labels is not None and shared.known.labels is None:
            yield Phase(name="labels", detail="from the classification head's gradient")
            labels_KB = _labels(shared, model, candidates, generator)
        totals = Totals()
        pictures = PictureSettings(total_variation=self.total_variation, boxed=self.boxed, kinks=self.kinks)
        if self.closed_form and isinstance(model, ImageModel):
            start_CHW = read_patches(shared, model)
            if start_CHW is not None:
                read = yield from totals.followed(_read(view, start_CHW, labels_KB))
                if read.stop is Stop.MATCHED:
                    return read
                pictures = dataclasses.replace(pictures, start_KBCHW=start_CHW[None, None])
        matched = functools.partial(match_dummies, view, objective=CosineGlobal(), generator=generator)
        found = yield from totals.followed(
            matched(
                optimiser=Adam(
                    learning_rate=self.learning_rate,
                    schedule=_stepped(self.steps, *_MILESTONES),
                    signed=self.signed,
                ),
                restarts=candidates,
                steps=self.steps,
                survivors={} if isinstance(model, TextModel) else {max(1, int(_EARLY * self.steps)): _GO_ON},
                labels_KB=labels_KB,
                pictures=pictures,
            )
        )
        if isinstance(model, TextModel):
            return found.recovery

        def onward(
            phase: str, start: PictureSettings, labels_KB: Tensor | None, steps: int, optimiser: Adam
        ) -> Generator[Phase | Progress, None, Matched | None]:
            """What matching comes to from some pictures; None where there is no time for it."""
            if not steps or view.clock.over:
                return None
            assert start.start_KBCHW is not None
            return (
                yield from totals.followed(
                    matched(
                        optimiser=optimiser,
                        restarts=len(start.start_KBCHW),
                        steps=steps,
                        labels_KB=labels_KB,
                        pictures=start,
                        phase=phase,
                    )
                )
            )

        notes = found.recovery.notes
        found = found.nearest(_GO_ON)
        found = yield from self._moved(found, distance_of_places(model), pictures, onward)
        found = yield from self._refined(found, pictures, onward)
        return dataclasses.replace(
            found.recovery,
            steps=totals.steps,
            evaluations=totals.evaluations,
            notes=tuple(dict.fromkeys(notes + found.recovery.notes)),
        )

    def _moved(
        self, found: Matched, distance: int | None, pictures: PictureSettings, onward: Onward
    ) -> Matching:
        """Each candidate, or what a short descent from one of its moves led nearer than that from itself."""
        if distance is None:
            return found
        steps = int(_MOVE_STEPS * self.steps)
        optimiser = Adam(learning_rate=_MOVE_RATE, schedule=_stepped(steps, 1 / 2), signed=self.signed)
        candidates = len(found.losses_K)
        for _ in range(self.moves):
            stays = True
            for b in range(len(found.recovery.image)):
                assert found.pixels_KBCHW is not None
                start_KBCHW = torch.cat([moved(pixels, b, distance) for pixels in found.pixels_KBCHW])
                start = dataclasses.replace(
                    pictures, start_KBCHW=start_KBCHW, kinks=_NARROWER * pictures.kinks
                )
                moves = len(start_KBCHW) // candidates
                labels_KB = None if found.labels_KB is None else found.labels_KB.repeat_interleave(moves, 0)
                tried = yield from onward("moves", start, labels_KB, steps, optimiser)
                if tried is None:
                    return found
                best_K = tried.losses_K.view(candidates, moves).argmin(1)
                stays = stays and not best_K.any()
                found = tried.only(moves * torch.arange(candidates, device=best_K.device) + best_K)
            if stays:
                break
        return found

    def _refined(self, found: Matched, pictures: PictureSettings, onward: Onward) -> Matching:
        """The best candidate after all rounds, each of which half of the candidates don't survive."""
        steps, candidates = self.refinement * self.steps / (2**_ROUNDS - 1), len(found.losses_K)
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
            optimiser = Adam(learning_rate=part * _WAVES_RATE)
            tried = yield from onward(
                "refinement", start, nearest.labels_KB, round(steps * 2**number), optimiser
            )
            if tried is None:
                return found
            found = tried
        return found


def _labels(
    shared: SharedGradient, model: TextModel | ImageModel, candidates: int, generator: torch.Generator
) -> Tensor:
    """Each candidate's classes (K, B), from the classification head's gradient."""
    size = batch_size(shared)
    if size == 1:
        return torch.full((candidates, 1), single_class(shared, model, generator))
    counts = class_counts(shared, model, size, generator)
    classes_B = torch.repeat_interleave(torch.tensor(counts))
    return torch.stack([classes_B[torch.randperm(size, generator=generator)] for _ in range(candidates)])


def _stepped(steps: int, *parts: float) -> MilestoneDecay:
    """A learning rate × 0.1 after some parts of the steps."""
    return MilestoneDecay(milestones=tuple(int(part * steps) for part in parts))


def _read(view: View, pixels_CHW: Tensor, labels_KB: Tensor | None) -> Steps:
    """Show a picture that was read off, and put it to the exact test."""
    yield Phase(name="closed form", detail="the gradients of patches and positions are equations for pixels")
    shared, model = view.shared, view.model
    picture_1CHW = model.pictures(pixels_CHW.to(model.device, model.dtype)).clamp(0, 1)[None]
    labels = shared.known.labels or (() if labels_KB is None else tuple(labels_KB[0].tolist()))
    certificate = certify_pictures(view, picture_1CHW, labels)
    image = tuple(picture_1CHW.cpu().permute(0, 2, 3, 1).tolist())
    yield Progress(
        phase="closed form",
        step=1,
        steps=1,
        loss=certificate.gradient_distance,
        evaluations=1,
        total_steps=1,
        image=image,
        labels=labels,
    )
    return Recovery(
        sentences=(),
        image=image,
        labels=labels,
        stop=Stop.MATCHED if certificate.verified else Stop.CONVERGED,
        final_loss=certificate.gradient_distance,
        steps=1,
        evaluations=1,
        channel="closed form",
        notes=("Read off the gradients of patches and positions in closed form; nothing was matched.",),
        gradient_distance=certificate.gradient_distance,
    )
