"""What tests that drive the app share."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from textual.pilot import Pilot


async def until(pilot: Pilot[None], true: Callable[[], object], seconds: float = 40.0) -> None:
    """Let the app go on until something has come true."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail("it didn't come true in time")
        await pilot.pause(0.02)
