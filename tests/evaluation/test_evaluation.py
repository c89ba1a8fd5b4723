"""`textleak eval` and its room: what a grid is, what survives a kill, and what bad input is told."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console
from typer.testing import CliRunner

import textleak
from tests import synthetic
from tests.kills import kill_until_done
from tests.published import fitting
from textleak.attacks import ATTACKS
from textleak.cli import app, common, evaluate
from textleak.data import sentences as datasets
from textleak.data.planted import holds, tokens_of
from textleak.errors import InputError, TextleakError
from textleak.evaluation import drive, engines, grid, records, table
from textleak.evaluation.answers import Records
from textleak.evaluation.engines import Local, Processes, Ray
from textleak.evaluation.records import Cell, Record
from textleak.evaluation.store import Store, read_records
from textleak.events import Position, Progress, Recovery, Sentence, Stop
from textleak.models.base import Modality
from textleak.settings import EVALUATIONS, EvaluationConfig, load_evaluation_config, preset_names

QUICK = {"attack": ["dlg:steps=1,restarts=1"], "limit": 4, "threads": 1, "device": "cpu"}
SENTENCES = """sentence	label	secrets
the cat sat on the red mat	1	mat|red mat
a dog ran home	0
nobody told the bank	0
the secret plan moved	1	plan
"""


@pytest.fixture
def toy(toy_folder, tmp_path_factory):
    """Settings of an evaluation that takes milliseconds a batch."""
    data = tmp_path_factory.mktemp("data") / "four.tsv"
    data.write_text(SENTENCES)
    return {**QUICK, "data": str(data), "model": str(toy_folder("bert")), "weights": "random"}


@pytest.fixture
def attacks(monkeypatch):
    """Lets a test file an attack for its own time."""

    def file(name: str, run) -> None:
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Fake:
            reads: ClassVar = frozenset({Modality.TEXT})
            needs: ClassVar = frozenset()

            def run(self, view, *, generator):
                return run(view.shared, view.model)

        Fake.name = name
        list(ATTACKS)  # load the others first
        monkeypatch.setitem(ATTACKS._classes, name, Fake)

    return file


def recovery() -> Recovery:
    return Recovery(
        sentences=(Sentence(positions=(), text=""),),
        stop=Stop.CONVERGED,
        final_loss=None,
        steps=0,
        evaluations=0,
        channel="matching",
    )


def run_all(evaluation: drive.Evaluation, **options: bool) -> list[Record]:
    return list(evaluation.run(Local(), **options))


def alike(found: list[Record]) -> list[Record]:
    """Without what differs from run to run: times, and who computed it."""
    return sorted((dataclasses.replace(r, seconds=0.0, cpu_seconds=0.0, worker="") for r in found), key=str)


# Settings and grid


def test_several_values_span_a_grid():
    settings = load_evaluation_config(
        None,
        {
            "batch_size": ["1,2", "4"],
            "model": "bert-tiny, minilm",
            "attack": ["match:span_proposals=false", "dlg,tag"],
            "defense": ["none", "clip:max_norm=1+gaussian:sigma=1e+3"],
            "seed": "0,1",
            "know": ["default", "no-defense"],
        },
    )
    assert settings.batch_size == (1, 2, 4)
    assert settings.know == (None, "no-defense")
    assert settings.model == ("bert-tiny", "minilm")
    assert [choice.name for choice in settings.attack] == ["match", "dlg", "tag"]
    assert settings.attack[0].options == {"span_proposals": False}
    assert [[choice.spec for choice in several] for several in settings.defense] == [
        [],
        ["clip:max_norm=1", "gaussian:sigma=1000.0"],
    ]
    found = grid.plan(settings)
    cells = list(found.cells())
    told = 3  # no defense, the defense, the defense that the server doesn't know
    assert len(cells) == 2 * 2 * 3 * told * 3
    assert found.batches() == sum(count for _, count in cells) == 2 * 2 * 3 * told * (20 + 10 + 5)
    works = list(found.works())
    assert len({work.key for work in works}) == len(works) == found.batches()


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("clip+sign", ["clip", "sign"]),
        ("clip:max_norm=1e+3 + sign", ["clip:max_norm=1000.0", "sign"]),
        (
            r"freeze:parameters=layer\.\d+\.attention+sign",
            [r"freeze:parameters=layer\.\d+\.attention", "sign"],
        ),
        ("freeze:parameters=layer.+bias", ["freeze:parameters='layer.+bias'"]),
        ("freeze:parameters='a+sign'+clip:max_norm=1", ["freeze:parameters='a+sign'", "clip:max_norm=1"]),
        ("clip:max_norm=1+gauss:sigma=1", ["clip:max_norm=1", "gauss:sigma=1"]),
        ("none", []),
    ],
)
def test_a_plus_separates_defenses_but_not_an_expression(text, specs):
    (several,) = EvaluationConfig(defense=text).defense
    assert [choice.spec for choice in several] == specs
    assert EvaluationConfig(defense="+".join(specs) or "none").defense == (several,)


def test_batches_are_consecutive_sentences_and_an_attack_may_have_fewer():
    settings = EvaluationConfig(limit=10, batch_size=4, attack=["match", "dlg:limit=5,steps=3"])
    found = grid.plan(settings)
    sample = found.data["sample"].examples
    works = {(work.cell.attack, work.batch): work.examples for work in found.works()}
    assert works == {
        ("match", 0): sample[:4],
        ("match", 1): sample[4:8],
        ("dlg:steps=3", 0): sample[:4],
    }


def test_what_is_given_twice_is_one_cell_and_an_attack_has_one_limit():
    settings = EvaluationConfig(
        attack=["dlg:limit=5", "dlg:limit=5"], defense=["sign", {"name": "sign"}], seed=[1, 1]
    )
    assert [cell.defense for cell, _ in grid.plan(settings).cells()] == [("sign",)]
    for attacks in (["dlg", "dlg:limit=1"], ["dlg:steps=3,limit=2", "tag", "dlg:limit=4,steps=3"]):
        with pytest.raises(InputError, match=r"(?s)attack dlg.* more than one limit.*larger"):
            load_evaluation_config(None, {"attack": attacks, "limit": 3})


def test_an_undefended_cell_has_no_defense_to_keep_from_the_server():
    found = grid.plan(EvaluationConfig(defense=["none", "sign"], know=[None, "no-defense"], limit=1))
    cells = [(cell.defense, cell.know) for cell, _ in found.cells()]
    assert cells == [((), None), (("sign",), None), (("sign",), "no-defense")]
    assert found.batches() == 3
    assert grid.plan(EvaluationConfig(know="no-defense", limit=1)).batches() == 1


def test_batches_of_one_model_follow_each_other():
    found = grid.plan(EvaluationConfig(model=["bert-tiny", "minilm"], seed=[0, 1], limit=2))
    order = [(work.cell.model, work.cell.seed) for work in found.works()]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"limit": 3}, False),
        ({"seed": 1}, False),
        ({"attack": "dlg:steps=2"}, False),
        ({"know": "nothing"}, False),
        ({"time_limit": 5}, False),
        ({"threads": 2}, True),
        ({"out": "elsewhere"}, True),
    ],
)
def test_the_identity_is_that_of_all_that_decides_results(change, same):
    one = grid.plan(EvaluationConfig(**QUICK))
    other = grid.plan(EvaluationConfig(**{**QUICK, **change}))
    assert (one.identity == other.identity) is same


def test_other_sentences_under_the_same_name_are_another_identity(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("the cat sat\na dog ran\n")
    settings = EvaluationConfig(data=str(file))
    before = grid.plan(settings).identity
    file.write_text("the cat sat\na dog sat\n")
    assert grid.plan(settings).identity != before


@pytest.mark.parametrize("name", preset_names(EVALUATIONS))
def test_every_preset_can_be_used(name):
    settings = load_evaluation_config(name, {"data": ["sample"]})
    missing = [choice.name for choice in settings.attack if choice.name not in list(ATTACKS)]
    if missing == ["lamp"]:
        pytest.skip("lamp isn't here")
    assert grid.plan(settings).batches() > 0


def test_any_option_that_the_plan_takes_reaches_the_batches(toy):
    found = textleak.evaluate(
        **{**toy, "limit": 1, "attack": [{"name": "match", "time_limit": None, "budget": 1, "steps": 1}]},
        defense=[{"name": "freeze", "parameters": "layer.[0,1].+key"}, "clip:max_norm=1"],
    )
    assert [record.error for record in found] == ["", ""]


# Data


def test_the_sample_is_ours_and_its_secrets_stand_in_it():
    sample = datasets.load("sample", EvaluationConfig())
    assert len(sample.examples) >= 60
    assert sum(bool(example.secrets) for example in sample.examples) >= 40
    for example in sample.examples:
        assert all(secret in example.sentence for secret in example.secrets)
        assert example.label in (0, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.txt", "first one\n\n  second one \n"),
        ("d.csv", 'sentence,label,secrets\n"first one",1,one\n"",0,\nsecond one,0,\n'),
        ("d.tsv", "label\tsentence\tsecrets\n1\tfirst one\tone\n0\t\t\n0\tsecond one\n"),
        (
            "d.jsonl",
            '{"text": "first one", "label": 1, "secrets": "one"}\n\n{"text": ""}\n{"text": "second one"}\n',
        ),
    ],
)
def test_a_file_is_read_by_its_ending(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content, "utf-8-sig")
    found = datasets.load(str(file), EvaluationConfig())
    assert [example.sentence for example in found.examples] == ["first one", "second one"]
    left_out = "1 blank line" if name == "d.txt" else "1 row without a sentence"
    assert found.notes == (f"{file}: {left_out} left out.",)
    if name != "d.txt":
        assert found.examples[0] == datasets.Example(sentence="first one", label=1, secrets=("one",))


def test_a_row_without_the_column_is_told_from_a_blank_one(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"sentence": "a b"}\n{"text": "c d"}\n{"body": "e"}\n{"sentence": " "}\n')
    assert datasets.load(str(file), EvaluationConfig()).notes == (
        f"{file}: 1 row without a sentence left out.",
        f"{file}: 2 rows without a column 'sentence' left out.",
    )


def test_a_label_may_be_written_with_a_point_and_any_other_is_noted(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text("text,label\na b,1.0\nc d,0\ne f,-1\ng h,\ni j,pos\nk l,0.5\n")
    found = datasets.load(str(file), EvaluationConfig())
    assert [example.label for example in found.examples] == [1, 0, None, None, None, None]
    assert found.notes == (
        f"{file}: 2 labels without the number of a class, such as 'pos': drawn from the seed.",
    )
    (tmp_path / "d.jsonl").write_text('{"text": "a b", "label": 1.0}\n')
    assert datasets.load(str(tmp_path / "d.jsonl"), EvaluationConfig()).examples[0].label == 1
    with pytest.raises(InputError, match="has the label"):
        datasets.load(str(file), EvaluationConfig(label_column="label"))


def test_secrets_may_be_a_list(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(
        '{"text": "code 4921, 12  hill", "secrets": ["4921", "12 Hill", ""]}\n{"text": "b", "secrets": []}\n'
    )
    found = datasets.load(str(file), EvaluationConfig())
    assert [example.secrets for example in found.examples] == [("4921", "12 Hill"), ()]


def test_quotation_marks_in_a_tsv_file_are_letters_unless_they_hold_the_cell(tmp_path):
    file = tmp_path / "d.tsv"
    file.write_text('sentence\tlabel\n"so" she said\t1\n"all ""of"" it"\t0\n"\t1\n')
    found = datasets.load(str(file), EvaluationConfig())
    assert [example.sentence for example in found.examples] == ['"so" she said', 'all "of" it', '"']


def test_a_row_of_a_table_ends_where_its_line_does(tmp_path):
    """A form feed or one of Unicode's own line separators stands within a cell like any other letter."""
    for ending, separator in ((".tsv", "\t"), (".csv", ",")):
        file = tmp_path / f"d{ending}"
        rows = ("sentence", "label"), ("hello\u2028there", "1"), ("page\x0cbreak", "0")
        file.write_text("\r\n".join(map(separator.join, rows)), "utf-8")
        found = datasets.load(str(file), EvaluationConfig())
        assert [(example.sentence, example.label) for example in found.examples] == [
            ("hello\u2028there", 1),
            ("page\x0cbreak", 0),
        ]
    file = tmp_path / "d.txt"
    file.write_bytes("hello\u2028there\r\npage\x0cbreak".encode())
    found = datasets.load(str(file), EvaluationConfig())
    assert [example.sentence for example in found.examples] == ["hello\u2028there", "page\x0cbreak"]


