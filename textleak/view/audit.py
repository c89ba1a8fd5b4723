"""What a person is left with after an audit: the verdict, what the update tells, the text, its proof, what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from textleak.view.glyphs import LEAKED, PARTLY, PROTECTED
from textleak.view.summary import figures_of, grid, texts_of
from textleak.words import printable

COLORS = {"LEAKS": LEAKED, "PARTLY": PARTLY, "NOT FOUND": PROTECTED, "INCONCLUSIVE": "magenta"}
"""Of each verdict."""
UNTOLD = "can't tell"
_LISTED = 6  # of a list; of a longer one how many there are (our choice)


def audit_summary(result: Mapping[str, Any]) -> RenderableType:
    """What a finished audit leaves on the screen."""
    word = str(result["verdict"])
    parts: list[RenderableType] = [
        Text.assemble(
            (f" {word} ", f"bold reverse {COLORS.get(word, 'white')}"), " ", shown(result["verdict_reason"])
        ),
        *_section("What the update tells", _told(result)),
    ]
    texts = texts_of(result)
    if texts.row_count or result.get("proof"):
        parts += _section("What came back", Group(figures_of(result), Text(""), texts))
    elif word == "NOT FOUND":
        parts += _section("The attack", figures_of(result))
    parts += [Text(f"Note: {shown(note)}", style="yellow") for note in result.get("notes", ())]
    if result.get("advice"):
        title = "What would help" if word in ("LEAKS", "PARTLY") else "What to try next"
        lines = grid()
        for line in result["advice"]:
            lines.add_row("·", Text(shown(line)))
        parts += _section(title, lines)
    if result.get("run_dir"):
        parts += [Text(""), Text.assemble(("run folder ", "bright_black"), str(result["run_dir"]))]
    return Group(*parts)


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(""), Text(title, style="bold"), body]


def _told(result: Mapping[str, Any]) -> RenderableType:
    table = grid()
    for one in result.get("told", ()):
        style = "bright_black" if one["value"] is None else "bold"
        words = Text.assemble(
            (value_in_words(one["value"]), style), ("  " + shown(one["evidence"]), "bright_black")
        )
        table.add_row(shown(one["what"]), words)
    return table


def value_in_words(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """What an update tells, as a person reads it."""
    if value is None:
        return UNTOLD
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        if len(value) > _LISTED:
            return f"{len(value):,}"
        return ", ".join(value_in_words(one) for one in value)
    if isinstance(value, Mapping):
        plain = {key: one for key, one in value.items() if not isinstance(one, Mapping)}
        return ", ".join(f"{shown(key)} {value_in_words(one)}" for key, one in plain.items())
    return shown(value) if isinstance(value, str) else f"{value:,}"


def shown(text: object) -> str:
    """A text with nothing in it that a terminal would obey."""
    return printable(str(text), kept="\n")
