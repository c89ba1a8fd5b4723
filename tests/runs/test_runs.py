"""Run folders: what is written is what is read, whenever the run ends and however."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import warm
from textleak import runs
from textleak.errors import InputError
from textleak.events import (
    Finished,
    Phase,
    Position,
    Progress,
    Recovery,
    Sentence,
    Started,
    Stop,
    TokenGuess,
    Truth,
)
from textleak.runs import Recorder, RunFolder, execute, read_events, read_run

SECRET = "xylophone"


def guess(word: str = SECRET) -> Sentence:
    position = Position(
        position=0,
        id=4711,
        text=word,
        confidence=0.5,
        channel="span",
        candidates=(TokenGuess(id=4712, text=word + "s", score=0.25),),
    )
    return Sentence(positions=(position,), text=word, label=1, label_posterior=(0.25, 0.75))


def step(number: int, phase: str = "continuous", loss: float | None = None) -> Progress:
    return Progress(
        phase=phase,
        step=number,
        steps=100,
        loss=1 / (number + 1) if loss is None else loss,
        losses=(0.5, 0.25),
        evaluations=2 * number,
        total_steps=number,
        sentences=(guess(),),
        detail=f"trying {SECRET}",
    )


def recovered() -> Recovery:
    return Recovery(
        sentences=(guess(),), stop=Stop.VERIFIED, final_loss=0.0, steps=2, evaluations=4, channel="span"
    )


def fake_attack(steps: int = 5):
    yield Phase(name="continuous", detail=f"from {SECRET}")
    for number in range(steps):
        yield step(number)
    yield Phase(name="discrete")
    yield step(steps, "discrete")
    return recovered()


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", name="test")


def events_of(folder: RunFolder) -> list:
    return [timed.event for timed in read_events(folder.path)]


def test_what_happened_is_read_back_as_it_was(folder):
    clock = Clock()
    with Recorder(folder, {"model": "toy", "sentences": [SECRET]}, clock=clock) as recorder:
        recorder.record(Truth(sentences=(guess(),)))
        clock.now += 1.5
        recorder.record(step(3))
        recorder.finish("done", {"outcome": "done", "token_match_rate": 1.0})
    timed = list(read_events(folder.events_path))
    assert [one.event for one in timed] == [
        Started(settings={"model": "toy", "sentences": [SECRET]}),
        Truth(sentences=(guess(),)),
        step(3),
        Finished(outcome="done", result={"outcome": "done", "token_match_rate": 1.0}),
    ]
    assert [one.t for one in timed] == [0, 0, 1.5, 1.5]
    record = read_run(folder.path)
    assert record.outcome == "done"
    assert record.result == {"outcome": "done", "token_match_rate": 1.0}
    assert record.settings["model"] == "toy"
    assert record.facts["versions"]["python"]
    assert record.facts["machine"]["cores"] >= 1


def test_an_attack_is_driven_to_its_end(folder):
    seen = []
    with Recorder(folder, {}, viewers=[seen.append]) as recorder:
        assert execute(fake_attack(), recorder) == recovered()
    assert [event.step for event in seen if isinstance(event, Progress)] == [0, 1, 2, 3, 4, 5]


def test_at_most_twenty_progress_events_a_second_are_written(folder):
    clock = Clock()
    with Recorder(folder, {}, clock=clock) as recorder:
        for number in range(1000):
            recorder.record(step(number))
            clock.now += 0.001
    written = [event.step for event in events_of(folder) if isinstance(event, Progress)]
    assert 15 <= len(written) <= 22
    assert (written[0], written[-1]) == (0, 999)


def test_the_last_progress_of_a_phase_is_never_lost(folder):
    with Recorder(folder, {}, clock=Clock()) as recorder:
        for number in range(10):
            recorder.record(step(number))
        recorder.record(Phase(name="discrete"))
        for number in range(10, 20):
            recorder.record(step(number, "discrete"))
        recorder.record(step(20, "verify"))
        recorder.record(step(21, "verify"))
    written = [event.step if isinstance(event, Progress) else event.name for event in events_of(folder)[1:]]
    assert written == [0, 9, "discrete", 19, 21]


def test_a_diverged_candidate_is_written_as_json_can(folder):
    diverged = Progress(phase="continuous", step=1, loss=float("nan"), losses=(0.5, float("inf")))
    with Recorder(folder, {}) as recorder:
        recorder.record(diverged)
    text = folder.events_path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    read = events_of(folder)[1]
    assert read.loss is None
    assert read.losses == (0.5, float("inf"))


def test_a_run_that_turns_out_to_be_impossible_leaves_nothing(folder, tmp_path):
    with Recorder(folder, {}) as recorder:
        recorder.record(Phase(name="continuous"))
    folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_writes_less_often(folder):
    clock = Clock()
    with Recorder(folder, {}, clock=clock) as recorder:
        for number in range(36_000):
            recorder.record(step(number))
            clock.now += 0.1
    assert len(events_of(folder)) < 12_000


def test_every_line_is_on_disk_before_the_next_step(folder):
    with Recorder(folder, {}) as recorder:
        recorder.record(Phase(name="continuous"))
        assert [type(event) for event in events_of(folder)] == [Started, Phase]


@pytest.mark.parametrize("facts", ["", "[1]", '{"pid": "abc"}', '{"settings": 3}', "[" * 5000])
def test_a_folder_whose_facts_are_broken_is_no_run_folder(tmp_path, facts):
    (tmp_path / "run.json").write_text(facts)
    with pytest.raises(InputError, match=r"run\.json can't be read"):
        read_run(tmp_path)


def test_a_run_s_outcome_is_read_from_the_end_of_its_events_alone(folder, monkeypatch):
    with Recorder(folder, {}) as recorder:
        for number in range(50):
            recorder.record(Phase(name=f"phase {number}", detail="x" * 100_000))
        result = {"sentences": ["y" * 300_000]}
        recorder.finish("stopped", result)
    folder.result_path.unlink()
    parsed = []
    monkeypatch.setattr(
        "textleak.runs.reading.parse_line",
        lambda line, parse=runs.parse_line: parsed.append(0) or parse(line),
    )
    assert read_run(folder.path).outcome == "stopped"
    assert len(parsed) == 1
    folder.events_path.write_bytes(b"")
    assert read_run(folder.path).outcome == "running"


def test_a_torn_last_line_is_passed_over(folder):
    with Recorder(folder, {}) as recorder:
        recorder.record(Phase(name="continuous"))
    with folder.events_path.open("a") as file:
        file.write('{"t": 3.0, "event": "progress", "pha')
    assert [type(event) for event in events_of(folder)] == [Started, Phase]
    assert read_run(folder.path).outcome == "running"


@pytest.mark.parametrize("time", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_an_event_at_no_time_is_passed_over(folder, time):
    with Recorder(folder, {}) as recorder:
        recorder.record(Phase(name="continuous"))
    with folder.events_path.open("a") as file:
        file.write(f'{{"t": {time}, "event": "phase", "name": "certify", "detail": ""}}\n')
    assert [type(event) for event in events_of(folder)] == [Started, Phase]


def test_a_folder_in_the_place_of_the_events_is_refused(folder):
    with Recorder(folder, {}):
        pass
    folder.events_path.unlink()
    folder.events_path.mkdir()
    with pytest.raises(InputError, match="not the events of a run"):
        list(read_run(folder.path).events())


def test_a_kill_in_the_middle_leaves_a_readable_folder(tmp_path):
    script = f"""
        import itertools, sys
        sys.path.insert(0, {str(Path(runs.__file__).parents[2])!r})
        from pathlib import Path
        from textleak.events import Phase, Progress
        from textleak.runs import Recorder, RunFolder, execute

        def attack():
            yield Phase(name="continuous")
            for number in itertools.count():
                yield Progress(phase="continuous", step=number, losses=(0.5,) * 2000)

        folder = RunFolder.create(Path({str(tmp_path / "run")!r}), name="test")
        with Recorder(folder, {{"seed": 0}}) as recorder:
            print("started", flush=True)
            execute(attack(), recorder)
    """
    with warm.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert read_run(tmp_path / "run").outcome == "running"
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    record = read_run(tmp_path / "run")
    assert record.outcome == "killed"
    assert record.result is None
    assert record.settings == {"seed": 0}
    assert sum(isinstance(timed.event, Progress) for timed in record.events()) >= 1
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_viewer_stops_a_run(folder):
    def attack():
        try:
            for number in range(1000):
                if number == 3:
                    runs.send(folder.path, "stop")
                yield step(number)
        finally:
            closed.append(True)
        raise AssertionError("ran on after stop")

    closed: list[bool] = []
    with Recorder(folder, {}) as recorder:
        recovery = execute(attack(), recorder)
    assert recovery.stop is Stop.STOPPED
    assert recovery.sentences == (guess(),)
    assert recovery.evaluations == 6
    assert closed == [True]


def test_a_viewer_pauses_and_resumes_a_run(folder):
    times: dict[int, float] = {}

    def attack():
        for number in range(4):
            times[number] = time.monotonic()
            yield step(number)
            if number == 1:
                runs.send(folder.path, "pause")
                threading.Timer(0.2, runs.send, (folder.path, "resume")).start()
        return recovered()

    seen = []
    with Recorder(folder, {}, viewers=[seen.append]) as recorder:
        assert execute(attack(), recorder, poll_seconds=0.01) == recovered()
    assert times[2] - times[1] < 0.15
    assert times[3] - times[2] > 0.15
    assert [event.detail for event in seen if isinstance(event, Progress)].count("paused") == 1


def test_commands_that_make_no_sense_are_passed_over(folder):
    control = runs.Control(folder.control_path)
    assert control.read() == []
    folder.control_path.write_text('nonsense\n{"command": "explode"}\n[1]\n{"command": "pause"}\n{"comm')
    assert control.read() == ["pause"]
    assert control.read() == []
    with folder.control_path.open("a") as file:
        file.write('and": "stop"}\n')
    assert control.read() == ["stop"]


def test_an_interrupt_goes_through_and_the_best_so_far_is_kept(folder):
    def attack():
        yield step(0)
        yield step(1)
        raise KeyboardInterrupt

    with Recorder(folder, {}) as recorder:
        with pytest.raises(KeyboardInterrupt):
            execute(attack(), recorder)
        recovery = recorder.recovery(Stop.INTERRUPTED)
        recorder.finish("interrupted", {"outcome": "interrupted"})
    assert recovery.sentences == (guess(),)
    assert recovery.stop is Stop.INTERRUPTED
    assert read_run(folder.path).outcome == "interrupted"


def test_an_interrupt_before_any_progress_has_an_empty_answer(folder):
    with Recorder(folder, {}) as recorder:
        assert recorder.recovery(Stop.INTERRUPTED).sentences == ()


def test_a_redacted_run_holds_no_text_anywhere(folder):
    seen = []
    settings = {"sentences": [SECRET], "labels": [1], "seed": 0}
    result = {
        "outcome": "done",
        "token_match_rate": 1.0,
        "notes": [SECRET],
        "surplus": [SECRET],
        "sentences": [
            {
                "reference": SECRET,
                "recovered": SECRET,
                "reference_tokens": [SECRET],
                "recovered_tokens": [SECRET],
                "label": 1,
                "recovered_label": 1,
                "token_match_rate": 1.0,
            }
        ],
    }
    with Recorder(folder, settings, redact=True, viewers=[seen.append]) as recorder:
        recorder.record(Truth(sentences=(guess(),)))
        recovery = execute(fake_attack(), recorder)
        written = recorder.finish("done", result)
        recorder.fail(ValueError(f"bad {SECRET}"))
    assert recovery.sentences[0].text == SECRET  # scoring still has it
    for path in folder.path.iterdir():
        text = path.read_text()
        assert SECRET not in text
        assert "4711" not in text
        assert "4712" not in text
    assert SECRET not in str(seen)
    assert not any(isinstance(event, Truth) for event in events_of(folder))
    assert written["token_match_rate"] == written["sentences"][0]["token_match_rate"] == 1.0
    assert written["sentences"][0]["reference"] is None


def test_a_result_without_the_truth_is_what_an_attacker_could_write():
    found = {"recovered": "a dog", "recovered_label": 0}
    sentence = {**found, "reference": SECRET, "label": 1, "exact": False, "rouge1": 0.0, "token_recall": 0.0}
    picture = {"recovered_label": 0, "label": 1, "psnr": 9.0, "mse": 0.1, "ssim": 0.2, "lpips": 0.5}
    result = {"verified": False, "sentences": [sentence], "images": [picture], "token_match_rate": 0.0}
    assert runs.without_truth(result) == {
        "verified": False,
        "sentences": [found],
        "images": [{"recovered_label": 0}],
    }


def test_a_follower_sees_events_as_they_come(folder):
    got = []

    def follow():
        got.extend(timed.event for timed in read_events(folder.path, follow=True, poll_seconds=0.01))

    follower = threading.Thread(target=follow)
    follower.start()
    with Recorder(folder, {}) as recorder:
        execute(fake_attack(), recorder)
        recorder.finish("done", {"outcome": "done"})
    follower.join(timeout=5)
    assert not follower.is_alive()
    assert got == events_of(folder)
    assert isinstance(got[-1], Finished)


def test_a_follower_of_a_dead_run_can_be_told_to_stop(folder):
    with Recorder(folder, {}) as recorder:
        recorder.record(Phase(name="continuous"))
    assert len(list(read_events(folder.path, follow=True, poll_seconds=0.01, stop=lambda: True))) == 2


def test_folders_are_made_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "here"))
    first = RunFolder.create(None, name="bert-tiny/match")
    assert first.path.parent == tmp_path / "here"
    assert "bert-tiny-match" in first.path.name
    with Recorder(first, {}):
        pass
    assert runs.list_runs() == [first.path]
    monkeypatch.delenv("TEXTLEAK_RUNS")
    assert runs.runs_folder().name == "runs"


def test_a_run_never_writes_over_another(folder):
    with Recorder(folder, {}):
        pass
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder.create(folder.path, name="again")


@pytest.mark.parametrize(
    "name", ["events.jsonl", "result.json", "gradients.safetensors", "traceback.txt", "control.jsonl"]
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_file_of_somebody_s_own_is_neither_written_over_nor_taken_away(name, dangling, tmp_path):
    own = tmp_path / name
    own.symlink_to(tmp_path / "elsewhere") if dangling else own.write_text("mine")
    with pytest.raises(InputError, match=rf"holds a {name}, and no run"):
        RunFolder.create(tmp_path, name="x")
    assert sorted(tmp_path.iterdir()) == [own]
    assert dangling or own.read_text() == "mine"
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path, name="x").discard()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_begins_while_its_folder_is_looked_at_is_called_one(tmp_path, monkeypatch):
    exists = os.path.lexists

    def begun(path):
        (tmp_path / "run.json").touch()
        (tmp_path / "events.jsonl").touch()
        return exists(path)

    monkeypatch.setattr(os.path, "lexists", begun)
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder.create(tmp_path, name="x")


def test_of_several_runs_on_one_folder_exactly_one_has_it(tmp_path):
    def begin(number: int) -> str:
        try:
            with Recorder(RunFolder.create(tmp_path / "run", name="x"), {"seed": number}) as recorder:
                recorder.finish("done", {"seed": number})
        except InputError as error:
            return error.what
        return "done"

    with ThreadPoolExecutor(8) as pool:
        came = sorted(pool.map(begin, range(16)))
    assert came == sorted(["done", *[f"{tmp_path / 'run'} holds a run already."] * 15])
    record = read_run(tmp_path / "run")
    assert record.outcome == "done"
    assert record.result == record.settings
    assert len(list(record.events())) == 2


RACER = """
import sys, time
from pathlib import Path
from textleak.errors import InputError
from textleak.runs import Recorder, RunFolder
root = Path(sys.argv[1])
print("ready", flush=True)
while not (root / "go").exists():
    pass
