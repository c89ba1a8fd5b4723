"""What an attack's process leaves where it has no result: an exit code, and a last word for the app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textleak.errors import AttackError, InputError
from textleak.runs import read_run
from textleak_tui.agreed import FAILED, INTERRUPTED, REFUSED
from textleak_tui.attack_process import attack

SETTINGS = {"sentences": ["the cat"], "weights": "random", "threads": "1", "steps": "2", "attack": "dlg"}


def word(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The last line of standard output."""
    found: dict[str, str] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("error", "code", "what"),
    [
        (InputError("It can't be.", why="So.", fix="Stop."), REFUSED, "It can't be."),
        (AttackError("It broke.", why="So."), FAILED, "It broke."),
        (RuntimeError("nothing works"), FAILED, "Something went wrong inside textleak."),
    ],
)
def test_an_attack_that_never_begins_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error, code, what
) -> None:
    def broken(_: object) -> None:
        raise error

    monkeypatch.setattr("textleak.jobs.text.prepare", broken)
    assert attack("run", tmp_path / "run", SETTINGS) == code
    assert not (tmp_path / "run").exists()
    said = word(capsys)
    assert said["what"] == what
    assert said["why"] in ("So.", "RuntimeError: nothing works")


def test_an_interrupt_before_the_attack_has_begun_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("textleak.jobs.text.prepare", interrupted)
    assert attack("run", tmp_path / "run", SETTINGS) == INTERRUPTED
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (InputError("It can't be attacked."), []),
        (AttackError("It broke."), ["events.jsonl", "run.json"]),
        (RuntimeError("nothing works"), ["events.jsonl", "run.json", "traceback.txt"]),
    ],
)
def test_what_an_attack_that_fails_on_its_way_leaves(
    tmp_path: Path,
    toy_folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error,
    left,
) -> None:
    def broken(self: Any) -> None:
        raise error

    monkeypatch.setattr("textleak.jobs.text.TextJob.steps", broken)
    folder = tmp_path / "run"
    code = attack("run", folder, {**SETTINGS, "model": str(toy_folder("bert"))})
    assert code == (REFUSED if isinstance(error, InputError) else FAILED)
    assert sorted(path.name for path in folder.glob("*")) == left
    if left:
        assert read_run(folder).outcome == "failed"
    said = word(capsys)
    assert said["what"] in ("It can't be attacked.", "It broke.", "Something went wrong inside textleak.")
    if "traceback.txt" in left:
        assert "nothing works" in (folder / "traceback.txt").read_text()
        assert str(folder / "traceback.txt") in said["fix"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_redacted_run_leaves_no_word_of_its_text(
    tmp_path: Path,
    toy_folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: bool,
) -> None:
    def broken(self: Any) -> None:
        raise RuntimeError("of no use: the cat")

    if fails:
        monkeypatch.setattr("textleak.jobs.text.TextJob.steps", broken)
    folder = tmp_path / "run"
    settings = {
        **SETTINGS,
        "model": str(toy_folder("bert")),
        "redact": "yes",
        "assignments": ["save_gradients=true"],
    }
    assert attack("run", folder, settings) == (FAILED if fails else 0)
    told = capsys.readouterr()
    for text in (
        told.out,
        told.err,
        *(file.read_text() for file in folder.iterdir() if file.suffix in (".json", ".jsonl", ".txt")),
    ):
        assert "the cat" not in text
        assert '"cat"' not in text
    assert json.loads((folder / "run.json").read_text())["redacted"]
    assert (folder / "gradients.safetensors").exists()


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert attack("run", tmp_path, SETTINGS) == REFUSED
    assert "holds a run already" in word(capsys)["what"]
