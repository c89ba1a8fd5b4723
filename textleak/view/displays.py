"""Who shows what comes in while it comes: on a terminal a picture that is drawn anew, elsewhere lines for a log.

Drawing happens on rich's refresh thread from the newest state, so an attack never waits for a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.live import Live
from rich.text import Text

from textleak.events import Event, Phase, Progress
from textleak.view.state import Newest, ViewState
from textleak.view.statuses import right_of
from textleak.view.terminal import LiveView, nothing, without_echo
from textleak.words import count_of, loss_in_words

REFRESHES_A_SECOND = 12
SECONDS_BETWEEN_LINES = 5.0


Shown = TypeVar("Shown", contravariant=True)


class Display(Protocol[Shown]):
    """Shows a run's events, or an evaluation's records, while they come: a context manager with one method."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def show(self, one: Shown, /) -> None:
        """Take in one more."""
        ...


def display_on(
    console: Console,
    live: Callable[[Console], Display[Shown]],
    plain: Callable[[Console], Display[Shown]],
) -> Display[Shown]:
    """The display of a console: one that is drawn anew where it is a terminal, lines elsewhere."""
    drawable = console.is_terminal and not console.is_dumb_terminal
    return live(console) if drawable else plain(console)


class LiveDisplay(RenderHook):
    """The picture on a terminal, drawn anew up to twelve times a second by rich's own thread.

    What is typed meanwhile isn't echoed, as it would move the cursor away from under the picture.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._newest = Newest()
        self._console = console
        self._size = console.size
        self._live = Live(
            LiveView(lambda: self.state, self._elapsed),
            console=console,
            refresh_per_second=REFRESHES_A_SECOND,
            vertical_overflow="crop",
            redirect_stdout=False,
        )
        self._echo: Callable[[], None] = nothing

    @property
    def state(self) -> ViewState:
        """What the events so far add up to."""
        return self._newest.state

    def _elapsed(self) -> float:
        return self._clock() - self._start

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._start = self._clock()
        self._echo = without_echo(sys.stdin)
        self._size = self._console.size
        self._console.push_render_hook(self)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Draw once more and leave the picture standing."""
        try:
            self._live.stop()
            self._console.pop_render_hook()
        finally:
            self._echo()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Begin on an empty screen after a resize: nobody can tell where the lines went that were there."""
        size = self._console.size
        if size == self._size:
            return renderables
        self._size = size
        return [Control.clear(), Control.home(), *renderables]

    def show(self, event: Event) -> None:
        """Take in one more event; the drawing thread sees it at its next turn."""
        self._newest.add(event, self._elapsed())


class PlainDisplay:
    """Lines for a log: one a phase, and one every few seconds."""

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        seconds_between: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self._console = console
        self._clock = clock
        self._start = clock()
        self._between = seconds_between
        self._last = 0.0
        self._phase = ""
        self._newest = Newest()

    @property
    def state(self) -> ViewState:
        """What the events so far add up to."""
        return self._newest.state

    def __enter__(self) -> Self:
        """Start the clock."""
        self._start = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to put away."""

    def show(self, event: Event) -> None:
        """Take in one more event and write a line where it deserves one."""
        now = self._clock() - self._start
        self._newest.add(event, now)
        if isinstance(event, Phase):
            self._phase = event.name
            self._write(now, event.name, event.detail)
        elif isinstance(event, Progress):
            if event.phase != self._phase:
                self._phase = event.phase
                self._write(now, event.phase, event.detail)
            elif now - self._last >= self._between:
                assert self.state.progress is not None
                self._write(now, event.phase, *_words(self.state.progress, self.state))

    def _write(self, now: float, *parts: str) -> None:
        self._last = now
        words = ", ".join(part for part in parts if part)
        self._console.print(Text(f"[{now:7.1f} s] {words}"), soft_wrap=True)


def _words(progress: Progress, state: ViewState) -> Iterable[str]:
    """A line of progress in words."""
    yield f"step {progress.step}" + (f" of {progress.steps}" if progress.steps else "")
    if progress.loss is not None:
        yield f"loss {loss_in_words(progress.loss)}"
    if progress.evaluations:
        yield count_of(progress.evaluations, "evaluation")
    pairs = zip(progress.sentences, state.assigned(), strict=True) if progress.sentences else ()
    counts = [right_of(sentence, truth) for sentence, truth in pairs if truth]
    if counts:
        yield f"{sum(c[0] for c in counts)} of {sum(c[1] for c in counts)} tokens right"
    if state.originals and progress.image:
        from textleak.view.pictures import mean_psnr

        yield f"PSNR {mean_psnr(progress.image, state.originals):.1f} dB"
    if progress.sentences and progress.sentences[0].text:
        yield repr(progress.sentences[0].text)