def bad_column(folder: Path) -> dict[str, object]:
    (folder / "d.csv").write_text("sentense,label\na,1\n")
    return {"data": str(folder / "d.csv")}


def bad_wanted_column(folder: Path) -> dict[str, object]:
    (folder / "d.csv").write_text("body,label\na,1\n")
    return {"data": str(folder / "d.csv"), "column": "bodi"}


def bad_encoding(folder: Path) -> dict[str, object]:
    (folder / "d.txt").write_bytes(b"fine\nalso fine\n" + "café\n".encode("latin1"))
    return {"data": str(folder / "d.txt")}


def bad_encoding_behind_a_mark(folder: Path) -> dict[str, object]:
    (folder / "d.txt").write_bytes(codecs.BOM_UTF8 + b"ab\n\xe9\nx")
    return {"data": str(folder / "d.txt")}


def bad_wide_letters(folder: Path) -> dict[str, object]:
    (folder / "d.csv").write_bytes("text\nhello\n".encode("utf-16"))
    return {"data": str(folder / "d.csv")}


def bad_json(folder: Path) -> dict[str, object]:
    (folder / "d.jsonl").write_text('{"text": "a"}\n{"text": \n')
    return {"data": str(folder / "d.jsonl")}


def bad_letter(folder: Path) -> dict[str, object]:
    (folder / "d.jsonl").write_text('{"text": "a"}\n{"text": "b", "secrets": "\\ud83d"}\n')
    return {"data": str(folder / "d.jsonl")}


