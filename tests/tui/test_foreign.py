"""Run folders that somebody else wrote, or that were broken: an error each, never the end of the app."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tui.pilots import until
from textleak.errors import InputError
from textleak.events import Finished, Phase, Position, Progress, Sentence, Truth
from textleak.runs import Recorder, RunFolder, read_run
from textleak_tui import bounds, export, recording
from textleak_tui.app import build_app
from textleak_tui.listing import read_row
from textleak_tui.places import OpenRun
from textleak_tui.recording import Recording
from textleak_tui.screens.base import Page
from textleak_tui.screens.history import HistoryScreen
from textleak_tui.screens.replay import ReplayScreen

RESULT = {
    "token_match_rate": 0.5,
    "verified": False,
    "channel": "span",
    "seconds": 1.5,
    "evaluations": 3,
    "sentences": [{"reference": "a b", "recovered": "a c", "token_match_rate": 0.5, "tokens": 2}],
}
FACTS = {"model": "toy", "attack": "match", "sentences": ["a b"], "seed": 0, "batch_size": 1, "tokens": 4}


def answer(*words: str) -> Sentence:
    return Sentence(
        positions=tuple(Position(position=at, id=len(word), text=word) for at, word in enumerate(words)),
        text=" ".join(words),
        label=1,
        label_posterior=(0.25, 0.75),
    )


def whole(path: Path) -> Path:
    """A run folder in which nothing is wrong."""
    tenths = iter(range(10**6))
    folder = RunFolder.create(path, name="run")
    with Recorder(folder, FACTS, clock=lambda: next(tenths) / 10) as recorder:
        recorder.record(Truth(sentences=(answer("a", "bb"),)))
        recorder.record(Phase(name="continuous"))
        for step in range(4):
            recorder.record(
                Progress(
                    phase="continuous",
                    step=step,
                    steps=4,
                    loss=0.5,
                    losses=(0.5, 0.75),
                    evaluations=2 * step,
                    total_steps=step,
                    sentences=(answer("a", "cc"),),
                )
            )
        recorder.record(Finished(outcome="done", result=RESULT))
    folder.result_path.write_text(json.dumps(RESULT))
    return folder.path


def facts(**changes: Any) -> Callable[[Path], object]:
    """Other values in run.json."""

    def change(path: Path) -> None:
        found = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps({**found, **changes}))
        without_end(path)

    return change


def settings(**changes: Any) -> Callable[[Path], object]:
    """Other settings."""
    return facts(settings={**FACTS, **changes})


def result(**changes: Any) -> Callable[[Path], object]:
    """Another result, in both its places."""

    def change(path: Path) -> None:
        (path / "result.json").write_text(json.dumps({**RESULT, **changes}))
        events(lambda record: record | {"result": {**RESULT, **changes}}, "finished")(path)

    return change


def events(change: Callable[[dict[str, Any]], dict[str, Any]], kind: str) -> Callable[[Path], object]:
    """Other events of a kind."""

    def write(path: Path) -> None:
        records = map(json.loads, (path / "events.jsonl").read_text().splitlines())
        lines = [json.dumps(change(record) if record["event"] == kind else record) for record in records]
        (path / "events.jsonl").write_text("\n".join(lines) + "\n")

    return write


def progress(**changes: Any) -> Callable[[Path], object]:
    """Other values in each progress."""
    return events(lambda record: record | changes, "progress")


def sentences(change: Callable[[dict[str, Any]], object], kind: str = "progress") -> Callable[[Path], object]:
    """Another answer in each progress, or another truth."""

    def changed(record: dict[str, Any]) -> dict[str, Any]:
        change(record["sentences"][0])
        return record

    return events(changed, kind)


def positions(kind: str = "progress", **changes: Any) -> Callable[[Path], object]:
    """Other values of an answer's last position."""
    return sentences(lambda sentence: sentence["positions"][-1].update(changes), kind)


def without_end(path: Path) -> None:
    lines = (path / "events.jsonl").read_text().splitlines(keepends=True)
    (path / "events.jsonl").write_text("".join(lines[:-1]))
    (path / "result.json").unlink()


def pipe(name: str) -> Callable[[Path], object]:
    """A named pipe that nobody writes into, in the place of a file."""

    def make(path: Path) -> None:
        (path / name).unlink()
        os.mkfifo(path / name)

    return make


def deep(name: str) -> Callable[[Path], object]:
    """Lists in lists, deeper than they can be read."""
    return lambda path: (path / name).write_text('{"settings": ' + "[" * 20_000)


def only_settings(path: Path) -> None:
    facts(pid=2**22 + 12345)(path)  # above the largest process
    (path / "events.jsonl").unlink()


