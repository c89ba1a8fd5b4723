"""Encoder-decoders that classify: their decoder reads the encoder's text, moved on by one token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import textleak
from tests.conftest import toy_tokenizer, write_network
from textleak.errors import InputError
from textleak.models import load_model
from textleak.models.batches import TextExamples
from textleak.models.gradient import formed_gradient
from textleak.models.quiet import quiet
from textleak.models.text import TextModel

TEXT = "the secret meeting was moved to friday"
SHAPE = {"d_model": 32, "init_std": 0.2, "num_labels": 3, "eos_token_id": 3}
LAYERS = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
BART = {
    **SHAPE,
    "decoder_start_token_id": 3,
    **LAYERS,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
}
T5 = {**SHAPE, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
FAMILIES = {"bart": BART, "mbart": BART, "t5": T5, "umt5": T5}

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Writes a family's configuration and tokenizer: folder("t5", tokenizer="gpt2")."""

    def write(family: str, tokenizer: str = "wordpiece", **further: object) -> Path:
        shape = {**FAMILIES.get(family, BART), **further}
        return write_network(family, toy_tokenizer(tokenizer), shape, tmp_path / family)

    return write


def classifier(at: Path, **options: object) -> TextModel:
    return load_model(str(at), weights="random", num_labels=3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_its_gradient_is_that_of_the_networks_own_pass_of_ids(family: str, folder: Write) -> None:
    model = classifier(folder(family), dtype="float64")
    batch, targets = model.targets(model.encode([TEXT, "call"]), [2, 0], torch.Generator())
    assert min(batch.lengths) < max(batch.lengths)
    ours = formed_gradient(model, TextExamples(batch=batch, targets=targets), list(model.parameters))
    network = model.network.requires_grad_(True)
    with quiet():
        output = network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=targets.labels[:, 0])
    output.loss.backward()
    theirs = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_its_text_is_read_and_proved_without_the_embeddings(family: str, folder: Write) -> None:
    model = classifier(folder(family))
    shared, _ = textleak.share(model, [TEXT], share="no-embeddings")
    recovery = textleak.recover(shared, model, "auto:time_limit=20")
    assert [sentence.text for sentence in recovery.sentences] == [TEXT]
    assert recovery.verified


def test_a_decoder_that_begins_with_the_texts_last_token_is_seen(folder: Write) -> None:
    begun = {family: classifier(folder(family)).way.both for family in ("bart", "mbart")}
    assert [None if both is None else both.begins_with for both in begun.values()] == [3, None]


def test_a_tokenizer_that_writes_no_end_is_refused(folder: Write) -> None:
    with pytest.raises(InputError, match="ends no text with the token"):
        classifier(folder("t5", eos_token_id=1))


@pytest.mark.parametrize(
    ("family", "task", "said"),
    [
        ("bart", "masked-lm", "can't do masked-lm here"),
        ("pegasus", "auto", "is an encoder-decoder"),
        ("bart", "question-answering", "isn't read here"),
    ],
)
def test_what_reads_two_texts_is_refused(family: str, task: str, said: str, folder: Write) -> None:
    with pytest.raises(InputError, match=said):
        classifier(folder(family), task=task)


def test_a_head_that_tells_one_text_after_another_is_refused_where_it_is_wrapped(folder: Write) -> None:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    at = folder("bart")
    network = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(at))
    with pytest.raises(InputError, match="tells one text after another"):
        textleak.wrap(network, toy_tokenizer("wordpiece"))  # type: ignore[arg-type]
