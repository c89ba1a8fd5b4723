"""The run screen: its form, the attack's process, and every way in which that can end."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.command import CommandList, CommandPalette
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Static

from tests import warm
from tests.tui import pilots
from tests.tui.pilots import until
from tests.tui_speed import start_run
from textleak.errors import InputError
from textleak.jobs.text import prepare
from textleak.runs import read_run
from textleak.settings import load_image_config, load_run_config
from textleak_tui import catalog
from textleak_tui.app import TextleakApp, build_app
from textleak_tui.catalog import Catalog
from textleak_tui.child import Child
from textleak_tui.fields import FIELDS
from textleak_tui.screens.help import HelpScreen
from textleak_tui.screens.replay import ReplayScreen
from textleak_tui.screens.run import RunScreen
from textleak_tui.session import Session, Sessions
from textleak_tui.settings import Memory
from textleak_tui.setups import (
    AUDIT,
    GRID,
    IMAGE,
    TEXT,
    Setup,
    command_line,
    layers,
    remembered,
    settings_of,
    values_of,
)
from textleak_tui.themes import own_themes
from textleak_tui.widgets.told import answers_of

CATALOG = Catalog.from_json(
    {
        "attacks": [
            {"name": "auto", "summary": "Every channel.", "options": []},
            {
                "name": "match",
                "summary": "Ours.",
                "options": [{"name": "steps", "type": "int", "default": 40}],
            },
            {"name": "tag", "summary": "TAG.", "options": []},
            {"name": "dlg", "summary": "DLG.", "options": [], "reads": ["pictures", "text"]},
        ],
        "clients": [
            {
                "name": "accumulate",
                "summary": "Micro-batches.",
                "options": [{"name": "steps", "type": "int", "default": 2}],
            },
            {"name": "batch-norm-train", "summary": "Batch norms as in training.", "options": []},
            {"name": "one-step", "summary": "One gradient.", "options": []},
        ],
        "defenses": [
            {
                "name": "gaussian",
                "summary": "Noise.",
                "options": [{"name": "sigma", "type": "float", "default": 0.01}],
            }
        ],
    }
)
# Letters in a field of a terminal of 60 columns.
NARROWEST = 18
Scene = Callable[[TextleakApp, RunScreen, Pilot[None]], Awaitable[None]]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tui")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def command_lines(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Those of the app's attacks, which have loaded their libraries already."""
    begun: list[list[str]] = []

    class Noted(warm.Popen):
        def __init__(self, args: Sequence[str], *more: Any, **options: Any) -> None:
            begun.append(list(args))
            super().__init__(args, *more, **options)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return begun


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TextleakApp]:
    """Plays a scene in an app whose runs lie in a folder of their own; names come from `CATALOG`."""

    async def listed() -> Catalog:
        return CATALOG

    monkeypatch.setattr(catalog, "list_catalog", listed)

    def run(scene: Scene, size: tuple[int, int] = (120, 40), *, alone: bool = False) -> TextleakApp:
        async def at_form(app: TextleakApp, pilot: Pilot[None]) -> None:
            assert isinstance(app.screen, RunScreen)
            await until(pilot, lambda: app.screen.focused)  # it is there, and hears keys
            await scene(app, app.screen, pilot)

        memory = Memory(tmp_path / "tui.json")
        return pilots.play(at_form, Sessions(tmp_path / "runs"), memory=memory, size=size, alone=alone)

    return run


def choose(screen: RunScreen, **values: str) -> None:
    for name, value in values.items():
        screen.form.rows[name].box.input.value = value


def words(widget: Static) -> str:
    return str(widget.content)


def session(screen: RunScreen) -> Session:
    assert screen.session is not None
    return screen.session


# The form


def test_the_command_line_says_what_the_form_says_and_nothing_that_is_a_default() -> None:
    defaults = {field.name: field.default for field in FIELDS}
    assert command_line(["it's a plan"], defaults) == """textleak run --sentence 'it'"'"'s a plan'"""
    chosen = {**defaults, "model": "gpt2", "defenses": "gaussian:sigma=1e-3 sign", "steps": "20"}
    line = command_line(["one", "two"], chosen)
    given = (
        "--model gpt2 --defense gaussian:sigma=1e-3 --defense sign --steps 20 --sentence one --sentence two"
    )
    assert " ".join(shlex.split(line)[2:]) == given


