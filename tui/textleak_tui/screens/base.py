"""What every screen has: the bar on top, its own content, the footer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer

from textleak_tui.widgets import RunView
from textleak_tui.widgets.top_bar import TopBar

if TYPE_CHECKING:
    from textleak_tui.app import TextleakApp

# Our choice: seven keys of a screen and the palette's take up to 90 columns.
WIDTH_FOR_PALETTE_KEY = 90


class Page(Screen[None]):
    """A screen between the bar on top and the footer; a subclass gives `content`.

    A binding's tooltip is its plain sentence in the command palette and the help; one without isn't listed there.
    `place` is the name of the place (see `textleak_tui.app.PLACES`) that it belongs to. `refresh_view` is called
    when what is shown of the truth has changed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "v", "next_pane", "Next pane", show=False, tooltip="Where panes are folded, show the next one."
        ),
    ]
    place = ""

    @property
    def textleak(self) -> TextleakApp:
        """The app."""
        return cast("TextleakApp", self.app)

    def compose(self) -> ComposeResult:
        """Bar, content, footer."""
        yield TopBar(self.place)
        yield from self.content()
        yield Footer()

    def on_resize(self, event: events.Resize) -> None:
        """In little room the footer's own keys come before the palette's."""
        footer, room = self.query_one(Footer), event.size.width >= WIDTH_FOR_PALETTE_KEY
        if footer.show_command_palette != room:
            footer.show_command_palette = room
            footer.refresh(recompose=True)

    def content(self) -> Iterable[Widget]:
        """What stands between bar and footer."""
        return ()

    def on_mount(self) -> None:
        """Hear of what is shown of the truth."""
        self.watch(self.app, "blind", lambda: self.refresh_view(), init=False)
        self.watch(self.app, "truth", lambda: self.refresh_view(), init=False)

    def action_next_pane(self) -> None:
        """Where panes are folded, show the next one."""
        for view in self.query(RunView):
            view.next_pane()

    def refresh_view(self) -> None:
        """Draw anew: blind or truth has changed."""
