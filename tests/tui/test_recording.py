"""A recording: the state at any place of a run folder is what its events up to there add up to."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from textleak.errors import InputError
from textleak.events import Event, Finished, Phase, Position, Progress, Sentence, Truth, to_json
from textleak.runs import Recorder, RunFolder, read_events
from textleak.view import ViewState
from textleak_tui.index import AXES
from textleak_tui.recording import Recording
from textleak_tui.standing import standing

WORDS = ("[CLS]", "the", "cat", "sat", "on", "mat", "dog", "[SEP]")


def sentence(*ids: int) -> Sentence:
    return Sentence(
        positions=tuple(
            Position(position=at, id=id, text=WORDS[id] if id >= 0 else "", special=id in (0, 7))
            for at, id in enumerate((0, *ids, 7))
        ),
        text=" ".join(WORDS[id] for id in ids if id >= 0),
    )


def run_of(path: Path, *events: Event, settings: dict | None = None) -> Path:
    """A run folder that holds these events, a second each."""
    seconds = iter(range(10**9))
    folder = RunFolder.create(path, name="run")
    with Recorder(folder, settings or {"model": "toy"}, clock=lambda: float(next(seconds))) as recorder:
        for event in events:
            recorder.record(event)
    return folder.path


def some_run(progress: int, *, sentences: int = 1, seed: int = 0) -> list[Event]:
    """A run of every kind of event: phases with and without a word, answers that come and stay away."""
    draw = random.Random(seed)
    truths = [[draw.randrange(1, 7) for _ in range(5)] for _ in range(sentences)]
    events: list[Event] = [Truth(sentences=tuple(sentence(*ids) for ids in truths)), Phase(name="labels")]
    for number in range(progress):
        guesses = tuple(
            sentence(*(id if draw.random() < number / progress else draw.randrange(-1, 7) for id in ids))
            for ids in truths
        )
        if number % 50 == 30:
            events.append(Phase(name="discrete", detail="words"))
        events.append(
            Progress(
                phase="discrete" if number % 50 >= 30 else "continuous",
                step=number % 50,
                steps=50,
                loss=None if number % 7 == 3 else draw.random() if number % 11 else float("inf"),
                losses=(0.5, float("inf")),
                evaluations=8 * number,
                total_steps=number,
                sentences=() if number % 5 == 2 else guesses,
            )
        )
    return events


def read(path: Path) -> Recording:
    recording = Recording(path)
    recording.read()
    return recording


@pytest.mark.parametrize("sentences", [1, 3])
@pytest.mark.parametrize("progress", [3, 120, 900])
def test_the_state_at_every_place_is_what_the_events_up_to_there_add_up_to(tmp_path, progress, sentences):
    path = run_of(
        tmp_path / "run", *some_run(progress, sentences=sentences), Finished(outcome="done", result={})
    )
    recording = read(path)
    state, places = ViewState(), random.Random(1).sample(range(progress), min(progress, 40))
    for place, timed in enumerate(read_events(path)):
        state = state.add(timed.event, timed.t)
        if place in places or place < 6 or place >= progress:
            assert recording.state(place) == state
    assert len(recording) == place + 1
    assert recording.state() == state
    assert recording.points() == state.points


def test_pictures_are_replayed_too(tmp_path):
    def picture(gray: float) -> tuple:
        return ((((gray,), (gray,)), ((gray,), (0.0,))),)

    events = [Truth(image=picture(1.0), labels=(3,)), Phase(name="continuous")]
    for step in range(6):
        shown = picture(step / 10) if step % 2 else ()
        events.append(Progress(phase="continuous", step=step, loss=0.5, image=shown, labels=(step,)))
    path = run_of(tmp_path / "run", *events, Finished(outcome="done", result={}))
    recording, state = read(path), ViewState()
    for place, timed in enumerate(read_events(path)):
        state = state.add(timed.event, timed.t)
        assert recording.state(place) == state
    assert recording.state(place - 2).progress.image == recording.state(place - 3).progress.image


def test_a_jump_takes_no_longer_in_a_long_run(tmp_path):
    recording = read(run_of(tmp_path / "run", *some_run(6000)))
    began = time.process_time()
    for place in random.Random(0).sample(range(6000), 50):
        assert recording.state(place).progress
    assert (time.process_time() - began) / 50 < 0.02


def test_an_index_is_small_beside_its_events(tmp_path):
    path = run_of(tmp_path / "run", *some_run(4000))
    recording = Recording(path)
    recording.state()
    tracemalloc.start()
    recording.read()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 20 MB for 50,000 events is 400 bytes each; what a file of any length costs is left out by nothing here.
    assert kept / len(recording) < 200


def test_every_axis_leads_to_a_place_and_back(tmp_path):
    events = some_run(200)
    recording = read(run_of(tmp_path / "run", *events, Finished(outcome="done", result={})))
    for axis in AXES:
        assert (
            recording.index_at(axis, -1) == 0 or recording.value_at(axis, recording.index_at(axis, -1)) == 0
        )
        assert recording.index_at(axis, recording.extent(axis)) == len(recording) - 1
        for share in (0.1, 0.5, 0.77):
            value = recording.extent(axis) * share
            place = recording.index_at(axis, value)
            assert recording.value_at(axis, place) <= value
            assert recording.value_at(axis, place + 1) > value
    assert recording.state(recording.index_at("steps", 17)).progress.total_steps == 17


def test_a_run_is_followed_while_it_is_written(tmp_path):
    events = some_run(30)
    folder = RunFolder.create(tmp_path / "run", name="run")
    seconds = iter(range(10**6))
    with Recorder(folder, {}, clock=lambda: float(next(seconds))) as recorder:
        recording = Recording(folder.path)
        assert recording.read()
        assert not recording.read()
        for event in events:
            recorder.record(event)
        assert recording.read()
        assert recording.state().progress.sentences
        assert recording.standing().outcome == "running"
        assert recording.finished is None
        recorder.record(Finished(outcome="stopped", result={"token_match_rate": 0.5}))
    recording.read()
    assert recording.standing().outcome == "stopped"
    assert recording.result == {"token_match_rate": 0.5}


def test_a_torn_last_line_waits_for_its_rest(tmp_path):
    path = run_of(tmp_path / "run", *some_run(5))
    events = path / "events.jsonl"
    line = json.dumps({"t": 99.0, **to_json(some_run(6)[-1])}, ensure_ascii=False).encode()
    recording = read(path)
    before = len(recording)
    for end in (1, len(line) // 2, len(line) - 1):
        with events.open("ab") as file:
            file.write(line[:end])
        assert not recording.read()
        assert len(recording) == before
        events.write_bytes(events.read_bytes()[:-end])
    with events.open("ab") as file:
        file.write(line)  # whole, though without a line's end
    assert recording.read()
    assert recording.state().progress.step == 5
    with events.open("ab") as file:
        file.write(b"\n" + line + b"\n")
    assert recording.read()
    assert len(recording) == before + 2


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[1, 2]",
        b"null",
        b'{"t": 1, "event": "progress"}',
        b'{"t": 1, "event": "progress", "phase": "x", "step": -1e400}',
        b'{"t": NaN, "event": "phase", "name": "x"}',
        b'{"t": 1, "event": "finished", "outcome": 3}',
        b'{"t": 1, "event": "of another version"}',
        b'{"t": 1, "event": "phase", "name": "\xff\xfe"}',
        b'{"t": 1, "event": "progress", "phase": "x", "step": 1, "sentences": [{"positions": 3}]}',
        b"[" * 20_000,
    ],
)
def test_a_broken_line_is_passed_over(tmp_path, line):
    path = run_of(tmp_path / "run", *some_run(5))
    whole = read(path)
    state = whole.state()
    lines = (path / "events.jsonl").read_bytes().splitlines(keepends=True)
    (path / "events.jsonl").write_bytes(b"".join([*lines[:4], line + b"\n", *lines[4:]]))
    broken = read(path)
    assert len(broken) == len(whole)
    assert broken.state() == state


def test_a_file_in_the_place_of_another_is_read_anew(tmp_path):
    path = run_of(tmp_path / "run", *some_run(50))
    other = run_of(tmp_path / "other", *some_run(8, seed=5))
    recording = read(path)
    (other / "events.jsonl").replace(path / "events.jsonl")
    recording.read()
    assert recording.state() == read(path).state()
    (path / "events.jsonl").unlink()
    assert not recording.read()
    assert recording.state().progress is None
    assert recording.state().points


def test_a_reader_with_a_budget_keeps_to_it_and_ends_where_the_others_do(tmp_path):
    path = run_of(tmp_path / "run", *some_run(2500))
    recording, rounds = Recording(path), 0
    while not recording.whole:
        recording.read(seconds=0)
        rounds += 1
        assert 0 < recording.share_read <= 1
    assert rounds > 3
    assert recording.state() == read(path).state()


def test_a_folder_without_events_is_empty_and_one_without_a_run_is_an_error(tmp_path):
    path = run_of(tmp_path / "run")
    (path / "events.jsonl").unlink()
    recording = read(path)
    assert len(recording) == 0
    assert recording.state() == ViewState(settings={"model": "toy"})
    assert [recording.index_at(axis, 3) for axis in AXES] == [0, 0, 0]
    with pytest.raises(InputError, match="not a run folder"):
        Recording(tmp_path)


def test_a_run_without_texts_is_replayed_by_its_figures(tmp_path):
    folder = RunFolder.create(tmp_path / "run", name="run")
    with Recorder(folder, {"sentences": ["secret"]}, redact=True) as recorder:
        for event in some_run(3):
            recorder.record(event)
        recorder.finish("done", {"token_match_rate": 1.0, "sentences": []})
    recording = read(folder.path)
    assert "secret" not in repr(recording.state())
    assert recording.state().rates == ()
    assert recording.result["token_match_rate"] == 1.0


def test_who_writes_a_run_is_told_from_its_process_and_from_its_growth(tmp_path):
    now = [1000.0]
    path = run_of(tmp_path / "run", *some_run(5))
    facts = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**facts, "pid": 2**22 + 12345}))  # above the largest process
    events = path / "events.jsonl"
    os.utime(events, (now[0], now[0]))
    recording = Recording(path, clock=lambda: now[0])
    recording.read()
    assert recording.standing().outcome == "killed"
    with events.open("ab") as file:
        file.write(events.read_bytes().splitlines(keepends=True)[-1])
    recording.read()
    assert recording.standing() == standing("elsewhere", pid=1, silent=0)
    assert "another machine" in recording.standing().what
    os.utime(events, (now[0], now[0]))
    now[0] += 600
    gone = recording.standing()
    assert gone.outcome == "killed"
    assert "10:00 min" in gone.why
    assert "run it again" in gone.fix


@pytest.mark.parametrize(
    ("outcome", "silent", "error", "words"),
    [
        ("done", 0, "", "came to its end"),
        ("stopped", 0, "", "on request"),
        ("interrupted", 0, "", "best answer"),
        ("failed", 0, "ValueError: no such thing", "no such thing"),
        ("failed", 0, "", "no word"),
        ("running", 1, "", "still being written"),
        ("running", 300, "", "5:00 min"),
    ],
)
def test_every_standing_has_words(outcome, silent, error, words):
    found = standing(outcome, pid=1, silent=silent, error=error)
    assert words in " ".join(dataclasses.astuple(found))
    assert found.outcome == ("silent" if silent > 100 else outcome)
