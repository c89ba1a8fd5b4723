"""Outputs that are closed, full or read by nobody, and a disk that is full: words, an exit code, and no result lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from textleak import runs
from textleak.errors import TextleakError
from textleak.events import Progress
from textleak.runs import Recorder, RunFolder

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tui'}", "OMP_NUM_THREADS": "1"}
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs an output that is always full")


def shell(redirected: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program with its outputs as a shell hands them over."""
    command = f'"$0" -m textleak.cli "$@" {redirected}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirected", "code", "words"),
    [
        pytest.param(">/dev/full", 1, "can't be written to standard output: No space left", marks=FULL),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        pytest.param("2>/dev/full", 0, "", marks=FULL),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_an_answer_that_can_t_be_given_is_told_and_nothing_else_ends_a_command(
    redirected: str, code: int, words: str
) -> None:
    done = shell(redirected, "--help")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert ("Usage" in done.stdout) == redirected.startswith("2>")


@pytest.mark.parametrize("redirected", ["2>&-", pytest.param("2>/dev/full", marks=FULL), "<&- >&- 2>&-"])
def test_an_error_that_nobody_hears_still_is_one(redirected: str, tmp_path: Path) -> None:
    done = shell(redirected, "report", str(tmp_path / "absent"))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_reader_who_goes_is_no_error_to_speak_of() -> None:
    done = shell("| head -c 10", "run", "--help")
    assert done.stderr == ""
    assert len(done.stdout) == 10


SCRIPT = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from test_cli import ATTACKS, Fake
from textleak.cli import main
len(ATTACKS); ATTACKS.register("fake")(Fake); main()
"""


@pytest.mark.slow
def test_a_run_whose_records_find_no_room_gives_its_answer_all_the_same(
    toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "here"
    model = ["-m", str(toy_folder("bert")), "--weights", "random", "--threads", "1", "-s", "the cat sat"]
    attack = ["-a", "fake", "--set", "attack.ends=slow", "--steps", "20"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "run", *model, *attack, "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        env=ENVIRONMENT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )
    assert done.returncode == 1, done.stderr
    assert f"{out} can't be written to: File too large." in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["token_match_rate"] == 1
    assert runs.read_run(out).settings["attack"] == "fake"
    assert all(isinstance(timed.t, float) for timed in runs.read_events(out))


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_recorded_before_the_disk_was_full_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = RunFolder.create(tmp_path / "run", name="x"), []
    with Recorder(folder, {"seed": 0}, viewers=[seen.append]) as recorder:
        recorder.record(Progress(phase="a", step=0))
        monkeypatch.setattr(os, "write", no_room)
        recorder.record(Progress(phase="b", step=1))
        recorder.record(Progress(phase="c", step=2))
        monkeypatch.undo()
        assert recorder.finish("done", {"a": 1}) == {"a": 1}  # another file, for which there may be room
        problem = recorder.problem()
    assert isinstance(problem, TextleakError)
    assert "No space left on device" in problem.what
    assert len(seen) == 5
    assert len(list(runs.read_events(folder.path))) == 2
    assert runs.read_run(folder.path).outcome == "done"


def test_a_run_for_whose_first_record_there_is_no_room_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path / "run", name="x")
    monkeypatch.setattr("textleak.owned.write", no_room)
    with pytest.raises(TextleakError, match=r"(?s)No space left on device.*Nothing has been computed"):
        Recorder(folder, {}).__enter__()
