"""The signs and colors that views are drawn with, with Unicode and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from textleak.scoring.headline import MOST
from textleak.view.statuses import ELSEWHERE, OPEN, RIGHT, SPECIAL, UNKNOWN, WRONG

# One scale wherever something is colored by what leaked: hot, in between, cool. A sign always says the same.
LEAKED, PARTLY, PROTECTED = "red", "yellow", "cyan"
STYLES = {
    RIGHT: LEAKED,
    ELSEWHERE: PARTLY,
    WRONG: PROTECTED,
    UNKNOWN: "magenta",
    SPECIAL: "bright_black",
    OPEN: "bright_black",
}


def heat(leaked: float, *, much: float = MOST, some: float = 0.0, through: bool = True) -> str:
    """The color of a figure of what leaked: hot from `much` on, in between above `some`, else cool.

    None ("") where an attack that wasn't `through` found nothing: nobody knows whether that is cool.
    """
    if leaked >= much:
        return LEAKED
    return PARTLY if leaked > some else PROTECTED if through else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glyphs:
    """The signs that the view is drawn with, so that it can do without Unicode."""

    marks: Mapping[str, str]
    done: str
    now: str
    stopped: str
    failed: str
    dot: str
    ellipsis: str
    bar: str
    rest: str
    steps: str
    space: str


UNICODE = Glyphs(
    marks={RIGHT: "✓", ELSEWHERE: "~", WRONG: "✗", UNKNOWN: "•", SPECIAL: "·", OPEN: "?"},
    done="✓",
    now="●",
    stopped="■",
    failed="✗",
    dot=" · ",
    ellipsis="…",
    bar="━",
    rest="╌",
    steps="▁▂▃▄▅▆▇█",
    space="␣",
)
ASCII = Glyphs(
    marks={RIGHT: "+", ELSEWHERE: "~", WRONG: "x", UNKNOWN: "*", SPECIAL: ".", OPEN: "?"},
    done="+",
    now="*",
    stopped="#",
    failed="x",
    dot=" - ",
    ellipsis="...",
    bar="=",
    rest="-",
    steps="_.-=+*#@",
    space="_",
)
