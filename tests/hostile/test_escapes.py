"""Text of others, wherever it comes out: a terminal obeys none of it, a page and a table take none of it for theirs."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text
from textual.screen import Screen
from typer.testing import CliRunner

from tests.hostile.values import EVIL
from tests.synthetic import cell, done, failed, sentence, write
from tests.tui.pilots import screen, until
from textleak.cli import app, common
from textleak.errors import InputError
from textleak.evaluation.answers import Records
from textleak.events import Event, Finished, Phase, Position, Progress, Sentence, Started, Truth
from textleak.runs import Recorder, RunFolder
from textleak.view import LiveView, PlainDisplay, ViewState
from textleak.view.consoles import ReadableConsole
from textleak.view.summary import summary
from textleak.words import printable, table_cell
from textleak_tui import catalog, export
from textleak_tui.app import build_app
from textleak_tui.catalog import Catalog
from textleak_tui.child import Child
from textleak_tui.places import CompareRuns, OpenRun
from textleak_tui.screens.compare import CompareScreen
from textleak_tui.screens.history import HistoryScreen
from textleak_tui.screens.replay import ReplayScreen
from textleak_tui.screens.run import RunScreen
from textleak_tui.session import Sessions


def quiet(text: str, *, kept: str = "\n") -> bool:
    """Whether a terminal just shows it; colors of our own aside."""
    return printable(text, kept=kept) == text


SETTINGS: dict[str, Any] = {
    "model": EVIL,
    "attack": EVIL,
    "share": EVIL,
    "device": EVIL,
    "defense": [EVIL],
    "client": [EVIL],
    "weights": EVIL,
    "task": EVIL,
    "batch_size": 1,
    "tokens": 4,
    "seed": 0,
    "sentences": [EVIL],
    "attack_options": {EVIL: EVIL},
}
ANSWER = Sentence(
    positions=(Position(position=0, id=1, text=EVIL), Position(position=1, id=2, text=f"Ġ{EVIL}")),
    text=EVIL,
    label=1,
)
RESULT: dict[str, Any] = {
    **SETTINGS,
    "outcome": "done",
    "token_match_rate": 0.5,
    "token_recall": 0.5,
    "rouge1": 0.5,
    "rouge2": 0.5,
    "rougeL": 0.5,
    "verified": False,
    "verified_reason": EVIL,
    "channel": EVIL,
    "stop": EVIL,
    "seconds": 1.5,
    "evaluations": 3,
    "notes": [EVIL],
    "surplus": [EVIL],
    "run_dir": EVIL,
    "sentences": [{"reference": EVIL, "recovered": f"x {EVIL}", "token_match_rate": 0.5, "tokens": 2}],
}
EVENTS: tuple[Event, ...] = (
    Started(settings=SETTINGS),
    Truth(sentences=(ANSWER,)),
    Phase(name=EVIL, detail=EVIL),
    Progress(phase=EVIL, step=1, steps=2, loss=0.5, losses=(0.5, 0.6), detail=EVIL, sentences=(ANSWER,)),
    Finished(outcome="failed", error=EVIL),
)


def printed(*renderables: Any, width: int = 120) -> str:
    file = io.StringIO()
    console = ReadableConsole(file=file, width=width)
    for one in renderables:
        console.print(one)
    return file.getvalue()


def test_a_console_writes_out_what_a_terminal_would_obey() -> None:
    table = Table(EVIL, "b")
    table.add_row(Text(EVIL), "x")
    text = printed(Text(EVIL), table)
    assert quiet(text)
    assert r"a\x1b]0;owned" in text
    file = io.StringIO()
    ReadableConsole(file=file, force_terminal=True, width=80).print(Text(EVIL, style="bold red"))
    assert file.getvalue().startswith("\x1b[1;31ma\\x1b]0;owned")  # its own colors are


def test_neither_lines_nor_the_live_view_nor_the_summary_obey() -> None:
    file = io.StringIO()
    display = PlainDisplay(ReadableConsole(file=file, width=200), seconds_between=0.0)
    state = ViewState()
    for event in EVENTS:
        display.show(event)
        state = state.add(event, 1.0) or state
    assert quiet(file.getvalue())
    assert quiet(printed(LiveView(lambda: state)))
    assert quiet(printed(summary(RESULT)))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_commands_consoles_are_such(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(common, stream)().print(Text(EVIL))
    common.print_error(InputError(EVIL, why=EVIL, fix=EVIL))
    common.say_weights("random", EVIL, EVIL)
    common.report_bug(RuntimeError(EVIL), Path("/proc/none"))
    common.print_json({EVIL: EVIL})
    captured = capsys.readouterr()
    assert quiet(captured.out)
    assert quiet(captured.err)
    assert json.loads(captured.out[captured.out.index("{") :]) == {EVIL: EVIL}


def evil_folder(path: Path) -> Path:
    of = cell(model=EVIL, attack=EVIL, share=EVIL, defense=(EVIL,), client=(EVIL,), know=EVIL, data=EVIL)
    record = done(of, 0, sentence(["the", EVIL], ["the", f"=1{EVIL}"], secrets=[(EVIL, True)]))
    record = dataclasses.replace(record, notes=(EVIL,), channel=EVIL, stop=EVIL, versions={EVIL: EVIL})
    return write(path, [record, failed(of, 1, EVIL)], settings={"model": [EVIL], EVIL: EVIL})


def test_reports_and_comparisons_obey_nothing(tmp_path: Path) -> None:
    first, second = evil_folder(tmp_path / "one"), evil_folder(tmp_path / "two")
    runner = CliRunner()
    for arguments in (["report", first], ["report", first, "--json"], ["compare", first, second]):
        outcome = runner.invoke(app, [str(argument) for argument in arguments])
        assert outcome.exit_code == 0, outcome.exception
        assert quiet(outcome.output)
    for name in ("report.html", "report.md"):
        page = (first / name).read_text("utf-8")
        assert quiet(page, kept="\n\t")
        assert "owned" in page


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_table_is_a_formula(begin: str, tmp_path: Path) -> None:
    formula = f"{begin}HYPERLINK(1)\x1b[2J"
    of = cell(model=formula, attack=formula, share=formula, data=formula, defense=(formula,))
    Records([failed(of, 0, formula), done(of, 1, sentence(["a"]))]).to_csv(tmp_path / "r.csv")
    content = (tmp_path / "r.csv").read_text("utf-8")
    assert quiet(content.replace("\r\n", "\n"))
    for row in csv.DictReader(io.StringIO(content)):
        for name, value in row.items():
            assert not value.startswith(("=", "+", "@", "\t", "\r")), name
            assert not value.startswith("-") or float(value) < 0
        assert row["model"].startswith(f"'{begin}" if begin.isprintable() else "'\\")
    assert table_cell("plain") == "plain"


class Written(Child):
    """An attack's process that wrote a run at once, and ended."""

    _over = False

    async def start(self, command: str, settings: Mapping[str, Any]) -> None:
        del command, settings
        written(self.folder)
        self._over = True

    @property
    def ended(self) -> bool:
        return self._over


