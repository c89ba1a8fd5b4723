"""Mixed precision: forward and backward in bfloat16 where torch.autocast takes it, the weights in float32.

As the Hugging Face Trainer's `bf16=True` (Micikevicius et al. 2018; Kalamkar et al. 2019).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from textleak.clients.base import CLIENTS, Client
from textleak.models.base import Examples, Model
from textleak.shared.effects import Effect, Rounded

_TYPES = {"bf16": torch.bfloat16}


@CLIENTS.register("autocast")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Autocast(Client):
    """Runs the network under torch.autocast.

    Attributes:
        dtype: "bf16"; float16 needs a scaled loss, which isn't here.
    """

    name: ClassVar[str]

    dtype: Literal["bf16"] = "bf16"

    def running(self, batch: Examples) -> Examples:
        """The batch, with autocast while the network runs on it."""
        return _Cast(batch, _TYPES[self.dtype])

    def effects(self, model: Model) -> tuple[Effect, ...]:
        """Products of matrices, as gradients of weights are, end in the short type."""
        del model
        return (Rounded(grid="bfloat16"),)


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
