"""Nothing that somebody changed gets in: exit code 0 or 2, an error of a screen, no traceback, no hang, no escapes.

`TEXTLEAK_HOSTILE_SEED=N` tries others; `python -m tests.hostile` says how many there were of each kind.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hostile.suites import SUITES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="named pipes and alarms are POSIX's")
SEED = int(os.environ.get("TEXTLEAK_HOSTILE_SEED", "0"))
SAMPLE = 25
PART = 5  # of each suite, one in so many; `python -m tests.hostile` takes all of them, some twenty minutes


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "runs"))


@pytest.mark.filterwarnings("default")  # a warning is no error where the program runs
@pytest.mark.parametrize("suite", SUITES)
def test_a_sample_of_what_somebody_changed_gets_nowhere(suite: str, tmp_path: Path) -> None:
    tally = SUITES[suite][0](tmp_path, SAMPLE, SEED)
    assert tally.tried == SAMPLE
    assert not tally.kinds, tally.words(suite)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("suite", SUITES)
def test_nothing_that_somebody_changed_gets_anywhere(suite: str, tmp_path: Path) -> None:
    attempt, count = SUITES[suite]
    tally = attempt(tmp_path, count // PART, SEED + 1)
    assert tally.tried == count // PART
    assert not tally.kinds, tally.words(suite)
