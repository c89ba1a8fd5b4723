"""The shape of what an update tells: one answer a question, each with its evidence, and what the questions look at."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from textleak.models import TextModel
from textleak.models.base import Tensors
from textleak.numerics import exact

Kind = Literal["gradient", "update"]
"""What was sent: a gradient, or what moved of the weights (after − before)."""

Value = str | int | float | bool | list[Any] | dict[str, Any] | None
"""A plain JSON value; None where the question can't be answered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """One question's answer.

    Attributes:
        what: the question, as a few words.
        value: the answer; None where it can't be told.
        evidence: a sentence with the figures it rests on, or with what hides the answer.
    """

    what: str
    value: Value
    evidence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that an update tells.

    Attributes:
        told: the answers, in the order of the questions.
        client: the procedure as `--client` takes it, one kind each; none for one plain backward pass; None where it
            can't be told.
    """

    told: tuple[Told, ...]
    client: tuple[str, ...] | None

    def value(self, what: str) -> Value:
        """The answer to one question; None where it can't be told or isn't asked."""
        return next((one.value for one in self.told if one.what == what), None)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What the questions look at.

    Attributes:
        sent: gradients or differences by parameter name, as they came.
        model: the public model.
        before: weights before, of all or of some of the parameters; those of the model stand for the others.
        given: what was sent, where whoever asks knows it.
    """

    sent: Tensors
    model: TextModel
    before: Tensors | None = None
    given: Kind | None = None
    memo: dict[Callable[[Seen], Any], Any] = dataclasses.field(default_factory=dict, repr=False)

    def weights(self, name: str) -> Tensor | None:
        """A parameter before, as far as it is known; adapters start with a B of 0."""
        sources: list[Mapping[str, Tensor]] = [self.before or {}, self.model.parameters]
        for known in sources:
            weights = known.get(name)
            if weights is not None and (name not in self.sent or weights.shape == self.sent[name].shape):
                return weights.detach()
        return torch.zeros_like(self.sent[name]) if ".lora_B." in name and name in self.sent else None

    def moved(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors with an entry that isn't 0."""
        for name, value in self.sent.items():
            if bool(value.any()):
                yield name, value

    def sampled(self) -> Iterator[tuple[Tensor, Tensor, torch.dtype]]:
        """Of each of these whose weights are known: some entries, the same of the weights, and the weights' type."""
        for name, value in self.moved():
            weights = self.weights(name)
            if weights is not None:
                value_N, weights_N = some_of(value, weights)
                yield value_N, weights_N, weights.dtype


Question = Callable[[Seen], Told | None]
"""None where it doesn't arise: a gradient has no learning rate."""
_T = TypeVar("_T")

# Entries of a tensor that statistics are taken over: a share is known to half a hundredth (our choice).
SAMPLED = 50_000


def measured(measure: Callable[[Seen], _T]) -> Callable[[Seen], _T]:
    """A measurement that several questions use, taken once of each update."""

    @functools.wraps(measure)
    def once(seen: Seen) -> _T:
        if once not in seen.memo:
            seen.memo[once] = measure(seen)
        found: _T = seen.memo[once]
        return found

    return once


def some_of(*tensors: Tensor, most: int = SAMPLED) -> list[Tensor]:
    """The same entries of tensors of one shape, evenly spread, at most so many, each flat and in float64."""
    step = max(1, tensors[0].numel() // most) | 1  # odd, so that no column of a matrix is left out
    return [exact(tensor.reshape(-1)[::step]).cpu() for tensor in tensors]


def lies_on(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Which of some numbers a type holds."""
    return values.to(dtype).to(values) == values


def is_short(values: Tensor) -> Tensor:
    """Which of some numbers bfloat16 or float16 holds."""
    return lies_on(values, torch.bfloat16) | lies_on(values, torch.float16)


def per_cent(share: float) -> str:
    """A share in words, with two figures."""
    return f"{100 * share:.2g} %" if 0.1 < share < 0.995 else f"{100 * share:.3g} %"


def roundest(low: float, high: float) -> float:
    """The number with the fewest figures between two, both above 0."""
    for figures in range(1, 18):
        scale = 10.0 ** (math.floor(math.log10(high)) - figures + 1)
        nearest = round((low + high) / 2 / scale)
        for number in (nearest, math.ceil(low / scale), math.floor(high / scale)):
            if low <= number * scale <= high:
                return float(f"{number * scale:.{figures}g}")
    return (low + high) / 2
