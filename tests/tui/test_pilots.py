"""What tests that drive the app share, where it has to tell what went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.tui.pilots import play, screen, until
from textleak_tui.app import TextleakApp
from textleak_tui.session import Sessions


def test_what_does_not_come_true_in_time_is_told_with_what_was_on_the_screen(tmp_path: Path) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "No runs yet in" in screen(app))
        with pytest.raises(pytest.fail.Exception, match=r"HistoryScreen[^\n]*\n(.*\n)*.*No runs yet in"):
            await until(pilot, lambda: False, seconds=0)

    play(scene, Sessions(tmp_path / "runs"), place="history")
