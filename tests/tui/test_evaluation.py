"""An evaluation's folder in the app: its cells, a cell's sentences, one of them attacked again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

import textleak
from tests import warm
from tests.tui import pilots
from tests.tui.pilots import screen, until
from textleak.attacks.base import to_end
from textleak.evaluation.records import Cell, Record, SentenceRecord, to_json
from textleak.evaluation.store import Following
from textleak.jobs.text import prepare
from textleak.runs import Recorder, RunFolder
from textleak.settings import load_run_config
from textleak_tui import catalog, export, replays
from textleak_tui.app import TextleakApp, build_app
from textleak_tui.catalog import Catalog
from textleak_tui.grid import Grid, Pace, judged, values_of
from textleak_tui.grid_cells import FIGURES, Writing, fitting, narrowed
from textleak_tui.grid_ladders import ladders_of
from textleak_tui.screens.evaluation import EvaluationScreen
from textleak_tui.screens.replay import ReplayScreen
from textleak_tui.screens.run import RunScreen
from textleak_tui.session import Sessions
from textleak_tui.settings import Memory
from textleak_tui.setups import layers, settings_of
from textleak_tui.widgets.run_table import within
from textleak_tui.widgets.setup_form import SetupForm

IDENTITY = "0123456789abcdef"
CELL = Cell(data="mails.csv", batch_size=1, model="bert-tiny", attack="auto", seed=3)
NOISY = dataclasses.replace(CELL, defense=("gaussian:sigma=0.01",))


def record(cell: Cell, batch: int, rate: float) -> Record:
    scores = dict.fromkeys(
        ("token_match_rate", "token_recall", "rouge1", "rouge2", "rougeL", "rouge1_words", "rouge2_words"),
        rate,
    )
    sentence = SentenceRecord(
        reference=f"the secret of batch {batch}",
        recovered=f"found {rate} in batch {batch}",
        reference_tokens=(),
        recovered_tokens=(),
        exact=rate == 1,
        rougeL_words=rate,
        label=None,
        recovered_label=None,
        **scores,
    )
    return Record(
        identity=IDENTITY,
        cell=cell,
        batch=batch,
        status="done",
        sentences=(sentence,),
        exact_rate=float(rate == 1),
        rougeL_words=rate,
        verified=rate == 1,
        seconds=2.0,
        stop="The search found nothing better.",
        **scores,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A grid of two cells and six batches, of which three are done."""
    path = tmp_path / "grid"
    path.mkdir()
    facts = {"format": 1, "identity": IDENTITY, "settings": {"data": ["mails.csv"]}, "batches": 6}
    (path / "evaluation.json").write_text(json.dumps(facts))
    write(path, record(CELL, 0, 0.5), record(CELL, 1, 1.0), record(NOISY, 0, 0.0))
    return path


def write(path: Path, *records: Record) -> None:
    with (path / "records.jsonl").open("a") as file:
        file.writelines(json.dumps(to_json(one)) + "\n" for one in records)


def test_records_make_cells_and_the_worst_sentence_comes_first() -> None:
    grid = Grid()
    grid.take([record(CELL, 0, 0.5), record(NOISY, 0, 0.0)])
    assert grid.take([record(CELL, 1, 1.0)]) == {CELL}
    rows = grid.rows
    assert [row.cell for row in rows] == [CELL, NOISY]
    assert [one.record.batch for one in rows[0].sentences(blind=False)] == [1, 0]
    assert [one.record.batch for one in rows[0].sentences(blind=True)] == [0, 1]
    assert rows[0].rate is not None
    assert (rows[0].rate.mean, rows[0].rate.low, rows[0].rate.high) == (0.75, 0.5, 1.0)
    worst = grid.worst
    assert worst is not None
    assert (worst[0].cell, worst[1].record.batch) == (CELL, 1)
    grid.take([record(CELL, 1, 0.25)])
    assert grid.batches == 3, "a batch that was taken again counts once"
    values = values_of(record(NOISY, 1, 0.0), {"time_limit": 90.0, "dtype": "float64", "num_labels": None})
    assert (values["attack"], values["defenses"], values["seed"]) == ("auto", "gaussian:sigma=0.01", "3")
    assert (values["time_limit"], values["assignments"]) == ("90s", "of_batch=1 dtype=float64")


