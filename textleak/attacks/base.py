"""The shape of an attack."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, Protocol

import torch

from textleak.events import Phase, Progress, Recovery
from textleak.gradients import SharedGradient
from textleak.models import TextModel
from textleak.registry import Registry

Steps = Generator[Phase | Progress, None, Recovery]
"""What a running attack is: it yields where it stands, and returns its recovery."""


class Attack(Protocol):
    """A frozen keyword-only dataclass: its fields are its options, its repr is its recipe."""

    name: ClassVar[str]

    def run(self, shared: SharedGradient, model: TextModel, *, generator: torch.Generator) -> Steps:
        """Attack one shared gradient.

        Args:
            shared: all that the server sees.
            model: the public model.
            generator: the only source of randomness.

        Raises:
            InputError: a gradient that this attack can't work on (it says which would do).
        """


ATTACKS: Registry[Attack] = Registry("attack", "textleak.attacks")


def to_end(steps: Steps) -> Recovery:
    """Drive an attack to its end, whatever happens on the way."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            recovery: Recovery = end.value
            return recovery
