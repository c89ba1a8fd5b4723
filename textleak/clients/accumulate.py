"""Gradient accumulation: micro-batches, one after the other, and the mean of their gradients."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.clients.base import CLIENTS, Client, GradientOf
from textleak.errors import InputError
from textleak.models.base import Examples, Model, Tensors
from textleak.words import count_of


@CLIENTS.register("accumulate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulate(Client):
    """Micro-batches of equal size, and the mean of their gradients (Hugging Face Trainer, gradient_accumulation_steps).

    Attributes:
        steps: how many micro-batches the batch is cut into.
    """

    name: ClassVar[str]

    steps: Annotated[int, Field(ge=1, le=100_000)] = 2

    def update(
        self, model: Model, batch: Examples, gradient_of: GradientOf, draws: torch.Generator
    ) -> Tensors:
        """The mean of the micro-batches' gradients.

        Raises:
            InputError: the batch can't be cut into so many equal parts.
        """
        del draws
        size, left = divmod(len(batch), self.steps)
        if left or not size:
            raise InputError(
                f"A batch of {len(batch)} can't be cut into {count_of(self.steps, 'equal micro-batch')}.",
                why="Unequal ones would count their samples differently.",
                fix=f"Give a multiple of {self.steps}, or another accumulate:steps=N.",
            )
        total: Tensors = {}
        for start in range(0, len(batch), size):
            for name, gradient in gradient_of(model, batch.only(slice(start, start + size))).items():
                part = gradient / self.steps
                total[name] = total[name] + part if name in total else part
        return total
