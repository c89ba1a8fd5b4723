"""Private text stays with its owner: tracebacks, and what a redacted run writes."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from textleak.cli import app

SENTENCE = "nobody told the secret plan"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for runs, a temporary folder of the test's own, and a bug that quotes its input."""

    def broken(settings: object) -> None:
        raise RuntimeError(f"no idea what to make of {settings}")

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("TEXTLEAK_DEBUG", raising=False)
    monkeypatch.setattr("textleak.jobs.text.prepare", broken)
    return tmp_path


def texts(folder: Path) -> str:
    return "\n".join(path.read_text("utf-8") for path in folder.rglob("*") if path.is_file())


def test_a_traceback_before_there_is_a_run_folder_is_its_owner_s_alone(places: Path) -> None:
    done = CliRunner().invoke(app, ["run", "-s", SENTENCE])
    assert done.exit_code == 1
    (file,) = (places / "runs" / "tracebacks").iterdir()
    assert str(file) in done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert SENTENCE in file.read_text("utf-8")
    assert not list((places / "tmp").iterdir())


def test_a_redacted_run_s_traceback_quotes_nothing(places: Path) -> None:
    done = CliRunner().invoke(app, ["run", "-s", SENTENCE, "--redact"])
    assert done.exit_code == 1
    assert "RuntimeError" in texts(places)
    assert SENTENCE not in texts(places) + done.output


def test_where_no_traceback_can_be_written_that_is_said(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (places / "file").touch()
    monkeypatch.setenv("TEXTLEAK_RUNS", str(places / "file"))
    monkeypatch.setattr("textleak.runs.check_out", lambda _: None)
    done = CliRunner().invoke(app, ["run", "-s", SENTENCE])
    assert done.exit_code == 1
    assert "could not be written" in done.stderr
    assert not list((places / "tmp").iterdir())