NESTED: list[Any] = []
for _ in range(500):
    NESTED = [NESTED]
NAN, HUGE = float("nan"), "x" * 200_000
TAMPERED: dict[str, Callable[[Path], object]] = {
    "pid of 2^31": facts(pid=2**31),
    "pid of 2^80": facts(pid=2**80),
    "infinite pid": facts(pid=float("inf")),
    "pid of lists": facts(pid=[1]),
    "began before there were clocks": facts(started="0001-01-01T00:00:00"),
    "began at no time": facts(started=NAN),
    "deep run.json": deep("run.json"),
    "deep result.json": deep("result.json"),
    "deep events.jsonl": deep("events.jsonl"),
    "deep settings": settings(attack_options=NESTED, model=NESTED),
    "a defense that is a number": settings(defense=3),
    "a client that is a number": settings(client=3),
    "a ratio that is a text": settings(tokens_per_hidden="high"),
    "sentences that are numbers": settings(sentences=[1, 2]),
    "a model that rings": settings(model="\x1b[31mred\x07"),
    "NaN seconds": result(seconds=NAN),
    "endless seconds": result(seconds=1e300),
    "NaN rate": result(token_match_rate=NAN),
    "a rate of a billion": result(token_match_rate=1e9),
    "a rate in words": result(token_match_rate="high"),
    "infinite PSNR": result(psnr=float("inf"), images=[{"psnr": 1.0}]),
    "pictures without a PSNR": result(images=[{}]),
    "images that are none": result(psnr=3.0, images=7),
    "a result of lists": result(sentences=[[]]),
    "verified in words": result(verified="so"),
    "a distance that is a list": result(gradient_distance=[]),
    "a position of -1": positions(position=-1),
    "a position of 1e9": positions(position=10**9),
    "a true position of -1": positions("truth", position=-1),
    "a true position of 1e9": positions("truth", position=10**9),
    "a NaN confidence": positions(confidence=NAN),
    "a token of 200 kB": positions(text=HUGE),
    "a true token of 200 kB": positions("truth", text=HUGE),
    "candidates of 200 kB": positions(candidates=[{"id": 1, "text": HUGE, "score": 0.5}]),
    "a sentence of 200 kB": sentences(lambda sentence: sentence.update(text=HUGE)),
    "a label that there isn't": sentences(lambda sentence: sentence.update(label=99)),
    "a NaN posterior": sentences(lambda sentence: sentence.update(label_posterior=[NAN, 1e9])),
    "NaN evaluations": progress(evaluations=NAN),
    "infinite steps": progress(step=float("inf"), total_steps=NAN),
    "steps beyond counting": progress(step=10**400, steps=10**400),
    "a candidate beyond counting": progress(candidate=10**400),
    "a loss beyond drawing": progress(loss=1.7e308),
    "a loss of NaN": progress(loss=NAN, losses=[NAN, NAN]),
    "pictures of no shape": progress(image=[[1], 2, "x"], labels=[1]),
    "pictures of no depth": progress(image=[[[0.5]]], labels=[]),
    "a phase of 200 kB": events(lambda record: record | {"name": HUGE}, "phase"),
    "times that are none": progress(t=NAN),
    "a run of 30 years": progress(t=1e300),
    "a pipe for run.json": pipe("run.json"),
    "a pipe for result.json": pipe("result.json"),
    "a pipe for events.jsonl": pipe("events.jsonl"),
    "a folder for events.jsonl": lambda path: (
        (path / "events.jsonl").unlink(),
        (path / "events.jsonl").mkdir(),
    ),
    "nothing but settings": only_settings,
    "a name that is no text": lambda path: path.rename(os.fsdecode(os.fsencode(path) + b"-\xff\x1b[31m")),
}


