"""What a file names is not loaded, and no checkpoint's own code is run, whoever names it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import textleak
from tests.conftest import ToyModel
from textleak import runs
from textleak.cli import app
from textleak.data.hub import load_dataset
from textleak.errors import InputError
from textleak.models.loading import places
from textleak.models.loading.images import load_image_model
from textleak.models.loading.places import Checkpoint
from textleak.shared.gradient import SharedGradient
from textleak_tui.child import Child
from textleak_tui.recording import Recording

AUTO = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModelForMaskedLM")
MAP = {**dict.fromkeys((*AUTO, "AutoModelForImageClassification"), "own.Model"), "AutoConfig": "own.Config"}

OwnCode = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(words: str = "") -> str:
        pytest.fail(f"asked on standard input: {words}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture
def own_code(tmp_path: Path, toy_folder: Callable[[str], Path]) -> OwnCode:
    """Gives a model folder with a Python file that leaves the mark `ran` in `tmp_path`."""

    def folder(where: str) -> Path:
        path = tmp_path / "model"
        shutil.copytree(toy_folder("bert"), path)
        (path / "own.py").write_text(
            "from pathlib import Path\n"
            f"Path({str(tmp_path / 'ran')!r}).touch()\n"
            "from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast\n"
            "class Config(BertConfig):\n    model_type = 'mine'\n"
            "class Model(BertForSequenceClassification):\n    config_class = Config\n"
            "class Tokenizer(BertTokenizerFast):\n    pass\n"
        )
        config = json.loads((path / "config.json").read_text())
        match where:
            case "config":
                changed = {**config, "model_type": "mine", "auto_map": MAP}
            case "model":  # transformers has the configuration, but not the task
                changed = {"model_type": "blip_text_model", "auto_map": MAP}
            case "part":  # transformers has the model, and asks for one of its parts, whatever it was told
                part = {"model_type": "blip_text_model", "auto_map": MAP, "_name_or_path": str(path)}
                changed = {"model_type": "fuyu", "text_config": part}
            case "tokenizer":
                changed = config
                tokenizer = {
                    "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]},
                    "tokenizer_class": "Tokenizer",
                }
                (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
            case _:
                changed = {**config, "auto_map": MAP}
        (path / "config.json").write_text(json.dumps(changed))
        return path

    return folder


def ran(tmp_path: Path) -> bool:
    return (tmp_path / "ran").exists()


@pytest.fixture
def named_in_file(tmp_path: Path, toy_model: ToyModel) -> Callable[..., Path]:
    """Gives a gradient file that names a model of whatever name and weights."""

    def written(name: str, weights: str = "random") -> Path:
        shared, _ = textleak.share(toy_model("bert", task="classification"), ["the cat sat"], [1])
        public = dataclasses.replace(shared.model, name=name, weights=weights)
        dataclasses.replace(shared, model=public).save(tmp_path / "g.safetensors")
        return tmp_path / "g.safetensors"

    return written


# A folder that is named by the person


def test_the_code_would_run_if_it_were_let(own_code: OwnCode, tmp_path: Path) -> None:
    """Else the tests here could not fail."""
    from transformers import AutoConfig

    AutoConfig.from_pretrained(own_code("config"), trust_remote_code=True)
    assert ran(tmp_path)


@pytest.mark.parametrize("weights", ["random", "auto"])
@pytest.mark.parametrize(("where", "task"), [("config", "auto"), ("model", "auto"), ("part", "causal-lm")])
def test_a_folder_that_needs_its_own_code_is_refused_by_name(
    where: str, task: str, weights: str, own_code: OwnCode, toy_model: ToyModel, tmp_path: Path
) -> None:
    folder = own_code(where)
    if weights == "auto":
        toy_model("bert", task="classification").network.save_pretrained(tmp_path / "saved")
        shutil.copy(tmp_path / "saved" / "model.safetensors", folder)
    with pytest.raises(InputError, match="needs code of its own, which textleak never runs") as told:
        textleak.load_model(str(folder), weights=weights, task=task)
    assert str(folder) in told.value.what
    assert not ran(tmp_path)


@pytest.mark.parametrize("where", ["both", "tokenizer"])
def test_a_folder_that_can_do_without_its_code_is_loaded_without(
    where: str, own_code: OwnCode, tmp_path: Path
) -> None:
    model = textleak.load_model(str(own_code(where)), weights="random")
    for part in (model.network, model.tokenizer):
        assert type(part).__module__.startswith("transformers.")
    assert not ran(tmp_path)


@pytest.mark.parametrize("where", ["config", "model", "both"])
def test_an_image_folder_s_own_code_is_not_run_either(where: str, own_code: OwnCode, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs code of its own"):
        load_image_model(str(own_code(where)), weights="random")
    assert not ran(tmp_path)


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_weights_that_are_a_pickle_of_more_than_tensors_are_not_opened(
    toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    folder = tmp_path / "model"
    shutil.copytree(toy_folder("bert"), folder)
    torch.save({"bert.pooler.dense.bias": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="weights of the model"):
        textleak.load_model(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(InputError, match="weights of the model"):
        textleak.load_model(str(folder))
    assert not ran(tmp_path)


def test_safetensors_go_before_pickles(
    toy_folder: Callable[[str], Path], toy_model: ToyModel, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder("bert"), folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    toy_model("bert", task="classification").network.save_pretrained(folder)
    assert textleak.load_model(str(folder)).weights == "pretrained"
    assert not ran(tmp_path)


def test_a_folder_with_an_adapter_is_refused(toy_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder("bert"), folder)
    adapter = {"peft_type": "LORA", "megatron_core": "antigravity", "megatron_config": {}}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    for load in (textleak.load_model, load_image_model):
        with pytest.raises(InputError, match="holds an adapter"):
            load(str(folder), weights="random")


def test_a_data_set_s_own_code_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    told: list[object] = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **options: told.append(options["trust_remote_code"])
    )
    assert load_dataset("somebody/something")[1] == ""
    assert told == [False]


# A model that is named by a file


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No checkpoint is on this machine; who asks the hub is written down."""
    import huggingface_hub

    asked: list[str] = []
    for module, name in (
        (places, "from_hub"),
        (places, "why_unreachable"),
        (huggingface_hub, "snapshot_download"),
        (huggingface_hub, "hf_hub_download"),
        (huggingface_hub, "get_hf_file_metadata"),
    ):
        monkeypatch.setattr(module, name, lambda hub_id, *_, **__: (asked.append(hub_id), (None, "no"))[1])
    monkeypatch.setattr(places, "cached", lambda _: None)
    monkeypatch.setattr(places, "packaged", lambda _: None)
    return asked


