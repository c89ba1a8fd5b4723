"""Where run folders are made, how they are named, and the files in one."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textleak import owned
from textleak.errors import InputError

EVALUATION_FILE = "evaluation.json"


def runs_folder() -> Path:
    """Where run folders are made: `$TEXTLEAK_RUNS`, else the platform's folder for user data."""
    chosen = os.environ.get("TEXTLEAK_RUNS")
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError:
            raise InputError(
                f"TEXTLEAK_RUNS={chosen} can't be used.",
                why="There is no such user here.",
                fix="Write the folder out in full, or leave TEXTLEAK_RUNS unset.",
            ) from None
    from platformdirs import user_data_path

    return user_data_path("textleak", appauthor=False) / "runs"


def new_path(name: str, root: Path | None = None) -> Path:
    """A path for a new run folder, which tells when it began and has a mark of its own.

    Args:
        name: words that tell the run, for example "bert-tiny-match".
        root: the folder to lie in; None for `runs_folder()`.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return (root or runs_folder()) / f"{now}-{as_file_name(name)[:60]}-{secrets.token_hex(4)}"


def run_words(model: str, attack: str) -> str:
    """Words that tell a run: the last part of its model's name, without options, and its attack."""
    return f"{model.rstrip('/').rpartition('/')[2].partition(':')[0]}-{attack}"


def as_file_name(words: str) -> str:
    """Words with nothing in them that a file's name can't have."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in words)


def holds_an_evaluation(folder: Path) -> bool:
    """Whether an evaluation lies in the folder, and not a run."""
    return (folder / EVALUATION_FILE).exists()


def check_folder(folder: Path) -> None:
    """Make sure, before any long work, that a run can be written into `folder`; leaves nothing behind.

    Raises:
        InputError: it holds a run already, or files of the names of a run's, isn't a folder, or can't be written to.
    """
    # A link that leads nowhere counts too. Looked for before the run: one that begins meanwhile has its run.json first.
    there = next((path for path in RunFolder(path=folder).records if os.path.lexists(path)), None)
    if (folder / "run.json").exists():
        raise _holds_a_run(folder)
    if holds_an_evaluation(folder):
        raise InputError(
            f"{folder} holds an evaluation.",
            why="A run's records would lie among its own.",
            fix="Choose another --out.",
        )
    if there is not None:
        raise InputError(
            f"{folder} holds a {there.name}, and no run.",
            why="A run's own would take its place.",
            fix="Choose another --out, or move that file.",
        )
    check_writable(folder)


def _holds_a_run(folder: Path) -> InputError:
    return InputError(
        f"{folder} holds a run already.",
        why="A run never writes over another one's records.",
        fix="Choose another --out, or delete that folder.",
    )


def check_out(out: Path | None) -> None:
    """Make sure, before any long work, that a run can be written to `out`, or to a new folder where it is None.

    Raises:
        InputError: as for `check_folder`.
    """
    if out is None:
        check_writable(runs_folder())
    else:
        check_folder(out)


def check_writable(folder: Path) -> None:
    """Make sure that files can be made in `folder`, which need not exist yet; leaves nothing behind.

    Raises:
        InputError: it, or what is in its place, can't be written to.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is a file")
        with owned.scratch(nearest):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} can't be written to.",
            why=f"{error.strerror or error}.",
            fix="Choose another --out, or set TEXTLEAK_RUNS.",
        ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run's files."""

    path: Path

    @property
    def run_path(self) -> Path:
        """Settings, versions, machine."""
        return self.path / "run.json"

    @property
    def events_path(self) -> Path:
        """One event a line."""
        return self.path / "events.jsonl"

    @property
    def result_path(self) -> Path:
        """The result, once there is one."""
        return self.path / "result.json"

    @property
    def gradients_path(self) -> Path:
        """The shared gradient, on request."""
        return self.path / "gradients.safetensors"

    @property
    def control_path(self) -> Path:
        """Commands of viewers, one a line."""
        return self.path / "control.jsonl"

    @property
    def traceback_path(self) -> Path:
        """What a bug left."""
        return self.path / "traceback.txt"

    @property
    def records(self) -> tuple[Path, ...]:
        """All of them but the first, `run_path`."""
        return (
            self.events_path,
            self.result_path,
            self.gradients_path,
            self.traceback_path,
            self.control_path,
        )

    @classmethod
    def create(cls, out: Path | None, *, name: str) -> RunFolder:
        """Make a run's folder, or take one: of several who try at once exactly one has it.

        Its `run.json` comes first, so that whoever looks at any moment sees a run.

        Args:
            out: the folder; None for a new one under `runs_folder()`.
            name: words that a new folder's name tells the run by, for example "bert-tiny-match".

        Raises:
            InputError: it holds a run already, or can't be made.
        """
        if out is None:
            out = new_path(name)
        check_folder(out)
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            out.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds private text
            folder = cls(path=out.resolve())
            owned.create(folder.run_path, _as_json({"started": began, "pid": os.getpid(), "settings": {}}))
        except FileExistsError:
            raise _holds_a_run(out) from None
        except OSError as error:
            raise InputError(
                f"{out} can't be written to.", why=owned.why_not(error), fix="Choose another --out."
            ) from None
        return folder

    def discard(self) -> None:
        """Take back what was written, for a run that is impossible or unwanted; all else stays."""
        for path in (self.run_path, *self.records):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON, for its owner alone, so that a reader sees the old file or the whole new one, never a part."""
    owned.write(path, _as_json(value))


def _as_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return f"{text}\n".encode(
        "utf-8", "replace"
    )  # half a letter, as a name of no encoding has, can't be written
