"""The app that scenes share ends with the tests; keys that a scene presses have done what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui import pilots
from textleak_tui.keystrokes import InOrder


@pytest.fixture(scope="session", autouse=True)
def _strike() -> Iterator[None]:
    yield
    pilots.strike()


@pytest.fixture(scope="session", autouse=True)
def _pressed() -> Iterator[None]:
    press = Pilot.press

    async def pressed(pilot: Pilot[Any], *keys: str) -> None:
        await press(pilot, *keys)
        app = pilot.app
        if isinstance(app, InOrder) and not app.at_rest():
            async with asyncio.timeout(30):
                while not app.at_rest():
                    await asyncio.sleep(0.01)
            await pilot.pause()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pilot, "press", pressed)
        yield
