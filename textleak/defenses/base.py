"""The shape of a defense: a frozen dataclass of public options and up to two hooks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from textleak.gradients import PublicDefense
from textleak.registry import Registry

Gradients = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense:
    """Override one hook or both; the fields are public, what the generator draws is not."""

    name: ClassVar[str] = ""

    def on_sample(self, gradient: Gradients, generator: torch.Generator) -> Gradients:
        """One sample's gradient, before the mean over the batch."""
        del generator
        return gradient

    def on_shared(self, gradient: Gradients, generator: torch.Generator) -> Gradients:
        """The batch's gradient, just before it leaves the client."""
        del generator
        return gradient

    @classmethod
    def works_per_sample(cls) -> bool:
        """Whether the client has to form each sample's gradient."""
        return cls.on_sample is not Defense.on_sample

    def public(self) -> PublicDefense:
        """What the server knows of it."""
        return PublicDefense(name=self.name, options=dataclasses.asdict(self))


DEFENSES: Registry[Defense] = Registry("defense", "textleak.defenses")
