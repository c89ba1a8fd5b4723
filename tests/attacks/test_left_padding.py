"""Padding on the left, in decoders of every kind: what an ordinary loop leaves is read and proved, told or untold."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.attacks.test_architectures import DECODER, GPT, SIZES, written
from textleak import recover
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.events import Recovery, Stop
from textleak.models import TextModel, load_model
from textleak.models.losses.language import Language
from textleak.models.probes.reach import reads_padding
from textleak.models.quiet import quiet
from textleak.proof.certificate import certify
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation
from textleak.shared.public import ONE_STEP

TEXTS = ("the cat sat on the mat", "she ran home")
FEWER = ("i saw it", "you")  # where padding takes part as tokens do
Drawn = Callable[[str], TextModel]

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "sees padding alone": ("gpt2", GPT),
    "positions counted from the mask": (
        "opt",
        {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 40},
    ),
    "distances counted from the mask": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "scores weighed in float32": ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 40}),
    "two masks added up": (
        "gpt_neo",
        {
            **{"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 40},
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "padding reads the text after it": ("openai-gpt", GPT),
    "padding reads all alike": ("ctrl", {**GPT, "dff": 96}),
    "logits scaled": ("granite", {**DECODER, "logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    "padding that nothing is left of": (
        "mamba",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    "padding read as text": ("rwkv", {**SIZES, "attention_hidden_size": 64, "context_length": 40}),
}
ALSO_TOLD = ("sees padding alone", "positions counted from the mask", "padding read as text")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """Gives a kind's small network, whose weights are drawn so that no gradient drowns in rounding."""

    @functools.cache
    def model(kind: str) -> TextModel:
        family, shape = KINDS[kind]
        scale = {"init_std": 0.1} if family == "opt" else {"initializer_range": 0.1}
        folder = tmp_path_factory.mktemp("drawn")
        path = written(family, "opt" if family == "opt" else "gpt2", {**shape, **scale}, folder)
        return load_model(str(path), weights="random", task="causal-lm", device="cpu")

    return model


def from_an_ordinary_loop(model: TextModel, texts: tuple[str, str] = TEXTS) -> SharedGradient:
    """The gradient that transformers' own model gives for texts padded on the left by their collator."""
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[model.pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    network: Any = copy.deepcopy(model.network).requires_grad_(True)
    with quiet():
        logits = network(input_ids=ids, attention_mask=mask).logits
    labels = ids.masked_fill(mask == 0, -100)
    functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in network.named_parameters()
        if name not in model.embedding_names and parameter.grad is not None
    }
    return SharedGradient(
        gradients=gradients, model=model.public(), share="no-embeddings", known=SideInformation(batch_size=2)
    )


def texts_of(recovery: Recovery) -> list[str]:
    return sorted(sentence.text.strip() for sentence in recovery.sentences)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        *((kind, False) for kind in KINDS),
        # What is read once the padding has shown is read in the same way: by default of three.
        *(pytest.param(kind, True, marks=[] if kind in ALSO_TOLD else pytest.mark.slow) for kind in KINDS),
    ],
)
def test_what_an_ordinary_loop_leaves_is_read_and_proved(kind: str, told: bool, drawn: Drawn) -> None:
    model = drawn(kind)
    texts = FEWER if kind == "padding read as text" else TEXTS
    shared = from_an_ordinary_loop(model, texts)
    client = composed([CLIENTS.build("loss", {"padding": "left"})]).public(model)
    recovery = recover(dataclasses.replace(shared, client=client if told else ONE_STEP), model, "span")
    assert recovery.stop is Stop.VERIFIED
    assert texts_of(recovery) == sorted(texts)
    assert [("padded on the left" in note) for note in recovery.notes] == [True] * (not told)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_gives_what_float32_does_the_last_paddings_prediction_too(kind: str, drawn: Drawn) -> None:
    model = drawn(kind).spoken_with(Language(padding="left"))
    batch = model.encode(TEXTS)
    seen, exact = (one.logits(batch.ids_BT, batch.mask_BT) for one in (model, model.double()))
    counted = batch.mask_BT == 1
    counted[:, -1] = True  # there the last padding's prediction of the first token stands
    torch.testing.assert_close(seen[counted], exact[counted].float(), rtol=1e-3, atol=1e-4)


def test_another_text_is_not_proved_where_padding_was_weighed_in_float32(drawn: Drawn) -> None:
    model = drawn("scores weighed in float32")
    client = composed([CLIENTS.build("loss", {"padding": "left"})]).public(model)
    shared = dataclasses.replace(from_an_ordinary_loop(model), client=client)
    recovery = recover(shared, model, "span")
    view = view_of(shared, model)
    assert certify(view, recovery.sentences).verified
    first, second = recovery.sentences
    (*before, last), other = first.positions, second.positions[0]
    changed = dataclasses.replace(first, positions=(*before, dataclasses.replace(last, id=other.id)))
    assert certify(view, (changed, second)).verified is False


def test_what_the_longest_sentence_ends_with_stays_open_where_no_norm_tells_it(tmp_path: Path) -> None:
    path = written("olmo", "gpt2", {**DECODER, "initializer_range": 0.1}, tmp_path)
    model = load_model(str(path), weights="random", task="causal-lm", device="cpu")
    client = composed([CLIENTS.build("loss", {"padding": "left"})]).public(model)
    shared = dataclasses.replace(from_an_ordinary_loop(model), client=client)
    recovery = recover(shared, model, "span")
    assert not recovery.stop.settled
    (note,) = recovery.notes
    assert "end with couldn't be told" in note
    assert texts_of(recovery)[0] == TEXTS[1]
    opened = [[p.id < 0 for p in sentence.positions] for sentence in recovery.sentences]
    assert sorted(map(sum, opened)) == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_network_that_has_no_mask_reads_padding_as_text(kind: str, drawn: Drawn) -> None:
    assert reads_padding(drawn(kind)) == (kind == "padding read as text")
