"""A ladder of one defense: which runs it is, and what the screen makes of them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.tui.pilots import play, screen, until
from textleak.errors import InputError
from textleak.events import Finished, Phase, Position, Progress, Sentence, Truth
from textleak.runs import Recorder, RunFolder
from textleak_tui import catalog, export, ladder
from textleak_tui.agreed import REFUSED
from textleak_tui.app import TextleakApp
from textleak_tui.catalog import Catalog
from textleak_tui.child import Child, Failure
from textleak_tui.ladder import Knob, knob_named, knobs, strengths, verdict
from textleak_tui.screens.base import Page
from textleak_tui.screens.defense import DefenseScreen
from textleak_tui.screens.replay import ReplayScreen
from textleak_tui.session import Sessions
from textleak_tui.settings import Memory
from textleak_tui.widgets.bars import brief

CATALOG = Catalog.from_json(
    {
        "attacks": [{"name": name, "summary": "", "options": []} for name in ("auto", "dlg", "match")],
        "defenses": [
            {
                "name": "gaussian",
                "summary": "noise",
                "options": [{"name": "sigma", "type": "float", "default": 1e-3, "doc": "its deviation"}],
            },
            {
                "name": "prune",
                "summary": "zeros",
                "options": [
                    {"name": "ratio", "type": "float", "default": 0.9, "doc": "the share"},
                    {
                        "name": "which",
                        "type": "Literal['smallest', 'random']",
                        "default": "smallest",
                        "doc": "",
                    },
                ],
            },
            {"name": "topk", "options": [{"name": "ratio", "type": "float", "default": 0.01}]},
            {"name": "dpsgd", "options": [{"name": "delta", "type": "float | None", "default": None}]},
            {"name": "sign", "summary": "signs", "options": []},
        ],
    }
)
SIZES = [(160, 48), (100, 30), (80, 24), (60, 16), (50, 12)]


def test_every_option_that_can_grow_makes_a_ladder():
    names = [knob.name for knob in knobs(CATALOG)]
    assert names == ["gaussian sigma", "prune ratio", "prune which", "topk ratio", "sign"]


@pytest.mark.parametrize(
    ("name", "rungs"),
    [
        ("gaussian sigma", ("none", "0.0001", "0.001", "0.01")),
        ("gaussian", ("none", "0.0001", "0.001", "0.01")),
        ("prune ratio", ("none", "0.5", "0.9", "0.99")),
        ("topk ratio", ("none", "0.1", "0.01", "0.001")),
        ("prune which", ("none", "smallest", "random")),
        ("sign", ("none", "on")),
    ],
)
def test_a_ladder_begins_around_the_defense_s_own_strength(name, rungs):
    assert knob_named(CATALOG, name).suggested() == rungs


def test_each_rung_is_a_run_of_its_own_with_the_same_seed():
    knob = knob_named(CATALOG, "gaussian sigma")
    values = {"model": "minilm", "seed": "7", "defenses": "sign"}
    lines = ladder.command_lines(["it's a secret", "-x"], values, knob, ["none", "0", "1e-3"])
    assert lines[0] == lines[1]
    words = [shlex.split(line) for line in lines]
    assert words[0][:8] == ["textleak", "run", "--model", "minilm", "--defense", "sign", "--seed", "7"]
    assert words[0][8:] == ["--sentence", "it's a secret", "--sentence=-x"]
    assert words[2][4:8] == ["--defense", "sign", "--defense", "gaussian:sigma=1e-3"]
    assert ladder.knob_named(CATALOG, "sign").spec("on") == "sign"
    assert ladder.knob_named(CATALOG, "topk ratio").spec("0") == "topk:ratio=0"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gaussian sigma", "", "no rung"),
        ("gaussian sigma", "none, big", "'big' is not a number"),
        ("prune which", "none, largest", "not one of smallest, random"),
        ("sign", "off", "not one of on"),
        ("gaussian sigma", ", ".join(map(str, range(40))), "too many"),
    ],
)
def test_a_ladder_that_can_t_be_climbed_is_refused(name, text, words):
    with pytest.raises(InputError, match=words):
        strengths(knob_named(CATALOG, name), text)


def test_rungs_are_read_as_they_are_written_each_once():
    assert strengths(knob_named(CATALOG, "gaussian"), " none,1e-3 0.1,1e-3,") == ["none", "1e-3", "0.1"]


def test_an_unknown_defense_names_the_known_ones():
    with pytest.raises(InputError) as error:
        knob_named(CATALOG, "gausian")
    assert "gaussian sigma" in error.value.fix
    with pytest.raises(InputError, match="still being asked"):
        knob_named(Catalog(), "gaussian sigma")


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([("none", 1.0), ("0.1", 1.0)], "kept nothing back"),
        ([("none", 1.0), ("0.1", 0.7)], "at least half of the text leaked; least at 0.1, 70%"),
        ([("none", 1.0), ("0.1", 0.2), ("1", 0.0)], "From 0.1 on less than half of the text leaked: 20%"),
        ([("none", 1.0), ("0.1", 0.2), ("1", 0.8)], "At 0.1 less than half"),
        ([], "No run"),
    ],
)
def test_the_verdict_fits_the_ladder(rates, words):
    assert words in verdict(Knob(defense="gaussian", option="sigma"), rates)


@pytest.mark.parametrize(
    ("strength", "most", "written"),
    [
        ("0.0001", 4, "1e-4"),
        ("0.001", 4, "1e-3"),
        ("0.01", 4, "0.01"),
        ("0.00025", 6, "2.5e-4"),
        ("smallest", 4, "s…st"),
        ("0.12345", 4, "0…45"),
        ("none", 4, "none"),
    ],
)
def test_strengths_below_narrow_bars_are_told_apart(strength, most, written):
    assert brief(strength, most) == written
    assert len(written) <= most


def test_the_verdict_says_nothing_of_strengths_that_did_not_run():
    knob = Knob(defense="gaussian", option="sigma")
    told = verdict(knob, [("none", 1.0), ("0.1", 0.2)], unrun=["1"])
    assert told == "At 0.1 less than half of the text leaked: 20% at 0.1. Nothing is known of 1."
    kept = verdict(knob, [("none", 1.0)], unrun=["0.1", "1"])
    assert "at every strength that ran. Nothing is known of 0.1, 1." in kept


def answer(*words: str) -> Sentence:
    return Sentence(
        positions=tuple(Position(position=at, id=len(word), text=word) for at, word in enumerate(words)),
        text=" ".join(words),
    )


class FakeChild(Child):
    """A process that writes a run: the more noise, the less of it is right."""

    started: ClassVar[list[dict[str, Any]]] = []
    going_on = 0
    hold = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._over = False
        self._task: asyncio.Task[None] | None = None

    async def start(self, command: str, settings: Mapping[str, Any]) -> None:
        assert command == "run"
        assert FakeChild.going_on == 0, "one after another"
        FakeChild.going_on += 1
        FakeChild.started.append(dict(settings))
        self._task = asyncio.create_task(self._run(" ".join(settings.get("defenses", []))))

    async def _run(self, words: str) -> None:
        await asyncio.sleep(0.05)
        if "sigma=0.01" not in words:
            right = 4 if "sigma" not in words else 1
            with Recorder(RunFolder.create(self.folder, name="x"), {"model": "toy", "seed": 0}) as recorder:
                recorder.record(Truth(sentences=(answer("a", "bb", "ccc", "dddd"),)))
                recorder.record(Phase(name="continuous"))
                found = answer(*("a", "bb", "ccc", "dddd")[:right], *["x" * 9] * (4 - right))
                recorder.record(Progress(phase="continuous", step=1, loss=0.5, sentences=(found,)))
                recorder.record(Phase(name="verify"))
                while FakeChild.hold and not self.stopping:
                    await asyncio.sleep(0.02)
                result = {
                    "token_match_rate": right / 4,
                    "verified": right == 4,
                    "seconds": 3.0,
                    "sentences": [],
                }
                recorder.record(Finished(outcome="stopped" if self.stopping else "done", result=result))
        self._over = True
        FakeChild.going_on -= 1

    @property
    def ended(self) -> bool:
        return self._over

    def stop(self) -> None:
        self.stopping += 1

    async def end(self, seconds: float = 0.0) -> None:
        self.stopping += 1
        if self._task is not None:
            await self._task

    def failure(self) -> Failure:
        return Failure(
            what="It ran out of memory.", why="So the system says.", fix="Buy more.", lines=("last words",)
        )


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listed() -> Catalog:
        await asyncio.sleep(0.05)
        return CATALOG

    monkeypatch.setattr(catalog, "list_catalog", listed)
    monkeypatch.setattr("textleak_tui.screens.run.RunScreen", lambda *_: Page("run"))
    monkeypatch.setattr(FakeChild, "started", [])
    monkeypatch.setattr(FakeChild, "going_on", 0)
    monkeypatch.setattr(FakeChild, "hold", False)


def drive(
    root: Path,
    steps: Callable[[DefenseScreen, Pilot[None]], Awaitable[object]],
    *,
    size: tuple[int, int] = (120, 40),
    settings: Path | None = None,
    child: type[Child] = FakeChild,
    alone: bool = False,
) -> None:
    """The app at its defense screen."""

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        assert isinstance(app.screen, DefenseScreen)
        await steps(app.screen, pilot)

    play(scene, Sessions(root, child), place="defenses", memory=Memory(settings), size=size, alone=alone)


def test_a_ladder_runs_rung_by_rung_and_says_what_it_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        app = page.app
        assert "Nothing has run yet" in screen(app)
        await until(pilot, lambda: page.form.catalog.defenses)
        await pilot.press(*"a bb")
        assert "$ textleak run --defense gaussian:sigma=0.0001 --sentence 'a bb'" in screen(app)
        await pilot.press("f5")
        await until(pilot, lambda: page.rungs and not page.going)
        await until(pilot, lambda: "✗ failed" in screen(app))
        assert [rung.status for rung in page.rungs] == ["done", "done", "done", "failed"]
        assert [rung.rate for rung in page.rungs] == [1.0, 0.25, 0.25, None]
        text = screen(app)
        for words in ("✓ done", "✗ failed", "1.00 ━━━━━━━━", "0.25 ━━╌╌╌╌╌╌", "✓ yes", "3.0 s"):
            assert words in text, words
        told = "At 0.0001 less than half of the text leaked: 25% at 0.0001. Nothing is known of 0.01."
        assert told in text
        await pilot.press("end", "down", "down", "down")
        assert "✗ 0.01: It ran out of memory. So the system says. Buy more." in screen(app)
        assert "last words" in screen(app)
        await pilot.press("e")
        await pilot.pause(0.1)
        await pilot.press("b")
        assert "0.25" not in screen(app)
        await pilot.press("b", "up", "enter")
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
        assert app.screen.folder == page.rungs[2].session.folder

    drive(tmp_path / "runs", look)
    assert FakeChild.started == [
        {"sentences": ["a bb"]},
        *(
            {"defenses": [f"gaussian:sigma={sigma}"], "sentences": ["a bb"]}
            for sigma in ("0.0001", "0.001", "0.01")
        ),
    ]
    (folder,) = (tmp_path / export.EXPORTS).iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["ladder.json", "ladder.md", "screen.svg"]
    table = (folder / "ladder.md").read_text()
    assert "| 0.001 | done | 0.25 | no | 3.0 |" in table
    assert "textleak run --defense gaussian:sigma=0.001 --sentence 'a bb'" in table
    assert json.loads((folder / "ladder.json").read_text())["rungs"][0]["result"]["token_match_rate"] == 1.0


def test_a_table_that_is_drawn_before_it_was_idle_is_not_cut_off(tmp_path):
    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        await pilot.press("a", "f5")
        await until(pilot, lambda: page.rungs and not page.going)
        page.refresh_view()
        assert "✗ failed" in screen(page.app)
        await pilot.pause(0.1)
        assert "✗ failed" in screen(page.app)

    drive(tmp_path, look)


def test_stopping_keeps_the_best_answer_and_leaves_out_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeChild, "hold", True)

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        await pilot.press("a", "enter")
        await until(pilot, lambda: page.rungs and page.rungs[0].status == "running")
        await pilot.pause(0.1)
        assert "0 of 4 rungs are done" in screen(page.app)
        assert "● verify" in screen(page.app) or "● continuous" in screen(page.app)
        await pilot.press("x")
        await until(pilot, lambda: not page.going)
        assert [rung.status for rung in page.rungs] == ["stopped", "not run", "not run", "not run"]
        assert len(FakeChild.started) == 1
        await pilot.pause(0.1)
        assert "■ stopped" in screen(page.app)
        monkeypatch.setattr(FakeChild, "hold", False)
        await pilot.press("n", "f5")
        await until(pilot, lambda: page.rungs[0].status == "done")

    drive(tmp_path, look)


def test_quitting_ends_the_rung_that_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeChild, "hold", True)

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        await pilot.press("a", "f5")
        await until(pilot, lambda: page.rungs and page.rungs[0].status == "running")

    drive(tmp_path, look, alone=True)
    assert FakeChild.going_on == 0
    assert len(FakeChild.started) == 1


def test_another_defense_brings_its_own_rungs_unless_some_were_written(tmp_path):
    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        knob, rungs = page.form.rows["knob"].box.input, page.form.rows["rungs"].box.input
        knob.value = "prune ratio"
        await pilot.pause()
        assert rungs.value == "none, 0.5, 0.9, 0.99"
        rungs.value = "none, 0.7"
        await pilot.pause()
        knob.value = "topk ratio"
        await pilot.pause()
        assert rungs.value == "none, 0.7"
        assert "--defense topk:ratio=0.7" in screen(page.app)

    drive(tmp_path, look)


def test_what_is_wrong_is_said_beside_the_field_and_nothing_starts(tmp_path):
    cases = {
        "knob": ("gausian", "Unknown defense 'gausian'"),
        "rungs": ("none, much", "'much' is not a number"),
        "seed": ("x", "not a seed"),
        "model": ("bert-tiy", "bert-tiny"),
    }

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        await pilot.press("f5")
        await until(pilot, lambda: "Type a sentence" in screen(page.app))
        await pilot.press("a")
        for field, (value, words) in cases.items():
            box = page.form.rows[field].box.input
            before, box.value = box.value, value
            await pilot.pause()
            assert words in screen(page.app)
            await pilot.press("f5")
            await pilot.pause(0.1)
            assert not page.rungs
            assert box.has_focus
            box.value = before
            await pilot.pause()

    drive(tmp_path, look)


def test_a_ladder_asked_for_before_the_defenses_are_known_starts_when_they_are(tmp_path, monkeypatch):
    answer = asyncio.Event()

    async def later() -> Catalog:
        await answer.wait()
        return CATALOG

    monkeypatch.setattr(catalog, "list_catalog", later)

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await pilot.press("a", "f5")
        assert "starts as soon as that is known" in screen(page.app)
        answer.set()
        await until(pilot, lambda: page.rungs)

    drive(tmp_path, look)


@pytest.mark.parametrize("size", SIZES[:4])
def test_an_empty_ladder_says_in_every_size_how_to_begin(tmp_path, size):
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = app.screen
        assert isinstance(page, DefenseScreen)
        await until(pilot, lambda: page.empty.size.height)
        room = page.empty.content_region
        assert "F5 runs the ladder." in str(page.empty.content)
        assert len(page.empty.render_lines(room.reset_offset)) <= room.height
        assert not page.empty.virtual_size.height > room.height

    play(scene, Sessions(tmp_path), place="defenses", size=size)


def test_the_ladder_is_remembered_but_never_the_sentence(tmp_path):
    settings = tmp_path / "settings.json"

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        page.form.rows["rungs"].box.input.value = "none, 0.5"
        await pilot.press(*"secret", "f5")
        await until(pilot, lambda: page.rungs and not page.going)

    async def again(page: DefenseScreen, pilot: Pilot[None]) -> None:
        assert page.form.rows["rungs"].box.input.value == "none, 0.5"
        await until(pilot, lambda: "0.5" in screen(page.app))

    drive(tmp_path / "runs", look, settings=settings)
    assert "secret" not in settings.read_text()
    drive(tmp_path / "runs", again, settings=settings)


def test_a_ladder_that_is_refused_is_not_remembered(tmp_path):
    class Refused(FakeChild):
        """A process that can't use its settings."""

        async def _run(self, words: str) -> None:
            self._over = True
            FakeChild.going_on -= 1

        @property
        def exit_code(self) -> int | None:
            return REFUSED if self._over else None

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        await pilot.press("a", "f5")
        await until(pilot, lambda: page.rungs and not page.going)
        assert {rung.status for rung in page.rungs} == {"failed"}
        assert page.memory.get("ladder") is None

    drive(tmp_path, look, child=Refused)


