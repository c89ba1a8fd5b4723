"""Mixed precision: forward and backward in a short type where torch.autocast takes it, the weights in float32.

As the Hugging Face Trainer's `bf16=True` and `fp16=True` (Micikevicius et al. 2018; Kalamkar et al. 2019). With float16
the loss is scaled, and its gradient scaled back.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from textleak.clients.base import CLIENTS, Client
from textleak.errors import InputError
from textleak.models.base import Examples, Model
from textleak.shared.effects import Effect, Grid, Rounded

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GRIDS: dict[str, Grid] = {"bf16": "bfloat16", "fp16": "float16"}
# What torch.amp.GradScaler begins with.
_FIRST_SCALE = 2.0**16


@CLIENTS.register("autocast")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Autocast(Client):
    """Runs the network under torch.autocast.

    Attributes:
        dtype: "bf16" or "fp16".
        scale: of the loss with fp16, the same in all steps; None for what torch.amp.GradScaler begins with, 65536.
            Where a gradient overflows, that leaves the step out and halves it: here nothing is sent then.
    """

    name: ClassVar[str]

    dtype: Literal["bf16", "fp16"] = "bf16"
    scale: Annotated[float, Field(ge=1, le=2.0**24)] | None = None

    def __post_init__(self) -> None:
        """Check what contradicts itself."""
        if self.scale is not None and (self.dtype == "bf16" or not math.log2(self.scale).is_integer()):
            raise InputError(
                f"autocast was given dtype={self.dtype} and scale={self.scale:g}.",
                why="The loss is scaled with fp16 alone, and by powers of two, as torch.amp.GradScaler does it.",
                fix="Give autocast:dtype=fp16,scale=65536, say, or no scale.",
            )

    def running(self, batch: Examples) -> Examples:
        """The batch, with autocast while the network runs on it."""
        return _Cast(batch, _TYPES[self.dtype])

    @property
    def loss_scale(self) -> float:
        """As it says; 1 for bf16, whose exponents reach as far as float32's."""
        return 1.0 if self.dtype == "bf16" else self.scale or _FIRST_SCALE

    def effects(self, model: Model) -> tuple[Effect, ...]:
        """Products of matrices, as gradients of weights are, end in the short type, scaled."""
        del model
        return (Rounded(grid=_GRIDS[self.dtype], scale=self.loss_scale),)


@dataclasses.dataclass(frozen=True)
class _Cast:
    """A batch that the network runs on in another precision."""

    batch: Examples
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.batch)

    def only(self, rows: slice) -> _Cast:
        return _Cast(self.batch.only(rows), self.dtype)

    def loss(self, model: Model) -> Tensor:
        # Each weight is cast anew: a copy that autocast keeps belongs to another graph.
        with torch.autocast(model.device.type, self.dtype, cache_enabled=False):
            return self.batch.loss(model)