@pytest.mark.parametrize(
    "name", ["somebody/something", "../model", "lenet", "/", "", "bert-tiny/../x", "BERT-tiny"]
)
@pytest.mark.parametrize("weights", ["pretrained", "random", "auto"])
def test_what_a_file_names_is_not_loaded(
    name: str, weights: str, named_in_file: Callable[..., Path], no_hub: list[str]
) -> None:
    path = str(named_in_file(name, weights))
    with pytest.raises(InputError, match="no file can have loaded") as told:
        textleak.run(gradients=path, attack="dlg")
    assert repr(name) in told.value.what
    assert "--model NAME" in told.value.fix
    assert told.value.exit_code == 2
    assert not no_hub


@pytest.mark.parametrize("name", ["bert-base", "google-bert/bert-base-uncased"])
def test_an_alias_in_a_file_is_not_downloaded_until_a_person_names_it(
    name: str, named_in_file: Callable[..., Path], no_hub: list[str]
) -> None:
    path = str(named_in_file(name, "pretrained"))
    with pytest.raises(InputError, match="no pretrained weights") as told:
        textleak.run(gradients=path, attack="dlg")
    assert f"--model {name} to have it downloaded" in told.value.fix
    with pytest.raises(InputError, match="no pretrained weights"):
        textleak.run(gradients=path, attack="dlg", weights="pretrained")
    assert not no_hub
    with pytest.raises(InputError, match="no pretrained weights"):
        textleak.run(gradients=path, attack="dlg", model=name)
    assert no_hub == ["google-bert/bert-base-uncased"]


def test_random_weights_never_ask_the_hub(named_in_file: Callable[..., Path], no_hub: list[str]) -> None:
    with pytest.raises(InputError, match=r"parameter|shape"):  # it is a toy's gradient
        textleak.run(gradients=str(named_in_file("bert-tiny", "auto")), attack="dlg")
    assert not no_hub