def test_what_the_process_is_given_is_what_the_command_line_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both go through the settings of the library, and come out the same."""
    import typer
    from typer.testing import CliRunner

    from textleak import cli

    seen: list[object] = []

    def stop(prepare: Callable[[], object], *_: object) -> None:
        seen.append(prepare())
        raise typer.Exit

    for command in (cli.run, cli.image):
        monkeypatch.setattr(command, "_prepare", lambda settings: settings)
    monkeypatch.setattr("textleak.cli.drive.carry_out", stop)
    texts = {
        "model": "gpt2",
        "weights": "random",
        "share": "attention",
        "defenses": "gaussian:sigma=1e-3 sign",
        "know": "lengths,no-defense",
        "restarts": "3",
        "steps": "20",
        "seed": "7",
        "threads": "1",
        "labels": "1 0",
        "preset": "quick",
        "assignments": "num_labels=3 save_gradients=true",
        "redact": "yes",
    }
    for setup, batch, load in (
        (TEXT, ["one", "-two"], load_run_config),
        (IMAGE, ["2", "13"], load_image_config),
    ):
        for values in ({}, texts):
            line = shlex.split(command_line(batch, values, setup))
            ended = CliRunner().invoke(cli.app, line[1:])
            assert ended.exit_code == 0, ended.output
            assert load(*layers(settings_of(batch, values, setup))) == seen.pop()


def test_a_default_of_the_form_is_the_settings_own() -> None:
    defaults = {field.name: field.default for field in FIELDS if field.default}
    assert load_run_config(None, {"sentences": ["x"], **defaults}, ()) == load_run_config(
        None, {"sentences": ["x"]}, ()
    )


def test_the_form_knows_every_setting_it_names_by_the_name_that_the_command_line_has() -> None:
    """Each field's default and one more value go through the settings of `textleak run`."""
    values = {
        "weights": "random",
        "task": "classification",
        "share": "attention",
        "client": ("accumulate:steps=2",),
        "defenses": ("gaussian:sigma=0.1",),
        "know": "nothing",
        "restarts": 3,
        "steps": 4,
        "time_limit": "90s",
        "seed": 5,
        "device": "cpu",
        "threads": 1,
        "model": "gpt2",
        "attack": "tag",
        "labels": ("1",),
        "prior": "gpt2",
        "preset": "quick",
        "assignments": ("num_labels=5",),
        "redact": "yes",
    }
    assert set(values) == {field.name for field in FIELDS}
    config = load_run_config(*layers({**values, "sentences": ("hello",)}))
    assert (config.model, config.attack.name, config.steps, config.time_limit) == ("gpt2", "tag", 4, 90)
    assert (config.num_labels, config.labels, config.redact) == (5, (1,), True)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("model", "brt-tiny", "bert-tiny"),
        ("model", "./nowhere", "doesn't exist"),
        ("attack", "mtch", "match"),
        ("share", "at(ten", "regular expression"),
        ("client", "acumulate", "accumulate"),
        ("client", "accumulate:stps=2", "steps"),
        ("client", "accumulate:steps=two", "not a number"),
        ("defenses", "gausian", "gaussian"),
        ("defenses", "gaussian:sgma=1", "sigma"),
        ("defenses", "gaussian:sigma=much", "not a number"),
        ("know", "everything", "side information"),
        ("restarts", "0", "from 1 on"),
        ("steps", "many", "not a number of steps"),
        ("seed", "-1", "not a seed"),
        ("device", "gpu", "cuda"),
        ("task", "translate", "causal-lm"),
        ("weights", "none", "pretrained"),
        ("time_limit", "soon", "90s"),
        ("labels", "one", "not a class"),
        ("prior", "gtp2", "gpt2"),
        ("preset", "qick", "quick"),
        ("assignments", "sed=1", "seed"),
        ("assignments", "seed", "="),
        ("redact", "maybe", "yes"),
    ],
)
def test_a_field_says_what_is_wrong_and_what_would_do(name: str, text: str, says: str) -> None:
    field = next(field for field in FIELDS if field.name == name)
    field.check(field.default, CATALOG)
    with pytest.raises(InputError) as caught:
        field.check(text, CATALOG)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("know", "no-defense"),
        ("know", "lengths, labels,no-defense"),
        ("know", "nothing"),
        ("know", "no-client"),
        ("client", ""),
        ("client", "one-step"),
        ("client", "batch-norm-train accumulate:steps=2"),
        ("defenses", "gaussian:sigma=1e-3 gaussian"),
        ("defenses", ""),
        ("time_limit", "10m"),
        ("labels", "1 0"),
        ("assignments", "attack.lr=0.1 num_labels=3"),
    ],
)
def test_a_field_takes_what_the_command_line_takes(name: str, text: str) -> None:
    next(field for field in FIELDS if field.name == name).check(text, CATALOG)