for number in range(25):
    try:
        folder = RunFolder.create(root / str(number), name="x")
    except InputError:
        continue
    with Recorder(folder, {"process": sys.argv[2]}):
        print(number, flush=True)
"""


def test_of_several_processes_on_one_folder_exactly_one_has_it(tmp_path):
    racers = [
        warm.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    won = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(25))
    for process, numbers in enumerate(won):
        assert {read_run(tmp_path / number).settings["process"] for number in numbers} <= {str(process)}


def test_from_its_first_moment_a_folder_is_a_run_s(folder):
    # Whoever is killed here has written nothing else yet.
    record = read_run(folder.path)
    assert (record.outcome, record.settings, record.result) == ("running", {}, None)
    assert runs.list_runs(folder.path.parent) == [folder.path]
    assert list(record.events()) == []


def test_a_folder_that_was_made_and_nothing_else_is_no_run_and_can_be_used(tmp_path):
    (tmp_path / "run").mkdir()  # by one who was killed before its first file
    assert runs.list_runs(tmp_path) == []
    assert RunFolder.create(tmp_path / "run", name="x").run_path.exists()


def test_a_run_is_not_written_into_an_evaluation_s_folder(tmp_path):
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(InputError, match="holds an evaluation"):
        runs.check_folder(tmp_path)


def test_a_place_that_can_t_be_written_to_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written to"):
        runs.check_folder(tmp_path / "file" / "run")
    with pytest.raises(InputError, match="can't be written to"):
        runs.check_folder(Path("/proc/run"))
    runs.check_folder(tmp_path / "new" / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "result.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runs.write_json(path, {("not", "a", "key"): object()})  # type: ignore[dict-item]
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_without_a_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        read_run(tmp_path)
