"""History, replay and compare, driven as a person drives them, on recorded run folders."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import random
import re
import unittest.mock
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.tui.pilots import Scene, play, screen, until
from textleak.errors import InputError
from textleak.events import Event, Finished, Phase, Position, Progress, Sentence, Stop, TokenGuess, Truth
from textleak.runs import Recorder, RunFolder
from textleak.view import ViewState
from textleak_tui import export, listing
from textleak_tui.app import TextleakApp
from textleak_tui.listing import Order, arranged, read_row
from textleak_tui.palette import commands
from textleak_tui.places import CompareRuns, OpenRun
from textleak_tui.recording import Recording
from textleak_tui.screens.base import Page
from textleak_tui.screens.compare import CompareScreen, verdict
from textleak_tui.screens.delete import DeleteDialog
from textleak_tui.screens.export import ExportDialog
from textleak_tui.screens.history import HistoryScreen, row_in_words
from textleak_tui.screens.replay import ReplayScreen
from textleak_tui.session import Sessions
from textleak_tui.stories import STORIES

TEXT = "the cat sat on the mat"

SIZES = [(160, 48), (100, 30), (80, 24), (60, 16), (50, 12)]


def sentence(*words: str) -> Sentence:
    ids = {word: number for number, word in enumerate(["[CLS]", "[SEP]", *TEXT.split()])}
    return Sentence(
        positions=tuple(
            Position(
                position=at,
                id=ids.get(word, 900 + len(word)) if word else -1,
                text=word,
                confidence=0.5,
                special=word.startswith("["),
                candidates=(TokenGuess(id=7, text="dog", score=0.25),),
            )
            for at, word in enumerate(("[CLS]", *words, "[SEP]"))
        ),
        text=" ".join(words),
    )


def result(rate: float | None = 1.0, **more: object) -> dict[str, object]:
    return {
        "token_match_rate": rate,
        "token_recall": rate,
        **dict.fromkeys(("rouge1", "rouge2", "rougeL"), rate),
        "verified": rate == 1.0,
        "gradient_distance": 1e-7,
        "channel": "span",
        "seconds": 12.5,
        "evaluations": 1234,
        "outcome": "done",
        "sentences": [{"reference": TEXT, "recovered": TEXT, "token_match_rate": rate, "tokens": 6}],
        **more,
    }


def events(steps: int = 40, *, end: Event | None = None, text: str = TEXT) -> list[Event]:
    """A run in which one more word is found every few steps."""
    words = text.split()
    found: list[Event] = [
        Truth(sentences=(sentence(*words),)),
        Phase(name="labels"),
        Phase(name="continuous"),
    ]
    for step in range(steps):
        right = len(words) * (step + 1) // steps
        found.append(
            Progress(
                phase="continuous",
                step=step,
                steps=steps,
                loss=1 / (step + 1),
                losses=(1 / (step + 1), 0.9),
                evaluations=2 * step,
                total_steps=step,
                sentences=(sentence(*words[:right], *["dog"] * (len(words) - right)),),
            )
        )
    return [*found, end] if end else found


def make(root: Path, name: str, *found: Event, **settings: object) -> Path:
    """A run folder with these events, a tenth of a second each."""
    tenths = iter(range(10**9))
    folder = RunFolder.create(root / name, name=name)
    facts = {"model": "bert-tiny", "weights": "random", "attack": "match", "sentences": [TEXT], "seed": 0}
    with Recorder(folder, {**facts, **settings}, clock=lambda: next(tenths) / 10) as recorder:
        for event in found:
            recorder.record(event)
    last = found[-1] if found else None
    if isinstance(last, Finished) and last.result is not None:
        folder.result_path.write_text(json.dumps(last.result))
    return folder.path


def gone(path: Path) -> Path:
    """The same folder, as if its process had been killed."""
    facts = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**facts, "pid": 2**22 + 12345}))  # above the largest process
    os.utime(path / "events.jsonl", (1e9, 1e9))
    return path


def drive(
    root: Path,
    steps: Scene,
    *,
    size: tuple[int, int] = (120, 40),
    run: Path | None = None,
    alone: bool = False,
) -> None:
    """The app on some runs, at its history, or at a run."""
    play(steps, Sessions(root), place="history", run=run, size=size, alone=alone)


async def resized(pilot: Pilot[None], size: tuple[int, int]) -> None:
    """The terminal has another size now."""
    await pilot.resize_terminal(*size)
    await pilot.pause(0.1)


async def history(app: TextleakApp, pilot: Pilot[None]) -> HistoryScreen:
    """The history, once it has looked."""
    page = app.screen
    assert isinstance(page, HistoryScreen)
    await until(pilot, lambda: page.rows is not None)
    await pilot.pause()
    return page


async def replay(app: TextleakApp, pilot: Pilot[None]) -> ReplayScreen:
    """The replay, once it has read its run and drawn it."""
    await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
    page = app.screen
    assert isinstance(page, ReplayScreen)
    await until(pilot, lambda: page.recording is None or page.recording.whole)
    await until(pilot, lambda: page._drawn == (page._place(), page._how()))
    await pilot.pause()
    return page


@pytest.fixture(autouse=True)
def _no_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run screen, which isn't looked at here, stays empty: it asks other processes for names."""
    monkeypatch.setattr("textleak_tui.screens.run.RunScreen", lambda *_: Page("run"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four runs: done, failed, killed, and a folder that is broken."""
    runs = tmp_path / "runs"
    make(runs, "a-done", *events(), Finished(outcome="done", result=result()))
    make(
        runs,
        "b-failed",
        *events(3),
        Finished(outcome="failed", error="ValueError: out of luck"),
        attack="dlg",
    )
    gone(make(runs, "c-killed", *events(20), defense=["gaussian:sigma=0.01"], model="gpt2"))
    (runs / "d-broken").mkdir()
    (runs / "d-broken" / "run.json").write_text("{")
    return runs


def test_every_folder_is_listed_with_how_it_stands(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        assert sorted(row.outcome for row in page.shown) == ["broken", "done", "failed", "killed"]
        text = screen(app)
        for words in (
            "✓ done",
            "✗ failed",
            "✗ killed",
            "✗ broken",
            "gaussian:sigma=0.01",
            "1.00",
            "12 s",
            TEXT,
        ):
            assert words in text, words
        assert "4 runs" in text

    drive(root, look, size=(160, 40))


def test_the_history_fits_every_size(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await history(app, pilot)
        for size in SIZES:
            await resized(pilot, size)
            text = screen(app)
            assert "match rate" in text
            assert "1.00" in text
            assert ("hidden: details" in text) == (size[1] < 20)
            assert max(map(len, text.splitlines())) <= size[0]

    drive(root, look)


def test_no_runs_and_no_matches_have_words(tmp_path, root):
    async def empty(app: TextleakApp, pilot: Pilot[None]) -> None:
        await history(app, pilot)
        assert "No runs yet" in screen(app)
        assert "F2" in screen(app)

    async def filtered(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        await pilot.press("slash", *"nosuch")
        assert "No run has the words 'nosuch'" in screen(app)
        await pilot.press("escape")
        assert len(page.shown) == 4
        await pilot.press("slash", *"GPT2", "enter")
        assert [row.path.name for row in page.shown] == ["c-killed"]
        assert page.table.has_focus
        await pilot.press("enter")
        assert (await replay(app, pilot)).folder.name == "c-killed"

    drive(tmp_path / "nothing", empty)
    drive(root, filtered)


def test_what_is_typed_as_a_filter_is_seen(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        await pilot.press("slash", *"gaussian")
        await pilot.pause()
        assert page.words.size.height == 1
        line = next(line for line in screen(app).splitlines() if "gaussian" in line)
        assert line.strip() == "gaussian"

    drive(root, look)


def test_verified_and_not_verified_are_told_apart_by_a_filter(tmp_path):
    for name, verified in (("a-yes", True), ("b-no", False), ("c-unsaid", None)):
        end = Finished(outcome="done", result=result(verified=verified))
        make(tmp_path, name, *events(3), end)
    rows = [read_row(path) for path in sorted(tmp_path.iterdir())]

    def names(words: str) -> str:
        return "".join(sorted(row.path.name[0] for row in arranged(rows, Order.NEWEST, words)))

    assert names("verified") == names("verif") == "a"
    assert names("unverified") == names("not verified") == "b"
    assert names("") == "abc"
    end = Finished(outcome="done", result=result(verified=None, verified_reason="Another text fits as well."))
    row = read_row(make(tmp_path, "d-untold", *events(3), end))
    assert row.has("told")
    assert not row.has("verified")


def test_a_run_whose_time_was_up_is_told_from_one_that_was_through(tmp_path):
    for name, stop, rate in (
        ("a-cut", Stop.TIME, 0.0),
        ("b-done", Stop.READ, 0.0),
        ("c-whole", Stop.TIME, 1.0),
    ):
        make(tmp_path, name, *events(3), Finished(outcome="done", result=result(rate, stop=stop.value)))
    said = [row_in_words(read_row(path), blind=False) for path in sorted(tmp_path.iterdir())]
    assert said[0].startswith("Its time was up before the attack was through. 0% of the tokens")
    assert all(words.startswith("It came to its end.") for words in said[1:])


def test_a_rate_that_the_answer_proved_is_told_in_place_of_the_assumed_one(tmp_path):
    end = Finished(outcome="done", result=result(client=["fedavg:lr=0.05,steps=1"]))
    folder = make(tmp_path, "a", *events(3), end, client=["fedavg:lr=0.01,steps=1"])
    assert read_row(folder).client == "fedavg:lr=0.05,steps=1"

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await replay(app, pilot)
        await pilot.press("home")
        assert "client fedavg:lr=0.01,steps=1" in screen(app)  # nothing is proved yet
        await pilot.press("end")
        await until(pilot, lambda: page.state.finished)
        await until(pilot, lambda: "client fedavg:lr=0.05,steps=1" in screen(app))

    drive(tmp_path, look, run=folder)


def test_the_palette_names_opening_a_run_once(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await history(app, pilot)
        titles = [command.title for command in commands(app.screen)]
        assert titles.count("Open") == 1
        assert len(set(titles)) == len(titles)

    drive(root, look)


def test_the_dialog_that_asks_leaves_the_run_to_be_seen(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await history(app, pilot)
        await pilot.press("slash", *"c-killed", "enter", "d")
        await pilot.pause(0.1)
        assert isinstance(app.screen, DeleteDialog)
        assert "Delete this run?" in screen(app)
        assert "✗ killed" in screen(app)
        assert "gaussian:sigma=0.01" in screen(app)

    drive(root, look)


def test_rows_sort_by_what_a_person_asks_for(root):
    rows = [read_row(path) for path in sorted(root.iterdir())]
    rows = [
        dataclasses.replace(row, started=datetime.datetime(2026, 1, number + 1).astimezone())
        for number, row in enumerate(rows)
    ]

    def names(order: Order, words: str = "") -> str:
        return "".join(row.path.name[0] for row in arranged(rows, order, words))

    assert names(Order.NEWEST) == "dcba"
    assert names(Order.RATE)[0] == "a"
    assert names(Order.SLOWEST)[0] == "a"
    assert names(Order.ATTACK) == "dbac"
    assert names(Order.MODEL)[-1] == "c"
    assert names(Order.NEWEST, "cat sat") == "cba"
    assert names(Order.NEWEST, "verified random") == "a"
    assert names(Order.NEWEST, "attack:dlg") == "b"
    assert names(Order.NEWEST, "state:dlg") == ""
    assert names(Order.NEWEST, "model:gpt2 defense:gaussian:sigma") == "c"
    assert names(Order.NEWEST, "gaussian:sigma=0.01") == "c", "no field's name stands before its colon"
    assert names(Order.NEWEST, "match>0.5") == "a"
    assert names(Order.NEWEST, "match<0.5") == ""


def test_what_was_shared_how_the_client_trained_and_what_came_back_is_listed(tmp_path):
    settings = {"share": "attention", "client": ["accumulate:steps=2", "train-mode"]}
    make(tmp_path, "a", *events(), Finished(outcome="done", result=result()), **settings)

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        told = screen(app)
        assert "attention" in told
        assert "accumulate:steps=2" in told
        assert "recovered  the cat" in told
        assert f"true       {TEXT}" not in told
        await pilot.press("t")
        await pilot.pause()
        assert f"true       {TEXT}" in screen(app)
        with unittest.mock.patch.object(page, "post_message") as posted:
            page.action_again()
        (asked,) = posted.call_args.args
        assert (asked.batch, asked.recorded["share"]) == ([TEXT], "attention")

    drive(tmp_path, look, size=(160, 40))


@pytest.mark.parametrize("width", [80, 90, 100])
def test_what_came_back_is_listed_in_the_room_that_is_left(tmp_path, width):
    text = "the key lies under the third stone of the garden wall"
    make(
        tmp_path,
        "one",
        *events(
            end=Finished(
                outcome="done",
                result=result(
                    sentences=[{"reference": text, "recovered": text, "token_match_rate": 1.0, "tokens": 11}]
                ),
            )
        ),
    )

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await history(app, pilot)
        line = next(line for line in screen(app).splitlines() if "✓ done" in line)
        assert "the key l" in line
        assert "…" in line
        assert len(line.rstrip()) <= width

    drive(tmp_path, look, size=(width, 24))


def test_sorting_keeps_the_cursor_on_its_run(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        await pilot.press("down", "down")
        chosen = page._row().path
        for _ in Order:
            await pilot.press("s")
            assert page._row().path == chosen
            assert page.order.value in screen(app)

    drive(root, look)


def test_a_new_run_appears_and_a_running_one_ends_by_itself(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        folder = RunFolder.create(root / "e-new", name="new")
        with Recorder(folder, {"model": "opt", "attack": "tag"}) as recorder:
            await pilot.press("r")
            await until(pilot, lambda: any(row.outcome == "running" for row in page.shown))
            assert "● running" in screen(app)
            recorder.finish("done", result(0.5))
        await pilot.press("r")
        await until(pilot, lambda: all(row.outcome != "running" for row in page.shown))
        assert "0.50" in screen(app)

    drive(root, look)


def test_unchanged_folders_are_not_read_again(root, monkeypatch):
    shelf, read = listing.Shelf(root), []
    monkeypatch.setattr(listing, "read_row", lambda path, real=read_row: read.append(path.name) or real(path))
    assert len(shelf.refresh()) == 4
    assert len(read) == 4
    shelf.refresh()
    assert len(read) == 4
    (root / "c-killed" / "result.json").write_text(json.dumps(result(0.25)))
    assert 0.25 in [row.rate for row in shelf.refresh()]
    assert read[4:] == ["c-killed"]


@pytest.mark.parametrize(
    "broken",
    [
        {"sentences": 3},
        {"sentences": [1]},
        {"token_match_rate": "high"},
        {"seconds": None},
        [],
        {"verified": "so"},
    ],
)
def test_a_result_that_makes_no_sense_breaks_only_its_own_row(root, broken):
    (root / "a-done" / "result.json").write_text(json.dumps(broken))
    row = read_row(root / "a-done")
    assert row.path.name == "a-done"
    assert row.rate is None


def test_nothing_in_a_row_is_obeyed_by_a_terminal(root):
    hostile = dict.fromkeys(("model", "attack", "share"), "\x1b[2J") | {
        "defense": ["\x1b[2J"],
        "client": ["\x1b[2J"],
        "sentences": ["\x1b[2J"],
    }
    (root / "a-done" / "run.json").write_text(json.dumps({"settings": hostile}))
    row = read_row(root / "a-done")
    assert (row.model, row.attack, row.defense, row.text, row.share, row.client) == ("\\x1b[2J",) * 6


def test_blind_hides_rates_and_the_truth_but_not_what_came_back(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await history(app, pilot)
        await pilot.press("t", "b")
        text = screen(app)
        assert TEXT in text, "in the column of what came back"
        assert "true  " not in text
        assert "1.00" not in text
        assert "····" in text

    drive(root, look, size=(160, 40))


def test_nothing_is_deleted_without_asking(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        await pilot.press("slash", *"a-done", "enter", "d")
        assert isinstance(app.screen, DeleteDialog)
        await pilot.press("enter")  # Keep is in focus
        assert isinstance(app.screen, HistoryScreen)
        assert (root / "a-done" / "events.jsonl").exists()
        (root / "a-done" / "notes.txt").write_text("mine")
        await pilot.press("d", "y")
        await until(pilot, lambda: not page.shown)
        assert [path.name for path in (root / "a-done").iterdir()] == ["notes.txt"]
        assert len(list(root.iterdir())) == 4
        await pilot.press("escape", "home", "space", "down", "space", "down", "space")
        count = len(page.rows or ())
        assert f"{len(page.marked)} marked" in screen(app)
        assert len(page.marked) == min(3, count)
        await pilot.press("d")
        await pilot.pause(0.1)
        assert f"Delete these {len(page.marked)} runs?" in screen(app)
        await pilot.press("y")
        await until(pilot, lambda: page.rows is not None and len(page.rows) == count - min(3, count))

    drive(root, look)


def test_a_run_that_goes_on_is_not_deleted(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        with Recorder(RunFolder.create(root / "z", name="z"), {"model": "z"}):
            await history(app, pilot)
            await pilot.press("r", "slash", *"running", "enter")
            await pilot.pause(0.3)
            await pilot.press("d")
            await pilot.pause(0.3)
            assert isinstance(app.screen, HistoryScreen)
            assert "not over" in screen(app)

    drive(root, look)


def test_a_finished_run_opens_at_its_answer_in_every_size(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await replay(app, pilot)
        assert page.playback.event == len(page.recording) - 1
        for size in SIZES:
            await resized(pilot, size)
            text = screen(app)
            assert "✓the" in text
            if size[1] >= 24:
                assert "All of the text leaked" in text
                assert f"event {len(page.recording)} of {len(page.recording)}" in text
            assert max(map(len, text.splitlines())) <= size[0]

    drive(root, look, run=root / "a-done")


def test_scrubbing_by_keys_and_by_mouse_shows_the_run_as_it_was(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await replay(app, pilot)
        await pilot.press("home")
        assert page.playback.event == 0
        assert "No tokens at this place yet" in screen(app)
        await pilot.press("right", "right", "right", "right")
        assert page.playback.event == 4
        assert page.state.progress.step == 0
        assert "✗dog" in screen(app)
        await pilot.press("shift+right", "full_stop", "comma", "left")
        assert page.playback.event == 13
        await pilot.press("pagedown")
        assert page.playback.event > 14
        start, stop = page.scrubber._ends
        await pilot.click(page.scrubber, offset=(1 + start + (stop - start) // 2, 1))
        half = page.recording.extent("seconds") / 2
        assert page.recording.value_at("seconds", page.playback.event) == pytest.approx(half, abs=0.2)
        await pilot.press("end")
        assert page.playback.event == len(page.recording) - 1

    drive(root, look, run=root / "a-done")


def test_beside_the_attacker_the_defender_says_where_the_truth_is_not_known(tmp_path):
    known = make(tmp_path, "known", *events(end=Finished(outcome="done", result=result())))
    found = events(end=Finished(outcome="done", result=result(None)))
    unknown = make(tmp_path, "unknown", *(event for event in found if not isinstance(event, Truth)))

    for path, says in ((known, "the same with the truth"), (unknown, "the truth isn't known here")):

        async def look(app: TextleakApp, pilot: Pilot[None], says: str = says) -> None:
            await replay(app, pilot)
            await pilot.press("d")
            await until(pilot, lambda: f"● Defender: {says}" in screen(app))

        drive(tmp_path, look, run=path)


def test_playing_goes_through_the_run_in_its_own_time(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await replay(app, pilot)
        now = [0.0]
        page.playback.clock = lambda: now[0]

        def tick(seconds: float) -> float:
            now[0] += seconds
            page._tick()
            return page.recording.value_at("seconds", page.playback.event)

        assert page.playback.speed == 1
        await pilot.press("space")
        assert page.playback.playing
        assert tick(1.0) == pytest.approx(1.0)
        assert tick(0.5) == pytest.approx(1.5)
        await pilot.press("x")
        assert "▶ 4×" in screen(app)
        assert tick(0.25) == pytest.approx(2.5)
        await pilot.press("space")
        assert tick(1.0) == pytest.approx(2.5)
        assert "‖ 4×" in screen(app)
        await pilot.press("space", "x")
        assert tick(0.05) == pytest.approx(3.3, abs=0.11)
        assert tick(9.0) == pytest.approx(page.recording.extent("seconds"))
        assert not page.playback.playing
        await pilot.press("x", "space")
        assert page.playback.event == 0
        assert tick(4.0) == pytest.approx(1.0)

    drive(root, look, run=root / "a-done")


def test_a_run_that_another_process_writes_is_followed(tmp_path):
    tenths = iter(range(10**9))
    folder = RunFolder.create(tmp_path / "runs" / "live", name="live")
    recorder = Recorder(folder, {"model": "toy", "attack": "match"}, clock=lambda: next(tenths) / 10)

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await replay(app, pilot)
        assert "hasn't shown any" in screen(app)
        for event in events(10):
            recorder.record(event)
        await until(pilot, lambda: page.state.progress and page.state.progress.step == 9)
        await pilot.pause(0.1)
        assert "● live" in screen(app)
        assert "still being written" in screen(app)
        await pilot.press("left", "left")
        held = page.playback.event
        recorder.record(events(20)[-1])
        await until(pilot, lambda: len(page.recording) > held + 3)
        assert page.playback.event == held
        await pilot.press("f")
        assert page.state.progress.step == 19
        recorder.finish("stopped", result(0.5, outcome="stopped"))
        await until(pilot, lambda: page.state.finished)
        await pilot.pause(0.1)
        assert "stopped on request" in screen(app)

    with recorder:
        drive(tmp_path / "runs", look, run=folder.path)


def test_a_run_that_went_wrong_says_so(root):
    cases = {
        "b-failed": "ValueError: out of luck",
        "c-killed": "has no end",
        "d-broken": "is not a run folder",
        "no-such-folder": "is not a run folder",
    }

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        for name, words in cases.items():
            app.open_run(OpenRun(root / name))
            await replay(app, pilot)
            await pilot.press("space", "left", "x", "f", "end")
            await until(pilot, lambda words=words: words in re.sub(r"\s+", " ", screen(app)))
            await until(pilot, lambda: "● continuous" not in screen(app))  # nothing goes on
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, HistoryScreen))

    drive(root, look)


def test_a_torn_last_line_hides_nothing(root):
    with (root / "a-done" / "events.jsonl").open("rb+") as file:
        text = file.read()
        file.truncate(len(text) - 100)

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await replay(app, pilot)
        assert page.state.progress.step == 39
        assert page.state.match_rate() == 1.0

    drive(root, look, run=root / "a-done")


@pytest.mark.parametrize("size", [(160, 48), (60, 16)])
def test_long_and_wide_texts_are_replayed(tmp_path, size):
    words = random.Random(0).choices(
        ["日本語", "👩‍👩‍👧", "שלום", "Ġhello", "the", "e\u0301", "\u200b"], k=512
    )
    path = make(tmp_path, "long", *events(4, text=" ".join(words)), Finished(outcome="done", result=result()))

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await replay(app, pilot)
        assert size[1] < 24 or "of 514" in screen(app)
        await pilot.press("home", "pagedown", "pagedown", "pagedown", "pagedown", "pagedown")
        await pilot.resize_terminal(90, 25)
        await pilot.pause(0.2)
        assert screen(app)

    drive(tmp_path, look, run=path, size=size)


def test_exports_hold_what_they_say(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await replay(app, pilot)
        for _ in range(2):
            await pilot.press("e")
            assert isinstance(app.screen, ExportDialog)
            await pilot.press("up", "enter")  # the last of the choices: all of them
            await pilot.pause(0.3)
            assert isinstance(app.screen, ReplayScreen)

    drive(root, look, run=root / "a-done")
    folder = tmp_path / export.EXPORTS / "a-done"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["run-2.json", "run.json", "screen-2.svg", "screen.svg", "summary-2.md", "summary.md"]
    assert folder.stat().st_mode & 0o077 == 0
    assert json.loads((folder / "run.json").read_text())["token_match_rate"] == 1.0
    picture = (folder / "screen.svg").read_text()
    assert picture.startswith("<svg")
    assert "meeting" not in picture
    assert "Export" in picture  # the footer's
    assert "Markdown" not in picture  # not the dialog
    text = (folder / "summary.md").read_text()
    assert "**All of the text leaked through the span of a layer's gradient" in text
    assert f"| reference | {TEXT} |" in text


@pytest.mark.parametrize("presses", [2, 1])  # of the arrow up: the report, or all of them
def test_a_report_is_exported(root, tmp_path, monkeypatch, presses):
    monkeypatch.chdir(tmp_path)
    story = STORIES[0]

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await replay(app, pilot)
        await pilot.press("e", *["up"] * presses, "enter")
        report = tmp_path / export.EXPORTS / story.folder.name / "report.html"
        await until(pilot, report.exists)
        assert story.sentence in report.read_text()

    drive(root, look, run=story.folder)


def test_what_is_exported_while_blind_has_no_truth(root):
    folder = root / "a-done"
    recording = Recording(folder)
    recording.read()
    with pytest.raises(InputError, match="truth"):
        export.write_report(folder, blind=True)
    for at in (None, 20):
        shown = recording.state(at)
        found = export.run_json(folder, shown, blind=True)
        assert not {"token_match_rate", "rouge1", "labels"} & found.keys()
        assert "reference" not in json.dumps(found)
        written = export.summary(folder, shown, blind=True)
        assert "reference" not in written
        assert "match rate" not in written


def test_a_run_without_a_result_is_exported_as_it_stands(root):
    recording = Recording(root / "c-killed")
    recording.read()
    found = export.run_json(root / "c-killed", recording.state())
    assert found["progress"]["step"] == 19
    assert found["token_match_rate"] == 1.0
    assert json.loads(json.dumps(found, allow_nan=False))
    text = export.summary(root / "c-killed", recording.state())
    assert "there is no result" in text
    assert "gaussian:sigma=0.01" in text


def test_exports_go_beside_the_run_where_nothing_else_can_be_written(root, tmp_path):
    (tmp_path / "file").write_text("")
    place = export.export_folder(root / "a-done", base=tmp_path / "file")
    assert place == root / "a-done" / "exports"
    bar = export.write(place, "a.md", "x | y")
    assert bar.read_text() == "x | y"


def lit(app: TextleakApp) -> str:
    """The place that the bar on top marks."""
    (tab,) = app.screen.query(".here").results(Static)
    return str(tab.content)


def test_a_run_named_on_the_command_line_is_left_for_the_place_that_was_lit(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        await replay(app, pilot)
        assert "History" in lit(app)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, HistoryScreen))
        assert "History" in lit(app)

    drive(root, look, run=root / "a-done", alone=True)


def test_a_run_opened_from_another_place_is_left_for_that_one(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        app.switch_mode("run")
        await pilot.pause()
        page = app.screen
        page.post_message(OpenRun(root / "a-done"))
        await replay(app, pilot)
        assert "Run" in lit(app)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is page)

    drive(root, look)


def test_screens_are_left_the_way_they_came(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        await pilot.press("enter")
        await replay(app, pilot)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is page)
        assert page.table.has_focus

    drive(root, look)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs: one that needs 40 steps, one that is over after 20."""
    runs = tmp_path / "two"
    return (
        make(runs, "slow", *events(40), Finished(outcome="done", result=result()), attack="dlg"),
        make(runs, "fast", *events(20), Finished(outcome="done", result=result()), defense=["sign"], seed=1),
    )


async def comparison(app: TextleakApp, pilot: Pilot[None], two: tuple[Path, Path]) -> CompareScreen:
    """The comparison of two runs, once it has read them."""
    app.compare_runs(CompareRuns(*two))
    await until(pilot, lambda: isinstance(app.screen, CompareScreen))
    page = app.screen
    assert isinstance(page, CompareScreen)
    await until(pilot, lambda: all(one.whole for one in page.recordings))
    await pilot.pause(0.15)
    return page


def test_two_runs_are_compared_at_equal_steps(two):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await comparison(app, pilot, two)
        assert page.on == "steps"
        page._go(10.0)
        await pilot.pause(0.1)
        a, b = (side.at(page.on, page.value).progress for side in page.sides)
        assert (a.total_steps, b.total_steps) == (10, 10)
        text = screen(app)
        assert "At step 10 B is ahead: 50% of the tokens against A's 17%." in text
        for words in ("attack (dlg | match)", "defense (none | sign)", "seed (0 | 1)"):
            assert words in re.sub(r"\s+", " ", text)
        page._go(39.0)
        await pilot.pause(0.1)
        assert "both have recovered 100%" in screen(app)
        assert "✓ done at step 19" in screen(app)
        await pilot.press("comma")
        assert page.value == 38
        await pilot.press("home", "full_stop", "full_stop")
        assert page.value == 2

    drive(two[0].parent, look, size=(160, 40))


def test_other_axes_and_playing(two):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await comparison(app, pilot, two)
        page._go(20.0)
        await pilot.press("a")
        assert page.on == "evaluations"
        assert page.value == pytest.approx(40, abs=1)
        await pilot.press("a")
        assert page.on == "seconds"
        assert page.value == pytest.approx(page.extent / 2, abs=0.2)
        await pilot.press("x", "x")
        page.action_play()
        page._go(0.0)
        page.action_play()
        await until(pilot, lambda: not page.playing)
        assert page.value == page.extent

    drive(two[0].parent, look)


def test_a_comparison_folds(two):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await comparison(app, pilot, two)
        for size in SIZES:
            await resized(pilot, size)
            text = screen(app)
            assert sum(side.display for side in page.sides) == (1 if size[0] < 72 else 2)
            assert page.overlay.display == (size[1] >= 22)
            assert max(map(len, text.splitlines())) <= size[0]
        assert "run B (v shows it)" in text
        await pilot.press("v")
        assert "run A (v shows it)" in screen(app)
        assert "B  match" in screen(app)

    drive(two[0].parent, look)


def test_blind_compares_nothing_with_the_truth(two):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await comparison(app, pilot, two)
        page._go(10.0)
        await pilot.press("b")
        text = screen(app)
        assert "match rate 0" not in text
        assert "ahead" not in text
        assert "the losses are A 0.0909, B 0.0909" in text

    drive(two[0].parent, look)


def test_a_run_without_a_loss_is_told_in_words():
    def reached(loss: float | None) -> ViewState:
        found = Progress(
            phase="verify", step=1, steps=1, loss=loss, losses=(), evaluations=1, total_steps=1, sentences=()
        )
        return ViewState().add(found, 1.0)

    assert "the losses are A 0.2, B 0.5." in verdict([reached(0.2), reached(0.5)], "seconds", 3.0, blind=True)
    one = verdict([reached(0.2), reached(None)], "seconds", 3.0, blind=True)
    assert one == "At 3.0 s the loss is A 0.2; the other has none."
    assert verdict([reached(None)] * 2, "seconds", 3.0, blind=True) == "At 3.0 s neither has a loss."


def test_marked_runs_are_compared_and_a_broken_one_says_so(root):
    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        await pilot.press("c")
        await pilot.pause(0.2)
        assert "Which two?" in screen(app)
        names = [row.path.name for row in page.shown]
        await pilot.press("home", *["down"] * names.index("d-broken"), "space")
        assert "1 marked" in screen(app)
        await pilot.press("home", *["down"] * names.index("a-done"), "c")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen))
        await pilot.pause(0.3)
        assert "is not a run folder" in re.sub(r"\s+", " ", screen(app))
        assert "✓the" in screen(app)
        await pilot.press("space", "a", "x", "left", "escape")
        await until(pilot, lambda: isinstance(app.screen, HistoryScreen))

    drive(root, look)


