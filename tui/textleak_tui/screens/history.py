"""The history screen: every run folder; open one, compare two, sort, filter, delete after asking."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
from textual.widgets import DataTable, Input, Static
from textual.worker import get_current_worker

from textleak.errors import InputError
from textleak.runs import read_run
from textleak.view import UNICODE
from textleak.words import count_of, printable
from textleak_tui import bounds
from textleak_tui.listing import Order, RunRow, Shelf, arranged
from textleak_tui.places import AttackAgain, CompareRuns, OpenRun
from textleak_tui.screens.base import Page
from textleak_tui.screens.delete import DeleteDialog, delete_run
from textleak_tui.widgets.history_table import HistoryTable

SECONDS_BETWEEN_LOOKS = 2.0
# Height of the screen below which the chosen run isn't told of in words.
WORDS = 20


class HistoryScreen(Page):
    """Every run under the runs folder, kept up to date while one looks.

    Args:
        root: the runs folder.
    """

    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "o", "open", "Open", show=False, tooltip="Replay the run; one that is still written is followed."
        ),
        Binding(
            "space",
            "mark",
            "Mark",
            tooltip="Mark the run, to compare or delete it; again takes the mark away.",
        ),
        Binding("c", "compare", "Compare", tooltip="Show two runs side by side: the marked ones."),
        Binding("s", "sort", "Sort", tooltip="Sort by time, match rate, model, attack or duration."),
        Binding(
            "slash",
            "filter",
            "Filter",
            key_display="/",
            priority=True,
            tooltip="Show only runs that have some words.",
        ),
        Binding("enter", "leave_filter", "To the runs", priority=True),
        Binding("escape", "clear_filter", "Clear filter", tooltip="Show all runs again."),
        Binding(
            "delete,d",
            "delete",
            "Delete",
            key_display="d",
            tooltip="Delete the marked runs, or this one, after asking.",
        ),
        Binding(
            "a", "again", "Again", show=False, tooltip="Set up a run with this one's sentences and settings."
        ),
        Binding(
            "t", "app.truth", "Truth", show=False, tooltip="Show or hide the true sentence of the chosen run."
        ),
        Binding("r", "look", "Look again", show=False, tooltip="Read the runs folder again now."),
    ]
    DEFAULT_CSS = """
    HistoryScreen {
        & .summary { height: 1; padding: 0 2; color: $text-muted; }
        & Input, & Input:focus { height: 1; border: none; padding: 0 2; background: $panel; }
        & .nothing {
            height: 1fr; content-align: center middle; text-align: center; color: $text-muted; padding: 0 4;
        }
        & .chosen {
            height: auto; max-height: 7; border: round $border-blurred; padding: 0 1;
            border-title-color: $primary; border-title-style: bold;
        }
    }
    """

    @dataclasses.dataclass
    class Looked(Message):
        """The runs folder was read."""

        rows: Sequence[RunRow]

    def __init__(self, root: Path) -> None:
        super().__init__("history")
        self.rows: Sequence[RunRow] | None = None
        self.shown: list[RunRow] = []
        self.marked: list[Path] = []
        self.order = Order.NEWEST
        self.table = HistoryTable()
        self.words = Input(
            placeholder="words, or attack:dlg share:all client: defense: state: text: match>0.5"
        )
        self.summary = Static("", classes="summary", markup=False)
        self.nothing = Static("", classes="nothing", markup=False)
        self.chosen = Static("", classes="chosen", markup=False)
        self._shelf = Shelf(root)
        self._look = threading.Event()
        self._here = threading.Event()

    def content(self) -> Iterable[Widget]:
        """How many runs, the filter, the table or words in its place, the chosen run."""
        yield self.summary
        yield self.words
        yield self.table
        yield self.nothing
        yield self.chosen

    def on_mount(self) -> None:
        """Begin to read."""
        self.chosen.border_title = "Chosen run"
        self.words.display = False
        self._draw()
        self._here.set()
        self.run_worker(self._watch_folder, thread=True, name="look")

    def on_screen_resume(self) -> None:
        """Look again: a run may have come meanwhile."""
        self._here.set()
        self._look.set()

    def on_screen_suspend(self) -> None:
        """Nobody looks."""
        self._here.clear()

    def on_unmount(self) -> None:
        """Let the reading thread end."""
        self._look.set()

    def _watch_folder(self) -> None:
        """In a thread: read the folder, and again every few seconds while the screen is shown."""
        worker = get_current_worker()
        while not worker.is_cancelled:
            if self._here.is_set():
                self.post_message(self.Looked(self._shelf.refresh(lambda: worker.is_cancelled)))
            # In short waits, as a canceled worker has to end soon.
            for _ in range(round(SECONDS_BETWEEN_LOOKS / 0.1)):
                if self._look.wait(0.1) or worker.is_cancelled:
                    break
            self._look.clear()

    def on_history_screen_looked(self, message: Looked) -> None:
        """Show what was read."""
        if message.rows != self.rows:
            self.rows = message.rows
            self._draw()

    def on_resize(self, event: events.Resize) -> None:
        """Other columns fit."""
        del event
        self.refresh_view()

    def refresh_view(self) -> None:
        """Blind, the theme or the size has changed."""
        self._draw(anew=True)

    def _draw(self, *, anew: bool = False) -> None:
        """Say how many runs there are, and list them."""
        if not self.table.is_attached:
            return
        wanted = self.words.value
        self.shown = arranged(self.rows or (), self.order, wanted)
        paths = {row.path for row in self.rows or ()}
        self.marked = [path for path in self.marked if path in paths]
        total = len(self.rows or ())
        count = count_of(total, "run")
        parts = [f"{len(self.shown):,} of {count}" if wanted.strip() else count, self.order.value]
        parts += [f"{len(self.marked)} marked"] if self.marked else []
        parts += ["hidden: details"] if self.shown and self.size.height < WORDS else []
        self.summary.update(UNICODE.dot.join(parts) if self.rows is not None else "")
        self.table.display = bool(self.shown)
        self.nothing.display = not self.shown
        self.nothing.update(self._why_nothing())
        if self.shown and self.focused is None:
            self.table.focus()
        self.table.show(self.shown, marked=self.marked, blind=self.sight.blind, anew=anew)
        self._choose()

    def _why_nothing(self) -> str:
        if self.rows is None:
            return f"Looking for runs in {self._shelf.root}…"
        if self.rows:
            return f"No run has the words {self.words.value!r}.\n\nEsc clears the filter."
        return (
            f"No runs yet in {self._shelf.root}.\n\nEvery run leaves a folder there. F2 sets one up; so does\n"
            'textleak run -s "the meeting was moved to friday morning"\nin another terminal.'
        )

    def _row(self) -> RunRow | None:
        """The run under the cursor."""
        chosen = self.table.chosen
        return next((row for row in self.rows or () if str(row.path) == chosen), None)

    def _choose(self) -> None:
        """Tell more of the run under the cursor."""
        row = self._row() if self.shown else None
        self.chosen.display = row is not None and self.size.height >= WORDS
        if row is None:
            return
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(row_in_words(row, blind=self.sight.blind), style="bold")
        for kind, words in (("recovered  ", row.recovered), ("picture    ", row.picture)):
            if words:
                text.append(f"\n{kind}", style="dim").append(words)
        if row.text and self.sight.truth and not self.sight.blind:
            text.append("\ntrue       ", style="dim").append(row.text)
        share = f"share {row.share}" if row.share else ""
        parts = [row.model, row.attack, share, row.client, row.defense]
        text.append("\n" + UNICODE.dot.join(part for part in parts if part), style="dim")
        text.append(f"\n{printable(str(row.path))}", style="dim")
        self.chosen.update(text)

    def on_data_table_row_highlighted(self) -> None:
        """Another run is under the cursor."""
        self._choose()

    def on_data_table_row_selected(self) -> None:
        """Enter or a click on a run."""
        self.action_open()

    def on_data_table_header_selected(self, message: DataTable.HeaderSelected) -> None:
        """A click on a column's head sorts by it."""
        orders = {
            "began": Order.NEWEST,
            "match rate": Order.RATE,
            "model": Order.MODEL,
            "attack": Order.ATTACK,
            "took": Order.SLOWEST,
        }
        self.order = orders.get(str(message.column_key.value), self.order)
        self._draw()

    def on_input_changed(self) -> None:
        """Filter while typing."""
        self._draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In the filter's field keys are letters."""
        allowed = {
            "filter": not self.words.has_focus,
            "leave_filter": self.words.has_focus,
            "clear_filter": bool(self.words.display),
        }
        return allowed[action] if action in allowed else super().check_action(action, parameters)

    def action_leave_filter(self) -> None:
        """Back to the table, the filter stays."""
        self.words.display = bool(self.words.value.strip())
        self.table.focus()

    def action_clear_filter(self) -> None:
        """Take the filter away."""
        self.words.value = ""
        self.words.display = False
        self.table.focus()
        self.refresh_bindings()

    def action_open(self) -> None:
        """Replay the run under the cursor."""
        row = self._row()
        if row is not None:
            self.post_message(OpenRun(row.path))

    def action_mark(self) -> None:
        """Mark a run, or take its mark away."""
        row = self._row()
        if row is None:
            return
        if row.path in self.marked:
            self.marked.remove(row.path)
        else:
            self.marked = [*self.marked, row.path]
        self._draw()

    def action_compare(self) -> None:
        """Compare the two runs marked last, or the marked one with the one under the cursor."""
        row = self._row()
        chosen = self.marked[-2:]
        if len(chosen) == 1 and row is not None and row.path not in chosen:
            chosen.append(row.path)
        if len(chosen) == 2:
            self.post_message(CompareRuns(*chosen))
        else:
            self.notify("Space marks a run. Mark two, then compare.", title="Which two?")

    def action_sort(self) -> None:
        """Sort by the next order."""
        orders = list(Order)
        self.order = orders[(orders.index(self.order) + 1) % len(orders)]
        self._draw()

    def action_filter(self) -> None:
        """Type words."""
        self.words.display = True
        self.words.focus()

    def action_again(self) -> None:
        """Fill the form with what the run under the cursor had."""
        row = self._row()
        if row is None:
            return
        try:
            settings = bounds.settings_of(read_run(row.path).settings)
        except (InputError, OSError):
            settings = {}
        if settings.get("sentences"):
            self.post_message(AttackAgain(settings["sentences"], recorded=settings))
        else:
            self.notify("Its record holds no sentences.", title="It can't be set up again", timeout=5)

    def action_look(self) -> None:
        """Read the folder again now."""
        self._look.set()

    def action_delete(self) -> None:
        """Delete the folders of the marked runs, or that of the one under the cursor, after asking."""
        row = self._row()
        marked = [one for one in self.rows or () if one.path in self.marked]
        rows = marked or ([row] if row is not None else [])
        going = [one for one in rows if one.outcome == "running"]
        if going:
            self.notify(
                "Stop it first: a process is still writing it.",
                title=f"{going[0].name} is not over",
                severity="warning",
            )
        elif rows:
            dialog = DeleteDialog([one.path for one in rows])
            self.app.push_screen(dialog, lambda sure: self._delete_all(rows) if sure else None)

    def _delete_all(self, rows: Sequence[RunRow]) -> None:
        for row in rows:
            self._delete(row)

    def _delete(self, row: RunRow) -> None:
        try:
            left = delete_run(row.path)
        except OSError as error:
            self.notify(f"{error.strerror or error}.", title=f"{row.name} can't be deleted", severity="error")
            return
        if left:
            self.notify(
                f"{printable(', '.join(left[:5]))} in it isn't textleak's and was left alone.",
                title="The run was deleted",
            )
        self._look.set()


def row_in_words(row: RunRow, *, blind: bool) -> str:
    """How a run ended, in a sentence."""
    match row.outcome:
        case "broken":
            return f"This folder can't be read as a run: {row.problem}"
        case "running":
            return "The run is still being written. Enter follows it."
        case "killed":
            return "The run has no end, and its process is gone. What it wrote can be replayed."
        case "failed":
            return "The run failed. Enter shows what it said."
    words = {
        "done": "Its time was up before the attack was through." if row.cut_off else "It came to its end.",
        "stopped": "It was stopped.",
        "interrupted": "It was interrupted.",
    }
    parts = [words.get(row.outcome, row.outcome)]
    if row.rate is not None and not blind:
        parts.append(f"{row.rate:.0%} of the tokens were found at their place.")
    if row.psnr is not None and not blind:
        parts.append(f"The pictures' PSNR is {row.psnr:.1f} dB.")
    if row.verified:
        parts.append("Verified.")
    elif not row.told:
        parts.append("Whether it is verified can't be told.")
    return " ".join(parts)
