"""Screens as they were drawn: TEXTLEAK_GOLDEN=1 writes the pictures anew; look at them before you commit them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.tui import pilots
from tests.tui.pilots import until
from tests.tui.test_app import DRAWN_BY, GOLDEN
from tests.tui.test_evaluation import CELL, IDENTITY, NOISY, record, write
from textleak_tui.app import TextleakApp
from textleak_tui.screens.evaluation import EvaluationScreen
from textleak_tui.screens.replay import ReplayScreen
from textleak_tui.session import Sessions
from textleak_tui.stories import STORIES
from textleak_tui.widgets import RunView


async def cells(app: TextleakApp, pilot: Pilot[None]) -> None:
    page = app.screen
    assert isinstance(page, EvaluationScreen)
    await until(pilot, lambda: page.grid.rows)
    await pilot.press("plus", "down")


async def sentences(app: TextleakApp, pilot: Pilot[None]) -> None:
    await cells(app, pilot)
    await pilot.press("w")


async def both_sides(app: TextleakApp, pilot: Pilot[None]) -> None:
    page = app.screen
    assert isinstance(page, ReplayScreen)
    await until(pilot, lambda: page.recording is not None and page.recording.whole)
    await pilot.press("d", "home", "end")
    await until(pilot, lambda: len(page.query(RunView)) == 2)


def filled(folder: Path) -> Path:
    path = folder / "grid"
    path.mkdir()
    facts = {"format": 1, "identity": IDENTITY, "settings": {"data": ["mails.csv"]}, "batches": 6}
    (path / "evaluation.json").write_text(json.dumps(facts))
    write(path, record(CELL, 0, 0.5), record(CELL, 1, 1.0), record(NOISY, 0, 0.0))
    return path


@pytest.mark.parametrize(
    ("name", "scene", "size"),
    [
        ("grid", cells, (100, 30)),
        ("sentences", sentences, (80, 24)),
        ("both-sides", both_sides, (160, 48)),
    ],
)
def test_the_screen_is_drawn_as_it_was(
    tmp_path: Path,
    name: str,
    scene: Callable[[TextleakApp, Pilot[None]], Awaitable[None]],
    size: tuple[int, int],
) -> None:
    path = GOLDEN / f"{name}-{size[0]}x{size[1]}.svg"
    writing = os.environ.get("TEXTLEAK_GOLDEN") == "1"
    first = "" if writing else path.read_text("utf-8").partition("\n")[0]
    if not writing and first != DRAWN_BY:
        pytest.skip(f"{path.name} was drawn by {first}, here is {DRAWN_BY}")

    async def play(app: TextleakApp, pilot: Pilot[None]) -> None:
        await scene(app, pilot)
        drawn, before = "", "-"
        while drawn != before:  # until nothing moves any more
            await pilot.pause(0.6)
            before = drawn
            drawn = re.sub(r"terminal-\d+", "terminal", app.export_screenshot(title="textleak"))
        if writing:
            path.write_text(f"{DRAWN_BY}\n{drawn}", "utf-8")
        assert path.read_text("utf-8") == f"{DRAWN_BY}\n{drawn}"

    run = STORIES[0].folder if scene is both_sides else filled(tmp_path)
    pilots.play(play, Sessions(tmp_path / "runs"), run=run, size=size)
