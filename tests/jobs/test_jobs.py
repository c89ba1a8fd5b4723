"""A run's facts are worked out once, whatever asks for them, and what it is told never grows."""

import pytest

from textleak.attacks.base import to_end
from textleak.errors import InputError
from textleak.events import Progress, Recovery, Stop
from textleak.exact import second_parts
from textleak.jobs import images, text
from textleak.jobs.base import drive
from textleak.runs import Recorder, RunFolder
from textleak.settings import load_image_config, load_run_config

QUICK = {"threads": 1, "device": "cpu"}
SMALL = {**QUICK, "size": 12, "num_labels": 5, "steps": 2}


def counted(monkeypatch, module, name):
    """How often a function was called, as a list that grows."""
    calls, real = [], getattr(module, name)

    def call(*arguments, **options):
        calls.append(name)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.fixture
def text_file(tmp_path):
    job = text.prepare(load_run_config(None, {**QUICK, "sentences": ("a cat",), "weights": "random"}))
    job.shared.save(tmp_path / "g.safetensors")
    job.secret.save(tmp_path / "truth.json")
    return tmp_path / "g.safetensors", tmp_path / "truth.json"


def test_a_gradient_from_a_file_is_made_a_view_once(text_file, monkeypatch):
    made = counted(monkeypatch, second_parts, "view_of")
    gradients, truth = text_file
    config = load_run_config(None, {**QUICK, "gradients": gradients, "truth": truth, "attack": "embedding"})
    job = text.prepare(config)
    result = job.result(to_end(job.steps()), outcome="done", seconds=0.0, run_dir=None)
    assert result["verified"] is True
    assert len(made) == 1


def test_a_run_on_pictures_runs_the_network_for_its_facts_once(monkeypatch):
    from textleak.attacks.dummies import pictures

    worked_out = counted(monkeypatch, pictures, "numbers_determined")
    job = images.prepare(load_image_config(None, SMALL))
    assert job.warnings() == (
        *(f"{p.name}: {note}." for p in job.pictures for note in p.notes),
        *job.limits(),
    )
    assert job.settings is job.settings
    job.result(to_end(job.steps()), outcome="done", seconds=0.0, run_dir=None)
    assert len(worked_out) == 1


def test_both_kinds_of_run_say_the_same_of_settings_and_end():
    on_text = text.prepare(
        load_run_config(None, {**QUICK, "sentences": ("a cat",), "weights": "random", "attack": "embedding"})
    )
    on_pictures = images.prepare(load_image_config(None, SMALL))
    results = [
        job.result(to_end(job.steps()), outcome="done", seconds=0.0, run_dir=None)
        for job in (on_text, on_pictures)
    ]
    answers = [(job, to_end(job.steps())) for job in (on_text, on_pictures)]
    own = [
        set(job.facts()) | set(job.scores(answer)) | set(job.proved(answer, None)) for job, answer in answers
    ]
    common = [set(result) - mine for result, mine in zip(results, own, strict=True)]
    assert common[0] == common[1]
    assert {"model", "attack", "client", "defense", "stop", "verified", "notes", "run_dir"} <= common[0]


def test_a_run_is_named_by_its_model_without_options_and_its_attack():
    job = images.prepare(
        load_image_config(None, {**SMALL, "model": "resnet20:activation=sigmoid", "size": 16})
    )
    assert job.name == "resnet20-dlg"


def test_a_file_tells_no_more_than_it_says(text_file):
    gradients, _ = text_file
    less = text.prepare(load_run_config(None, {**QUICK, "gradients": gradients, "know": "nothing"}))
    assert less.shared.known.told == ()
    assert less.settings["know"] == []
    with pytest.raises(InputError, match="labels can't be told"):
        text.prepare(load_run_config(None, {**QUICK, "gradients": gradients, "know": "labels"}))


@pytest.mark.parametrize("client", [(), ("train-mode",)])
def test_the_answer_is_the_last_that_is_shown(tmp_path, toy_folder, client):
    settings = {**QUICK, "sentences": ("the cat sat",), "model": str(toy_folder("bert")), "client": client}
    job = text.prepare(load_run_config(None, settings, ()))
    seen = []
    folder = RunFolder.create(tmp_path / "run", name="run")
    with Recorder(folder, job.settings, viewers=[seen.append]) as recorder:
        result = drive(job, recorder)
    shown = [event.sentences for event in seen if isinstance(event, Progress)]
    assert [one.text for one in shown[-1]] == [one["recovered"] for one in result["sentences"]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, True),
        ({"client": ("train-mode",)}, True),
        ({"client": ("fedavg:optimizer=sgd,lr=0.01,steps=2",)}, True),
        ({"client": ("fedavg:optimizer=adamw,lr=0.0001,steps=3,weight_decay=0.1",)}, True),
        ({"client": ("fedavg:optimizer=adamw,lr=0.0001,steps=1,share=weights",)}, True),
        ({"defenses": ("prune:ratio=0.5",)}, True),
        ({"defenses": ("gaussian:sigma=1e-9",)}, False),
        ({"defenses": ("gaussian:sigma=1e-9",), "know": "no-defense"}, False),
        (
            {
                "client": ("fedavg:optimizer=adamw,lr=0.0001,steps=1",),
                "defenses": ("gaussian:sigma=1e-9",),
                "know": "no-defense",
            },
            False,
        ),
        ({"share": "no-embeddings"}, False),
    ],
)
def test_what_the_rows_name_is_told_whatever_the_attack_found(toy_folder, settings, named):
    model = {"model": str(toy_folder("bert"))}
    job = text.prepare(load_run_config(None, {**QUICK, "sentences": ("the cat sat",), **model, **settings}))
    nothing = Recovery(sentences=(), stop=Stop.TIME, final_loss=None)
    result = job.result(nothing, outcome="done", seconds=0.0, run_dir=None)
    content = {token for ids in job.secret.ids for token in ids} - job.model.special_ids
    assert not result["verified"]
    assert result["named_tokens"] == (len(content) if named else None)
    assert ("rows name 3 tokens" in result["summary"]) == named


def test_a_proved_answer_needs_no_rows(toy_folder):
    model = {"model": str(toy_folder("bert")), "attack": "embedding"}
    job = text.prepare(load_run_config(None, {**QUICK, "sentences": ("the cat sat",), **model}))
    result = job.result(to_end(job.steps()), outcome="done", seconds=0.0, run_dir=None)
    assert (result["proved_tokens"], result["named_tokens"]) == (3, None)