def test_several_kinds_of_client_are_composed_in_their_order() -> None:
    values = {"client": "batch-norm-train accumulate:steps=2"}
    for setup in (TEXT, IMAGE):
        assert settings_of(["1"], values, setup)["client"] == ["batch-norm-train", "accumulate:steps=2"]
        words = shlex.split(command_line(["1"], values, setup))
        assert [words[at + 1] for at, word in enumerate(words) if word == "--client"] == values[
            "client"
        ].split()


def test_of_pictures_what_batch_norms_read_can_be_told_and_lengths_can_t() -> None:
    field = next(field for field in IMAGE.fields if field.name == "know")
    for text in ("", "labels,batch-norm", "no-defense", "nothing"):
        field.check(text, CATALOG)
    with pytest.raises(InputError, match="lengths"):
        field.check("lengths", CATALOG)


def test_an_error_stands_beside_its_field_and_nothing_starts(play: Callable[..., TextleakApp]) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press("enter")
        assert "Type a sentence" in words(screen.form.sentence_hint)
        await pilot.press(*"hi")
        choose(screen, model="brt-tiny")
        await pilot.pause()
        row = screen.form.rows["model"]
        assert "Did you mean bert-tiny" in words(row.hint)
        assert row.hint.region.y == row.box.region.y
        await pilot.press("f5")
        assert screen.session is None
        assert app.focused is row.box.input

    play(scene)


@pytest.mark.parametrize("size", [(100, 30), (80, 24), (60, 16)])
def test_what_the_field_in_focus_is_can_be_read_whole(
    play: Callable[..., TextleakApp], size: tuple[int, int]
) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        del app
        row = screen.form.rows["know"]
        assert row.hint.size.height == 1
        row.box.input.focus()
        await until(pilot, lambda: row.hint.size.height > 1)
        lines = ["".join(part.text for part in row.hint.render_line(y)) for y in range(row.hint.size.height)]
        assert " ".join(" ".join(lines).split()) == row.field.words
        screen.form.rows["attack"].box.input.focus()
        await until(pilot, lambda: row.hint.size.height == 1)

    play(scene, size)


@pytest.mark.parametrize("setup", [TEXT, IMAGE, AUDIT, GRID], ids=lambda setup: setup.place)
def test_words_in_an_empty_field_fit_the_narrowest_one(setup: Setup) -> None:
    assert {field.empty for field in setup.fields if len(field.empty) > NARROWEST} == set()


def test_a_name_is_completed_from_a_list(play: Callable[..., TextleakApp]) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press("tab")
        box = screen.form.rows["model"].box
        assert app.focused is box.input
        await pilot.press("home", "shift+end", "delete", *"gpt")
        assert box.opened
        names = [option.id for option in box.list.options]
        assert names == ["distilgpt2", "gpt2"]
        await pilot.press("down", "enter")
        assert not box.opened
        assert screen.form.values["model"] == "gpt2"
        assert "--model gpt2" in words(screen.form.command)
        await pilot.press("down")
        assert len(box.list.options) > 10
        await pilot.press("escape")
        assert not box.opened
        await pilot.press("enter", "enter", "enter", "down")
        attack = screen.form.rows["attack"].box
        assert [option.id for option in attack.list.options] == ["auto", "match", "tag", "dlg"]

    play(scene)