@pytest.mark.parametrize("rows", ["sentence\n{}\n{}\n", "sentence,label\n{},2\n{},1\n"])
def test_a_sentence_attacked_again_has_the_gradient_and_the_starts_of_its_evaluation(
    rows: str, tmp_path: Path, toy_folder: Callable[[str], Path]
) -> None:
    data, folder = tmp_path / "mails.csv", tmp_path / "grid"
    data.write_text(rows.format("the cat sat", "the dog ran"))
    asked = {"defense": "gaussian:sigma=0.01", "num_labels": 3, "threads": 1}
    textleak.evaluate(
        model=str(toy_folder("bert")),
        data=str(data),
        attack="dlg:steps=2",
        weights="random",
        seed=3,
        out=folder,
        **asked,
    )
    following = Following(folder)
    found = {one.batch: one for one in following.look()}[1]
    assert found.status == "done", found.error
    assert found.labels_given is ("label" in rows)

    def loss(**changes: str) -> float | None:
        values = {**values_of(found, following.facts["settings"]), "threads": "1", **changes}
        preset, settings, assignments = layers(settings_of(["the dog ran"], values))
        return to_end(prepare(load_run_config(preset, settings, assignments)).steps()).final_loss

    assert loss() == pytest.approx(found.final_loss, rel=1e-4)
    assert loss(assignments="num_labels=3") != pytest.approx(found.final_loss, rel=1e-2)


def test_runs_of_batches_are_remembered_as_long_as_they_are_there(tmp_path: Path) -> None:
    memory, path = Memory(tmp_path / "tui.json"), tmp_path / "run"
    one, other = record(CELL, 0, 0.5), record(CELL, 1, 0.5)
    assert replays.folder_of(memory, one) is None
    replays.keep(memory, replays.name_of(one), path)
    assert replays.folder_of(memory, one) is None, "nothing is there yet"
    path.mkdir()
    (path / "run.json").touch()
    assert replays.folder_of(Memory(tmp_path / "tui.json"), one) == path.resolve()
    assert replays.folder_of(memory, other) is None
    assert replays.folder_of(memory, record(NOISY, 0, 0.5)) is None
    assert "secret" not in (tmp_path / "tui.json").read_text()
    for number in range(replays.MOST):
        replays.keep(memory, str(number), path)
    assert replays.folder_of(memory, one) is None
    assert len(memory.texts("replays")) == replays.MOST


def test_a_grid_is_judged_by_its_cells_means_and_passes_only_as_a_whole() -> None:
    grid = Grid()
    grid.take([record(CELL, 0, 0.5), record(CELL, 1, 0.0), record(NOISY, 0, 0.0)])
    failed = judged(grid.rows, 0.2, whole=False)
    assert (failed.passed, failed.words) == (False, "FAIL: 1 of 2 cells above 0.20")
    assert judged(grid.rows, 0.25, whole=False).passed is None
    assert judged(grid.rows, 0.25, whole=True).passed
    assert judged([], 0.25, whole=True).passed is None, "nothing was measured"


def test_cells_with_one_option_of_one_defense_make_a_ladder_for_each_attack() -> None:
    def cell(*defense: str, attack: str = "auto") -> Cell:
        return dataclasses.replace(CELL, defense=defense, attack=attack)

    grid = Grid()
    rates = {
        cell("gaussian:sigma=10"): 0.0,
        cell("gaussian:sigma=9"): 0.25,
        cell("gaussian:sigma=1e-3"): 1.0,
        cell(): 1.0,
        cell("gaussian:sigma=9", attack="dlg"): 0.5,  # alone: no ladder
        cell("sign"): 0.5,
        cell("gaussian:sigma=1", "sign"): 0.5,
        cell("prune:ratio=0.9,per=tensor"): 0.5,
    }
    grid.take(record(one, 0, rate) for one, rate in rates.items())
    (found,) = ladders_of(grid.rows)
    assert found.name == "gaussian sigma against auto"
    assert found.rates == (("none", 1.0), ("1e-3", 1.0), ("9", 0.25), ("10", 0.0))
    assert found.words == "From 9 on less than half of the text leaked: 25% at 9."


@pytest.mark.parametrize(
    ("room", "left_out"),
    [(94, ()), (85, ("s/batch",)), (69, ("s/batch", "exact", "batches")), (9, FIGURES[:1] + FIGURES[2:])],
)
def test_columns_that_do_not_fit_are_left_out_one_after_another(room: int, left_out: tuple[str, ...]) -> None:
    widths = {"attack": 9, "defense": 19, **dict(zip(FIGURES, (7, 14, 9, 5, 10, 7, 7), strict=True))}
    shown = fitting(widths, room, ("secrets",))
    assert set(widths) - set(shown) == {*left_out, "secrets"}
    assert room < 30 or sum(widths[name] + 2 for name in shown) - 2 <= room


@pytest.mark.parametrize("most", [8, 15, 16, 20])
def test_a_setting_that_is_cut_keeps_its_beginning_and_its_strength(most: int) -> None:
    weak, strong = (within(f"gaussian:sigma={sigma}", most) for sigma in ("0.0001", "0.0005"))
    assert weak != strong
    assert len(weak) == len(strong) == most
    assert weak.startswith("gau")
    assert weak.endswith("001")
    assert within("sign", most) == "sign"


