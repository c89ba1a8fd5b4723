"""What a run that goes on costs the app: only lines that differ are drawn, at a pace that the processor bears."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.text import Text
from textual._compositor import ChopsUpdate, Compositor
from textual.app import App, ComposeResult
from textual.containers import Container, Horizontal, VerticalScroll
from textual.geometry import Region
from textual.pilot import Pilot
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from tests.tui.pilots import play, until
from textleak.events import Phase, Position, Progress, Sentence
from textleak.view import ViewState
from textleak_tui.app import TextleakApp
from textleak_tui.playback import (
    MOST_SECONDS_BETWEEN_LIVE_FRAMES,
    SECONDS_BETWEEN_LIVE_FRAMES,
    SHARE_OF_A_CORE,
    Frames,
)
from textleak_tui.screens.base import Page
from textleak_tui.session import Sessions
from textleak_tui.widgets import RunView, run_view
from textleak_tui.widgets.drawn import Drawn
from textleak_tui.widgets.pictures import Pictures


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


def _painted(update: ChopsUpdate) -> dict[tuple[int, int], tuple[str, object]]:
    """The letter and style of every cell of the spans of an update."""
    cells: dict[tuple[int, int], tuple[str, object]] = {}
    for y, first, last in update.spans:
        for x, strip in update.chops[y].items():
            for segment in strip or ():
                for letter in segment.text:
                    if first <= x < last:
                        cells[y, x] = letter, segment.style
                    x += cell_len(letter)
    return cells


def test_a_part_of_the_screen_is_drawn_as_textual_draws_it_by_the_widgets_seen_there(tmp_path: Path) -> None:
    asked: list[str] = []

    class Story(Static):
        def render_lines(self, crop: Region) -> list[Strip]:
            asked.append(self.id or "")
            return super().render_lines(crop)

    class Place(Page):
        CSS = """
        Place { layers: below over; }
        Horizontal Static { width: 1fr; }
        #over { layer: over; offset: 7 4; width: 9; height: 3; border: round red; }
        """

        def content(self) -> list[Widget]:
            rows = [
                Horizontal(Story("left 日本 " * 4, id=f"left{at}"), Story("right", id=f"right{at}"))
                for at in (0, 1)
            ]
            return [*rows, VerticalScroll(Story("tall\n" * 40, id="tall")), Story("over", id="over")]

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        await app.push_screen(Place())
        await pilot.pause()
        screen, draw = app.screen, random.Random(0)
        compositor = screen._compositor
        for _ in range(60):
            x, y = draw.randrange(60), draw.randrange(20)
            regions = {
                Region(x, y, draw.randint(1, 60 - x), draw.randint(1, min(4, 20 - y)))
                for _ in range(draw.randint(1, 3))
            }
            compositor._dirty_regions = set(regions)
            ours = compositor.render_partial_update()
            compositor._dirty_regions = set(regions)
            theirs = Compositor.render_partial_update(compositor)
            assert ours is not None
            assert theirs is not None
            assert _painted(ours) == _painted(theirs)
            assert len(_painted(ours)) > 0
        asked.clear()
        screen.query_one("#right0").refresh()
        await until(pilot, lambda: asked)
        assert set(asked) == {"right0"}

    play(scene, Sessions(tmp_path), place="history", size=(60, 20))


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
            await until(pilot, lambda: "loss 0.25" in view.status.draw()[0].plain)

            third = _state("third", 0.125, second)
            view.show(third, live=True)
            view.show(third)
            assert "loss 0.125" in view.status.draw()[0].plain

    asyncio.run(scene())


def test_pictures_that_go_before_what_draws_them_has_come_leave_no_work_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: left.append(unraisable.object))

    class Room(App[None]):
        def compose(self) -> ComposeResult:
            yield Pictures()

    async def scene() -> None:
        app = Room()
        async with app.run_test(size=(20, 5)):
            pictures = app.query_one(Pictures)
            pictures.show(ViewState().add(Progress(phase="continuous", step=1, image=(((0.5,),),)), 0.0))
            assert [worker.node for worker in app.workers] == [pictures]
            await pictures.remove()
        gc.collect()

    asyncio.run(scene())
    assert not left
