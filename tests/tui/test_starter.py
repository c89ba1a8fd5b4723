"""Attacks begun as copies of a process that has loaded everything: each is a process like any other."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from textleak.models import load_model
from textleak.models.loading import text as loading
from textleak.runs import read_run
from textleak_tui.agreed import INTERRUPTED, REFUSED
from textleak_tui.child import Child
from textleak_tui.session import Session, Sessions
from textleak_tui.starter import Starter
from textleak_tui.warm_process import _Warm

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone can do it.")

SHORT = {"sentences": ["the cat"], "threads": "1", "attack": "match"}
ENDLESS = {"sentences": ["the cat sat"], "threads": "1", "attack": "dlg", "steps": "100000", "restarts": "1"}
Scene = Callable[[Starter, Sessions, Path], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, toy_folder, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], None]:
    """Plays a scene with a warm process, which is gone at its end; the model is a folder that may be moved."""
    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tui")]))
    model = tmp_path / "model"
    model.symlink_to(toy_folder("bert"))

    async def drive(scene: Scene) -> None:
        starter = Starter()
        sessions = Sessions(tmp_path / "runs", functools.partial(Child, begin=starter.start), starter=starter)
        starter.keep("run", {"model": str(model)})
        process = starter._process
        assert process is not None
        try:
            await scene(starter, sessions, model)
        finally:
            await sessions.end()
        assert process.returncode is not None

    return lambda scene: asyncio.run(drive(scene))


async def until(true: Callable[[], object], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it didn't come true in time"
        await asyncio.sleep(0.02)


async def begun(sessions: Sessions, name: str, **settings: object) -> Session:
    session = sessions.open(name)
    await session.start("run", settings)
    return session


async def settled(session: Session) -> Session:
    await until(lambda: not session.look() and session.settled)
    return session


def test_a_run_needs_nothing_any_more_that_was_loaded_while_one_typed(play):
    async def scene(starter: Starter, sessions: Sessions, model: Path) -> None:
        await until(lambda: starter.ready)
        assert starter.ready == str(model)
        assert (await sessions.catalog()).attack("match") is not None
        model.unlink()
        for name in ("first", "second"):
            session = await settled(await begun(sessions, name, model=str(model), **SHORT))
            assert session.child.exit_code == 0
            assert session.failure is None
            assert session.child.lines, "its own words are heard"
            read = read_run(session.folder)
            assert read.outcome == "done"
            assert read.facts["pid"] == session.child.pid != starter._process.pid
        session = await settled(await begun(sessions, "other", model=str(model), seed="1", **SHORT))
        assert session.refused, "another head is asked for, which isn't kept"

    play(scene)


def test_a_model_that_is_named_in_time_is_there_before_what_no_first_token_needs() -> None:
    done: list[object] = []

    class Noting(_Warm):
        def keep(self, wish: Mapping[str, Any]) -> None:
            done.append(wish["settings"])

        def _tell_catalog(self) -> None:
            done.append("catalog")

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        with ours:
            for model in ("typed", "named"):
                wish = {"do": "keep", "command": "run", "settings": {"model": model}}
                ours.send(json.dumps(wish).encode())
            serving = threading.Thread(target=Noting(theirs, 1).serve)
            serving.start()
            end = time.monotonic() + 40
            while "catalog" not in done and time.monotonic() < end:
                time.sleep(0.01)
        serving.join()
    assert done == [{"model": "named"}, "catalog"]


def test_libraries_are_loaded_before_the_app_is(tmp_path, monkeypatch):
    begun = []

    class Noted(warm.Popen):
        def __init__(self, args, **options):
            begun.append(args)
            super().__init__(args, **options)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    starter = Starter()
    starter.begin()
    (process,) = begun

    async def scene() -> None:
        starter.keep("run", {"model": "no-such"})
        assert begun == [process]
        catalog = await asyncio.wait_for(starter.catalog, 40)
        assert catalog["attacks"]
        starter.end()

    asyncio.run(scene())
    starter.begin()
    starter.end()  # one that nobody has listened to
    assert len(begun) == 2
    assert starter._process.returncode is not None


def test_what_is_wrong_with_a_model_the_run_says_itself(play):
    async def scene(starter: Starter, sessions: Sessions, model: Path) -> None:
        starter.keep("run", {"model": "no-such"})
        session = await settled(await begun(sessions, "run", model="no-such", **SHORT))
        assert session.child.exit_code == REFUSED
        assert session.failure is not None
        assert "no-such" in session.failure.what

    play(scene)


def test_an_attack_is_killed_alone_and_outlives_the_process_it_came_from(play):
    async def scene(starter: Starter, sessions: Sessions, model: Path) -> None:
        first = await begun(sessions, "first", model=str(model), **ENDLESS)
        await until(lambda: first.look() and first.state.progress)
        first.child.kill()
        assert (await settled(first)).child.exit_code == -9
        second = await begun(sessions, "second", model=str(model), **ENDLESS)
        await until(lambda: second.look() and second.state.progress)
        starter.kill()
        await until(lambda: starter._socket is None)
        assert second.child.alive
        second.stop()
        await settled(second)
        assert second.state.finished.outcome == "stopped"
        assert second.failure is None
        assert await starter.start("run", sessions.root / "third") is None

    play(scene)


def test_a_run_is_stopped_before_it_is_there(play):
    async def scene(starter: Starter, sessions: Sessions, model: Path) -> None:
        session = await begun(sessions, "run", model=str(model), **SHORT)
        assert session.child.pid is None
        for _ in range(2):
            session.stop()
        await settled(session)
        assert session.child.exit_code == INTERRUPTED
        assert not session.folder.exists()

    play(scene)


@pytest.mark.parametrize("offline", [True, False])
def test_a_kept_model_is_what_would_have_been_loaded_and_is_handed_out_once(toy_folder, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    folder = str(toy_folder("bert"))
    asked = loading.TextRequest(name=folder, weights_seed=3, device="cpu")
    assert loading.keep(asked)
    (kept,) = loading._kept.values()
    first = loading.load(asked)
    assert first.network is kept.network
    again = load_model(folder, weights_seed=3, device="cpu")
    assert again.network is not first.network
    for one, other in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("offline", [True, False])
def test_what_only_the_hub_can_tell_is_kept_where_it_is_not_to_be_asked_anyway(monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(loading, "_kept", {})
    monkeypatch.setattr("textleak.models.loading.places.cached", lambda _: None)
    monkeypatch.setattr("textleak.models.loading.places.packaged", lambda _: None)
    assert loading.keep(loading.TextRequest(name="bert-tiny")) is offline


def test_where_the_hub_would_have_to_be_asked_the_libraries_are_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("textleak.models.loading.places.cached", lambda _: None)
    monkeypatch.setattr("textleak.models.loading.places.packaged", lambda _: None)
    loaded: list[str] = []
    monkeypatch.setattr(loading.importlib, "import_module", loaded.append)
    assert not loading.keep(loading.TextRequest(name="bert-tiny"))
    assert loaded == ["transformers.models.bert.modeling_bert"]
