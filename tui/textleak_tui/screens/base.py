"""What every screen has: the bar on top, its own content, the footer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget

from textleak.errors import TextleakError
from textleak.view import ViewState
from textleak_tui import export
from textleak_tui.partial import PartialCompositor
from textleak_tui.places import HandOver, Sight
from textleak_tui.screens.export import ExportDialog
from textleak_tui.widgets import RunView
from textleak_tui.widgets.keys import Keys
from textleak_tui.widgets.top_bar import TopBar

COPY = Binding("y", "copy_text", "Copy text", tooltip="Copy the recovered text, a line a sentence.")

# Whether a terminal takes it can't be known.
SENT = "Sent to the terminal's clipboard, where it has one."


class Page(Screen[None]):
    """A screen between the bar on top and the footer; a subclass gives `content`.

    A binding's tooltip is its plain sentence in the command palette and the help; one without isn't listed there.
    `refresh_view` is called when `sight`, what is shown of the truth, has changed.

    Args:
        place: the name of the place (see `textleak_tui.places`) that it belongs to.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "v", "next_pane", "Next pane", show=False, tooltip="Where panes are folded, show the next one."
        ),
        Binding(
            "z", "zoom", "Zoom", show=False, tooltip="Give the pane in focus all the room, or none more."
        ),
    ]

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self._compositor = PartialCompositor()
        self.place = place
        self.sight = Sight()
        self._styled = -math.inf

    def compose(self) -> ComposeResult:
        """Bar, content, footer."""
        self._styled = events.ScreenResume().time
        yield TopBar(self.place)
        yield from self.content()
        yield Keys()

    def content(self) -> Iterable[Widget]:
        """What stands between bar and footer."""
        return ()

    def on_mount(self) -> None:
        """Hear of what is shown of the truth, and of another theme once its colors are there."""
        self.watch(self.app, "sight", self._see)
        self.app.theme_changed_signal.subscribe(self, lambda _: self.refresh_view())

    def _on_screen_resume(self, event: events.ScreenResume) -> None:
        """Work out all styles anew only where that was asked for after it was done last.

        To go to a new screen asks twice, before there is anything on it; what is put on it has its styles from there.
        """
        if event.time < self._styled:
            event.refresh_styles = False
        elif event.refresh_styles:
            self._styled = events.ScreenResume().time

    def _see(self, sight: Sight) -> None:
        changed, self.sight = sight != self.sight, sight
        if changed:
            self.refresh_view()

    def action_next_pane(self) -> None:
        """Where panes are folded, show the next one."""
        for view in self.query(RunView):
            view.next_pane()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What is done with a run's panes means nothing where there is none."""
        if action in ("next_pane", "zoom", "copy_text"):
            return bool(self.query(RunView))
        return super().check_action(action, parameters)

    @property
    def recovered(self) -> str:
        """The text that came back, as far as it is shown here, a line a sentence; "" for none."""
        return next((view.recovered for view in self.query(RunView)), "")

    def action_copy_text(self) -> None:
        """Copy the recovered text."""
        if text := self.recovered:
            self.app.copy_to_clipboard(text)
            self.notify(SENT, title="Recovered text", timeout=3)
        else:
            self.notify("No token was recovered so far.", title="Nothing to copy", timeout=3)

    def action_zoom(self) -> None:
        """Give the pane in focus all the room, or all panes theirs again."""
        for view in self.query(RunView):
            view.zoom()

    def refresh_view(self) -> None:
        """Draw anew: what is shown of the truth, or the theme, has changed."""

    def export_run(self, run: Path, state: ViewState) -> None:
        """Ask what of a run to write, and write it.

        Args:
            run: its folder.
            state: what is on the screen.
        """

        def write(kind: str | None) -> None:
            if kind is not None:
                # The picture is taken once the screen below the dialog has been drawn.
                self.app.call_after_refresh(
                    self.app.call_after_refresh,
                    self.write,
                    lambda: export.write_run(run, state, kind, picture=self.picture, blind=self.sight.blind),
                )

        self.app.push_screen(ExportDialog(), write)

    def picture(self) -> str:
        """The screen as SVG."""
        return self.app.export_screenshot(title="textleak")

    @work(thread=True, exclusive=True, group="write")
    def write_meanwhile(self, files: Callable[[], list[Path]]) -> None:
        """As `write`, for what takes a moment."""
        try:
            written = files()
        except TextleakError as error:
            self.app.call_from_thread(self._not_exported, error)
        else:
            self.app.call_from_thread(self._exported, written)

    def write(self, files: Callable[[], list[Path]]) -> None:
        """Write files and tell where they are, or why they can't be written."""
        try:
            written = files()
        except TextleakError as error:
            self._not_exported(error)
        else:
            self._exported(written)

    def _not_exported(self, error: TextleakError) -> None:
        words = " ".join(part for part in (error.why, error.fix) if part)
        self.notify(words, title=error.what, severity="error", timeout=10, markup=False)

    def _exported(self, files: list[Path]) -> None:
        for path in files:
            self.post_message(HandOver(path))
        names = ", ".join(path.name for path in files)
        self.notify(f"{names} in {files[0].parent}", title="Exported", timeout=8, markup=False)
