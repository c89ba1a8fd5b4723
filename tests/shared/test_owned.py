"""Files of one's own: nothing but a file is replaced, no link is followed, and nobody else can read them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from textleak import owned, runs
from textleak.errors import InputError, TextleakError
from textleak.evaluation.answers import Records
from textleak.evaluation.store import Store
from textleak.private.secrets import Secret
from textleak.reports.utility import Utility, write_utility
from textleak.runs import Recorder, RunFolder
from textleak.shared.gradient import SharedGradient
from textleak.shared.public import PublicModel
from textleak.view.films import write_films
from textleak_tui import export
from textleak_tui.settings import Memory

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes, links and pipes in folders are POSIX's")


@pytest.fixture(autouse=True)
def _open_to_all() -> Iterator[None]:
    """A umask that takes nothing from anybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def link(path: Path) -> None:
    path.with_name("elsewhere").write_text("precious")
    path.symlink_to("elsewhere")


def device(path: Path) -> None:
    """A node of the device that takes everything, in the test's own folder."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:
        pytest.skip("only root makes nodes")


PLANTED: dict[str, Callable[[Path], object]] = {
    "a link": link,
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": device,
}


def model() -> PublicModel:
    return PublicModel(
        name="toy",
        task="classification",
        weights="random",
        fingerprint="0",
        weights_seed=0,
        dtype="float32",
        num_labels=2,
    )


def _record(path: Path) -> None:
    with Recorder(RunFolder(path=path), {}) as recorder:
        recorder.finish("done", {})
    if recorder.problem() is not None:
        raise OSError(str(recorder.problem()))


def _append(path: Path) -> None:
    store = Store.open(path, identity="x", settings={}, batches=1)
    store._append(b"{}\n")


def _films(path: Path) -> None:
    frames = [(step, np.zeros((1, 4, 4, 3), np.uint8)) for step in range(2)]
    write_films(path, frames, np.zeros((1, 4, 4, 3), np.uint8), [0])


UTILITY = Utility(
    model="",
    data="",
    train=1,
    test=1,
    epochs=1,
    batch_size=1,
    learning_rate=1.0,
    command="",
    versions={},
    rows=(),
)
# The file, and what writes it into a folder.
WRITERS: dict[str, Callable[[Path], object]] = {
    "gradient": lambda folder: SharedGradient(
        gradients={"a": torch.ones(2)}, model=model(), share="all"
    ).save(folder / "gradient"),
    "truth.json": lambda folder: Secret(sentences=("a",), ids=((1,),)).save(folder / "truth.json"),
    "run.json": _record,
    "events.jsonl": _record,
    "result.json": _record,
    "control.jsonl": lambda folder: runs.send(folder, "stop"),
    "evaluation.json": lambda folder: Store.open(folder, identity="x", settings={}, batches=1),
    "records.jsonl": _append,
    "r.csv": lambda folder: Records().to_csv(folder / "r.csv"),
    "utility.json": lambda folder: write_utility(folder / "utility.json", UTILITY),
    "strip.png": _films,
    "recovery.gif": _films,
    "screen.svg": lambda folder: export.write(folder, "screen.svg", "<svg/>"),
    "tui.json": lambda folder: Memory(folder / "tui.json").keep("a", 1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_is_its_owner_s_alone_whatever_the_folder_and_the_umask(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    WRITERS[name](tmp_path)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".*.partial"))


# The others are never written again: a run and an evaluation begin once, and an export takes another name.
AGAIN = [
    name for name in WRITERS if name not in ("run.json", "evaluation.json", "records.jsonl", "screen.svg")
]


@pytest.mark.parametrize("name", AGAIN)
def test_a_file_that_all_could_read_is_its_owner_s_when_it_is_written_again(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"")
    (tmp_path / name).chmod(0o644)
    WRITERS[name](tmp_path)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_but_a_file_is_replaced_or_written_to(name: str, planted: str, tmp_path: Path) -> None:
    PLANTED[planted](tmp_path / name)
    before = (tmp_path / name).lstat()
    try:
        WRITERS[name](tmp_path)
    except (OSError, TextleakError):
        pass
    else:  # the app takes another name, and goes on without its settings
        assert name in ("screen.svg", "tui.json")
    after = (tmp_path / name).lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    if planted == "a link":
        assert (tmp_path / "elsewhere").read_text() == "precious"
    assert not list(tmp_path.glob(".*.partial"))


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    for words, plant in PLANTED.items():
        path = tmp_path / words.replace(" ", "-")
        plant(path)
        with pytest.raises(owned.UnwrittenError, match=f"it is {words}"):
            owned.write(path, b"")
        with pytest.raises(owned.UnwrittenError, match=f"it is {words}"):
            owned.append_to(path)


def test_what_takes_a_file_s_place_meanwhile_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    def replaced() -> None:
        with owned.replacing(tmp_path / "file") as partial:
            partial.write_bytes(b"new")
            link(tmp_path / "file")

    with pytest.raises(owned.UnwrittenError):
        replaced()
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "file"]


def test_a_pipe_that_takes_a_file_s_place_meanwhile_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(owned, "check", lambda _: None)
    with pytest.raises(OSError, match=r"No such device|named pipe"):
        owned.append_to(tmp_path / "file")


def test_of_many_who_create_a_file_one_does_and_it_is_whole(tmp_path: Path) -> None:
    def attempt(number: int) -> int | None:
        try:
            owned.create(tmp_path / "file", str(number).encode() * 1000)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        done = [number for number in pool.map(attempt, range(1, 33)) if number is not None]
    (only,) = done
    assert (tmp_path / "file").read_bytes() == str(only).encode() * 1000
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", none)
    owned.create(tmp_path / "file", b"1")
    with pytest.raises(FileExistsError):
        owned.create(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    def replaced() -> None:
        with owned.replacing(tmp_path / "file") as partial:
            partial.write_bytes(b"ne")
            raise OSError(errno.ENOSPC, "full")

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="full"):
        replaced()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_evaluation_is_not_written_into_a_run_s_folder(tmp_path: Path) -> None:
    _record(tmp_path)
    with pytest.raises(InputError, match="holds a run"):
        Store.open(tmp_path, identity="x", settings={}, batches=1)
    assert not (tmp_path / "evaluation.json").exists()


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path):
    def failing() -> None:
        with owned.filling(tmp_path / "model") as partial:
            (partial / "half").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert not list(tmp_path.iterdir())
    for content in ("first", "second"):  # one that is there already stays
        with owned.filling(tmp_path / "model") as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / "weights").write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "inner" / "weights").read_text() == "first"
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "model" / "inner" / "weights").stat().st_mode) == 0o600


def test_a_folder_takes_the_place_of_no_link(tmp_path: Path):
    (tmp_path / "others").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "others")
    with pytest.raises(owned.UnwrittenError, match="a link"), owned.filling(tmp_path / "model"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "others"]


# What killed processes leave

WRITING = """
import pathlib, sys
from textleak import owned
with owned.replacing(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print(flush=True)
    sys.stdin.readline()
    partial.write_text("whole")
"""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is in the middle of writing a file."""
    command = [sys.executable, "-c", WRITING, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    with writing(tmp_path / "file") as process:
        process.kill()
        process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".textleak-")
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    again = {
        "write": lambda: owned.write(tmp_path / "a", b""),
        "create": lambda: owned.create(tmp_path / "b", b""),
        "check": lambda: runs.check_writable(tmp_path),
    }
    for name, write in again.items():
        (left / "deep").mkdir(parents=True, exist_ok=True)
        (left / "deep" / "file").write_text("half")
        write()
        assert not left.exists(), name
    with owned.filling(tmp_path / "c"):
        pass
    assert not list(tmp_path.glob(".*"))


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    with writing(tmp_path / "file") as process:
        owned.write(tmp_path / "other", b"")
        runs.check_writable(tmp_path)
        process.communicate(b"\n")
        assert process.returncode == 0
    assert (tmp_path / "file").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_what_only_has_such_a_name_stays(tmp_path: Path) -> None:
    name = ".textleak-{}.partial"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    (tmp_path / name.format("0" * 16)).symlink_to("precious")
    (tmp_path / name.format("1" * 16)).write_text("a file")
    (tmp_path / name.format("2" * 15)).mkdir()
    (tmp_path / name.format("x" * 16)).mkdir()
    os.mkfifo(tmp_path / name.format("3" * 16))
    before = sorted(tmp_path.rglob("*"))
    owned.write(tmp_path / "precious" / "file", b"")
    owned.write(tmp_path / "file", b"")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])


def test_another_s_folder_of_such_a_name_stays(tmp_path: Path) -> None:
    theirs = tmp_path / f".textleak-{'0' * 16}.partial"
    theirs.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    os.chown(theirs, 12345, 12345)
    owned.write(tmp_path / "file", b"")
    assert theirs.is_dir()


def test_what_a_link_in_such_a_folder_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    left = tmp_path / f".textleak-{'0' * 16}.partial"
    left.mkdir()
    (left / "link").symlink_to(tmp_path / "precious")
    owned.write(tmp_path / "file", b"")
    assert not left.exists()
    assert (tmp_path / "precious" / "file").read_text() == "precious"


def test_without_locks_nothing_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    left = tmp_path / f".textleak-{'0' * 16}.partial"
    left.mkdir()
    monkeypatch.setattr(owned.fcntl, "flock", none)
    owned.write(tmp_path / "file", b"1")
    monkeypatch.setattr(owned, "fcntl", None)
    owned.write(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"2"
    assert sorted(tmp_path.iterdir()) == [left, tmp_path / "file"]
