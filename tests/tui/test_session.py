"""A session: an attack's process and what it has written, without a process and without a screen."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import threading
from pathlib import Path

import pytest

from textleak.events import Finished, Phase, Progress
from textleak.runs import Recorder, RunFolder
from textleak_tui.agreed import REFUSED
from textleak_tui.child import Child, Failure
from textleak_tui.hangup import when_gone
from textleak_tui.session import Session, Sessions


class Process(Child):
    """A process that lives until it is told otherwise, and writes nothing of its own."""

    code: int | None = None

    @property
    def alive(self) -> bool:
        return self.code is None

    @property
    def ended(self) -> bool:
        return self.code is not None

    @property
    def exit_code(self) -> int | None:
        return self.code

    def failure(self) -> Failure:
        return Failure(what="It went wrong.", why="", fix="")


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def session(tmp_path: Path, now: list[float]) -> Session:
    return Session(Process(tmp_path / "run"), clock=lambda: now[0])


def recorder(session: Session, now: list[float]) -> Recorder:
    """Writes the session's run; its clock begins where the session's stands."""
    folder = RunFolder.create(session.folder, name="run")
    return Recorder(folder, {"model": "toy"}, clock=lambda: now[0])


def test_the_clock_goes_on_evenly_when_a_run_is_paused_in_the_middle_of_a_step(session, now):
    with recorder(session, now) as writer:
        writer.record(Phase(name="continuous"))
        session.look()
        assert session.elapsed() == 0.0
        now[0] += 8.0
        assert session.elapsed() == 8.0
        session.pause()
        assert session.paused
        now[0] += 30.0
        assert session.elapsed() == 38.0, "as the events and what the run took count it"
        session.pause()
        writer.record(Progress(phase="continuous", step=1, loss=0.5))
        session.look()
        assert session.elapsed() == 38.0
        now[0] += 1.0
        assert session.elapsed() == 39.0
        writer.record(Finished(outcome="done", result={}))
        now[0] += 5.0
        session.look()
        assert session.elapsed() == 39.0


def test_an_answer_is_the_end_though_its_process_is_still_there(session, now):
    with recorder(session, now) as writer:
        writer.record(Finished(outcome="done", result={}))
    assert session.going
    session.look()
    assert not session.going
    assert not session.settled
    session.child.code = 0
    assert session.look()
    assert session.settled
    assert session.failure is None


@pytest.mark.parametrize("code", [1, REFUSED, -9])
def test_a_process_that_leaves_no_answer_has_failed(session, now, code):
    assert not session.look()
    session.child.code = code
    assert session.look()
    assert not session.going
    assert session.failure == Failure(what="It went wrong.", why="", fix="")
    assert session.refused == (code == REFUSED)
    assert session.accepted != session.refused


def test_settings_are_accepted_once_the_run_has_begun(session, now):
    assert not session.accepted
    with recorder(session, now):
        session.look()
        assert session.accepted


def test_whoever_opens_sessions_answers_for_their_end(tmp_path):
    ended = []

    class Recalled(Process):
        async def end(self, seconds: float = 0.0) -> None:
            ended.append(self.folder.name)

    sessions = Sessions(tmp_path, Recalled)
    for name in ("one", "two"):
        sessions.open(name)
    assert len(sessions.going) == 2
    asyncio.run(sessions.end())
    assert sorted(ended) == ["one", "two"]
    assert not sessions.going


def test_folders_are_named_by_their_time_and_never_alike(tmp_path):
    sessions = Sessions(tmp_path)
    names = {sessions.name("bert/tiny dlg") for _ in range(50)}
    assert len(names) == 50
    assert all("/" not in name and "-bert-tiny-dlg-" in name for name in names)


@pytest.mark.skipif(not hasattr(select, "poll"), reason="the system doesn't tell")
@pytest.mark.parametrize("opened", [os.pipe, lambda: pty.openpty()[::-1]], ids=["pipe", "terminal"])
def test_the_end_of_a_terminal_or_a_pipe_is_heard_and_no_input_is_taken_for_it(opened):
    near, far = opened()
    gone = threading.Event()
    try:
        os.write(far, b"a key")
        when_gone(near, gone.set)
        assert not gone.wait(0.1)
    finally:
        os.close(far)
    assert gone.wait(10)
    os.close(near)
