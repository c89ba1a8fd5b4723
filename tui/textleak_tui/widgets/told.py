"""What an update tells by itself, beside the attack on it: each question, its answer, and the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from textleak.view import ViewState
from textleak.view.audit import UNTOLD, shown, value_in_words

# What of the batch an update tells, which one wants to know first; the others as they come, and this one last.
FIRST, LAST = ("vocabulary", "tokens", "sentences", "labels"), "moved"


class Told(VerticalScroll):
    """The answers, one below another; empty for a run that is no audit."""

    BORDER_TITLE = "What the update tells"
    DEFAULT_CSS = "Told { scrollbar-size-vertical: 1; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._words = Static("")
        self._told: object = None

    def compose(self) -> ComposeResult:
        """One text."""
        yield self._words

    @property
    def known(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._told)

    def show(self, state: ViewState) -> None:
        """Draw a state: what was known before the attack, and once there is a result what it says."""
        result = state.finished.result if state.finished is not None else None
        told = answers_of(result or {}) or answers_of(state.settings)
        if told != self._told:
            self._told = told
            self._words.update(_written(told))


def answers_of(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The question, the answer and its evidence, in words; what makes no sense is left out."""
    found = facts.get("told")
    return [
        (shown(one["what"]), value_in_words(one.get("value")), shown(one.get("evidence") or ""))
        for one in (found if isinstance(found, Sequence) else ())
        if isinstance(one, Mapping) and "what" in one
    ]


def _turn(one: tuple[str, str, str]) -> tuple[bool, bool, int]:
    """What can be told first, and of that what is of the batch."""
    what, value, _ = one
    return value == UNTOLD, what == LAST, FIRST.index(what) if what in FIRST else len(FIRST)


def _written(told: Sequence[tuple[str, str, str]]) -> Text:
    """Each question with its answer in a line, and its evidence below."""
    titles = max((len(what) for what, _, _ in told), default=0)
    text = Text()
    for what, value, evidence in sorted(told, key=_turn):
        text.append("\n" if text.plain else "").append(f"{what:<{titles}}  ", style="bold").append(value)
        text.append(f"\n{evidence}" if evidence else "", style="dim")
    return text