def test_the_widest_settings_are_cut_first_and_none_to_nothing() -> None:
    widths = {"attack": 6, "share": 13, "client": 14, "defense": 21}
    assert narrowed(widths, 0) == {}
    assert narrowed(widths, -5) == {}
    assert narrowed(widths, 4) == {"defense": 17}
    found = {**widths, **narrowed(widths, 20)}
    assert sum(widths.values()) - sum(found.values()) == 20
    assert max(found.values()) - min(found[name] for name in ("share", "client", "defense")) <= 1
    assert narrowed(widths, 99) == {"share": 8, "client": 8, "defense": 8}
    assert narrowed({}, 3) == {}


def test_a_cell_in_which_all_failed_says_so() -> None:
    grid = Grid()
    grid.take([Record(identity=IDENTITY, cell=CELL, batch=0, status="failed", error="no memory")])
    writing = Writing(blind=True, limit=None, colors=dict.fromkeys(("error", "border-blurred"), "red"))
    figures = writing.figures(grid.rows[0])
    assert figures["match rate"].plain == "✗ failed"
    assert figures["verified"].plain == ""


def test_the_time_left_goes_by_what_came_since_one_looks() -> None:
    pace = Pace()
    assert pace.left(100.0, 10, 40) is None
    assert pace.left(110.0, 10, 40) is None
    assert pace.left(120.0, 20, 40) == 40.0
    assert pace.left(120.0, 20, None) is None


def test_a_grid_that_fills_is_followed_and_its_worst_sentence_attacked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)
    started: list[list[str]] = []

    def start(page: RunScreen, kept_as: str) -> None:
        """It has begun at once."""
        started.append(page.form.private_batch)
        run = RunFolder.create(tmp_path / "runs" / f"again-{len(started)}", name="again")
        with Recorder(run, {"model": "bert-tiny", "attack": "auto", "sentences": started[0], "seed": 3}):
            replays.keep(page.memory, kept_as, run.path)

    monkeypatch.setattr(RunScreen, "_start", start)
    app = build_app(run=folder, root=tmp_path / "runs")

    async def look(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: isinstance(app.screen, EvaluationScreen) and app.screen.grid.rows)
        page = app.screen
        assert isinstance(page, EvaluationScreen)
        await pilot.pause(0.1)
        seen = screen(app)
        assert "⏎ Open" in seen
        assert "2 cells · 3 of 6 batches" in seen
        assert "gaussian:sigma=0.01" in seen
        assert "0.75 ━━━━━━╌╌" in seen
        assert "1 of 2" in seen, "verified"
        await pilot.press("plus")
        await pilot.pause(0.1)
        assert "FAIL: 1 of 2 cells above 0.10" in screen(app)
        assert "worst so far 1.00 (auto, no" in screen(app)
        write(folder, record(NOISY, 1, 0.0))
        await until(pilot, lambda: "4 of 6 batches" in screen(app))
        await pilot.press("b")
        await pilot.pause(0.1)
        assert "0.75" not in screen(app)
        assert "FAIL" not in screen(app)
        await pilot.press("b", "l")
        await pilot.pause(0.1)
        seen = screen(app)
        assert "Match rate past gaussian sigma against auto" in seen
        assert "From 0.01 on less than half of the text leaked: 0% at 0.01." in seen
        assert "0.75" in seen
        assert not page.table.display
        await pilot.press("b")
        await pilot.pause(0.1)
        assert "0.75" not in screen(app)
        assert "half" not in screen(app)
        await pilot.press("b", "escape")
        await pilot.pause(0.1)
        assert page.table.display
        await pilot.press("w")
        await pilot.pause(0.1)
        assert page.chosen == CELL
        assert "⏎ Attack again" in screen(app)
        await pilot.press("escape", "enter")
        await pilot.pause(0.1)
        seen = screen(app)
        assert seen.index("found 1.0 in batch 1") < seen.index("found 0.5 in batch 0")
        assert "the secret" not in seen, "the truth was not asked for"
        assert "y Copy text" in seen
        await pilot.press("down", "y")
        assert app.clipboard == "found 0.5 in batch 0"
        await pilot.press("up", "t")
        await pilot.pause(0.1)
        assert "the secret of batch 1" in screen(app)
        await pilot.press("escape")
        assert page.chosen is None
        await pilot.press("enter", "enter")
        await until(pilot, lambda: started)
        assert started == [["the secret of batch 1"]]
        assert app.current_mode == "run"
        assert isinstance(app.screen, RunScreen)
        assert app.screen.form.values["seed"] == "3"
        assert app.screen.form.values["assignments"] == "of_batch=1"
        await until(pilot, lambda: "F3 goes back to the evaluation" in screen(app))
        await pilot.press("f3")
        await until(pilot, lambda: "⏎ Replay" in screen(app))
        assert "Enter replays it as it was attacked again" in screen(app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
        assert isinstance(app.screen, ReplayScreen)
        assert app.screen.folder == (tmp_path / "runs" / "again-1").resolve()
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is page)
        await pilot.press("down")
        await until(pilot, lambda: "⏎ Attack again" in screen(app))
        await pilot.press("up", "a")
        await until(pilot, lambda: len(started) == 2)

    async def drive() -> None:
        async with app.run_test(size=(120, 30), notifications=True) as pilot:
            await look(pilot)

    asyncio.run(drive())


