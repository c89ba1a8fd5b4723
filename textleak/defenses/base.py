"""The shape of a defense: a frozen dataclass of public options and up to two hooks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from textleak.errors import InputError
from textleak.registry import Registry
from textleak.shared.effects import Effect
from textleak.shared.public import PublicDefense

Gradients = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The training step whose gradient is defended.

    Attributes:
        generator: what a defense draws comes from it; a server never sees it.
        batch_size: samples in the batch.
        embeddings: names of every embedding, the output head and what is tied to them.
    """

    generator: torch.Generator
    batch_size: int
    embeddings: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense:
    """What a client does to its gradient before it leaves. Override one hook or both.

    A defense is a frozen dataclass: its fields are public, what the generator draws is not.

    Example:
        >>> from textleak.defenses import DEFENSES
        >>> noise = DEFENSES.build("gaussian", {"sigma": 1e-3})
        >>> isinstance(noise, textleak.Defense), noise.sigma
        (True, 0.001)
        >>> noisy, _ = textleak.share(model, "the cat sat", defenses=[noise, "clip:max_norm=1"])
    """

    name: ClassVar[str] = ""

    def on_sample(self, gradient: Gradients, step: Step) -> Gradients:
        """One sample's gradient, before the mean over the batch."""
        del step
        return gradient

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The batch's gradient, just before it leaves the client."""
        del step
        return gradient

    def effects(self, step: Step) -> tuple[Effect, ...] | None:
        """What it does, in order, so that a server can reckon with it; None where that can't be said."""
        del step
        return None

    def epsilon(self) -> float | None:
        """The differential privacy that it accounts for; None where it accounts for none."""
        return None

    @classmethod
    def works_per_sample(cls) -> bool:
        """Whether the client has to form each sample's gradient."""
        return cls.on_sample is not Defense.on_sample

    def public(self, step: Step) -> PublicDefense:
        """What the server knows of it."""
        options = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return PublicDefense(
            name=self.name, options=options, effects=self.effects(step), epsilon=self.epsilon()
        )


DEFENSES: Registry[Defense] = Registry("defense", "textleak.defenses")


def check_order(defenses: Sequence[Defense]) -> None:
    """Check that defenses can be had in this order.

    Raises:
        InputError: one that works on samples comes after one that works on the batch.
    """
    for before, after in itertools.pairwise(defenses):
        if after.works_per_sample() and not before.works_per_sample():
            raise InputError(
                f"{after.name} can't come after {before.name}.",
                why=f"{after.name} works on each sample's gradient, before the mean that {before.name} works on.",
                fix=f"Name {after.name} first. What isn't trained at all is left out by --share.",
            )