def test_runs_on_pictures_are_listed_and_replayed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def picture(gray: float) -> tuple:
        return tuple(tuple((gray, gray, column / 16) for column in range(16)) for _ in range(16))

    images = [{"psnr": 31.5, "label": 3, "recovered_label": 3}]
    end = Finished(outcome="done", result={"psnr": 31.5, "images": images, "stop": "All steps were used."})
    steps = [
        Progress(phase="continuous", step=step, loss=1 / (step + 1), image=(picture(step / 10),), labels=(3,))
        for step in range(5)
    ]
    path = make(
        tmp_path / "runs",
        "picture",
        *(Truth(image=(picture(0.5),), labels=(3,)), *steps, end),
        picture_shape=[3, 16, 16],
        batch_size=1,
        sentences=None,
        pictures=["sunset.png"],
    )
    (path / "strip.png").write_bytes(b"")

    async def look(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = await history(app, pilot)
        assert "31.5 dB" in screen(app)
        assert "sunset.png" in screen(app)
        await pilot.press("enter")
        shown = await replay(app, pilot)
        await until(pilot, lambda: "▀▀▀▀▀▀▀▀" in screen(app))
        assert "original, 3" not in screen(app)
        assert "31.5" in screen(app)
        await pilot.press("t")
        await pilot.pause()
        assert "original, 3" in screen(app)
        await pilot.press("b")
        assert "31.5" not in screen(app)
        await pilot.press("b", "left", "left", "left")
        assert shown.state.progress.step == 2
        for size in SIZES:
            await resized(pilot, size)
            assert max(map(len, screen(app).splitlines())) <= size[0]
        assert "PSNR of 31.5 dB" in export.summary(path, shown.recording.state())
        blind = export.run_json(path, shown.recording.state(), blind=True)
        assert "31.5" not in json.dumps(blind)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is page)
        await pilot.press("d", "y")
        await until(pilot, lambda: not path.exists())

    drive(tmp_path / "runs", look, size=(150, 40))
