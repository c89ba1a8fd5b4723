"""The places of the app, and what a screen asks of it: the one thing that screens and the app both know.

Adding a place: a row in `PLACES`, a file in `screens/` with a `Page`, and a line in `textleak_tui.app` that makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textual.message import Message

from textleak_tui.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Destination:
    """A screen that one can go to from anywhere.

    Attributes:
        name: its mode's name.
        title: as the bar on top writes it.
        key: goes there.
        letter: likewise, after Ctrl+G.
        words: what it is for, for the command palette and the help.
        within: the place that it is a view of; "" for one of its own in the bar on top.
    """

    name: str
    title: str
    key: str
    letter: str
    words: str
    within: str = ""


PLACES = (
    Destination(
        name="run",
        title="Run",
        key="f2",
        letter="r",
        words="Set up an attack, start it and watch the text come back.",
    ),
    Destination(
        name="history",
        title="History",
        key="f3",
        letter="h",
        words="Every run so far: open one, replay it, compare two.",
    ),
    Destination(
        name="defenses",
        title="Defense ladder",
        key="f4",
        letter="d",
        words="One sentence against a defense of growing strength.",
        within="grid",
    ),
    Destination(
        name="pictures",
        title="Pictures",
        key="f6",
        letter="p",
        words="The same for a picture: set up an attack on an image classifier and watch.",
    ),
    Destination(
        name="audit",
        title="Audit",
        key="f7",
        letter="a",
        words="A file of your own training: what an update tells by itself and gives away.",
    ),
    Destination(
        name="grid",
        title="Grid",
        key="f10",
        letter="g",
        words="How much leaks over a data set: attacks, clients and defenses, cell by cell.",
    ),
)


def lit(place: str) -> str:
    """The place that the bar on top shows as the one where one is."""
    return next((one.within for one in PLACES if one.name == place and one.within), place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sight:
    """What is shown of the truth.

    Attributes:
        blind: only what an attacker would see.
        truth: the true tokens too; not while blind.
    """

    blind: bool = False
    truth: bool = False

    def other_blind(self) -> Sight:
        """Only what an attacker would see, or everything again."""
        return dataclasses.replace(self, blind=not self.blind)

    def other_truth(self) -> Sight:
        """The true tokens shown or hidden; whoever asks for them isn't blind."""
        return Sight(blind=False, truth=self.blind or not self.truth)


@dataclasses.dataclass
class OpenRun(Message):
    """Replay a run folder, finished or still being written; secrets that were planted in its batch are marked."""

    run: Path
    secrets: Sequence[str] = ()


@dataclasses.dataclass
class AttackAgain(Message):
    """Attack sentences live, with a form's texts by field; secrets that were planted in them are marked.

    Attributes:
        recorded: settings of a recorded run, in place of a form's texts; the form is filled and waits.
        kept_as: what its run folder is remembered as (see `textleak_tui.replays`); "" for not at all.
    """

    batch: Sequence[str]
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secrets: Sequence[str] = ()
    recorded: Mapping[str, Any] | None = None
    kept_as: str = ""


@dataclasses.dataclass
class OpenGrid(Message):
    """Show the folder of an evaluation that is going here."""

    session: Session


@dataclasses.dataclass
class HandOver(Message):
    """A file was written for whoever looks: in a browser it is offered as a download."""

    path: Path


@dataclasses.dataclass
class CompareRuns(Message):
    """Show two run folders side by side."""

    left: Path
    right: Path
