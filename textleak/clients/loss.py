"""A loss of the client's own making: labels smoothed, classes weighted."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, cast

from pydantic import Field

from textleak.clients.base import CLIENTS, Client
from textleak.errors import InputError
from textleak.models.base import M, Modality
from textleak.models.losses.classes import Classes
from textleak.models.text import TextModel


@CLIENTS.register("loss")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(Client):
    """Cross entropy with smoothed labels or weighted classes (torch's own; Trainer's label_smoothing_factor).

    Attributes:
        smoothing: part of each label that is spread over all classes alike.
        weights: of the classes, in order, separated by "/"; None where all count alike.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weights: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(/\d+(\.\d+)?)+$", max_length=4096)] | None = None

    def prepare(self, model: M) -> M:
        """The model with that loss.

        Raises:
            InputError: the model doesn't tell classes, or other ones than are weighted.
        """
        text = cast("TextModel", model)
        weights = () if self.weights is None else tuple(map(float, self.weights.split("/")))
        if (
            not isinstance(model, TextModel)
            or text.num_labels is None
            or len(weights) not in (0, text.num_labels)
        ):
            raise InputError(
                f"The client loss can't train {model.name} ({model.task}).",
                why=f"It weighs {len(weights)} classes, and the model tells {model.num_labels or 'none'}."
                if weights
                else "It smooths and weighs classes of sentences.",
                fix="Give one weight a class, or leave the client out.",
            )
        return cast("M", text.trained_with(Classes(smoothing=self.smoothing, weights=weights)))
