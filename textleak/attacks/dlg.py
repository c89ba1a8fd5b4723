"""Deep Leakage from Gradients (Zhu, Liu & Han 2019, arXiv 1906.08935; code: mit-han-lab/dlg).

Dummy data and dummy label logits from N(0, 1), softmax on the labels, both optimized with L-BFGS so that the
squared L2 distance of their gradient from the shared one falls; embeddings are decoded to the nearest tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from textleak.attacks.base import ATTACKS, Steps, Totals
from textleak.attacks.dummies.crossed import can_be_crossed, match_crossed
from textleak.attacks.dummies.matched import match_dummies
from textleak.attacks.dummies.onward import Onward
from textleak.attacks.dummies.pictures import PictureSettings
from textleak.attacks.dummies.problem import DummyProblem
from textleak.clients.view import View
from textleak.matching import LBFGS, Adam, Optimizer, SquaredL2
from textleak.models.base import Modality
from textleak.shared.traits import Trait

# Multiplications of a picture's forward pass from which on an image network is run in float32 (our choice). ResNet-20
# without strides, 275 million, then takes 0.4 of the time; LeNet, below one million, takes no less, and wants 1.4 times
# as many evaluations.
_LARGE = 2**23
# How much roughness counts there unless told (our choice; with 30 a start ended in flat pictures).
_ROUGHNESS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DLGOptions:
    """What DLG and iDLG have in common.

    Attributes:
        restarts: candidates K, optimized at once; the best by its own distance is the answer.
        steps: evaluations of each candidate, at most.
        optimizer: "lbfgs" as published, or "adam" as LAMP's authors re-ran it on text.
        learning_rate: 1 for lbfgs and 0.1 for adam unless given.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
        spread: pictures start at mid-gray plus noise of this standard deviation, in units of each wave or, without
            these, on a scale of 0 to 1; null to start from N(0, 1) as published.
        smooth: pictures are optimized as cosine waves of sizes that fall with their number beyond this; null to
            optimize pixels as published.
        roughness: rough pictures count as further away, which no more matters where gradients are equal
            (`PictureSettings.roughness`); null for 10 on large networks and 0, as published, on others.
        crossing: evaluations of each candidate after which the best one takes pictures from the others, those that are
            nearer than its own: of a batch whose labels are known, in three candidates or more, with L-BFGS. Only this
            one goes on. 0 as published, each candidate by itself.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset(Modality)
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.REPEATABLE, Trait.SCALED})

    restarts: Annotated[int, Field(ge=1, le=4096)] = (
        1  # Zhu et al. 2019, Zhao et al. 2020, released code: one start
    )
    # LAMP's re-run of DLG on text (dlg.sh). The released image code of both makes 300 calls of torch's L-BFGS, each
    # of up to 20 iterations; a step here is one evaluation, those of the line search counted.
    steps: Annotated[int, Field(ge=1)] = 2500
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    time_limit: Annotated[float, Field(gt=0)] | None = None
    # Our choice: pixels from N(0, 1) take LeNet some 3,000 evaluations to 40 dB, from gray with noise of 0.1 about
    # 700, and waves about 300; of two pictures, waves are at 34 dB where pixels are at 20 (measured).
    spread: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 0.3
    smooth: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 2.0
    # Our choice: ResNet-20 with sigmoids is 0.6 to 1.8 dB further on after 200 evaluations (tests/figures, pictures).
    roughness: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    crossing: Annotated[int, Field(ge=0)] = 100  # our choice; measured: tests/figures, pictures


@ATTACKS.register("dlg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DLG(DLGOptions):
    """Squared L2, dummy embeddings or pictures and soft labels together, L-BFGS.

    Attributes:
        one_at_a_time: of a batch of pictures, steps spent on one before it is the next one's turn; 0 for all at once.
    """

    when: ClassVar[str] = "you compare with DLG; pictures of LeNet"
    paper: ClassVar[str] = "Zhu et al. 2019"

    # Zhu et al. 2019, sec. 4.3: batches converge when one sample at a time is updated; here all at once does too.
    one_at_a_time: Annotated[int, Field(ge=0)] = 0

    def run(self, view: View, *, generator: torch.Generator, labels_KB: Tensor | None = None) -> Steps:
        """Attack; see the module's first lines for how. Labels that are given are held fixed, as iDLG's are."""
        # L-BFGS needs distances in float64: the squared L2 distance, taken from moments, cancels to rounding at about
        # 3e-4 of the gradient's norm in float32, and a line search ends early; released code forms the difference.
        # Large networks run in their own precision, and their gradients are compared in float64 all the same, but for
        # devices without float64; for text nothing is formed, so all of it is in float64.
        precise, large = self.optimizer == "lbfgs", _is_large(view)
        doubled = precise and not (large and view.model.device.type != "mps")
        view = view.double() if doubled else view
        pictures = PictureSettings(
            spread=self.spread,
            smooth=self.smooth,
            roughness=(_ROUGHNESS if large else 0.0) if self.roughness is None else self.roughness,
            one_at_a_time=self.one_at_a_time,
            precise=precise,
        )
        problem = DummyProblem.of(
            view, SquaredL2(), candidates=self.restarts, labels_KB=labels_KB, pictures=pictures
        )
        optimizer = self._optimizer(large=large)
        if large and precise and self.crossing and can_be_crossed(problem):
            onward = Onward(view=view, objective=SquaredL2(), generator=generator, totals=Totals())
            found = yield from match_crossed(
                onward,
                optimizer,
                pictures,
                candidates=self.restarts,
                labels_KB=labels_KB,
                begin=self.crossing,
                steps=self.steps,
            )
            return dataclasses.replace(
                found.recovery, steps=onward.totals.steps, evaluations=onward.totals.evaluations
            )
        if isinstance(optimizer, LBFGS):
            optimizer = problem.crossing(optimizer, self.crossing)
        else:
            optimizer = problem.persistent(optimizer)
        matched = yield from match_dummies(problem, optimizer, steps=self.steps, generator=generator)
        return matched.recovery

    def _optimizer(self, *, large: bool) -> Optimizer:
        """The optimizer with its learning rate."""
        if self.optimizer == "adam":
            return Adam(learning_rate=self.learning_rate or 0.1)  # LAMP's re-run of DLG on text (dlg.sh)
        # Zhu et al. 2019, released code: torch's L-BFGS as it comes, rate 1, history 100, no line search.
        # Ours has a strong Wolfe line search, so that a step never makes the distance larger, and goes on where
        # torch's tolerances, absolute numbers, would end the run: squared gradients of text models are small. A
        # history of 300, on large networks 1000 (our choice), takes fewer evaluations on pictures.
        return LBFGS(
            learning_rate=self.learning_rate or 1.0,
            history=1000 if large else 300,
            gradient_tolerance=0.0,
            change_tolerance=0.0,
        )


def _is_large(view: View) -> bool:
    """Whether a picture's network is so large that it is run in its own precision."""
    return view.model.modality is Modality.PICTURES and view.image_model.multiplications >= _LARGE
