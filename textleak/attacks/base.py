"""The shape of an attack, all that it is given, and the one door to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import ClassVar, Protocol, TypeVar

import torch

from textleak import seeds
from textleak.clients.view import AnyModel, Clock, View
from textleak.errors import InputError
from textleak.events import Followed, Phase, Progress, Recovery, Stop, main_channel
from textleak.exact.second_parts import view_as_seen
from textleak.models import TextModel
from textleak.models.base import Modality
from textleak.models.running import explained
from textleak.proof.certificate import Certificate, CutOffError
from textleak.registry import Registry
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

R = TypeVar("R")
"""What a part of an attack ends with."""

Steps = Generator[Phase | Progress, None, Recovery]
"""What a running attack is: it yields where it stands, and returns its recovery."""


class Attack(Protocol):
    """A frozen keyword-only dataclass: its fields are its options, its repr is its recipe.

    Attributes:
        name: as it was registered.
        reads: what it can recover.
        needs: what it relies on; a client that doesn't have it is refused before `run`.

    It may also say that it works whatever the loss of the model's head is (`any_loss`); `when` one uses it and its
    `paper`, in a few words each, for the list of attacks.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]]
    needs: ClassVar[frozenset[Trait]]

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack what a server sees.

        Args:
            view: all that it sees.
            generator: the only source of randomness.

        Raises:
            InputError: a gradient that this attack can't work on (it says which would do).
        """


ATTACKS: Registry[Attack] = Registry("attack", "textleak.attacks")


def begin(
    attack: Attack,
    shared: SharedGradient,
    model: AnyModel,
    *,
    seed: int = 0,
    time_limit: float | None = None,
) -> Steps:
    """Start an attack: the one door to all of them.

    Args:
        attack: with its options.
        shared: all that the server sees.
        model: the public model.
        seed: of the run; the attack gets its own stream of it.
        time_limit: seconds after which the best answer so far is returned; an attack's own limit may be shorter.

    Returns:
        What is driven to its end: phases and progress, then the recovery.

    Raises:
        InputError: the attack can't read such a batch, relies on what this client doesn't have, or the gradient is
            not one of this model's.
    """
    return begin_on(attack, view_as_seen(shared, model), seed=seed, time_limit=time_limit)


def begin_on(attack: Attack, view: View, *, seed: int = 0, time_limit: float | None = None) -> Steps:
    """`begin`, for who has made a view of the shared gradient already.

    Raises:
        InputError: the attack can't read such a batch, or relies on what this client doesn't have.
    """
    view = dataclasses.replace(view, clock=Clock.of(least_limit(attack, time_limit)))
    check_reads(attack, view.model.modality)
    if not knows_loss(type(attack), view):
        raise InputError(
            f"The attack {attack.name} doesn't know the loss of {view.model.name} ({view.model.task}).",
            why="It tries labels that are classes of sentences or tokens of a text.",
            fix=f"Use --attack {_others(lambda other: knows_loss(other, view))}.",
        )
    if not knows_layers(type(attack), view):
        raise InputError(
            f"The attack {attack.name} needs all of {view.model.name}.",
            why="Only its first layers were read (--layers), so no text's own gradient can be formed.",
            fix=f"Use --attack {_others(lambda other: knows_layers(other, view))}, or leave --layers out.",
        )
    missing = [trait for trait in Trait if trait in attack.needs and not view.has(trait)]
    if missing:
        able = _others(
            lambda other: view.model.modality in other.reads and all(map(view.has, other.needs)),
        )
        raise InputError(
            f"The attack {attack.name} can't work on what this client sends ({view.shared.client.spec}).",
            why=f"It {missing[0].missing}",
            fix=f"Use --attack {able}." if able else "No attack here can do without it yet.",
        )
    steps = _explained(attack.run(view, generator=seeds.generator(seed, "attack")), view)
    return _counted(steps, view.clock, looks=hasattr(attack, "time_limit"))


def least_limit(attack: Attack, time_limit: float | None) -> float | None:
    """Seconds that an attack has: a run's limit or its own, whichever is shorter; None for any."""
    limits = [limit for limit in (time_limit, getattr(attack, "time_limit", None)) if limit is not None]
    return min(limits, default=None)


