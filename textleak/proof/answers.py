"""What the certificate asks of an answer, whatever it is made of, and where the answer stands when it is asked."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator
from typing import ClassVar, TypeVar

from textleak.clients.view import AnyModel, Clock, View
from textleak.proof.distances import Gradient
from textleak.shared.traits import Trait

Item = TypeVar("Item")

# An answer proves itself where each of those most like it is so many times farther than it, and than rounding (our
# choice).
FARTHER = 10.0
# And what is computed in the client's precision must show it with a margin for its own rounding (our choice).
ROUGHLY = 2.0
# Seconds that a proof may take at least, where time is limited (our choice: ten times what most take).
_LEAST_SECONDS = 60.0


class TimeUpError(Exception):
    """Time was up before an answer had been compared with all that is most like it."""


def cut_off(view: View) -> bool:
    """Whether time is up, where each comparison takes as long as the client's training."""
    return view.clock.over and not view.has(Trait.ONE_POINT)


def clock_of(view: View) -> Clock:
    """When a proof that begins now has to end: it may take as long as the attack, and a minute in any case.

    Where each comparison takes as long as the client's training, with the attack.
    """
    if not view.has(Trait.ONE_POINT):
        return view.clock
    limit = view.clock.limit
    return Clock.of(None if limit is None else max(_LEAST_SECONDS, limit))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """An answer's gradient beside the shared one.

    Attributes:
        view: what the server sees, as it was given.
        exactly: the same in float64.
        own: the answer's gradient there.
        norm: of the shared gradient, as far as defenses let it be told.
        distance: relative, of `own`.
        roughly: the same in the client's precision, float32 at the finest.
        again: the answer's gradient there.
        rounding: relative, what the client's precision makes of `own`.
        clock: when the proof has to end.
    """

    view: View
    exactly: View
    own: Gradient
    norm: float
    distance: float
    roughly: View
    again: Gradient
    rounding: float
    clock: Clock

    @property
    def bar(self) -> float:
        """What all others must be beyond, relative distance."""
        return FARTHER * max(self.distance, self.rounding)

    def go_on(self) -> None:
        """Nothing, while there is time.

        Raises:
            TimeUpError: there is none.
        """
        if self.clock.over:
            raise TimeUpError

    def in_time(self, some: Iterable[Item]) -> Iterator[Item]:
        """Each of them, while there is time; errors as of `go_on`."""
        for one in some:
            self.go_on()
            yield one


class Answer(abc.ABC):
    """A batch that an attack recovered.

    Attributes:
        equal: relative distance up to which its gradient counts as the shared one's, whatever rounding says.
        others: what else could have been in the batch, for a sentence.
    """

    equal: ClassVar[float] = 0.0
    others: ClassVar[str]

    @abc.abstractmethod
    def complete(self, model: AnyModel) -> bool:
        """Whether nothing of it is open."""

    def unsaid(self, model: AnyModel) -> str | None:
        """What its gradient depends on and doesn't show, a sentence; None where all of it shows."""
        del model
        return None

    def assumed(self, model: AnyModel) -> str | None:
        """What is missing of it and was assumed, so that another gradient denies no more than that; a sentence."""
        del model
        return None

    @abc.abstractmethod
    def own(self, view: View) -> Gradient:
        """The gradient that a client with this batch has before the defenses of its batch, in the view's precision."""

    @abc.abstractmethod
    def near(self, compared: Comparison) -> tuple[str, ...]:
        """Those most like it that fit as well: a few, in words.

        Raises:
            TimeUpError: time was up before all had been compared.
        """
