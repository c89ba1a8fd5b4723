"""What a command line may hold by mistake or by malice: an error that names the value and the way out, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from textleak import runs
from textleak.cli import app
from textleak.errors import LONGEST, InputError
from textleak.settings import load_evaluation_config, load_run_config

ROOT = Path(__file__).parents[2]
LONG = "x" * 100_000
DEEP = "[" * 5000
BOMB = "[&a [x,x,x,x], &b [*a,*a,*a,*a], [*b,*b,*b,*b]]"
RUN = ("run", "-s", "the cat sat")

ARGUMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "an empty model": (("run", "-m", "", "-s", "a"), "-m was given an empty value"),
    "an empty sentence": (("run", "-s", ""), "-s was given an empty value"),
    "an empty attack": ((*RUN, "--attack", ""), "--attack was given an empty value"),
    "an empty folder": ((*RUN, "--out="), "--out was given an empty value"),
    "an empty file": (("run", "--gradients", ""), "--gradients was given an empty value"),
    "an empty argument": (("report", ""), "An argument was given an empty value"),
    "an empty data set": (("eval", "--data", ""), "--data was given an empty value"),
    "no UTF-8": (("run", "-s", os.fsdecode(b"caf\xe9")), r"-s was given 'caf\udce9', which is not UTF-8"),
    "a number that nobody trains on": (
        ("run", "-s", "the cat", "--task", "regression", "--label=-1e30"),
        "a label is a number from -1,000,000 to 1,000,000",
    ),
    "UTF-8 that was read as ASCII": (
        ("run", "-s", "café".encode().decode("ascii", "surrogateescape")),
        "-s was given 'café', and Python reads",
    ),
    "too many threads": ((*RUN, "--threads", "2147483648"), "--threads can't be 2147483648"),
    "no thread": (("bench", "--threads", "0"), "--threads can't be 0"),
    "a restart a particle": ((*RUN, "-k", "1000000000"), "--restarts can't be 1000000000"),
    "a seed beyond counting": ((*RUN, "--seed", "9" * 40), "--seed can't be 999"),
    "classes beyond counting": ((*RUN, "--set", "num_labels=2147483648"), "num_labels can't be 2147483648"),
    "options that are a number": ((*RUN, "--set", "attack.options=1"), "The options 1 can't be used"),
    "deep YAML": ((*RUN, "--set", f"share={DEEP}"), "nested deeper than 32 levels"),
    "a deep key": ((*RUN, "--set", f"{'a.' * 5000}b=1"), "reaches too deep"),
    "references to references": ((*RUN, "--set", f"share={BOMB}"), "references (*name) aren't read"),
    "a number of nothing": ((*RUN, "--set", 'seed=!!int ""'), "can't be read"),
    "a month 13": ((*RUN, "--set", "share=2020-13-45"), "month must be in 1..12"),
    "a number of 5,000 digits": ((*RUN, "--set", f"seed={'9' * 5000}"), "can't be read"),
    "a billion steps": ((*RUN, "--client", "fedavg:steps=1000000000"), "steps=1000000000 can't be used"),
    "a long model": ((*RUN, "-m", LONG), "--model can't be 'xxx"),
    "a long folder": ((*RUN, "--out", f"/tmp/{LONG}"), "name is too long"),
    "a long preset": ((*RUN, "-c", LONG), "name is too long"),
    "a long argument": (("report", LONG), "name is too long"),
    "a long number": ((*RUN, "--steps", LONG), "unable to parse string as an integer"),
    "a long command": ((LONG,), "characters left out"),
    "a long option": (("run", f"--{LONG}"), "characters left out"),
    "nobody's home": ((*RUN, "-m", "~nouser/x"), "'~nouser/x'"),
    "what a terminal obeys": ((*RUN, "-m", "\x1b[2J\x07"), r"\x1b[2J\x07"),
    "a command that a terminal obeys": (("\x1b[2J",), r"\x1b[2J"),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_value_that_can_t_be_meant_is_an_error_of_a_screen(kind: str) -> None:
    arguments, words = ARGUMENTS[kind]
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2, (done.stderr, done.exception)
    assert " ".join(words.split()) in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 4 * LONGEST
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


def test_nobody_s_home_holds_no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTLEAK_RUNS", "~nouser/x")
    with pytest.raises(InputError, match=r"(?s)TEXTLEAK_RUNS=~nouser/x can't be used.*no such user"):
        runs.runs_folder()


def test_an_empty_setting_is_none_from_a_script_either() -> None:
    with pytest.raises(InputError, match=r"(?s)--model can't be ''.*Leave --model out"):
        load_run_config(None, {"model": "", "sentences": ["a"]})
    with pytest.raises(InputError, match="--sentence"):
        load_run_config(None, {"sentences": [""]})
    with pytest.raises(InputError, match="--model"):
        load_evaluation_config(None, {"model": [""]})


def test_help_is_given_on_a_terminal_of_ascii() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "textleak.cli", "run", "--help"],
        capture_output=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONUTF8": "0",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tui'}",
        },
    )
    assert done.returncode == 0, done.stderr
    assert b"--sentence" in done.stdout
    assert done.stdout.isascii()