def knows_loss(attack: type[Attack], view: View) -> bool:
    """Whether an attack works with the loss of the model's head."""
    own = isinstance(view.model, TextModel) and view.model.own_loss is not None
    return not own or bool(getattr(attack, "any_loss", False))


def knows_layers(attack: type[Attack], view: View) -> bool:
    """Whether an attack works with as much of the model as was read."""
    cut = isinstance(view.model, TextModel) and view.model.first_layers is not None
    return not cut or bool(getattr(attack, "first_layers", False))


def check_reads(attack: Attack, modality: Modality) -> None:
    """Make sure that an attack recovers batches of a kind.

    Raises:
        InputError: it doesn't.
    """
    if modality not in attack.reads:
        raise InputError(
            f"The attack {attack.name} recovers {' and '.join(sorted(kind.value for kind in attack.reads))}, "
            f"not {modality.value}.",
            why="It works on what only such models have.",
            fix=f"Use --attack {_others(lambda other: modality in other.reads)}.",
        )


def _others(fits: Callable[[type[Attack]], bool]) -> str:
    """Names of the attacks that would do."""
    return ", ".join(name for name in ATTACKS if fits(ATTACKS[name]))


def _explained(steps: Steps, view: View) -> Steps:
    """An attack's events; what the network's own code raises is an error for a person."""
    with explained(view.model):
        return (yield from steps)


def _counted(steps: Steps, clock: Clock, *, looks: bool) -> Steps:
    """An attack's events, and its recovery with what it took; ended by a clock that it doesn't look at itself.

    While nobody asks for more, as a run waits that was told to, the clock stands.
    """
    progress, totals = Progress(phase="", step=0), Totals()
    followed = Followed(totals.followed(steps))
    try:
        for event in followed:
            if isinstance(event, Progress):
                progress = event.keeping(progress)
            with clock.standing():
                yield event
            if not looks and clock.over and isinstance(event, Progress):
                steps.close()
                return Recovery.from_progress(progress, Stop.TIME)
    except CutOffError as end:
        proving = dataclasses.replace(progress, sentences=end.sentences)
        return dataclasses.replace(Recovery.from_progress(proving, Stop.TIME), gradient_distance=end.distance)
    recovery = followed.result
    return dataclasses.replace(
        recovery,
        steps=max(recovery.steps, totals.steps),
        evaluations=max(recovery.evaluations, totals.evaluations),
        channel=recovery.channel or main_channel(recovery.sentences),
    )


def certified(recovery: Recovery, certificate: Certificate) -> Recovery:
    """An answer with what its own gradient says: why the attack ended, how far it is, and that as its loss without one.

    Args:
        recovery: the answer; why it ended where the certificate proves nothing.
        certificate: of it.
    """
    distance, loss = certificate.gradient_distance, recovery.final_loss
    return dataclasses.replace(
        recovery,
        stop=certificate.stop(recovery.stop),
        final_loss=distance if loss is None else loss,
        gradient_distance=distance if certificate.verified else None,
    )


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
        followed = Followed(part)
        try:
            for event in followed:
                if isinstance(event, Progress):
                    steps, evaluations = event.total_steps, event.evaluations
                    event = dataclasses.replace(
                        event, total_steps=steps + self.steps, evaluations=evaluations + self.evaluations
                    )
                yield event
            return followed.result
        finally:
            self.steps += steps
            self.evaluations += evaluations


def to_end(steps: Steps, watch: Callable[[Progress], None] | None = None) -> Recovery:
    """Drive an attack to its end, whatever happens on the way; who watches is told where it stands."""
    followed = Followed(steps)
    for event in followed:
        if watch is not None and isinstance(event, Progress):
            watch(event)
    return followed.result
