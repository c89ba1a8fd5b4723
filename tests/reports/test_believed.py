"""Folders that others wrote or changed: a report of what makes sense in them, or an error that says what doesn't."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.synthetic import cell, done, sentence, write
from textleak.cli import app

FACTS = {
    "settings": {"model": "bert", "attack": "match", "seed": 0},
    "machine": {"platform": "x", "cores": 2},
}
TEXTS = {
    "reference": "a",
    "recovered": "a",
    "reference_tokens": ["a"],
    "recovered_tokens": ["a"],
    "exact": True,
}
FIGURES = ("token_match_rate", "token_recall", "rouge1", "rouge2", "rougeL")
WORD_FIGURES = ("rouge1_words", "rouge2_words", "rougeL_words")
RATES = dict.fromkeys((*FIGURES, *WORD_FIGURES), 1.0)
RESULT = {**RATES, "sentences": [{**TEXTS, **RATES, "label": None, "recovered_label": None}]}


def run(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**FACTS, **changes}))
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def settings(folder: Path, **changes: Any) -> Path:
    return run(folder, settings={**FACTS["settings"], **changes})


def evaluation(folder: Path, **changes: Any) -> Path:
    write(folder, [done(cell(), 0, sentence(["the", "cat"]))], {"attack": ["match"]}, batches=1)
    path = folder / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """An evaluation whose second of three records is changed."""
    write(folder, [done(cell(), b, sentence(["the", "cat"])) for b in range(3)], {}, batches=3)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    change(lines[1])
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def records_folder(folder: Path) -> Path:
    evaluation(folder)
    (folder / "records.jsonl").unlink()
    (folder / "records.jsonl").mkdir()
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a machine in words": (lambda path: run(path, machine="a fast one"), "machine"),
    "a machine of an evaluation in words": (lambda path: evaluation(path, machine="fast"), "machine"),
    "batches in words": (lambda path: evaluation(path, batches="many"), "batches"),
    "batches below nothing": (lambda path: evaluation(path, batches=-1), "batches"),
    "versions that are a list": (lambda path: run(path, versions=["1"]), "versions"),
    "a model that is a number": (lambda path: settings(path, model=1e308), "model"),
    "gradients that are a list": (lambda path: settings(path, gradients=[-1]), "gradients"),
    "sentences that are numbers": (lambda path: settings(path, sentences=[1]), "sentences"),
    "deep settings": (lambda path: settings(path, x=json.loads("[" * 60 + "]" * 60)), "nested deeper"),
    "limits without attacks": (
        lambda path: evaluation(path, settings={"attack": ["match"], "limits": [1, 2]}),
        "one limit for each attack",
    ),
    "records that are a folder": (records_folder, "it is a folder"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_is_not_of_its_type_is_named(kind: str, command: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    folder = make(tmp_path / "changed")
    arguments = [str(folder)] if command == "report" else [str(evaluation(tmp_path / "good")), str(folder)]
    outcome = CliRunner().invoke(app, [command, *arguments])
    assert outcome.exit_code == 2, outcome.exception
    assert words in outcome.stderr
    assert str(folder) in outcome.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(token_match_rate=float("nan")),
        lambda record: record.update(token_match_rate=1e30),
        lambda record: record.update(tokens=-1),
        lambda record: record.update(batch=10**30),
        lambda record: record.update(seconds=float("inf")),
        lambda record: record.update(sentences="none"),
        lambda record: record["cell"].update(batch_size=[1]),
    ],
)
def test_a_record_that_makes_no_sense_is_a_batch_without_one(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    folder = rewritten(tmp_path / "changed", change)
    outcome = CliRunner().invoke(app, ["report", str(folder)])
    assert outcome.exit_code == 0, outcome.stderr
    assert "1 of 3 batches" in (folder / "report.md").read_text("utf-8").replace("**", "")


def test_a_sentence_of_no_token_is_reported_on(tmp_path: Path) -> None:
    folder = rewritten(
        tmp_path / "changed",
        lambda record: record["sentences"][0].update(reference_tokens=[], recovered_tokens=[]),
    )
    for arguments in (["report", folder], ["compare", folder, folder]):
        outcome = CliRunner().invoke(app, list(map(str, arguments)))
        assert outcome.exit_code == 0, (outcome.stderr, outcome.exception)


def test_half_a_letter_is_written_out(tmp_path: Path) -> None:
    halved = rewritten(tmp_path / "one", lambda record: record["cell"].update(model="\ud800"))
    for folder in (halved, settings(tmp_path / "two", model="\ud800", sentences=["\ud800"])):
        outcome = CliRunner().invoke(app, ["report", str(folder)])
        assert outcome.exit_code == 0, (outcome.stderr, outcome.exception)
        assert "\\ud800" in (folder / "report.md").read_text("utf-8")


def test_a_whole_folder_is_reported_on_as_ever(tmp_path: Path) -> None:
    for make in (run, evaluation):
        folder = make(tmp_path / make.__name__)
        outcome = CliRunner().invoke(app, ["report", str(folder)])
        assert outcome.exit_code == 0, outcome.stderr
