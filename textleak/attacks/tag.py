"""TAG: Gradient Attack on Transformer-based Language Models (Deng et al. 2021, arXiv 2103.06819).

As DLG, but the distance is the squared L2 plus α times the L1 distance (eq. 5), and Adam minimizes it.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.attacks.base import ATTACKS, Steps
from textleak.attacks.dummies.matched import match_dummies
from textleak.attacks.dummies.problem import DummyProblem
from textleak.clients.view import View
from textleak.matching import Adam, objectives
from textleak.models.base import Modality
from textleak.shared.traits import Trait


@ATTACKS.register("tag")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TAG:
    """Squared L2 plus α · L1, dummy embeddings and soft labels together, Adam.

    Attributes:
        restarts: candidates K, optimized at once; the best by its own distance is the answer.
        steps: optimizer steps.
        learning_rate: of Adam, constant.
        alpha: weight of the L1 distance.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset(Modality)
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.REPEATABLE, Trait.SCALED})
    when: ClassVar[str] = "you compare with TAG"
    paper: ClassVar[str] = "Deng et al. 2021"

    restarts: Annotated[int, Field(ge=1, le=4096)] = 1  # LAMP's re-run of TAG: one start
    steps: Annotated[int, Field(ge=1)] = 2500  # LAMP's re-run of TAG (tag.sh)
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # LAMP's re-run of TAG (tag.sh)
    # One α for all layers (tag.sh). The paper's falls with a layer's distance from the input.
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how."""
        problem = DummyProblem.of(view, objectives.TAG(alpha=self.alpha), candidates=self.restarts)
        adam = Adam(learning_rate=self.learning_rate)
        matched = yield from match_dummies(problem, adam, steps=self.steps, generator=generator)
        return matched.recovery
