"""Files that somebody else wrote: what is no regular file is not opened, what is too large is not read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from textleak import foreign, runs
from textleak.data.pictures import read_picture
from textleak.data.sentences import load
from textleak.errors import LONGEST, InputError, unknown_name
from textleak.evaluation.store import read_records
from textleak.private.share import Secret
from textleak.reports.utility import read_utility
from textleak.settings import ClientConfig, EvaluationConfig, load_run_config
from textleak.shared.gradient import SharedGradient

pytestmark = pytest.mark.skipif(os.name == "nt", reason="named pipes in folders are POSIX's")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    assert foreign.read(tmp_path / "file", most=4) == b"1234"
    assert foreign.read(tmp_path / "link") == b"1234"


def test_what_is_no_regular_file_is_not_opened(
    pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(foreign.UnreadError, match="it is a named pipe"):
        foreign.read(pipe)
    with pytest.raises(foreign.UnreadError, match="it is a folder"):
        foreign.read(tmp_path)
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    with pytest.raises(foreign.UnreadError, match="it is a socket"):
        foreign.read(tmp_path / "socket")
    with pytest.raises(FileNotFoundError):
        foreign.read(tmp_path / "absent")


def test_a_pipe_that_takes_a_file_s_place_meanwhile_is_not_waited_for(
    pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    regular = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda _: regular)
    with pytest.raises(foreign.UnreadError, match="it is a named pipe"):
        foreign.read(pipe)


def test_no_more_is_read_than_was_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(foreign.UnreadError, match="5 bytes, and no more than 4 bytes"):
        foreign.read(tmp_path / "file", most=4)


def test_an_endless_pipe_is_read_as_far_as_was_said(pipe: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'wb').write(bytes(100_000))"])
    with pytest.raises(foreign.UnreadError, match="no more than 1,000 bytes"):
        foreign.read(pipe, most=1000, pipes=True)
    writer.wait(timeout=20)


def test_sentences_may_come_through_a_pipe(pipe: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write('one\\n\\ntwo\\r\\n')"])
    assert ClientConfig(file=pipe).batch() == ("one", "two")
    assert writer.wait(timeout=20) == 0


def _run_folder(path: Path) -> None:
    os.mkfifo(path / "run.json")
    runs.read_run(path)


def _results(path: Path) -> None:
    (path / "run.json").write_text('{"settings": {}}')
    os.mkfifo(path / "result.json")
    os.mkfifo(path / "events.jsonl")
    assert runs.read_run(path).result is None
    list(runs.read_run(path).events())


def _records(path: Path) -> None:
    (path / "evaluation.json").write_text(json.dumps({"settings": {}, "identity": "x"}))
    os.mkfifo(path / "records.jsonl")
    read_records(path)


def _data(path: Path) -> None:
    os.mkfifo(path / "sentences.txt")
    load(str(path / "sentences.txt"), EvaluationConfig())


READERS: dict[str, Callable[[Path], object]] = {
    "gradient": lambda path: SharedGradient.load(path / "pipe"),
    "truth": lambda path: Secret.load(path / "pipe"),
    "picture": lambda path: read_picture(path / "pipe", (3, 8, 8)),
    "preset": lambda path: load_run_config(str((path / "pipe").rename(path / "pipe.yaml")), {}, ()),
    "utility": lambda path: read_utility(path / "pipe"),
    "run folder": _run_folder,
    "result and events": _results,
    "records": _records,
    "data": _data,
}


@pytest.mark.parametrize("what", READERS)
def test_no_reader_waits_for_a_pipe(what: str, pipe: Path, tmp_path: Path) -> None:
    with pytest.raises((InputError, foreign.UnreadError), match="it is a named pipe"):
        READERS[what](tmp_path)


def test_a_long_name_is_not_repeated_whole() -> None:
    error = unknown_name("parameter", "x" * 1_000_000, ["y" * 50, "x" * 50])
    assert len(str(error)) < 3 * LONGEST
    assert "characters left out" in error.what
    assert error.what.startswith("Unknown parameter 'xxx")


def test_an_error_holds_nothing_that_a_terminal_obeys() -> None:
    error = InputError("red: \x1b[31m", why="bell: \x07\nand a line", fix="é, “quotes” and\xa0spaces stay")
    assert str(error) == "red: \\x1b[31m\nbell: \\x07\nand a line\né, “quotes” and\xa0spaces stay"