def test_an_alias_in_a_file_is_loaded_from_what_is_at_hand(
    toy_folder: Callable[[str], Path],
    toy_model: ToyModel,
    tmp_path: Path,
    no_hub: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(toy_folder("bert"), folder)
    toy_model("bert", task="classification", num_labels=2).network.save_pretrained(folder)
    monkeypatch.setattr(places, "cached", lambda _: Checkpoint(folder=folder, gguf=None, words="the cache"))
    shared, _ = textleak.share(textleak.load_model("bert-tiny"), ["the cat sat"], [1])
    shared.save(tmp_path / "g.safetensors")
    result = textleak.run(gradients=str(tmp_path / "g.safetensors"), attack="embedding")
    assert (result["model"], result["weights"]) == ("bert-tiny", "pretrained")
    assert not no_hub


def test_the_model_that_a_person_names_is_used_instead(
    named_in_file: Callable[..., Path], toy_folder: Callable[[str], Path]
) -> None:
    path = str(named_in_file("somebody/something"))
    assert (
        textleak.run(gradients=path, attack="embedding", model=str(toy_folder("bert")))["weights"] == "random"
    )


def test_a_gradient_is_attacked_without_loading_what_it_names(
    own_code: OwnCode, named_in_file: Callable[..., Path], toy_model: ToyModel, tmp_path: Path
) -> None:
    shared = SharedGradient.load(named_in_file(str(own_code("config"))))
    recovery = textleak.recover(shared, toy_model("bert", task="classification"), "embedding")
    assert recovery.sentences
    assert not ran(tmp_path)


@pytest.mark.parametrize(
    "public",
    [{"num_labels": 1 << 40}, {"num_labels": 0}, {"weights_seed": 1 << 70}, {"weights_seed": -(1 << 70)}],
)
def test_sizes_that_no_model_has_are_refused(
    public: dict[str, Any], named_in_file: Callable[..., Path], toy_model: ToyModel
) -> None:
    path = named_in_file("bert-tiny")
    shared = SharedGradient.load(path)
    dataclasses.replace(shared, model=dataclasses.replace(shared.model, **public)).save(path)
    with pytest.raises(InputError, match=r"metadata .* damaged"):
        SharedGradient.load(path)


# Every way in, with somebody who says yes to everything


def commands(folder: Path, gradient: Path) -> dict[str, list[str]]:
    words = ["-s", "the cat sat"]
    return {
        "a file": ["run", "--gradients", str(gradient)],
        "a file and its model": ["run", "--gradients", str(gradient), "--model", str(folder)],
        "run": ["run", "--model", str(folder), *words],
        "prior": [
            "run",
            *words,
            "--weights",
            "random",
            "--attack",
            "lamp",
            "--steps",
            "1",
            "--prior",
            str(folder),
        ],
        "share": ["share", "--model", str(folder), *words, "--out", str(gradient.with_name("out"))],
        "image": ["image", "--model", str(folder)],
        "eval": ["eval", "--model", str(folder), "--limit", "1", "--out", str(gradient.with_name("eval"))],
        "bench": ["bench", "--model", str(folder)],
        "an audited file": ["audit", str(gradient)],
        "an audited file and its model": ["audit", str(gradient), "--model", str(folder)],
        "audited checkpoints": ["audit", "--before", str(folder), "--after", str(folder)],
    }


@pytest.mark.parametrize("way", [*commands(Path("m"), Path("g"))])
def test_no_command_runs_it(
    way: str,
    own_code: OwnCode,
    named_in_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "runs"))
    folder = own_code("config")
    # A prior needs weights, an audit reads them.
    save_file({"weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    arguments = commands(folder, named_in_file(str(folder)))[way]
    done = CliRunner().invoke(app, arguments, input="y\n" * 100)
    assert done.exit_code in (1, 2), done.stderr  # 1 where the model is loaded after the work has begun
    assert str(folder) in done.stderr.replace("\n", "")
    assert "code of its own" in done.stderr or "no file can have loaded" in done.stderr
    assert not ran(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["a file", "a file and its model", "image"])
def test_a_process_leaves_its_standard_input_alone(
    way: str, own_code: OwnCode, named_in_file: Callable[..., Path], tmp_path: Path
) -> None:
    folder = own_code("config")
    arguments = commands(folder, named_in_file(str(folder)))[way]
    read, write = os.pipe()
    os.write(write, b"y\n" * 100)
    os.close(write)
    done = subprocess.run(
        [sys.executable, "-m", "textleak.cli", *arguments],
        stdin=read,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TEXTLEAK_RUNS": str(tmp_path / "runs")},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert os.read(read, 1000) == b"y\n" * 100
    os.close(read)
    assert not ran(tmp_path)


@pytest.mark.slow
def test_the_app_says_why_it_can_t_be_attacked(own_code: OwnCode, tmp_path: Path) -> None:
    folder = own_code("config")

    async def scene() -> Child:
        child = Child(tmp_path / "run")
        await child.start("run", {"model": str(folder), "sentences": ["the cat sat"]})
        assert child._process is not None
        assert child._process.stdin is not None
        child._process.stdin.write(b"y\n" * 100)
        async with asyncio.timeout(120):
            while not child.ended:
                await asyncio.sleep(0.05)
        return child

    child = asyncio.run(scene())
    assert child.exit_code == 2
    assert "needs code of its own" in child.failure().what
    assert not ran(tmp_path)


def test_a_recording_that_names_it_is_shown_without_loading_it(own_code: OwnCode, tmp_path: Path) -> None:
    folder = runs.RunFolder.create(tmp_path / "run", name="x")
    settings = {"model": str(own_code("config")), "attack": "match", "gradients": str(tmp_path / "g")}
    runs.write_json(folder.run_path, {"pid": 0, "settings": settings})
    folder.events_path.write_text(json.dumps({"t": 0, "event": "started", "settings": settings}) + "\n")
    recording = Recording(folder.path)
    recording.read()
    assert recording.state().settings["model"] == settings["model"]
    assert not ran(tmp_path)


def test_nothing_is_fetched_while_a_folder_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm would for what a folder doesn't hold."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from textleak.models.loading import own_code

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", asked)
    monkeypatch.setattr("socket.getaddrinfo", asked)
    with own_code.offline(), pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("nobody/nothing", "config.json")
    assert constants.HF_HUB_OFFLINE is False
