"""A loss of the client's own making: labels smoothed, classes weighted, sums for means, tokens with and without one."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, cast

from pydantic import Field

from textleak.clients.base import CLIENTS, Client
from textleak.errors import InputError
from textleak.models.base import M, Modality
from textleak.models.losses.base import Loss as Own
from textleak.models.losses.classes import Classes
from textleak.models.losses.language import Language, Padding, Reduction
from textleak.models.text import TextModel

_LANGUAGE = ("causal-lm", "masked-lm")


@CLIENTS.register("loss")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(Client):
    """Cross entropy with smoothed labels, weighted classes or another sum than the mean (torch's own, and Trainer's).

    Of heads with a loss of their own (numbers, several classes, classes of tokens) the sum alone, over all that it is
    otherwise the mean of.

    Attributes:
        smoothing: part of each label that is spread over all classes, or the vocabulary, alike.
        weights: of the classes, in order, separated by "/"; None where all count alike.
        reduction: "sum" of the sentences' or tokens' losses; "mean-of-means", each sentence's own mean and the mean of
            these (accumulated one by one); None for the mean over all.
        prompt: how many tokens at the beginning of each text have no loss (supervised fine-tuning); None for none.
        padding: "counted" where it is a label as any other, "left" where it stands on the left; None for padding on the
            right that has no loss.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weights: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(/\d+(\.\d+)?)+$", max_length=4096)] | None = None
    reduction: Reduction | None = None
    prompt: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    padding: Padding | None = None

    def prepare(self, model: M) -> M:
        """The model with that loss.

        Raises:
            InputError: the model has another one, or one without something that was told.
        """
        if not isinstance(model, TextModel):
            raise self._unfit(model.name, "", "its loss is another one")
        text = cast("TextModel", model)
        if text.num_labels is not None:
            return cast("M", text.trained_with(self._classes(text, text.num_labels)))
        if text.task in _LANGUAGE:
            return cast("M", text.spoken_with(self._language(text)))
        return cast("M", text.trained_with(self._sum(text)))

    def _language(self, model: TextModel) -> Language:
        if self.weights is not None:
            raise self._unfit(model.name, model.task, "classes of sentences are weighted, and it tells none")
        if model.task != "causal-lm" and (self.prompt or self.padding not in (None, "masked")):
            raise self._unfit(model.name, model.task, "prompts and padding are those of a causal model")
        return Language(
            smoothing=self.smoothing,
            reduction=self.reduction or "mean",
            prompt=(self.prompt,) if self.prompt else (),
            padding=self.padding or "masked",
        )

    def _sum(self, model: TextModel) -> Own:
        """The sum of what a head's own loss is the mean of."""
        own = None if model.own_loss is None else model.own_loss.in_sum()
        if own is None or self != Loss(reduction="sum"):
            what = "no option here" if own is None else "reduction=sum alone"
            raise self._unfit(model.name, model.task, f"its loss is another one, which {what} changes")
        return own

    def _classes(self, model: TextModel, classes: int) -> Classes:
        weights = () if self.weights is None else tuple(map(float, self.weights.split("/")))
        if len(weights) not in (0, classes):
            raise self._unfit(
                model.name, model.task, f"it weighs {len(weights)} classes, and the model tells {classes}"
            )
        if self.prompt or self.padding not in (None, "masked") or self.reduction == "mean-of-means":
            raise self._unfit(
                model.name, model.task, "prompt, padding and mean-of-means are about tokens' losses"
            )
        return Classes(smoothing=self.smoothing, weights=weights, summed=self.reduction == "sum")

    def _unfit(self, name: str, task: str, why: str) -> InputError:
        return InputError(
            f"The client loss can't train {name} ({task or 'pictures'}).",
            why=f"{why[0].upper()}{why[1:]}.",
            fix="Leave that option or the client out (`textleak clients loss` shows the options).",
        )
