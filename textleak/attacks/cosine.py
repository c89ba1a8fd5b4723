"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053; JonasGeiping/invertinggradients).

The distance is 1 − the cosine of all layers' gradients as one vector (eq. 4), minimized by Adam on the sign
of the dummies' gradient. On pictures, total variation is added and values are kept between 0 and 1; neither has a
counterpart on embeddings. Classes are inferred, not optimized: for a batch of one by iDLG's
rule as in the released code, for several by counting them (our choice), each candidate trying its own order.

Beyond the paper: a picture is read off first where that is possible, a vision transformer's from its patches (Lu et
al. 2022), a ReLU network's layer by layer (`recursive`, after R-GAP); where it isn't, a ReLU's kinks count as having a
width, many starts are given up early, and what is found is moved and refined (`onward`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from textleak.attacks.base import ATTACKS, Steps, Totals
from textleak.attacks.dummies.closed_form import classes_of, put_to_the_test
from textleak.attacks.dummies.onward import Onward, from_moves, refined, stepped
from textleak.attacks.dummies.pictures import PictureSettings, batch_size
from textleak.attacks.recursive.answer import CHANNEL, read_back
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Stop
from textleak.exact.classes import class_counts, single_class
from textleak.exact.patches import read_patches
from textleak.matching import Adam, CosineGlobal, Race
from textleak.models.base import Modality
from textleak.shared.traits import Trait

# Geiping et al. 2020, released code: the learning rate × 0.1 after these parts of the steps.
_MILESTONES = (3 / 8, 5 / 8, 7 / 8)
# Pictures: so many candidates begin, and so many go on after a part of the steps (our choice; measured, README).
_BEGIN, _GO_ON, _EARLY = 16, 4, 0.06
# A picture that was read back through the layers and has a gradient this near isn't matched any further: from there
# matching found nothing better (our choice; measured, `tests/figures`).
_NEAR = 0.1


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
        closed_form: whether the only picture of a batch is first read off, where the gradient tells: a transformer's
            from its patches and positions (`textleak.exact.patches`), a ReLU network's layer by layer
            (`textleak.attacks.recursive`). Matching then starts from it, or has nothing left to do.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset(Modality)
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.REPEATABLE})
    when: ClassVar[str] = "pictures of ResNets and vision transformers"
    paper: ClassVar[str] = "Geiping et al. 2020"

    restarts: Annotated[int, Field(ge=1, le=4096)] | None = (
        None  # our choice; the paper's experiments take 1 to 16
    )
    # Our choice, as many as LAMP's re-runs of DLG and TAG on text; images: up to 24,000.
    steps: Annotated[int, Field(ge=1)] = 2500
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # Geiping et al. 2020, sec. 4
    signed: bool = True
    time_limit: Annotated[float, Field(gt=0)] | None = None
    # Our choice, of pixels as the network reads them; Geiping et al. 2020, sec. 5 take 0.1 to 0.2.
    total_variation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0025
    boxed: bool = True
    kinks: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0  # our choice; measured, README
    moves: Annotated[int, Field(ge=0)] = 1  # our choice
    refinement: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.2  # our choice; measured, README
    closed_form: bool = True  # our choice: with it matching alone can be measured too

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how."""
        pictured = view.model.modality is Modality.PICTURES
        candidates = self.restarts or (_BEGIN if pictured else 1)
        labels_KB = None
        if view.model.num_labels is not None and view.shared.known.labels is None:
            yield Phase(name="labels", detail="from the classification head's gradient")
            labels_KB = _labels(view, candidates, generator)
        pictures = PictureSettings(total_variation=self.total_variation, boxed=self.boxed, kinks=self.kinks)
        totals = Totals()
        if pictured and self.closed_form:
            read = yield from _read_off(view, labels_KB, generator, totals)
            if read is not None:
                recovery, start_CHW = read
                near = recovery.channel == CHANNEL and (recovery.gradient_distance or 0.0) <= _NEAR
                if near or recovery.stop in (Stop.MATCHED, Stop.TIME):
                    return recovery
                pictures = dataclasses.replace(pictures, start_KBCHW=start_CHW[None, None])
        onward = Onward(view=view, objective=CosineGlobal(), generator=generator, totals=totals)
        adam = Adam(
            learning_rate=self.learning_rate,
            schedule=stepped(self.steps, *_MILESTONES),
            signed=self.signed,
        )
        race = Race(optimizer=adam, survivors={max(1, int(_EARLY * self.steps)): _GO_ON})
        found = yield from onward.matched(
            race if pictured else adam,
            candidates=candidates,
            steps=self.steps,
            labels_KB=labels_KB,
            pictures=pictures,
        )
        if not pictured:
            return found.recovery
        notes, found = found.recovery.notes, found.nearest(_GO_ON)
        found = yield from from_moves(
            onward, found, pictures, steps=self.steps, rounds=self.moves, signed=self.signed
        )
        found = yield from refined(onward, found, pictures, steps=self.refinement * self.steps)
        return dataclasses.replace(
            found.recovery,
            steps=totals.steps,
            evaluations=totals.evaluations,
            notes=tuple(dict.fromkeys(notes + found.recovery.notes)),
        )


def _read_off(
    view: View, labels_KB: Tensor | None, generator: torch.Generator, totals: Totals
) -> Generator[Phase | Progress, None, tuple[Recovery, Tensor] | None]:
    """A picture that needs no matching, put to the test, and its pixels; None where there is none to be had so."""
    patches_CHW = read_patches(view.shared, view.image_model)
    if patches_CHW is None:
        return (yield from read_back(view, labels_KB, generator, totals))
    yield Phase(name="closed form", detail="the gradients of patches and positions are equations for pixels")
    note = "Read off the gradients of patches and positions in closed form; nothing was matched."
    labels = classes_of(view, labels_KB)
    read = yield from totals.followed(put_to_the_test(view, patches_CHW, labels, note=note))
    return read, patches_CHW


def _labels(view: View, candidates: int, generator: torch.Generator) -> Tensor:
    """Each candidate's classes (K, B), from the classification head's gradient."""
    size = batch_size(view.shared)
    if size == 1:
        return torch.full((candidates, 1), single_class(view.shared, view.model, generator))
    counts = class_counts(view.shared, view.model, size, generator)
    classes_B = torch.repeat_interleave(torch.tensor(counts))
    return torch.stack([classes_B[torch.randperm(size, generator=generator)] for _ in range(candidates)])