def test_the_ladder_fits_every_size(tmp_path):
    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        app = page.app
        await until(pilot, lambda: page.form.catalog.defenses)
        await pilot.press("a", "f5")
        await until(pilot, lambda: page.rungs and not page.going)
        for size in SIZES:
            await pilot.resize_terminal(*size)
            await pilot.pause(0.1)
            await until(pilot, lambda: "✓ done" in screen(app))
            text = screen(app)
            assert max(map(len, text.splitlines())) <= size[0]
            assert "✗ failed" in text
            assert page.bars.display == (size >= (80, 24))
            assert not page.table.max_scroll_x, "no column is cut"
        assert "hidden: plot (v shows it)" in text
        await pilot.press("v")
        assert "Match rate by strength" in screen(app)
        assert "hidden: table" in screen(app)
        await pilot.press("n")
        assert page.form.display
        assert "Sentence" in screen(app)
        assert page.query_one(".here", Static).visual.plain.startswith("Grid"), "it is a view of it"
        await pilot.resize_terminal(80, 24)
        await pilot.press("escape")
        await until(pilot, lambda: "F4 Ladder" in screen(app))
        assert app.current_mode == "grid"
        await pilot.press("f4")
        assert app.screen is page

    drive(tmp_path, look)


@pytest.mark.slow
def test_a_ladder_of_real_runs(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tui")]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    async def look(page: DefenseScreen, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: page.form.catalog.defenses)
        page.memory.keep("fields", {"weights": "random", "steps": "3", "threads": "1"})
        page.form.rows["attack"].box.input.value = "dlg"
        page.form.rows["rungs"].box.input.value = "none, 0.5"
        await pilot.press(*"the cat", "f5")
        await until(pilot, lambda: page.rungs and not page.going, seconds=240)
        assert [rung.status for rung in page.rungs] == ["done", "done"]
        assert [rung.result["defense"] for rung in page.rungs] == [[], ["gaussian:sigma=0.5"]]
        assert page.rungs[0].state.progress.loss != page.rungs[1].state.progress.loss
        assert {rung.result["seed"] for rung in page.rungs} == {0}
        assert len(list(tmp_path.iterdir())) == 2

    drive(tmp_path, look, child=Child)