def bad_list(folder: Path) -> dict[str, object]:
    (folder / "d.jsonl").write_text('{"text": "a"}\n{"text": ["b", "c"]}\n')
    return {"data": str(folder / "d.jsonl")}


def bad_secrets(folder: Path) -> dict[str, object]:
    (folder / "d.jsonl").write_text('{"text": "the code is 4921", "secrets": {"code": "4921"}}\n')
    return {"data": str(folder / "d.jsonl")}


def bad_secret(folder: Path) -> dict[str, object]:
    (folder / "d.csv").write_text("text,secrets\nthe code is 4921,4921\nmeet me at noon,4921|noon\n")
    return {"data": str(folder / "d.csv")}


def bad_csv(folder: Path) -> dict[str, object]:
    (folder / "d.csv").write_text('sentence\n"never closed\nand on\n')
    return {"data": str(folder / "d.csv")}


def bad_empty(folder: Path) -> dict[str, object]:
    (folder / "d.txt").write_text("\n \n")
    return {"data": str(folder / "d.txt")}


BAD = {
    "no such column": (bad_column, "d.csv has no column 'sentence' or 'text'.*sentense, label.*--column"),
    "no wanted column": (bad_wanted_column, "Unknown column of .*'bodi'.*body"),
    "another encoding": (bad_encoding, "not UTF-8 in line 3.*0xe9.*iconv"),
    "the same, behind a mark": (bad_encoding_behind_a_mark, "not UTF-8 in line 2.*0xe9.*iconv -f latin1"),
    "letters of two bytes": (bad_wide_letters, "is UTF-16, not UTF-8.*iconv -f utf-16"),
    "a torn JSON line": (bad_json, "can't be read in line 2"),
    "half a letter": (bad_letter, "can't be read in line 2.*ud83d"),
    "a list of sentences": (bad_list, r"row 2 .*'text' can't be \['b', 'c'\].*one sentence"),
    "secrets by name": (bad_secrets, "row 1 .*'secrets' can't be .*code.*list of texts"),
    "another sentence's secret": (bad_secret, "row 2 .*'4921' isn't in its sentence.*not recovered"),
    "a quotation mark": (bad_csv, "can't be read as a table"),
    "nothing but blank lines": (bad_empty, "has no sentence"),
    "no such file": (lambda _: {"data": "nowhere.txt"}, "nowhere.txt can't be read"),
    "no such data set": (lambda _: {"data": "colla"}, "Unknown data set.*cola"),
    "not at hand": (lambda _: {"data": "cola"}, "cola can't be had.*not in the local cache.*--data"),
    "no such attack": (lambda _: {"attack": "mach"}, "mach.*match"),
    "no such option": (lambda _: {"attack": "match:stepz=1"}, "stepz.*steps"),
    "no such model": (lambda _: {"model": "bert-tinny"}, "bert-tinny.*bert-tiny"),
    "no such defense": (lambda _: {"defense": "none+gauss"}, "Unknown defense"),
    "no such knowledge": (lambda _: {"know": "length"}, "Unknown side information"),
    "no such device": (lambda _: {"device": "cudaa"}, "Unknown device 'cudaa'"),
    "no such GPU": (lambda _: {"device": "cuda:99"}, "device cuda:99 isn't there"),
    "no expression to share": (
        lambda _: {"share": ["all", "(("]},
        "--share '\\(\\(' is not a regular expression",
    ),
    "no expression to freeze": (
        lambda _: {"defense": "sign+freeze:parameters='(('"},
        "freeze.*not a regular",
    ),
    "a defense of samples after one of the mean": (
        lambda _: {"defense": "gaussian+dpsgd"},
        r"dpsgd can't come after gaussian",
    ),
    "half of what epsilon needs": (
        lambda _: {"defense": "dpsgd:steps=10"},
        "without sampling_rate and delta",
    ),
    "larger than the data": (lambda _: {"batch_size": 32}, "no batch of 32 sentences"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_anything_is_computed(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build, message = BAD[case]
    with pytest.raises(InputError, match=rf"(?s){message}"):
        drive.begin(EvaluationConfig(**{"out": str(tmp_path / "out"), **build(tmp_path)}))
    assert not (tmp_path / "out").exists()


def test_epsilon_without_its_package_is_told_before_anything_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(InputError, match="Opacus isn't installed"):
        grid.plan(EvaluationConfig(defense="dpsgd:steps=10,sampling_rate=0.1,delta=1e-5"))


def test_a_device_of_a_cluster_need_not_be_here():
    assert grid.plan(EvaluationConfig(device="cuda:99"), here=False).batches()


def test_a_mistyped_setting_is_told_with_the_nearest():
    with pytest.raises(InputError, match=r"(?s)batch_sizes.*batch_size"):
        load_evaluation_config(None, {}, ["batch_sizes=3"])


@pytest.mark.parametrize(
    ("settings", "assignments", "message"),
    [
        (
            {"attack": ["dlg"]},
            ["attack.steps=5"],
            "--set attack.steps=5 can't be used.*--attack NAME:KEY=VALUE",
        ),
        ({}, ["defense.sigma=1"], "--set defense.sigma=1 can't be used.*--defense NAME:KEY=VALUE"),
        ({}, ["steps=5"], "Unknown setting in --set 'steps'.*-a NAME:KEY=VALUE"),
        ({"steps": 5}, [], "Unknown setting 'steps'.*-a NAME:KEY=VALUE"),
        ({"defense": [{"gaussian": {"sigma": 1}}]}, [], "'gaussian'.* has no name.*name: NAME, KEY: VALUE"),
        ({"attack": [{"steps": 5}]}, [], "'steps': 5.* has no name"),
    ],
)
def test_options_without_their_attack_or_defense_are_told_how_to_be_written(settings, assignments, message):
    with pytest.raises(InputError, match=f"(?s){message}") as error:
        load_evaluation_config(None, settings, assignments)
    assert "attack.KEY" not in str(error.value)
    assert load_evaluation_config(None, {}, ["attack={name: dlg, steps: 5}"]).attack[0].spec == "dlg:steps=5"


def test_a_huge_grid_asks_first(monkeypatch):
    settings = EvaluationConfig(seed=list(range(6000)), limit=20)
    with pytest.raises(InputError, match=r"(?s)120,000 batches.*--yes"):
        drive.begin(settings, stored=False)
    assert drive.begin(settings, stored=False, many=True).plan.batches() == 120_000


# Records


def test_a_record_reads_back_as_it_was(toy, tmp_path):
    evaluation = drive.begin(EvaluationConfig(**toy, defense=["none", "gaussian:sigma=1e-3"], out=tmp_path))
    written = run_all(evaluation)
    assert len(written) == 8
    assert read_records(tmp_path) == written
    assert all(records.from_json(json.loads(json.dumps(records.to_json(r)))) == r for r in written)
    assert written[0].sentences[0].secrets == (
        records.PlantedSecret(text="mat", recovered=False),
        records.PlantedSecret(text="red mat", recovered=False),
    )


def test_the_same_evaluation_goes_on_where_it_stopped(toy, tmp_path):
    settings = EvaluationConfig(**toy, out=tmp_path)
    first = drive.begin(settings)
    running = first.run(Local())
    kept = [next(running), next(running)]
    running.close()
    second = drive.begin(settings)
    assert second.records() == kept
    assert len(run_all(second)) == 2
    assert run_all(drive.begin(settings)) == []
    whole = drive.begin(settings.model_copy(update={"out": tmp_path / "whole"}))
    assert alike(run_all(whole)) == alike(second.records())


def test_other_settings_are_refused_and_named(toy, tmp_path):
    run_all(drive.begin(EvaluationConfig(**toy, out=tmp_path)))
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"(?s)another evaluation.*seed was \[0\], now \[1\].*--out"):
        drive.begin(EvaluationConfig(**toy, seed=1, out=tmp_path))
    assert (tmp_path / "records.jsonl").read_bytes() == before


def some_record(identity: str = "x", batch: int = 0, status: str = "done") -> Record:
    return Record(
        identity=identity, cell=Cell(data="d", batch_size=1, model="m"), batch=batch, status=status, error="é"
    )


def opened(path: Path) -> Store:
    return Store.open(path, identity="x", settings={"a": 1}, batches=4)


def test_a_torn_last_line_is_mended(tmp_path):
    store = opened(tmp_path)
    store.add(some_record(batch=0))
    store.add(some_record(batch=1))
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    for cut in (1, 2, *range(3, len(whole) // 2, 53)):
        path.write_bytes(whole[:-cut])
        assert [record.batch for record in read_records(tmp_path)] == ([0, 1] if cut == 1 else [0])
        again = opened(tmp_path)
        assert [record.batch for record in again.records.values()] == [0]
        assert again.add(some_record(batch=1))
        assert path.read_bytes() == whole


def test_two_writers_write_no_record_twice(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    assert one.add(some_record(batch=0))
    assert not other.add(some_record(batch=0))
    assert other.add(some_record(batch=1))
    assert not one.add(some_record(batch=1))
    assert len((tmp_path / "records.jsonl").read_bytes().splitlines()) == 2


def test_a_batch_that_fails_again_in_another_way_has_its_new_error(tmp_path):
    store = opened(tmp_path)
    failure = some_record(status="failed")
    assert store.add(failure)
    assert not store.add(failure)
    assert store.add(dataclasses.replace(failure, error="another"))
    assert [record.error for record in read_records(tmp_path)] == ["another"]


def test_a_second_process_on_a_folder_begins_at_the_other_end(toy, tmp_path):
    settings = EvaluationConfig(**toy, out=tmp_path)
    one, other = drive.begin(settings), drive.begin(settings)
    first, second = one.run(Local()), other.run(Local())
    assert [record.batch for record in (next(first), next(second), next(first))] == [0, 3, 1]
    rest = [*first, *second]
    assert [record.batch for record in rest] == [2]
    assert len(read_records(tmp_path)) == 4


def test_a_folder_with_records_of_nobody_is_refused(tmp_path):
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"without an evaluation\.json"):
        opened(tmp_path)
    (tmp_path / "records.jsonl").unlink()
    opened(tmp_path).add(some_record())
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text().replace('"identity": "x"', '"identity": "y"'))
    with pytest.raises(InputError, match="another evaluation, y"):
        opened(tmp_path)


def test_a_full_disk_loses_nothing_that_was_there(tmp_path, monkeypatch):
    store = opened(tmp_path)
    store.add(some_record(batch=0))
    before = (tmp_path / "records.jsonl").read_bytes()
    real = os.write

    def full(handle: int, content: bytes) -> int:
        if len(content) > 100:
            return real(handle, content[:100])  # a part still fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TextleakError, match=r"(?s)No space left.*is kept.*goes on"):
        store.add(some_record(batch=1))
    monkeypatch.undo()
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert store.add(some_record(batch=1))
    assert [record.batch for record in read_records(tmp_path)] == [0, 1]


@pytest.mark.parametrize("other", ["pretrained", "random"])
def test_another_model_under_the_same_name_is_refused(tmp_path, other):
    """A folder that was trained on meanwhile, or a hub that came back."""
    loaded = {"weights": "random", "fingerprint": "a"}
    store = opened(tmp_path)
    store.add(some_record(batch=0))  # of before fingerprints were kept
    store.add(dataclasses.replace(some_record(batch=1), **loaded))
    with pytest.raises(TextleakError, match=rf"(?s)m is not the model.*{other} here, random there.*--out"):
        opened(tmp_path).add(
            dataclasses.replace(some_record(batch=2), weights=other, fingerprint="b"),
        )
    assert store.add(dataclasses.replace(some_record(batch=2), **loaded))
    assert [record.batch for record in read_records(tmp_path)] == [0, 1, 2]


def test_no_room_for_gradients_ends_the_evaluation_and_fails_no_batch(toy, tmp_path, monkeypatch):
    def full(shared, path):
        raise InputError(
            "The gradient can't be written.", why="No space left on device", fix="Another --out."
        )

    monkeypatch.setattr("textleak.shared.gradient.SharedGradient.save", full)
    evaluation = drive.begin(EvaluationConfig(**toy, out=tmp_path))
    with pytest.raises(TextleakError, match=r"(?s)gradient can't go through.*No space left.*TMPDIR"):
        run_all(evaluation)
    assert read_records(tmp_path) == []


def test_what_ends_an_evaluation_comes_whole_out_of_a_worker():
    worker = engines._Worker.__new__(engines._Worker)
    worker.answers, theirs = multiprocessing.Pipe()
    theirs.send(grid.EvaluationError("full", why="no room", fix="make some"))
    with pytest.raises(grid.EvaluationError, match="full\nno room\nmake some"):
        worker.answer()


def test_a_failed_batch_is_recorded_and_tried_again_on_request(toy, tmp_path, attacks):
    broken = True

    def sometimes(shared, model):
        yield Progress(phase="x", step=1)
        if broken:
            raise RuntimeError("out of luck")
        return recovery()

    attacks("sometimes", sometimes)
    settings = EvaluationConfig(**{**toy, "attack": ["sometimes", *QUICK["attack"]]}, out=tmp_path)
    run_all(drive.begin(settings))
    found = Records(read_records(tmp_path))
    assert len(found.failed) == len(found.done) == 4
    assert {record.error for record in found.failed} == {"RuntimeError: out of luck"}
    assert run_all(drive.begin(settings)) == []
    broken = False
    assert len(run_all(drive.begin(settings), retry_failed=True)) == 4
    found = Records(read_records(tmp_path))
    assert len(found.done) == 8
    assert run_all(drive.begin(settings), retry_failed=True) == []


def test_an_over_long_sentence_is_a_failed_batch_with_clear_words(toy, tmp_path):
    file = tmp_path / "d.txt"
    file.write_text("the cat sat\n" + "word " * 10_000 + "\n")
    found = textleak.evaluate(**{**toy, "data": str(file)})
    assert [record.status for record in found] == ["done", "failed"]
    assert "too long: 10002 tokens" in found[1].error
    assert len(textleak.evaluate(**{**toy, "data": str(file)}, max_words=50)) == 1


def test_a_time_limit_ends_any_attack_with_its_best_answer(toy, attacks):
    def endless(shared, model):
        position = Position(position=1, id=int(model.content_ids[9]), text="")
        step = 0
        while True:
            step += 1
            yield Progress(
                phase="x",
                step=step,
                total_steps=step,
                sentences=(Sentence(positions=(position,), text="an answer"),),
            )

    attacks("endless", endless)
    (record,) = textleak.evaluate(**{**toy, "attack": "endless", "limit": 1}, time_limit=0.05)
    assert record.stop == Stop.TIME.value
    assert record.status == "done"
    assert record.seconds < 5
    assert record.sentences[0].recovered_tokens[0] not in ("", "[UNK]")


def test_the_figures_of_an_attack_that_is_not_told_of_the_defense_stand_beside_those_of_one_that_is(
    toy, attacks
):
    told = []

    def listening(shared, model):
        told.append(shared.defenses)
        yield Progress(phase="x", step=1)
        return recovery()

    attacks("listening", listening)
    settings = {**toy, "attack": "listening", "limit": 1, "defense": "prune:ratio=0.5"}
    found = textleak.evaluate(**settings, know=[None, "no-defense"])
    assert [len(defenses) for defenses in told] == [1, 0]
    assert [record.cell.know for record in found] == [None, "no-defense"]
    assert {record.cell.defense for record in found} == {("prune:ratio=0.5",)}


def test_no_attack_is_given_what_was_in_the_batch(toy, attacks):
    seen = []

    def curious(shared, model):
        seen.append(shared)
        yield Progress(phase="x", step=1)
        return recovery()

    attacks("curious", curious)
    textleak.evaluate(**{**toy, "attack": "curious", "limit": 1}, know="nothing")
    (shared,) = seen
    assert set(dataclasses.asdict(shared.known).values()) == {None}
    assert "red mat" not in repr(shared)


def test_noise_differs_from_batch_to_batch_but_not_from_attack_to_attack(toy, tmp_path, attacks):
    seen = []

    def listening(shared, model):
        seen.append(next(iter(shared.gradients.values())))
        yield Progress(phase="x", step=1)
        return recovery()

    file = tmp_path / "d.txt"
    file.write_text("the cat sat\n" * 2)
    attacks("one", listening)
    attacks("two", listening)
    settings = {**toy, "attack": ["one", "two"], "defense": "gaussian:sigma=1", "data": str(file)}
    textleak.evaluate(**{**settings, "num_labels": 2})
    first_one, first_two, second_one, second_two = seen
    assert first_one.equal(first_two)
    assert second_one.equal(second_two)
    assert not first_one.equal(second_one)


@pytest.mark.parametrize(
    ("text", "secret", "there"),
    [
        ("the code is 49 21 .", "4921", True),
        ("send it to 12 hill road , second floor", "12 Hill Road", True),
        ("a cafe in town", "Café", True),
        ("call 555 - 0142", "555-0142", True),
        ("the archive", "HIV", False),
        ("the code is 49210", "4921", False),
        ("12 road hill", "12 Hill Road", False),
        ("", "4921", False),
    ],
)
def test_a_secret_is_recovered_when_it_stands_there_whole(text, secret, there):
    assert holds(text, secret) is there


@pytest.mark.parametrize(
    ("tokens", "secret", "found"),
    [
        (("my", "pin", "is", "41", "##23", "."), "4123", {3, 4}),
        (("my", "pin", "is", "41", "##23", "."), "412", set()),
        (("ĠRené", "Ġ", "Ġlives", "Ġhere"), "rene lives", {0, 2}),
        (("▁a", "▁b", "▁a", "▁b"), "A b", {0, 1, 2, 3}),
        (("a", "b"), "", set()),
    ],
)
def test_the_tokens_of_a_secret_are_those_that_its_letters_fill(tokens, secret, found):
    assert tokens_of(tokens, secret) == found


# Answers


def test_a_secret_that_comes_back_in_another_sentence_has_leaked(toy, monkeypatch):
    real = textleak.scoring.score

    def swapped(*args):
        scores = real(*args)
        texts = reversed([score.reference for score in scores.sentences])
        sentences = tuple(
            dataclasses.replace(score, recovered=text)
            for score, text in zip(scores.sentences, texts, strict=True)
        )
        return dataclasses.replace(scores, sentences=sentences)

    monkeypatch.setattr("textleak.scoring.score", swapped)
    settings = EvaluationConfig(**{**toy, "limit": 2}, batch_size=2, know="lengths,batch-size")
    (record,) = run_all(drive.begin(settings, stored=False))
    assert [secret.recovered for secret in record.sentences[0].secrets] == [True, True]


def test_what_rows_name_is_recorded_beside_an_answer_that_is_not_proved(toy):
    found = textleak.evaluate(
        **{**toy, "attack": ["dlg:steps=1,restarts=1", "embedding"]}, share=["all", "no-embeddings"]
    )
    named = {
        (attack, share): found.where(attack=attack, share=share).named_rate()
        for attack, share in (("dlg", "all"), ("dlg", "no-embeddings"), ("embedding", "all"))
    }
    assert named == {("dlg", "all"): 1.0, ("dlg", "no-embeddings"): None, ("embedding", "all"): None}


def test_means_are_over_sentences_and_never_over_nothing(toy):
    found = textleak.evaluate(**toy, batch_size=[1, 2], know="lengths")
    assert len(found) == 6
    assert len(found.where(batch_size=2)) == 2
    assert 0 <= found.mean("rouge1_words", batch_size=2, attack="dlg") <= 1
    assert found.mean("secrets_recovered") == 0
    with pytest.raises(InputError, match="no token_match_rate to take the mean of"):
        found.mean(batch_size=3)
    with pytest.raises(InputError, match=r"(?s)tokenmatch.*token_match_rate"):
        found.mean("tokenmatch")
    with pytest.raises(InputError, match=r"(?s)atack.*attack"):
        found.where(atack="dlg")


@pytest.mark.parametrize(
    ("wanted", "batches"),
    [
        ({"defense": "gaussian:sigma=1e-3"}, {0}),
        ({"defense": ["gaussian:sigma=0.001"]}, {0}),
        ({"defense": {"name": "gaussian", "sigma": 0.001}}, {0}),
        ({"defense": "clip:max_norm=1.0 + gaussian:sigma=1e-2"}, {1}),
        ({"defense": ["clip:max_norm=1", "gaussian:sigma=0.01"]}, {1}),
        ({"defense": ("clip:max_norm=1", "gaussian:sigma=0.01")}, {1}),
        ({"defense": "none"}, {2}),
        ({"defense": None}, {2}),
        ({"defense": "gaussian"}, set()),
        ({"attack": "match"}, {0, 1}),
        ({"attack": "match:span_proposals=false"}, {0}),
        ({"attack": "match:steps=3,limit=5,budget=4000"}, {1}),
        ({"attack": {"name": "match", "budget": 4000, "steps": 3}}, {1}),
        ({"attack": "dlg"}, {2}),
        ({"know": "default"}, {0, 1}),
        ({"know": "lengths"}, {2}),
    ],
)
def test_records_are_found_by_what_a_command_says(wanted, batches):
    kinds = [
        {"attack": "match:span_proposals=False", "defense": ("gaussian:sigma=0.001",)},
        {"attack": "match:budget=4000,steps=3", "defense": ("clip:max_norm=1", "gaussian:sigma=0.01")},
        {"attack": "dlg", "know": "lengths"},
    ]
    found = Records(synthetic.failed(synthetic.cell(**kind), batch, "x") for batch, kind in enumerate(kinds))
    assert {record.batch for record in found.where(**wanted)} == batches
    with pytest.raises(InputError, match="more than one attack"):
        found.where(attack="match,dlg")


def test_records_become_tables(toy, tmp_path):
    import csv

    found = textleak.evaluate(**toy, defense="clip:max_norm=1+gaussian:sigma=0.1")
    found.to_csv(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0]["defense"] == "clip:max_norm=1+gaussian:sigma=0.1"
    assert rows[0]["client"] == "one-step"
    assert json.loads(rows[0]["references"]) == [found[0].sentences[0].reference]
    parquet = pytest.importorskip("pyarrow.parquet")
    found.to_parquet(tmp_path / "r.parquet")
    assert parquet.read_table(tmp_path / "r.parquet").num_rows == 4


def test_a_script_is_warned_once_of_random_weights_that_it_did_not_ask_for(toy, tmp_path):
    settings = {**toy, "weights": "auto", "limit": 2, "out": tmp_path}
    for _ in range(2):  # also where all records are there already
        with pytest.warns(UserWarning, match="random weights") as warned:
            assert len(textleak.evaluate(**settings)) == 2
        assert len(warned) == 1
        assert warned[0].filename == __file__


def test_a_script_says_that_a_huge_grid_is_meant(toy, monkeypatch):
    monkeypatch.setattr(drive, "MANY", 3)
    with pytest.raises(InputError, match="yes=True"):
        textleak.evaluate(**toy)
    assert len(textleak.evaluate(**toy, yes=True)) == 4


@pytest.mark.parametrize("workers", [0, -1])
def test_a_script_needs_a_worker(toy, workers):
    with pytest.raises(InputError, match=f"workers can't be {workers}"):
        textleak.evaluate(**toy, workers=workers)


# The command


def command(*arguments: str):
    return CliRunner().invoke(app, ["eval", *arguments])


def flags(toy) -> list[str]:
    return [
        *("--model", toy["model"], "--weights", "random", "--attack", toy["attack"][0]),
        *("--data", toy["data"], "--limit", "3", "--threads", "1", "--device", "cpu"),
    ]


def test_eval_prints_its_table_and_goes_on(toy, tmp_path):
    arguments = [*flags(toy), "--out", str(tmp_path / "o"), "--csv", str(tmp_path / "r.csv")]
    first = command(*arguments)
    assert first.exit_code == 0, first.stderr
    assert "3/3" in first.stdout
    assert "RANDOM WEIGHTS" in first.stderr
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 4
    again = command(*arguments, "--json")
    assert again.exit_code == 0
    answer = fitting("eval", json.loads(again.stdout))
    assert answer["done"] == answer["batches"] == 3
    assert answer["cells"][0]["token_match_rate"] is not None
    assert len((tmp_path / "o" / "records.jsonl").read_text().splitlines()) == 3


def test_a_csv_file_that_cannot_be_written_is_told_before_anything_is_computed(toy, tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "r.csv"):
        result = command(*flags(toy), "--out", str(tmp_path / "o"), "--csv", str(target))
        assert result.exit_code == 2
        assert "can't be written" in result.stderr
        assert not (tmp_path / "o").exists()


def test_the_table_is_shown_even_where_the_csv_file_fails_at_last(toy, tmp_path, monkeypatch):
    def full(records, path):
        raise InputError(f"{path} can't be written: No space left on device.")

    monkeypatch.setattr(Records, "to_csv", full)
    result = command(*flags(toy), "--out", str(tmp_path / "o"), "--csv", str(tmp_path / "r.csv"))
    assert result.exit_code == 2
    assert "3/3" in result.stdout


def test_eval_counts_its_batches_and_names_the_report(toy, tmp_path):
    result = command(*flags(toy), "--limit", "1", "--out", str(tmp_path / "o"))
    assert "1 batch; records in" in result.stderr
    assert result.stderr.count(f"textleak report {tmp_path / 'o'}") == 1
    dry = command(*flags(toy), "--limit", "1", "--out", str(tmp_path / "o"), "--dry-run")
    assert "1 batch, 0 to do" in dry.stdout


def test_sentences_that_make_no_whole_batch_are_noted(toy, tmp_path):
    for way in ([], ["--dry-run"]):
        result = command(*flags(toy), "-b", "1,2", *way, "--out", str(tmp_path / "o"))
        assert result.stderr.count("Note:") == 1
        assert "four.tsv: the last 1 sentence of 3 left out in batches of 2." in result.stderr
    assert grid.plan(EvaluationConfig(**toy, batch_size=2)).notes() == []


def test_eval_without_out_finds_its_own_folder_again(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path))
    assert command(*flags(toy)).exit_code == 0
    (folder,) = tmp_path.glob("evaluation-four-*")
    assert "3 of them there already" in command(*flags(toy)).stderr
    assert command(*flags(toy), "--seed", "1").exit_code == 0
    assert len(list(tmp_path.glob("evaluation-*"))) == 2
    assert folder.is_dir()


def test_a_failed_batch_shows_in_the_exit_code(toy, tmp_path):
    file = tmp_path / "d.txt"
    file.write_text("the cat sat\n" + "word " * 100 + "\na dog ran\n")
    result = command(*flags(toy), "--data", str(file), "--out", str(tmp_path / "o"))
    assert result.exit_code == 1
    assert "2/3 (1 failed)" in result.stdout
    assert "too long" in result.stderr


def test_a_dry_run_says_the_size_and_how_it_guesses(toy, tmp_path):
    arguments = [*flags(toy), "--out", str(tmp_path / "o")]
    result = command(*arguments, "--dry-run")
    assert result.exit_code == 0
    assert "3 batches, 3 to do" in result.stdout
    assert "rule of thumb" in result.stdout
    assert not (tmp_path / "o").exists()
    command(*arguments)
    found = json.loads(command(*arguments, "--dry-run", "--json").stdout)
    assert (found["batches"], found["left"]) == (3, 0)
    assert "3/3" in command(*arguments, "--dry-run").stdout
    before = {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    other = command(*arguments, "--dry-run", "--seed", "1")
    assert other.exit_code == 2
    assert "belongs to another evaluation" in other.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before
    huge = command(*flags(toy), "--dry-run", "--seed", ",".join(map(str, range(40_000))))
    assert "120,000 batches: too many to list" in huge.stdout


def test_an_interrupt_keeps_all_records_and_shows_the_table(toy, tmp_path, attacks):
    count = 0

    def interrupted(shared, model):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        yield Progress(phase="x", step=1)
        return recovery()

    attacks("interrupted", interrupted)
    result = command(*flags({**toy, "attack": ["interrupted"]}), "--out", str(tmp_path / "o"))
    assert result.exit_code == 130
    assert "2/3" in result.stdout
    assert len(read_records(tmp_path / "o")) == 2


# Killed, and many workers


def test_a_killed_evaluation_ends_with_the_records_of_an_uninterrupted_one(toy, tmp_path):
    outcome = kill_until_done(tmp_path, flags(toy), kills=2, seed=1)
    assert outcome.expected
    assert outcome.identical


def killed_in_the_middle(running, pids) -> list[Record]:
    """All records of an engine, one of whose workers is killed once the first record is there."""
    found = [next(running)]
    until = time.monotonic() + 10
    while not (victims := pids()) and time.monotonic() < until:
        time.sleep(0.01)  # between two batches a worker has another name
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    return found + list(running)


def descendants(pid: int) -> dict[int, str]:
    """Processes below one, with their command lines."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(stat.parent.name)] = int(fields[1])
                names[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes().decode()
    below, found = {pid}, {}
    for _ in range(6):
        for child, parent in parents.items():
            if parent in below and child not in below:
                below.add(child)
                found[child] = names[child]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("copies", [False, True])
def test_processes_give_the_same_records_and_a_killed_one_loses_nothing(toy, tmp_path, copies):
    assert not copies or engines.load_for_copies() or not sys.platform.startswith("linux")
    settings = EvaluationConfig(**toy, batch_size=[1, 2], know="lengths")
    expected = run_all(drive.begin(settings, stored=False))
    evaluation = drive.begin(settings.model_copy(update={"out": tmp_path}))

    def pids() -> list[int]:
        return [process.pid for process in multiprocessing.active_children()]

    found = killed_in_the_middle(evaluation.run(Processes(workers=2, copies=copies)), pids)
    assert alike(found) == alike(expected)
    assert {record.worker for record in found} <= {"process 1", "process 2"}
    assert not multiprocessing.active_children()
    assert run_all(evaluation) == []


def test_a_batch_that_kills_every_process_is_recorded_as_failed(toy, monkeypatch):
    monkeypatch.setattr(engines, "_TRIES", 1)
    evaluation = drive.begin(EvaluationConfig(**{**toy, "limit": 1}), stored=False)
    monkeypatch.setattr(engines._Worker, "give", lambda worker, _: worker.process.kill())
    (record,) = evaluation.run(Processes(workers=1))
    assert record.status == "failed"
    assert "its process died 1 time" in record.error
    assert record.worker == "process 1"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="There are copies on Linux alone.")
def test_the_programs_workers_are_copies_of_one_that_loads_beforehand_unless_there_is_a_gpu(
    toy, tmp_path, monkeypatch
):
    loading, methods = [], []

    class Noted(engines._Worker):
        def __init__(self, order: object, method: str) -> None:
            methods.append(method)
            raise grid.EvaluationError("noted")

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: loading.append(True))
    monkeypatch.setattr(engines, "_Worker", Noted)
    monkeypatch.setattr(engines, "_GPUS", (str(tmp_path / "none"),))
    programs, a_librarys = (engines.choose("local", workers=2, program=program) for program in (True, False))
    assert (programs.copies, a_librarys.copies, loading) == (True, False, [True])
    evaluation = drive.begin(EvaluationConfig(**toy), stored=False)
    for engine, gpu in ((programs, False), (programs, True), (a_librarys, False)):
        monkeypatch.setattr(engines, "_has_gpu", lambda gpu=gpu: gpu)
        with pytest.raises(grid.EvaluationError, match="noted"):
            list(evaluation.run(engine))
    assert methods == ["forkserver", "spawn", "spawn"]
    monkeypatch.setattr(engines, "_GPUS", (str(tmp_path),))
    assert not engines.choose("local", workers=2, program=True).copies
    assert loading == [True]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_end_with_their_parent_however_that_ends(toy, tmp_path):
    command = [sys.executable, "-m", "textleak.cli", "eval", *flags({**toy, "attack": ["dlg:steps=100000"]})]
    with subprocess.Popen([*command, "--workers", "2", "--out", str(tmp_path / "o")]) as process:
        deadline = time.monotonic() + 120
        # The workers, and the one that they are copies of.
        while len(workers := [p for p, c in descendants(process.pid).items() if "forkserver" in c]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
        process.kill()
    while any((Path("/proc") / str(worker)).exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_says_when_no_node_has_the_cores(toy):
    ray = pytest.importorskip("ray", reason="pip install 'textleak[ray]'")
    settings = EvaluationConfig(**{**toy, "threads": 999})
    with pytest.raises(InputError, match=r"(?s)999 cores.*--threads"):
        list(drive.begin(settings, stored=False).run(Ray()))
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_ray_gives_the_same_records_and_a_killed_worker_loses_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default: they starve on a busy machine
    pytest.importorskip("ray", reason="pip install 'textleak[ray]'")
    settings = EvaluationConfig(**{**toy, "attack": ["dlg:steps=100"]}, batch_size=[1, 2], know="lengths")
    expected = run_all(drive.begin(settings, stored=False))
    evaluation = drive.begin(settings.model_copy(update={"out": tmp_path}))

    def pids() -> list[int]:
        return [
            pid for pid, command in descendants(os.getpid()).items() if command.startswith("ray::_on_ray")
        ]

    found = killed_in_the_middle(evaluation.run(Ray(workers=2)), pids)
    assert alike(found) == alike(expected)
    assert all(record.worker.startswith("ray ") for record in found)
    assert run_all(evaluation) == []


def test_a_failure_says_which_batch_it_was(capsys):
    of = synthetic.cell(data="mails.csv")
    found = [synthetic.failed(of, batch, "too long") for batch in (7, 3)]
    evaluate._say_failures(Records([*found, synthetic.failed(of, 1, "out of memory")]))
    assert capsys.readouterr().err.splitlines() == [
        "Failed (batch 1 of mails.csv): out of memory",
        "Failed (batch 3 of mails.csv and 1 more): too long",
        "--retry-failed takes failed batches again.",
    ]
    evaluate._say_failures(Records())
    assert not capsys.readouterr().err


# The table


def four_cells() -> drive.Evaluation:
    """Two models, two attacks: a cell that is done, one that the time limit ended, and two to come."""
    settings = EvaluationConfig(
        data=["sample"],
        model=["bert-tiny", "minilm"],
        limit=2,
        time_limit=4,
        defense=["gaussian:sigma=0.001"],
        attack=["auto", "dlg:steps=100"],
    )
    evaluation = drive.Evaluation(grid.plan(settings), None)
    first, second, *_ = [cell for cell, _ in evaluation.plan.cells()]
    words = synthetic.sentence(["nobody", "told", "the", "bank"])
    wrong = synthetic.sentence(["nobody", "told", "the", "bank"], ["x", "x", "x", "x"])
    for record in (
        dataclasses.replace(synthetic.done(first, 0, words), stop=Stop.TIME.value),  # verified: it had it all
        dataclasses.replace(synthetic.done(second, 0, wrong), stop=Stop.TIME.value),
        dataclasses.replace(synthetic.done(second, 1, wrong), stop=Stop.CONVERGED.value),
    ):
        evaluation._records[record.cell, record.batch] = record
    return evaluation


def shown(evaluation: drive.Evaluation, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table.render(evaluation))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [50, 80, 100, 200])
def test_a_narrow_table_gives_up_figures_but_no_name(width):
    text = shown(four_cells(), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for name in ("bert-tiny", "minilm", "auto", "dlg:steps=", "batches", "match"):
        assert name in text
    assert ("n/D" in text.splitlines()[2]) == (width == 200)
    assert ("Not shown" in text) == (width < 200)


def test_cells_are_told_apart_by_how_their_client_trains():
    config = EvaluationConfig(client=["one-step", "fedavg:lr=1e-2,steps=4"])
    evaluation = drive.Evaluation(grid.plan(config), None)
    text = shown(evaluation, 200)
    assert "one-step" in text
    assert "fedavg:lr=0.01,steps=4" in text
    cells = [cell for cell, _ in evaluation.plan.cells()]
    records = Records(synthetic.done(cell, 0, synthetic.sentence(["a", "b"])) for cell in cells)
    assert [one.cell for one in records.where(client="fedavg:steps=4,lr=0.010")] == cells[1:]
    assert [one.cell for one in records.where(client="one-step")] == cells[:1]


def test_the_table_counts_as_verified_what_can_be():
    evaluation = four_cells()
    records = evaluation._records
    first, second, *_ = [cell for cell, _ in evaluation.plan.cells()]
    for batch in (0, 1):  # behind noise nobody can tell
        records[second, batch] = dataclasses.replace(records[second, batch], verified=None)
    records[first, 1] = dataclasses.replace(records[first, 0], batch=1, verified=None)
    assert [(row.counts.verified, row.counts.verifiable) for row in table.rows(evaluation)] == [
        (1, 1),
        (0, 0),
        (0, 0),
        (0, 0),
    ]
    lines = [line.split() for line in shown(evaluation, 200).splitlines() if "bert-tiny" in line]
    assert [("1/1" in line, "–" in line) for line in lines] == [(True, False), (False, True)]


def test_the_table_says_what_the_time_limit_ended():
    text = shown(four_cells(), 200)
    assert "time limit 4 s" in text
    assert "1 of 3 batches was cut off before the attack was done" in text
    assert "1/2" in next(line for line in text.splitlines() if "dlg" in line and "bert-tiny" in line)
    assert [row.counts.cut_off for row in table.rows(four_cells())] == [0, 1, 0, 0]


def test_nothing_is_drawn_over_the_warning_of_random_weights(toy, monkeypatch):
    """A second console would write into the live table's lines, which erases the warning half a second later."""
    consoles = []
    terminal = Console(width=100, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(common, "stderr", lambda: terminal)
    monkeypatch.setattr(common, "say_weights", lambda *_, console=None: consoles.append(console))
    evaluation = drive.Evaluation(grid.plan(EvaluationConfig(**toy)), None)
    evaluate._drive(evaluation, Local(), retry_failed=False)
    assert consoles == [terminal]