@pytest.fixture(params=TAMPERED, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    TAMPERED[request.param](whole(tmp_path / "run"))
    (path,) = tmp_path.iterdir()
    return path


def test_a_folder_is_a_row_whatever_is_in_it(folder: Path) -> None:
    row = read_row(folder)
    assert row.path == folder
    assert row.problem or row.outcome in ("done", "running", "killed")
    assert row.rate is None or 0 <= row.rate <= 1
    assert len(row.text) <= 1001
    assert (row.name + row.model + row.words).isprintable()


def test_a_recording_can_be_read_at_every_place_or_says_why_not(folder: Path) -> None:
    began = time.process_time()
    try:
        found = Recording(folder)
    except InputError:
        return
    for _ in range(3):
        found.read()
    assert found.whole
    for place in range(len(found)):
        state = found.state(place)
        for sentence in state.progress.sentences if state.progress else ():
            assert all(len(position.text) <= bounds.LONGEST_TOKEN + 1 for position in sentence.positions)
    stands = found.standing()
    assert stands.what
    assert stands.outcome in ("done", "running", "killed", "silent")
    assert export.summary(folder, found.state())
    assert json.loads(json.dumps(export.run_json(folder, found.state()), default=str))
    assert time.process_time() - began < 5


def test_what_a_folder_really_holds_is_still_told(tmp_path: Path) -> None:
    path = whole(tmp_path / "run")
    row = read_row(path)
    assert (row.outcome, row.rate, row.verified, row.seconds) == ("done", 0.5, False, 1.5)
    found = Recording(path)
    found.read()
    assert found.settings == FACTS
    assert found.result == RESULT
    assert read_run(path).result == RESULT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": NAN}, "seconds can't be nan"),
        ({"token_match_rate": 1e9}, "token_match_rate can't be 1000000000.0"),
        ({"verified": "so"}, "verified is neither true nor false"),
        ({"sentences": [{"reference": 3}]}, "sentences reference is no text"),
        ({"notes": "n"}, "notes is no list"),
        ({"verdict": "LEAKS"}, "the verdict or its reason is missing"),
        ({"verdict": "LEAKS", "verdict_reason": None}, "the verdict or its reason is missing"),
    ],
)
def test_an_error_names_what_makes_no_sense(changes: dict[str, Any], words: str) -> None:
    assert bounds.result_of(RESULT) == RESULT
    with pytest.raises(InputError) as caught:
        bounds.result_of({**RESULT, **changes})
    assert words in caught.value.why


def test_a_line_longer_than_any_run_s_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = whole(tmp_path / "run")
    lines = (path / "events.jsonl").read_bytes().splitlines(keepends=True)
    endless = b'{"t": 0.35, "event": "phase", "name": "' + b"x" * 700_000 + b'"}\n'
    (path / "events.jsonl").write_bytes(b"".join([*lines[:4], endless, *lines[4:]]))
    whole_one = Recording(path)
    whole_one.read()
    assert len(whole_one) == len(lines) + 1
    monkeypatch.setattr(recording, "CHUNK", 1 << 12)
    monkeypatch.setattr(recording, "LONGEST_LINE", 1 << 16)
    found, looks = Recording(path), 0
    while not found.whole:
        found.read(seconds=0)
        looks += 1
    assert looks > 3
    assert len(found) == len(lines)
    assert found.finished is not None
    assert found.state().progress == whole_one.state().progress


def test_a_long_line_is_read_however_little_time_there_is(tmp_path: Path) -> None:
    path = whole(tmp_path / "run")
    positions(text="y" * 3_000_000)(path)
    found, looks = Recording(path), 0
    while not found.whole:
        found.read(seconds=0)
        looks += 1
        assert looks < 20
    assert found.finished is not None


# One of each kind of pane that a value can get into.
DRAWN = (
    "a token of 200 kB",
    "a label that there isn't",
    "a loss beyond drawing",
    "pictures of no shape",
    "a rate of a billion",
    "deep settings",
    "nothing but settings",
    "a pipe for events.jsonl",
)


@pytest.mark.parametrize("opened", [DRAWN, pytest.param(tuple(TAMPERED), marks=pytest.mark.slow)], ids=len)
def test_the_history_lists_every_folder_and_the_app_outlives_each(
    opened: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them at once: they are listed, and these are replayed with every pane."""
    monkeypatch.setattr("textleak_tui.screens.run.RunScreen", lambda *_: Page("run"))
    runs = tmp_path / "runs"
    for number, change in enumerate(TAMPERED.values()):
        change(whole(runs / f"{number:02}"))
    whole(runs / "good")
    numbers = tuple(f"{list(TAMPERED).index(name):02}" for name in opened)

    async def session() -> None:
        app = build_app(root=runs)
        async with app.run_test(size=(160, 48)) as pilot:
            app.switch_mode("history")
            await until(pilot, lambda: isinstance(app.screen, HistoryScreen) and app.screen.rows is not None)
            page = app.screen
            assert isinstance(page, HistoryScreen)
            assert len(page.shown) == len(TAMPERED) + 1
            await pilot.press("end")
            for path in [row.path for row in page.shown if row.path.name.startswith(numbers)]:
                app.open_run(OpenRun(path))
                await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
                screen = app.screen
                assert isinstance(screen, ReplayScreen)
                await until(pilot, lambda screen=screen: screen.recording is None or screen.standing)
                screen.action_step(-1)
                await pilot.pause()
                app.pop_screen()
            await until(pilot, lambda: app.screen is page)

    asyncio.run(session())
