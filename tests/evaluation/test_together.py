"""`textleak eval --together`: batches of a cell whose attacks take their steps in common."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.interrupts import POSIX, interrupt, interruptible
from textleak.cli import app
from textleak.errors import InputError
from textleak.evaluation import drive, engines, measure
from textleak.evaluation.engines import Local
from textleak.evaluation.records import Cell, Record
from textleak.evaluation.store import read_records
from textleak.evaluation.table import PlainLines
from textleak.events import Progress
from textleak.settings import EvaluationConfig

SENTENCES = """sentence	label
the cat sat on the red mat	1
a dog ran home	0
nobody told the bank	0
the secret plan moved	1
she was a cat	1
"""


@pytest.fixture
def settings(toy_folder: Callable[[str], Path], tmp_path: Path) -> dict[str, object]:
    """Of a grid of two attacks on five batches."""
    data = tmp_path / "five.tsv"
    data.write_text(SENTENCES)
    return {
        "data": str(data),
        "model": str(toy_folder("bert")),
        "weights": "random",
        "attack": ["tag:steps=3", "embedding"],
        "know": "batch-size,lengths,labels",
        "threads": 1,
        "device": "cpu",
    }


def records(settings: dict[str, object], together: int) -> dict[tuple[str, int], Record]:
    evaluation = drive.begin(EvaluationConfig.model_validate(settings), stored=False)
    found = list(evaluation.run(Local(together=together)))
    return {(record.cell.attack, record.batch): record for record in found}


def test_on_the_way_it_is_told_where_attacks_stand_and_how_long_all_that_end_together_take(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 batches, 5 together, which take 60 seconds: 60 more are left, whichever of the 5 were written."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    evaluation = drive.begin(EvaluationConfig.model_validate(settings), stored=False)
    told = io.StringIO()
    lines = PlainLines(evaluation, Console(file=told), together=5)

    def watched(cell: Cell, progress: Progress) -> None:
        nonlocal now
        now += 20.0
        lines.watch(cell, progress)

    for record in evaluation.run(Local(watch=watched)):
        now += 20.0 if record.batch == 0 else 3.0
        lines.show(record)
    stand, first, *_, last = told.getvalue().splitlines()
    assert "0 of 10 batches; " in stand
    assert "continuous, step 3 of 3" in stand
    assert "1 of 10 batches, about 1:00 min left" in first
    assert "left" not in last


def test_batches_together_have_the_records_that_each_has_alone(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = measure.measure_together

    def noted(works, *order):
        sizes.append(len(works))
        assert len({work.cell for work in works}) == 1
        return whole(works, *order)

    monkeypatch.setattr(measure, "measure_together", noted)
    alone, together = records(settings, 1), records(settings, 2)
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]  # five batches of each attack
    assert alone.keys() == together.keys()
    for key, record in together.items():
        assert record.status == "done"
        assert record.final_loss == pytest.approx(alone[key].final_loss, rel=1e-3)
        assert record.sentences == alone[key].sentences
        assert (record.steps, record.evaluations) == (alone[key].steps, alone[key].evaluations)
        assert record.cpu_seconds > 0


def test_a_batch_that_fails_leaves_the_others_their_records(settings: dict[str, object]) -> None:
    found = records({**settings, "attack": "tag:steps=3", "know": "nothing"}, 2)
    assert {record.status for record in found.values()} == {"failed"}
    assert len(found) == 5
    assert all("lengths are not known" in record.error for record in found.values())


@POSIX
@pytest.mark.parametrize("asks", [True, False], ids=["taking its steps", "at work of its own"])
def test_ctrl_c_keeps_all_records_and_the_same_command_goes_on(
    asks: bool, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a batch is at work that no other has a part in, as of an attack that optimizes nothing."""
    begun = measure.begin_on
    seen = []

    def interrupted(attack, view, **options):
        seen.append(attack.name)
        if len(seen) == 4:  # of the second two
            interrupt()
            while not asks:
                time.sleep(0.01)
        return begun(attack, view, **options)

    monkeypatch.setattr(measure, "begin_on", interrupted)
    out = tmp_path / "o"
    given = {**settings, "attack": "tag:steps=3"}
    command = ["eval", "--together", "2", "--out", str(out)]
    command += [f"--{name}={value}" for name, value in given.items()]
    with interruptible():
        told = CliRunner().invoke(app, command)
    assert told.exit_code == 130
    assert "all records are kept" in told.stderr
    kept = read_records(out)
    assert [record.batch for record in kept] == [0, 1]
    monkeypatch.setattr(measure, "begin_on", begun)
    assert CliRunner().invoke(app, command).exit_code == 0
    whole = read_records(out)
    assert sorted(record.batch for record in whole) == [0, 1, 2, 3, 4]
    assert {record.status for record in whole} == {"done"}
    assert [record for record in whole if record.batch < 2] == kept


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workers", "2"], "--together is for one process"),
        (["--engine", "ray"], "--together is for one process"),
        (["--time-limit", "9s"], "don't go together"),
    ],
)
def test_what_cant_be_had_together_is_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["eval", "--together", "2", *flags, "--out", str(tmp_path / "o")])
    assert told.exit_code == 2
    assert words in told.stderr
    assert not (tmp_path / "o").exists()


def test_an_engine_for_several_processes_takes_nothing_together() -> None:
    with pytest.raises(InputError, match="for one process"):
        engines.choose("local", workers=2, together=2)
    assert engines.choose("local", together=3) == Local(together=3)
