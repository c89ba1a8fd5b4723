"""Every run folder as a row: what the history lists, sorts and filters. Broken folders are rows too."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from textleak.errors import InputError
from textleak.events import Stop
from textleak.runs import list_runs, read_run
from textleak.words import printable
from textleak_tui import bounds

# Our choice: what a panel holds of a text, and a filter looks through.
LONGEST_SHOWN = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run folder.

    Attributes:
        path: the folder.
        started: when the run began, local time; None where that can't be read.
        model: alias, with "(random)" for random weights.
        attack: its name.
        share: what was shared.
        client: the specs of how it trained, "" for one plain step.
        defense: the specs, "" for none.
        rate: the token match rate; None where there is none.
        psnr: for pictures, their mean PSNR in dB.
        verified: the certificate; None where there is none, or where it can't be told.
        told: whether it can be told.
        cut_off: whether time was up before the attack was through.
        seconds: how long the attack took.
        outcome: as `RunRecord.outcome`, or "broken".
        recovered: the first sentence that came back, "" for none.
        picture: which picture was attacked, "" for none.
        text: the true first sentence, "" where it isn't known.
        problem: why it can't be read, "" where it can.
    """

    path: Path
    started: datetime.datetime | None = None
    model: str = ""
    attack: str = ""
    share: str = ""
    client: str = ""
    defense: str = ""
    rate: float | None = None
    psnr: float | None = None
    verified: bool | None = None
    told: bool = True
    cut_off: bool = False
    seconds: float | None = None
    outcome: str = "broken"
    recovered: str = ""
    picture: str = ""
    text: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """The folder's name, as a screen can show it."""
        return printable(self.path.name)

    @property
    def words(self) -> str:
        """What a filter looks in."""
        parts = (
            self.name,
            self.model,
            self.attack,
            self.share,
            self.client,
            self.defense,
            self.outcome,
            self.recovered,
            self.picture,
            self.text,
        )
        return " ".join(parts).casefold()

    def has(self, word: str) -> bool:
        """Whether a filter's word, in lower case, is among its words or begins one of its certificate's.

        With a field before a colon it is looked for in that alone; `match>0.5` and `match<0.5` ask for a match rate.
        """
        if bound := _BOUND.fullmatch(word):
            limit = float(bound[2])
            return self.rate is not None and (self.rate > limit if bound[1] == ">" else self.rate < limit)
        name, colon, rest = word.partition(":")
        if colon and name in FILTERED:
            return rest in str(getattr(self, FILTERED[name])).casefold()
        unsaid = "" if self.told else "can't be told"
        certificate = {True: "verified", False: "unverified", None: unsaid}[self.verified]
        return word in self.words or any(part.startswith(word) for part in certificate.split())


# Fields that a filter can name, by the names that a person types.
FILTERED = {
    "model": "model",
    "attack": "attack",
    "share": "share",
    "client": "client",
    "defense": "defense",
    "state": "outcome",
    "text": "recovered",
}
_BOUND = re.compile(r"match([<>])(\d+(?:\.\d*)?|\.\d+)")


class Order(enum.Enum):
    """What rows are sorted by; the value is what a person reads."""

    NEWEST = "newest first"
    RATE = "highest match rate first"
    MODEL = "model"
    ATTACK = "attack"
    SLOWEST = "slowest first"


_KEYS: Mapping[Order, Callable[[RunRow], Any]] = {
    Order.NEWEST: lambda row: 0,
    Order.RATE: lambda row: -1.0 if row.rate is None else row.rate,
    Order.MODEL: lambda row: (row.model.casefold(), row.attack),
    Order.ATTACK: lambda row: (row.attack.casefold(), row.model),
    Order.SLOWEST: lambda row: -1.0 if row.seconds is None else row.seconds,
}


def arranged(rows: Iterable[RunRow], order: Order, wanted: str) -> list[RunRow]:
    """The rows that have every word of `wanted`, in order; among equals the newest first."""
    words = wanted.casefold().replace("not verified", "unverified").split()
    found = [row for row in rows if all(map(row.has, words))]
    found.sort(key=lambda row: row.started.timestamp() if row.started else 0.0, reverse=True)
    return sorted(found, key=_KEYS[order], reverse=order in (Order.RATE, Order.SLOWEST))


class Shelf:
    """The run folders under a root, read again only where they have changed.

    `refresh` may run in a thread, one at a time.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, tuple[object, RunRow]] = {}

    def refresh(self, canceled: Callable[[], bool] = lambda: False) -> Sequence[RunRow]:
        """A row a folder, newest first."""
        rows, known = [], {}
        for path in list_runs(self.root):
            if canceled():
                break
            stamp = _stamp(path)
            before = self._known.get(path)
            # A run without an end may end without a word, by its process going away.
            if before is not None and before[0] == stamp and before[1].outcome != "running":
                row = before[1]
            else:
                row = read_row(path)
            known[path] = (stamp, row)
            rows.append(row)
        self._known = known
        return rows


def _stamp(path: Path) -> object:
    """Changes whenever one of a folder's records does."""
    found: list[tuple[int, int] | None] = []
    for name in ("run.json", "events.jsonl", "result.json"):
        try:
            stat = (path / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def read_row(path: Path) -> RunRow:
    """A folder's row; whatever is wrong with the folder ends up in the row."""
    try:
        record = read_run(path)
        settings = bounds.settings_of(record.settings)
        result = bounds.result_of(record.result or {})
        outcome = bounds.name_of(record.outcome)
    except InputError as error:
        return RunRow(path=path, problem=error.why)
    except OSError as error:
        return RunRow(path=path, problem=f"{error.strerror or error}.")
    weights = " (random)" if settings.get("weights") == "random" else ""
    found = [sentence.get("recovered") for sentence in result.get("sentences") or ()]
    return RunRow(
        path=path,
        started=_time(record.facts.get("started")),
        model=f"{settings.get('model') or '?'}{weights}",
        attack=settings.get("attack") or "?",
        share=settings.get("share") or "",
        client=" ".join(filter(None, result.get("client") or settings.get("client") or ())),
        defense=" ".join(filter(None, settings.get("defense") or ())),
        rate=result.get("token_match_rate"),
        psnr=result.get("psnr"),
        verified=result.get("verified"),
        told=not result.get("verified_reason"),
        cut_off=result.get("stop") == Stop.TIME.value and not result.get("verified"),
        seconds=result.get("seconds"),
        outcome=outcome,
        recovered=_first(found),
        picture=_first(settings.get("pictures")),
        text=_first(settings.get("sentences")),
    )


def _first(texts: Sequence[str | None] | None) -> str:
    """The first of several, as a screen can show it."""
    return printable(bounds.cut(texts[0] or "", LONGEST_SHOWN), kept="\n") if texts else ""


def _time(text: object) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text)).astimezone()
    except (ValueError, OverflowError, OSError):  # the last two for a year that no clock has
        return None


def when(started: datetime.datetime | None, now: datetime.datetime) -> str:
    """A time as short as it can be told: today's by the clock, this year's by the day."""
    if started is None:
        return "?"
    if started.date() == now.date():
        return f"{started:%H:%M:%S}"
    return f"{started:%d %b %H:%M}" if started.year == now.year else f"{started:%Y-%m-%d}"
