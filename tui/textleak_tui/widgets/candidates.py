"""The candidates (restarts) of an attack, ranked; the best is followed unless another is chosen."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message

from textleak.view import UNICODE, ViewState
from textleak.words import loss_in_words
from textleak_tui.widgets.drawn import Drawn


class CandidateList(Drawn, can_focus=True):
    """A line a candidate: rank, number, loss, and how far it is from the best on a log scale."""

    BORDER_TITLE = "Candidates"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Candidate above", show=False),
        Binding("down", "move(1)", "Candidate below", show=False),
        Binding("enter,space", "follow", "Follow this candidate", show=False),
        Binding("escape", "best", "Follow the best", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "candidate--best",
        "candidate--followed",
        "candidate--cursor",
        "candidate--quiet",
        "candidate--bar",
        "candidate--lost",
    }

    @dataclasses.dataclass
    class Followed(Message):
        """A candidate was chosen; None for whichever is the best."""

        candidate: int | None

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.followed: int | None = None
        self._losses: tuple[float, ...] = ()
        self._best = 0
        self._cursor = 0
        self._top = 0

    def show(self, state: ViewState, *, blind: bool = False) -> None:
        """Draw a state; nothing here tells the truth."""
        progress = state.progress
        losses = progress.losses if progress else ()
        best = progress.candidate if progress else 0
        if (losses, best) == (self._losses, self._best):
            return
        before, self._losses, self._best = self._losses, losses, best
        if len(losses) != len(before):
            self.border_subtitle = f"K = {len(losses)}" if losses else ""
            self.refresh(layout=True)
        if self.followed is not None and self.followed >= len(losses):
            self._follow(None)
        self.redraw()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A line a candidate."""
        return self.lines

    @property
    def lines(self) -> int:
        """Lines that all of them take."""
        return max(1, len(self._losses))

    @property
    def known(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._losses)

    @property
    def ranked(self) -> list[int]:
        """Candidates by loss, the best first; those that diverged last."""
        return sorted(
            range(len(self._losses)),
            key=lambda k: (not math.isfinite(self._losses[k]), self._losses[k], k),
        )

    def draw(self) -> list[Text]:
        """As many lines as there is room for, around the cursor."""
        ranked, width, height = self.ranked, self.size.width, max(1, self.size.height)
        if not ranked:
            return [Text("no candidate yet", style=self.ink("candidate--quiet"))]
        self._cursor = max(0, min(self._cursor, len(ranked) - 1))
        self._top = max(min(self._top, self._cursor, len(ranked) - height), self._cursor - height + 1, 0)
        finite = [math.log10(max(self._losses[k], 1e-12)) for k in ranked if math.isfinite(self._losses[k])]
        shown = range(self._top, min(len(ranked), self._top + height))
        return [self._line(rank, ranked[rank], finite, width) for rank in shown]

    def _line(self, rank: int, candidate: int, logs: list[float], width: int) -> Text:
        loss = self._losses[candidate]
        shown = candidate == (self._best if self.followed is None else self.followed)
        kind = "followed" if shown else "best" if candidate == self._best else "quiet"
        style = self.ink(f"candidate--{kind}")
        sign = "▶" if shown else "★" if candidate == self._best else " "
        line = Text(f"{sign}{rank + 1:>3}  #{candidate + 1:<3} ", style=style, no_wrap=True)
        if not math.isfinite(loss):
            line.append("diverged", style=self.ink("candidate--lost"))
        else:
            line.append(f"{loss_in_words(loss):<8}", style=style)
            room = width - line.cell_len - 1
            if room >= 3:
                low, high = logs[0], logs[-1]
                part = (math.log10(max(loss, 1e-12)) - low) / (high - low) if high > low else 0.0
                # The shorter the better, as in the terminal view of `textleak run`.
                line.append(
                    UNICODE.bar * max(1, round(part * room)),
                    style=self.ink("candidate--bar"),
                )
        if self.has_focus and rank == self._cursor:
            line.pad_right(max(0, width - line.cell_len))
            line.stylize(self.ink("candidate--cursor"))
        line.truncate(width)
        return line

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._cursor = max(0, min(self._cursor + by, len(self._losses) - 1))
        self.redraw()

    def action_follow(self) -> None:
        """Follow the candidate under the cursor; once more for the best again."""
        if self._losses:
            chosen = self.ranked[self._cursor]
            self._follow(None if chosen == self.followed or self._cursor == 0 else chosen)

    def action_best(self) -> None:
        """Follow the best."""
        self._follow(None)

    def _follow(self, candidate: int | None) -> None:
        if candidate != self.followed:
            self.followed = candidate
            self.refresh()
            self.post_message(self.Followed(candidate))

    def on_click(self, event: events.Click) -> None:
        """Follow the candidate that was clicked."""
        offset = event.get_content_offset(self)
        if offset is not None and self._top + offset.y < len(self._losses):
            self._cursor = self._top + offset.y
            self.action_follow()

    def on_focus(self) -> None:
        """Show the cursor."""
        self.refresh()

    def on_blur(self) -> None:
        """Hide the cursor."""
        self.refresh()