def written(path: Path) -> Path:
    """A run folder full of such text."""
    seconds = itertools.count()
    with Recorder(
        RunFolder.create(path, name=path.name), SETTINGS, clock=lambda: float(next(seconds))
    ) as recorder:
        for event in EVENTS[1:-1]:
            recorder.record(event)
        recorder.finish("done", RESULT)
    return path


def test_the_app_shows_every_text_and_obeys_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> Catalog:  # of what there is to attack with, which is text of ours
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)
    runs = tmp_path / "runs"
    one, two = written(runs / "one"), written(runs / "two")

    async def session() -> None:
        program = build_app(sessions=Sessions(runs, Written), settings_path=tmp_path / "tui.json")
        async with program.run_test(size=(160, 48)) as pilot:

            async def shown(kind: type[Screen[Any]], true: Callable[[Any], object]) -> Any:
                await until(pilot, lambda: isinstance(program.screen, kind) and true(program.screen))
                await pilot.pause(0.1)  # until it has its styles, nothing can draw it
                await until(pilot, lambda: "owned" in screen(program))
                assert quiet(screen(program))
                assert quiet(program.export_screenshot(), kept="\n\t")
                return program.screen

            program.switch_mode("history")
            await shown(HistoryScreen, lambda page: page.rows is not None)
            program.open_run(OpenRun(one))
            replay = await shown(ReplayScreen, lambda page: page.standing)
            assert quiet(export.summary(one, replay.recording.state()))
            program.compare_runs(CompareRuns(one, two))
            await shown(CompareScreen, lambda page: page.is_mounted)
            program.switch_mode("run")
            await until(pilot, lambda: isinstance(program.screen, RunScreen))
            program.screen.form.sentences.text = "a b"  # type: ignore[attr-defined]
            program.screen._start()  # type: ignore[attr-defined]
            await shown(RunScreen, lambda page: page.session is not None and page.session.settled)

    asyncio.run(session())
