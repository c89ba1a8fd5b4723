"""What tests that drive the app share, where it has to tell what went wrong."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.tui.pilots import idle, play, screen, until
from textleak_tui.app import TextleakApp
from textleak_tui.session import Sessions


def test_what_comes_within_a_nap_of_textuals_has_come_when_the_app_is_idle() -> None:
    async def waits() -> None:
        loop, seen = asyncio.get_running_loop(), list[str]()
        loop.call_later(0.015, lambda: loop.call_soon(lambda: seen.append("timer")))
        loop.call_later(30, lambda: seen.append("much later"))
        await idle(0)
        assert seen == ["timer"]
        before = time.monotonic()
        await idle(0.05)
        assert time.monotonic() - before >= 0.05
        ends = time.monotonic() + 0.01
        thread = loop.run_in_executor(None, _work_until, ends)
        await idle(0)
        assert time.monotonic() >= ends
        await thread

    asyncio.run(waits())


def _work_until(ends: float) -> None:
    while time.monotonic() < ends:
        pass


def test_what_does_not_come_true_in_time_is_told_with_what_was_on_the_screen(tmp_path: Path) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "No runs yet in" in screen(app))
        with pytest.raises(pytest.fail.Exception, match=r"HistoryScreen[^\n]*\n(.*\n)*.*No runs yet in"):
            await until(pilot, lambda: False, seconds=0)

    play(scene, Sessions(tmp_path / "runs"), place="history")
