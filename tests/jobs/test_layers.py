"""A model's first layers alone: what they tell of a gradient of theirs, and what they don't claim."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import textleak
from tests.conftest import write_toy
from textleak.errors import InputError
from textleak.models import load_model
from textleak.models.loading.text import TextRequest, load
from textleak.private.share import share

QUICK = {"threads": 1, "device": "cpu"}
TEXTS = ["the cat sat on the mat", "a dog ran home.", "he sat"]
SHAPE = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
}
FIRST = ("model.layers.0.", "model.layers.1.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three layers, and what a client of all of them shares."""
    folder = tmp_path_factory.mktemp("layers")
    model = load_model(str(write_toy("llama", folder, **SHAPE)), weights="random", task="causal-lm")
    model.network.save_pretrained(folder / "whole")
    model.tokenizer.save_pretrained(folder / "whole")
    whole = load_model(str(folder / "whole"))
    shared, secret = share(whole, TEXTS, share="no-embeddings", know="nothing", seed=1)
    shared.save(folder / "g.safetensors")
    secret.save(folder / "truth.json")
    first = {name: tensor for name, tensor in shared.gradients.items() if name.startswith(FIRST)}
    save_file(first, folder / "first.safetensors")
    return folder


@pytest.mark.parametrize("audited", [False, True])
def test_the_first_layers_prove_every_token_but_the_last(folder: Path, audited: bool, tmp_path: Path) -> None:
    said = {**QUICK, "model": str(folder / "whole"), "layers": 2, "out": tmp_path / "run"}
    if audited:
        result = textleak.audit(gradients=folder / "first.safetensors", task="causal-lm", **said)
        assert result["verdict"] == "LEAKS"
    else:
        result = textleak.run(gradients=folder / "g.safetensors", truth=folder / "truth.json", **said)
        assert result["token_match_rate"] > 0.7
    model = load_model(str(folder / "whole"))
    special = set(model.tokenizer.all_special_tokens)
    ends = (model.token_texts(model.encode(text).sentences[0])[:-1] for text in TEXTS)
    expected = sorted(tuple(token for token in row if token not in special) for row in ends)
    found = [sentence["recovered_tokens"] for sentence in result["sentences"]]
    assert sorted(tuple(row[:-1]) for row in found) == expected  # the last of each stays open
    assert (result["layers"], result["proof"]) == (2, "span")
    assert result["proved_tokens"] == sum(map(len, expected))
    assert (result["verified"], result["gradient_distance"]) == (None, None)
    assert "first layers" in result["verified_reason"]


def test_no_other_layers_are_in_memory(folder: Path) -> None:
    model = load(TextRequest(name=str(folder / "whole"), layers=2))
    assert {name.split(".")[2] for name in model.parameters if ".layers." in name} == {"0", "1"}
    assert not any("lm_head" in name for name in model.parameters)
    assert model.head is None


def test_layers_of_another_batch_prove_nothing(folder: Path, tmp_path: Path) -> None:
    """The second layer's gradients are of other sentences than the first one's."""
    whole = load_model(str(folder / "whole"))
    other, _ = share(whole, ["we went out", "it was late and cold"], share="no-embeddings", seed=2)
    mixed = load_file(folder / "first.safetensors")
    mixed |= {name: g.clone() for name, g in other.gradients.items() if name.startswith(FIRST[1])}
    save_file(mixed, tmp_path / "mixed.safetensors")
    result = textleak.audit(
        gradients=tmp_path / "mixed.safetensors",
        model=str(folder / "whole"),
        task="causal-lm",
        layers=2,
        out=tmp_path / "run",
        **QUICK,
    )
    assert (result["proof"], result["proved_tokens"], result["verified"]) == (None, 0, None)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"layers": 3}, "has 3"),
        ({"layers": 2, "attack": "match"}, "needs all of"),
        ({"layers": 2, "weights": "random"}, "no folder with weights"),
        ({"layers": 2, "task": "classification"}, "trained for classification"),
    ],
)
def test_what_needs_all_layers_is_refused(
    said: dict[str, object], what: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=what):
        textleak.run(
            **QUICK,
            model=str(folder / "whole"),
            gradients=folder / "g.safetensors",
            out=tmp_path / "run",
            **said,
        )


def test_a_gradient_of_nothing_of_theirs_is_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"model.layers.2.mlp.up_proj.weight": torch.ones(4, 4)}, tmp_path / "last.safetensors")
    with pytest.raises(InputError, match="nothing of the first 2 layers"):
        textleak.audit(
            gradients=tmp_path / "last.safetensors",
            model=str(folder / "whole"),
            task="causal-lm",
            layers=2,
            **QUICK,
        )