def test_the_arrow_keys_go_through_the_form_and_a_click_opens_a_list(
    play: Callable[..., TextleakApp],
) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press("down")
        rows = screen.form.rows
        assert app.focused is rows["model"].box.input
        rows["restarts"].box.input.focus()
        await pilot.press("down", "down")
        assert app.focused is rows["time_limit"].box.input
        await pilot.press("up")
        assert app.focused is rows["steps"].box.input
        await pilot.click(rows["attack"].query_one(".more"))
        await pilot.pause()
        assert rows["attack"].box.opened

    play(scene)


def test_keys_that_come_at_once_go_where_those_before_them_lead(play: Callable[..., TextleakApp]) -> None:
    def type_at_once(app: TextleakApp, *keys: str) -> None:
        for key in keys:
            app.post_message(Key(key, key if len(key) == 1 else None))

    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        rows = screen.form.rows
        keys = ["h", "i", "k", "backspace", "tab", *"minilm", "enter", "tab", "tab", "shift+tab"]
        type_at_once(app, *keys, "backspace", "y", "down")
        await until(pilot, lambda: rows["task"].box.opened)
        assert rows["task"].box.input.value == "y"
        assert screen.form.sentences.text == "hi"
        assert rows["model"].box.input.value == "minilm"
        assert rows["weights"].box.input.value == "auto"

    play(scene)


def test_a_field_is_found_by_its_name_and_all_are_set_back(play: Callable[..., TextleakApp]) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press(*"hi")
        choose(screen, model="gpt2", redact="yes")
        await pilot.pause()
        assert words(screen.form.command).endswith("--model gpt2 --redact --sentence hi")
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))
        await pilot.press(*"judges texts")
        options = app.screen.query_one(CommandList)
        await until(pilot, lambda: options.option_count == 1 and options.highlighted is not None)
        await pilot.press("enter")
        prior = screen.form.rows["prior"]
        await until(pilot, lambda: app.focused is prior.box.input)
        fields = screen.form.query_one(".fields")
        await until(pilot, lambda: prior.region.bottom <= fields.region.bottom)  # it is scrolled to
        await pilot.press("ctrl+b")
        await pilot.pause()
        assert words(screen.form.command) == "$ textleak run --sentence hi"

    play(scene)


def test_a_recorded_run_is_set_up_again_as_it_was() -> None:
    recorded = {
        "model": "gpt2",
        "weights": "random",
        "task": "causal-lm",
        "attack": "match",
        "attack_options": {"steps": 40, "restarts": 3, "beam": 5, "time_limit": None},
        "share": "attention",
        "client": ["accumulate:steps=2"],
        "defense": ["gaussian:sigma=0.1", "sign"],
        "know": ["batch-size"],
        "labels": [1, 0],
        "seed": 7,
        "device": "cpu",
        "threads": 2,
        "time_limit": 90.0,
    }
    line = command_line(["one", "two"], values_of(recorded, CATALOG))
    assert line == (
        "textleak run --model gpt2 --weights random --task causal-lm --attack match --share attention "
        "--client accumulate:steps=2 --defense gaussian:sigma=0.1 --defense sign --know batch-size --restarts 3 "
        "--time-limit 90s --seed 7 --device cpu --threads 2 --label 1 --label 0 --set attack.beam=5 "
        "--sentence one --sentence two"
    )
    assert values_of({"know": []}, CATALOG)["know"] == "nothing"


def test_a_label_of_the_private_batch_is_not_remembered() -> None:
    assert remembered({"labels": "1", "seed": "7"}) == {"seed": "7"}


def test_several_sentences_are_one_batch(play: Callable[..., TextleakApp]) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press(*"one", "ctrl+n", *"two")
        assert screen.form.private_batch == ["one", "two"]
        assert "batch of 2" in words(screen.form.sentence_hint)
        await pilot.press("ctrl+l")
        assert shlex.split(app.clipboard)[-4:] == ["--sentence", "one", "--sentence", "two"]

    play(scene)


