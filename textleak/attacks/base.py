"""The shape of an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import ClassVar, Protocol, TypeVar

import torch

from textleak.events import Phase, Progress, Recovery
from textleak.models import TextModel
from textleak.registry import Registry
from textleak.shared.gradient import SharedGradient

R = TypeVar("R")
"""What a part of an attack ends with."""

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


class Totals:
    """Steps and evaluations of an attack whose parts each count from 0.

    Attributes:
        steps: of the parts that have ended.
        evaluations: of the parts that have ended.
    """

    def __init__(self) -> None:
        self.steps = self.evaluations = 0

    def followed(self, part: Generator[Phase | Progress, None, R]) -> Generator[Phase | Progress, None, R]:
        """A part's events, counted on from the parts before."""
        steps = evaluations = 0
        try:
            while True:
                event = next(part)
                if isinstance(event, Progress):
                    steps, evaluations = event.total_steps, event.evaluations
                    event = dataclasses.replace(
                        event, total_steps=steps + self.steps, evaluations=evaluations + self.evaluations
                    )
                yield event
        except StopIteration as end:
            result: R = end.value
            return result
        finally:
            self.steps += steps
            self.evaluations += evaluations


def to_end(steps: Steps) -> Recovery:
    """Drive an attack to its end, whatever happens on the way."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            recovery: Recovery = end.value
            return recovery
