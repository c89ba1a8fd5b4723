"""What tests that drive the app share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.screen import Screen

from textleak_tui.app import TextleakApp
from textleak_tui.places import PLACES, OpenRun, Sight
from textleak_tui.session import Sessions
from textleak_tui.settings import Memory
from textleak_tui.themes import DARK

Scene = Callable[[TextleakApp, Pilot[None]], Awaitable[object]]


async def until(pilot: Pilot[None], true: Callable[[], object], seconds: float = 40.0) -> None:
    """Let the app go on until something has come true."""
    end = time.monotonic() + seconds
    while not true():
        if pilot.app._exception:  # it has ended, and nothing comes true any more
            raise pilot.app._exception
        if time.monotonic() > end:
            pytest.fail(f"it didn't come true in time on {pilot.app.screen}:\n{screen(pilot.app)}")
        await pilot.pause(0.02)


def screen(app: App[Any]) -> str:
    """All letters on the screen, a line a line."""
    lines = ("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())
    return "\n".join(lines)


def play(
    scene: Scene,
    sessions: Sessions,
    *,
    place: str = "run",
    run: Path | None = None,
    memory: Memory | None = None,
    size: tuple[int, int] = (120, 40),
    alone: bool = False,
) -> TextleakApp:
    """Plays a scene in the app.

    Args:
        scene: what is done and looked at.
        sessions: where runs lie, and what opens attacks.
        place: where the app is first.
        run: a run folder that is opened at once.
        memory: what is remembered; None for nothing.
        size: of the terminal.
        alone: in an app of its own, for scenes of how the app starts or ends. The others share one, as to start it
            takes longer than most of them; their screens are their own.
    """
    memory = memory or Memory(None)
    if alone:
        app = TextleakApp(sessions, memory, run=run)

        async def drive() -> None:
            async with app.run_test(size=size, notifications=True) as pilot:
                if run is None:
                    app.switch_mode(place)
                await pilot.pause()
                await scene(app, pilot)

        asyncio.run(drive())
        return app
    stage = _stages.pop() if _stages else _Stage()  # one in which a scene failed isn't used again
    app = stage.app

    async def enter(pilot: Pilot[None]) -> None:
        app.sessions, app.memory = sessions, memory
        app.switch_mode(place if run is None else "history")
        if run is not None:
            app.open_run(OpenRun(run))
        await pilot.pause()
        await scene(app, pilot)

    try:
        stage.play(enter, size)
    except BaseException:
        stage.close()
        raise
    _stages.append(stage)
    return app


def strike() -> None:
    """End the app that scenes shared."""
    while _stages:
        _stages.pop().close()


class _Stage:
    """An app in which scenes are played one after another; between them no place is open."""

    def __init__(self) -> None:
        self.app = TextleakApp(Sessions(Path()), Memory(None))
        self._makers = {place.name: self.app._modes[place.name] for place in PLACES}
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self._pilot: Pilot[None] | None = None

    def play(self, scene: Callable[[Pilot[None]], Awaitable[object]], size: tuple[int, int]) -> None:
        """Play a scene, which goes to its place itself, and end what it has begun."""
        self._runner.run(self._play(scene, size))

    def close(self) -> None:
        """End the app."""
        with self._runner:
            self._runner.run(self._stack.aclose())

    async def _play(self, scene: Callable[[Pilot[None]], Awaitable[object]], size: tuple[int, int]) -> None:
        app = self.app
        if self._pilot is None:
            app.remove_mode("run")
            app.add_mode("run", Screen)
            app.add_mode("between", Screen)
            self._pilot = await self._stack.enter_async_context(app.run_test(size=size, notifications=True))
            await self._clear()
        if app.size != size:
            await self._pilot.resize_terminal(*size)
        await scene(self._pilot)
        await until(self._pilot, app.at_rest)  # no key is left for the next scene
        await self._clear()
        if app._exception:
            raise app._exception

    async def _clear(self) -> None:
        app = self.app
        app.switch_mode("between")
        for name, maker in self._makers.items():
            await app.remove_mode(name)
            app.add_mode(name, maker)
        await app.sessions.end()
        app.clear_notifications()
        app.sight = Sight()
        app.theme = DARK.name


_stages: list[_Stage] = []
