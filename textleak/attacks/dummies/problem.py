"""Dummies of a batch as a matching problem: what is optimized, what it stands for, what it is compared by.

Shapes: K candidates, B sentences or pictures, C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from textleak.attacks.dummies.pictures import ANY_PICTURES, DummyPictures, PictureSettings
from textleak.attacks.dummies.text import Dummies, known_lengths
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import Clock, View
from textleak.events import Tokens
from textleak.matching import (
    LBFGS,
    Crossing,
    Leaves,
    Matcher,
    Objective,
    Optimizer,
    Patient,
    Project,
    Turns,
)
from textleak.models.base import Modality


class StandIns(Protocol):
    """Dummies of a batch, of sentences or pictures: what is optimized, and what it stands for."""

    @property
    def labels_KB(self) -> Tensor | None:
        """Classes that are held fixed; None where soft labels are optimized."""

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves that are optimized."""

    @property
    def turns(self) -> Turns | None:
        """Which of them are optimized together, in turn; None for all at once."""

    @property
    def tolerance(self) -> float | None:
        """A loss at which the gradients are equal; None to go on to the end."""

    @property
    def patience(self) -> int | None:
        """Evaluations without progress after which a candidate begins anew; None to let it be."""

    @property
    def parts(self) -> tuple[slice, ...]:
        """Numbers of a candidate that stand for one sample, the same one in all candidates; none where that varies."""

    @property
    def project(self) -> Project | None:
        """To the nearest allowed values; None where all are."""

    def draw(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Where candidates start."""

    def start(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """All leaves: those that are optimized, and what the model function reads beside them."""

    def value_and_gradient(self, matcher: Matcher, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized, (K,), and its gradients by the free leaves."""

    def pixels(self, leaves: Leaves) -> Tensor | None:
        """Each candidate's pictures (K, B, C, H, W), as the network reads them; None of sentences."""

    def shows(self, step: int) -> bool:
        """Whether a step's progress carries the answer so far."""

    def shown(self, leaves: Leaves, k: int, *, coarse: bool) -> dict[str, Any]:
        """Candidate k as fields of a progress (which may be rounded: coarse) or of the recovery."""

    def others(self, leaves: Leaves) -> tuple[Tokens, ...]:
        """Every candidate's tokens; none of pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DummyProblem:
    """K candidates' dummies, and what tells how good they are.

    Attributes:
        candidates: K.
        stand_ins: the dummies.
        matcher: compares their gradients with the shared one.
        clock: when the attack has to end.
    """

    candidates: int
    stand_ins: StandIns
    matcher: Matcher
    clock: Clock

    @classmethod
    def of(
        cls,
        view: View,
        objective: Objective,
        *,
        candidates: int,
        labels_KB: Tensor | None = None,
        pictures: PictureSettings = ANY_PICTURES,
    ) -> DummyProblem:
        """Of what the server sees; the shape of the batch has to be known.

        Args:
            view: what the server sees.
            objective: the distance of a candidate's gradient from the shared one.
            candidates: K.
            labels_KB: classes that are held fixed; None to optimize soft labels, unless the server knows them.
            pictures: what only dummy pictures take.

        Raises:
            InputError: a shape that isn't known, or nothing shared that dummies leave a trace in.
        """
        known = view.shared.known.labels
        if labels_KB is None and known is not None:
            labels_KB = torch.tensor(known).expand(candidates, -1)
        stand_ins, matcher = _KINDS[view.model.modality](view, objective, labels_KB, pictures)
        return cls(candidates=candidates, stand_ins=stand_ins, matcher=matcher, clock=view.clock)

    def value_and_gradient(self, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized, (K,), and its gradients by the free leaves."""
        return self.stand_ins.value_and_gradient(self.matcher, leaves)

    def persistent(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, with candidates that are stuck beginning anew where these dummies let one tell."""
        patience = self.stand_ins.patience
        return optimizer if patience is None else Patient(optimizer=optimizer, patience=patience)

    def crossing(self, optimizer: LBFGS, begin: int) -> Optimizer:
        """As `persistent`; of a batch in several candidates, with the best found of each sample put together once.

        Args:
            optimizer: hyper-parameters of each descent.
            begin: evaluations of each candidate before that; 0 for never.
        """
        parts = self.stand_ins.parts
        if not begin or len(parts) < 2 or self.candidates < 3:
            return self.persistent(optimizer)
        return Crossing(optimizer=optimizer, parts=parts, begin=begin)


_Kind = Callable[[View, Objective, Tensor | None, PictureSettings], tuple[StandIns, Matcher]]


def _sentences(
    view: View, objective: Objective, labels_KB: Tensor | None, _: PictureSettings
) -> tuple[StandIns, Matcher]:
    matcher = TextProblem(view=view, objective=objective).soft_matcher
    return Dummies(model=view.text_model, lengths=known_lengths(view.shared), labels_KB=labels_KB), matcher


def _pictures(
    view: View, objective: Objective, labels_KB: Tensor | None, settings: PictureSettings
) -> tuple[StandIns, Matcher]:
    dummies = DummyPictures(view=view, objective=objective, settings=settings, labels_KB=labels_KB)
    return dummies, dummies.matcher


_KINDS: Mapping[Modality, _Kind] = {Modality.TEXT: _sentences, Modality.PICTURES: _pictures}
