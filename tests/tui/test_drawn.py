"""What a run that goes on costs the app: only lines that differ are drawn, at a pace that the processor bears."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.containers import Container
from textual.geometry import Region

from textleak.events import Phase, Position, Progress, Sentence
from textleak.view import ViewState
from textleak_tui.playback import (
    MOST_SECONDS_BETWEEN_LIVE_FRAMES,
    SECONDS_BETWEEN_LIVE_FRAMES,
    SHARE_OF_A_CORE,
    Frames,
)
from textleak_tui.widgets import RunView, run_view
from textleak_tui.widgets.drawn import Drawn


class Pane(Drawn):
    """Lines of words; what is drawn of it is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ["one", "two", "three"]
        self.asked: list[tuple[Region, ...]] = []
        self.drawn = 0

    def draw(self) -> list[Text]:
        self.drawn += 1
        return list(map(Text, self.words))

    def refresh(self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False):
        if repaint:
            self.asked.append(regions)
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)


class Room(App[None]):
    """One pane in a room that can be closed."""

    def compose(self) -> ComposeResult:
        with Container():
            yield Pane()


def test_only_lines_that_differ_are_drawn_and_none_where_nobody_sees_them() -> None:
    async def scene() -> None:
        app = Room()
        async with app.run_test(size=(20, 5)) as pilot:
            pane = app.query_one(Pane)
            await pilot.pause()
            assert pane.render_line(1).text.split() == ["two"]
            pane.asked.clear()
            pane.redraw()
            assert not pane.asked
            pane.words[1] = "changed"
            pane.redraw()
            assert pane.asked == [(Region(0, 1, 20, 1),)]
            assert pane.render_line(1).text.split() == ["changed"]

            app.query_one(Container).display = False
            await pilot.pause()
            pane.words[2] = "unseen"
            pane.redraw()
            drawn = pane.drawn
            pane.redraw()
            assert pane.drawn == drawn
            app.query_one(Container).display = True
            await pilot.pause()
            assert pane.render_line(2).text.split() == ["unseen"]

    asyncio.run(scene())


def test_frames_come_as_often_as_a_share_of_a_core_allows() -> None:
    now, spent = 0.0, 0.0
    frames = Frames(clock=lambda: now, spent=lambda: spent)
    assert frames.due()
    now += SECONDS_BETWEEN_LIVE_FRAMES / 2
    assert not frames.due()
    now += SECONDS_BETWEEN_LIVE_FRAMES
    assert frames.due()

    spent += 0.25 * SHARE_OF_A_CORE
    now += 0.24
    assert not frames.due()
    now += 0.02
    assert frames.due()

    spent += 10.0
    now += MOST_SECONDS_BETWEEN_LIVE_FRAMES + 0.01
    assert frames.due()


def _state(word: str, loss: float, before: ViewState) -> ViewState:
    positions = tuple(Position(position=at, id=at, text=text) for at, text in enumerate(("a", word)))
    progress = Progress(
        phase="continuous",
        step=before.seen,
        loss=loss,
        losses=(loss,),
        sentences=(Sentence(positions=positions, text=word),),
    )
    return before.add(dataclasses.replace(progress, total_steps=before.seen), before.t + 0.1)


def test_while_a_run_goes_on_its_tokens_come_at_once_and_the_panes_around_them_in_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_view, "SECONDS_BETWEEN_OTHERS", 1e9)

    class Run(App[None]):
        def compose(self) -> ComposeResult:
            yield RunView()

    async def scene() -> None:
        app = Run()
        async with app.run_test(size=(120, 40)) as pilot:
            view = app.query_one(RunView)
            first = _state("first", 0.5, ViewState().add(Phase(name="continuous"), 0.0))
            view.show(first, live=True)
            await pilot.pause()
            second = _state("second", 0.25, first)
            view.show(second, live=True)
            cells = view.tokens._bands.sentences[0]
            assert cells[1].word == "second"
            assert "loss 0.5" in view.status.draw()[0].plain
            await pilot.pause(2 * MOST_SECONDS_BETWEEN_LIVE_FRAMES)
            assert "loss 0.25" in view.status.draw()[0].plain

            third = _state("third", 0.125, second)
            view.show(third, live=True)
            view.show(third)
            assert "loss 0.125" in view.status.draw()[0].plain

    asyncio.run(scene())