def test_a_grid_is_set_up_started_and_watched_to_its_end(
    tmp_path: Path, toy_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tui")]))

    async def nothing() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)
    data = tmp_path / "mails.txt"
    data.write_text("the cat sat\nthe dog ran\n")
    values = {"model": str(toy_folder("bert")), "attack": "span", "defense": "none sign", "threads": "1"}

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        form = app.screen.query_one(SetupForm)
        await pilot.press("m", "y")
        assert form.sentences.text == "my", "in place of the first data"
        form.fill(values, str(data))
        await pilot.pause()
        assert "--defense none --defense sign" in str(form.command.content)
        await pilot.press("f5")
        await until(pilot, lambda: isinstance(app.screen, EvaluationScreen))
        page = app.screen
        assert isinstance(page, EvaluationScreen)
        await until(pilot, lambda: page.grid.batches == 4)
        assert [row.cell.defense for row in page.grid.rows] == [(), ("sign",)]
        await until(pilot, lambda: "4 of 4 batches" in screen(app))
        await until(pilot, lambda: "1.00 ━━━━━━━━" in screen(app))
        assert "worst 1.00" in screen(app)
        await until(pilot, lambda: page.session is not None and page.session.settled)
        page.planned = 6  # it was stopped before
        page._draw()
        await until(pilot, lambda: "■ stopped · 2 cells · 4 of 6 batches" in screen(app))
        assert " left" not in screen(app).splitlines()[1]
        page.planned = 4
        await pilot.press("e")
        report = tmp_path / export.EXPORTS / page.folder.name / "report.html"
        await until(pilot, lambda: report.exists() and "</html>" in report.read_text())
        assert ">sign<" in report.read_text()
        await pilot.press("b", "e")
        await until(pilot, lambda: any("truth" in str(told.title) for told in app._notifications))
        await pilot.press("b", "escape")
        assert not isinstance(app.screen, EvaluationScreen)
        form.fill({**values, "defense": "no-such"}, str(data))
        await pilot.pause()
        await pilot.press("f5")
        await until(pilot, lambda: isinstance(app.screen, EvaluationScreen))
        await until(pilot, lambda: "no-such" in screen(app).partition("batches")[0])
        app.screen.post_message(EvaluationScreen.Looked(problem="It has no folder."))
        await pilot.pause()
        assert "no-such" in screen(app).partition("batches")[0], "why it has none"
        assert app.memory.texts("grid fields")["defense"] == "none sign", "not those that were refused"

    pilots.play(scene, Sessions(tmp_path / "runs"), place="grid", size=(140, 30))


def test_a_grid_is_a_map_of_two_of_its_settings(tmp_path: Path) -> None:
    def cell(defense: str, client: str) -> Cell:
        return dataclasses.replace(
            CELL, defense=(defense,) if defense else (), client=(client,) if client else ()
        )

    rates = {("", ""): 1.0, ("", "train-mode"): 0.5, ("sign", ""): 0.25, ("dpsgd", "train-mode"): 0.0}
    path = tmp_path / "grid"
    path.mkdir()
    (path / "evaluation.json").write_text(
        json.dumps({"format": 1, "identity": IDENTITY, "settings": {}, "batches": 4})
    )
    write(path, *(record(cell(*of), 0, rate) for of, rate in rates.items()))

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = app.screen
        assert isinstance(page, EvaluationScreen)
        await until(pilot, lambda: page.grid.batches == 4)
        await pilot.press("m", "plus")
        await pilot.pause()
        lines = screen(app).splitlines()
        at = next(i for i, line in enumerate(lines) if "defense ↓ client →" in line)
        assert lines[at].split()[-2:] == ["one-step", "train-mode"]
        assert [line.split() for line in lines[at + 1 : at + 4]] == [
            ["none", "1.00", "✗", "0.50", "✗"],
            ["sign", "0.25", "✗"],
            ["dpsgd", "0.00"],
        ]
        await pilot.press("b")
        await pilot.pause()
        assert "0.50" not in screen(app)
        await pilot.press("b", "down", "enter")
        await pilot.pause()
        assert "match rate" in screen(app)
        assert page.grid.rows[page.table.cursor].cell.defense == ("sign",)

    pilots.play(scene, Sessions(tmp_path), run=path)