def test_settings_are_remembered_but_no_sentence_is(
    play: Callable[..., TextleakApp], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: Child, command: str, settings: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(Child, "start", nothing)

    async def first(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press(*"my secret")
        choose(screen, model="gpt2", seed="7")
        await pilot.press("f8", "f5")
        await until(pilot, lambda: screen.session and screen.session.failure)
        assert "can't be started" in words(screen.notice)

    async def second(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        assert (screen.form.values["model"], screen.form.values["seed"]) == ("gpt2", "7")
        assert screen.form.private_batch == []
        assert app.theme == "textleak-light"
        await pilot.press("f8")
        assert app.current_theme.accent == "#ff8800", "one's own comes after the two"
        await pilot.press("f8")
        assert app.theme == "textleak-dark"

    play(first, alone=True)
    themes = tmp_path / "themes"
    themes.mkdir()
    (themes / "mine.json").write_text('{"dark": false, "accent": "#ff8800"}')
    play(second, alone=True)
    assert "secret" not in (tmp_path / "tui.json").read_text()
    assert (tmp_path / "tui.json").stat().st_mode & 0o077 == 0


def test_a_theme_that_cannot_be_used_says_why_and_hinders_no_other(tmp_path: Path) -> None:
    wrong = {
        "a": '{"acent": "#ff8800"}',
        "b": '{"accent": "mauvish"}',
        "c": "[1]",
        "d": "{",
        "e": '{"dark": 1}',
    }
    for name, text in {**wrong, "f": '{"accent": "red"}'}.items():
        (tmp_path / f"{name}.json").write_text(text)
    themes, problems = own_themes(tmp_path)
    assert [(theme.name, theme.accent, theme.dark) for theme in themes] == [("f", "red", True)]
    for problem, says in zip(
        problems, ("Did you mean accent", "mauvish", "no table", "can't be read", "dark is 1"), strict=True
    ):
        assert says in problem
    assert own_themes(tmp_path / "nowhere") == ([], [])


def test_settings_that_cannot_be_read_or_kept_are_no_hindrance(tmp_path: Path) -> None:
    broken = tmp_path / "tui.json"
    for content in ("{", "[1]", "[" * 20_000):
        broken.write_text(content)
        assert Memory(broken).get("fields") is None
        assert Memory(broken).texts("fields") == {}
    memory = Memory(tmp_path / "tui.json" / "below" / "a" / "file")
    memory.keep("a", 1)
    assert memory.get("a") == 1
    assert Memory(None).get("a") is None


# The attack's process


def test_a_sentence_comes_back(
    play: Callable[..., TextleakApp],
    command_lines: list[list[str]],
    toy_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Set up, run to the end, look at it blind and with the truth, replay it, run another."""

    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press(*"the cat sat on the mat")
        choose(screen, model=str(toy_folder("bert")), weights="random", threads="1", attack="match")
        waiting, show = [], screen.view.show
        monkeypatch.setattr(
            screen.view, "show", lambda *told, **how: waiting.append(how["waiting"]) or show(*told, **how)
        )
        await pilot.press("enter")
        await until(pilot, lambda: screen.live)
        await until(pilot, lambda: not screen.going)
        assert waiting[0].startswith("Loading the model")
        await pilot.pause(0.2)
        assert session(screen).failure is None
        assert session(screen).state.match_rate() == 1.0
        answer = words(screen.view.answer)
        assert answer.startswith(
            "All of the text leaked through the span of a layer's gradient: 6 of 6 tokens"
        )
        assert "match rate 1.00, ✓ verified" in answer
        cells = screen.view.tokens._bands.sentences[0]
        assert [cell.word for cell in cells] == ["[CLS]", *["the", "cat", "sat", "on", "the", "mat"], "[SEP]"]
        assert {cell.status for cell in cells[1:-1]} == {"right"}
        await pilot.press("b")
        cells = screen.view.tokens._bands.sentences[0]
        assert {cell.status for cell in cells[1:-1]} == {"unknown"}
        assert "match rate" not in words(screen.view.answer)
        await pilot.press("t")
        assert not app.sight.blind
        assert [cell.true for cell in screen.view.tokens._bands.sentences[0]][1:3] == ["the", "cat"]
        (folder,) = (tmp_path / "runs").iterdir()
        assert read_run(folder).outcome == "done"
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
        await pilot.press("escape")
        await pilot.press("n")
        assert not screen.live
        assert screen.form.private_batch == ["the cat sat on the mat"]

    app = play(scene)
    assert not app.sessions.going
    # Which every user of the machine can read.
    assert [line[1:4] for line in command_lines] == [["-m", "textleak_tui.attack_process", "run"]]
    assert "the cat" not in " ".join(command_lines[0])


@pytest.mark.usefixtures("command_lines")
def test_a_picture_comes_back_in_half_cells(play: Callable[..., TextleakApp], tmp_path: Path) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        await pilot.press("f6")
        pictures = app.screen
        assert isinstance(pictures, RunScreen)
        choose(pictures, model="lenet", threads="1", steps="5")
        await pilot.press("2", "enter")
        assert "image --threads 1" in words(pictures.form.command).replace("--steps 5 ", "")
        await until(pilot, lambda: pictures.live)
        await until(pilot, lambda: not pictures.going)
        await until(pilot, lambda: pictures.view.tokens._pictures._ready)
        assert session(pictures).failure is None
        drawn = pictures.view.tokens._pictures.render()
        assert drawn.plain.count("▀") >= 2 * 16 * 16
        assert "original, " not in drawn.plain, "the truth was not asked for"
        assert "dB" in drawn.plain
        assert "PSNR" in words(pictures.view.answer)
        await pilot.press("b")
        await pilot.pause()
        assert "original" not in pictures.view.tokens._pictures.render().plain
        assert "PSNR" not in words(pictures.view.answer)

    play(scene)
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_run(folder).outcome == "done"


@pytest.mark.slow
def test_a_file_is_audited_what_it_tells_beside_what_an_attack_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `textleak tui FILE` opens it; its run folder is replayed like any other."""

    async def listed() -> Catalog:
        return CATALOG

    monkeypatch.setattr(catalog, "list_catalog", listed)
    settings = {
        "model": "bert-tiny",
        "weights": "random",
        "sentences": ["the cat sat on the mat"],
    }
    file = tmp_path / "g.safetensors"
    prepare(load_run_config(None, settings, ())).shared.save(file)
    app = build_app(root=tmp_path / "runs", settings_path=tmp_path / "tui.json", update=file)

    async def drive() -> None:
        async with app.run_test(size=(140, 44)) as pilot:
            await pilot.pause()
            screen = app.screen
            assert isinstance(screen, RunScreen)
            assert app.current_mode == "audit"
            await until(pilot, lambda: screen.session)
            assert words(screen.form.command).endswith(f"textleak audit {file}")
            await until(pilot, lambda: not screen.going)
            assert screen.session is not None, words(screen.form.notice)
            await pilot.pause(0.2)
            assert session(screen).failure is None
            assert words(screen.view.answer).startswith("LEAKS: The text came back")
            told = {what: value for what, value, _ in screen.view.told._told}
            assert told["sent"] == "gradient"
            assert screen.view.told.region.height >= 6
            known = next(iter(answers_of(session(screen).state.settings)))
            assert known in screen.view.told._told, "it was told before the attack's end"
            await pilot.press("r")
            await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
            await until(pilot, lambda: app.screen.view.told.known)

    asyncio.run(drive())
    assert app.memory.get("audit fields") is not None


@pytest.mark.parametrize(
    ("setup", "says"),
    [
        (TEXT, "one batch of 2 sentences"),
        (IMAGE, "one batch of 2 pictures"),
        (AUDIT, "2 checkpoints, before and after"),
        (GRID, "2 data sets"),
    ],
    ids=lambda value: value.place if isinstance(value, Setup) else "",
)
def test_two_lines_are_told_as_what_they_are(setup: Setup, says: str) -> None:
    assert setup.several.format(2) == says


def test_an_audit_is_of_one_file_or_of_two_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "after").mkdir()
    after = str(tmp_path / "after")
    AUDIT.check([after])
    AUDIT.check(["bert-tiny", after])
    assert AUDIT.batch(["bert-tiny", after]) == {"before": "bert-tiny", "after": after}
    line = command_line(["bert-tiny", after], {"time_limit": "30s"}, AUDIT)
    assert line == f"textleak audit --time-limit 30s --before bert-tiny --after {after}"
    for paths, says in (
        ([], "nothing to audit"),
        (["a", "b", "c"], "one update"),
        (["nowhere"], "isn't there"),
    ):
        with pytest.raises(InputError, match=says):
            AUDIT.check(paths)


@pytest.mark.parametrize(
    ("batch", "says"),
    [(["1", "x.png"], "mixed"), (["nowhere.png"], "no file"), (["3", "4"], None), ([], None)],
)
def test_pictures_are_numbers_or_files(batch: list[str], says: str | None) -> None:
    if says is None:
        IMAGE.check(batch)
        assert IMAGE.batch(batch) == ({"indices": batch} if batch else {})
        return
    with pytest.raises(InputError, match=says):
        IMAGE.check(batch)


def endless(screen: RunScreen, model: Path) -> None:
    """A run that goes on until it is told otherwise."""
    choose(
        screen, model=str(model), weights="random", threads="1", attack="tag", steps="1000000", restarts="3"
    )
    screen.form.sentences.text = "the cat sat on the mat"


@pytest.mark.usefixtures("command_lines")
def test_a_run_is_paused_resumed_stopped_and_started_again(
    play: Callable[..., TextleakApp], toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        endless(screen, toy_folder("bert"))
        await pilot.press("f5")
        await until(pilot, lambda: session(screen).state.seen > 3)
        elapsed = session(screen).elapsed()
        await pilot.press("space")
        assert session(screen).paused
        assert session(screen).elapsed() >= elapsed
        assert screen.check_action("resume", ())
        assert not screen.check_action("pause", ())
        await until(
            pilot,
            lambda: session(screen).state.progress and session(screen).state.progress.detail == "paused",
        )
        seen = session(screen).state.seen
        await pilot.pause(0.4)
        assert session(screen).state.seen == seen
        assert screen.view.status.draw()[0].plain.startswith("paused")
        await pilot.press("space")
        await until(pilot, lambda: session(screen).state.seen > seen + 3)
        # Another candidate than the best is followed, at rest.
        await pilot.press("space")
        await until(
            pilot,
            lambda: session(screen).state.progress and session(screen).state.progress.detail == "paused",
        )
        progress = session(screen).state.progress
        assert progress is not None
        assert len(progress.others) == len(progress.losses) == 3
        other = next(k for k in screen.view.candidates.ranked if k != progress.candidate)
        screen.view.candidates._follow(other)
        words = [text for _, text in progress.others[other][0]]
        await until(pilot, lambda: [cell.word for cell in screen.view.tokens._bands.sentences[0]] == words)
        assert f"#{other + 1}" in str(screen.view.tokens.border_title)
        await pilot.press("x")
        await until(pilot, lambda: not screen.going)
        assert session(screen).state.finished is not None
        assert session(screen).state.finished.outcome == "stopped"
        assert screen.view.answer.display
        await pilot.press("f5")
        await until(pilot, lambda: screen.going and session(screen).state.seen > 0)

    app = play(scene, alone=True)
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    # Leaving the app stopped the second one, with its best answer.
    assert {read_run(folder).outcome for folder in folders} == {"stopped"}
    assert not app.sessions.going


@pytest.mark.usefixtures("command_lines")
def test_a_run_that_is_killed_says_so_and_the_app_lives_on(
    play: Callable[..., TextleakApp], toy_folder: Callable[[str], Path]
) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        endless(screen, toy_folder("bert"))
        await pilot.press("f5")
        await until(pilot, lambda: screen.live)
        begun = session(screen).recording is not None
        assert screen.check_action("pause", ()) is begun, "not before it has begun"
        assert screen.check_action("copy_text", ()) is begun
        await until(pilot, lambda: session(screen).state.seen > 1)
        pid = session(screen).child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: screen.session and screen.session.failure)
        await pilot.pause()
        assert "●" not in screen.view.phases.draw()[0].plain, "nothing goes on"
        assert screen.view.status.draw()[0].plain.startswith("failed")
        notice = words(screen.notice)
        assert "killed (SIGKILL)" in notice
        assert "memory" in notice
        await until(pilot, lambda: screen.notice.region.height >= 3)
        # Its own last lines, as the plain view of `textleak run` writes them.
        assert "continuous" in notice
        assert screen.view.tokens._bands.sentences, "what it had found is still there"
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)

    play(scene)


@pytest.mark.usefixtures("command_lines")
def test_settings_that_the_attack_refuses_bring_one_back_to_the_form(
    play: Callable[..., TextleakApp], toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        choose(screen, model=str(toy_folder("bert")), weights="pretrained", threads="1")
        screen.form.sentences.text = "the cat"
        await pilot.press("f5")
        await until(pilot, lambda: screen.form.notice.display)
        assert screen.session is None
        assert not screen.live
        assert "weights" in words(screen.form.notice)
        assert screen.form.notice.region.height >= 2
        assert app.memory.get("fields") is None

    play(scene)
    assert not list((tmp_path / "runs").glob("*/run.json"))


def test_a_process_that_ends_with_a_bug_shows_its_last_lines(
    play: Callable[..., TextleakApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Child, command: str, settings: object) -> None:
        script = "import sys; print('on my way', file=sys.stderr); raise RuntimeError('nothing works')"
        await start_python(self, script)

    monkeypatch.setattr(Child, "start", broken)

    async def scene(app: TextleakApp, screen: RunScreen, pilot: Pilot[None]) -> None:
        screen.form.sentences.text = "the cat"
        await pilot.press("f5")
        await until(pilot, lambda: screen.session and screen.session.failure)
        notice = words(screen.notice)
        assert "exit code 1" in notice
        assert "on my way" in notice
        assert "RuntimeError: nothing works" in notice

    play(scene)


async def start_python(child: Child, script: str) -> None:
    pipe = asyncio.subprocess.PIPE
    child.watch(
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdin=pipe, stdout=pipe, stderr=pipe
        )
    )


def test_a_child_that_will_not_end_is_killed(tmp_path: Path) -> None:
    async def scene() -> None:
        child = Child(tmp_path)
        script = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1); time.sleep(60)"
        await start_python(child, script)
        await asyncio.sleep(0.3)
        await child.end(seconds=0.3)
        assert child.exit_code == -signal.SIGKILL

    asyncio.run(scene())


def test_the_attack_ends_when_the_app_is_killed_and_keeps_its_best_answer(
    toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The end of its standard input is all that tells it, and nobody reads what it says any more."""
    folder = tmp_path / "run"
    settings = {
        "model": str(toy_folder("bert")),
        "weights": "random",
        "threads": "1",
        "attack": "tag",
        "steps": "1000000",
        "sentences": ["the cat sat on the mat"],
    }
    attack = warm.Popen(
        [sys.executable, "-m", "textleak_tui.attack_process", "run", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with attack:
        assert attack.stdin is not None
        attack.stdin.write(json.dumps(settings).encode() + b"\n")
        attack.stdin.flush()
        end = time.monotonic() + 40
        events = folder / "events.jsonl"
        while not (events.exists() and b'"progress"' in events.read_bytes()):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert attack.stderr is not None
        attack.stderr.close()
        attack.stdin.close()
        attack.wait(20)
    assert read_run(folder).outcome in ("interrupted", "stopped")
    result = json.loads((folder / "result.json").read_text())
    assert result["sentences"][0]["recovered"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, None], ids=str)
def test_however_the_app_ends_its_attack_ends_too(
    number: signal.Signals | None, toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """In a real terminal, which is closed, with a signal or without, or whose app is ended from outside."""
    fields = {"model": str(toy_folder("bert")), "weights": "random", "attack": "tag", "steps": "1000000"}
    terminal, folder = start_run(tmp_path, (100, 30), {**fields, "threads": "1"})
    pid = read_run(folder).facts["pid"]
    if number is None:
        terminal.hang_up()
    else:
        terminal.process.send_signal(number)
    try:
        end = time.monotonic() + 30
        while read_run(folder).outcome == "running" or Path(f"/proc/{pid}").exists():
            assert time.monotonic() < end
            terminal.drain(0.1)
        assert terminal.process.wait(20) != 0
    finally:
        terminal.process.kill()
        terminal.close()
    assert read_run(folder).outcome in ("stopped", "interrupted")
    assert read_run(folder).result is not None


def test_without_a_terminal_there_is_a_clear_line_and_exit_code_2() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "textleak.cli", "tui"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "needs a terminal" in ended.stderr
    assert "textleak run" in ended.stderr
