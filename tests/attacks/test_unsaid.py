"""Losses of causal fine-tuning as people write it: told or not, the texts are found and proved."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.conftest import ToyModel, write_toy
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.errors import InputError
from textleak.models import TextModel, load_model
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation
from textleak.shared.public import ONE_STEP

TWO = ("she wrote it", "he read it")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """A decoder wider than the batch has tokens, with weights as its configuration draws them."""
    folder = write_toy("gpt2", tmp_path_factory.mktemp("wide"), n_embd=64, initializer_range=0.1)
    return load_model(str(folder), weights="random", task="causal-lm", device="cpu")


def batch_of(model: TextModel, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of unlike length as a collator pads them."""
    rows = [model.tokenizer(text)["input_ids"] for text in TWO]
    longest = max(map(len, rows))
    fill = [[model.pad_id] * (longest - len(row)) for row in rows]
    pairs = list(zip(rows, fill, strict=True))
    ids = [padding + row if left else row + padding for row, padding in pairs]
    mask = [
        [0] * len(padding) + [1] * len(row) if left else [1] * len(row) + [0] * len(padding)
        for row, padding in pairs
    ]
    return torch.tensor(ids), torch.tensor(mask)


def backward(network: Any, kind: str, model: TextModel) -> None:
    """An ordinary loop's way to the gradient."""
    ids, mask = batch_of(model, left=kind == "left")
    labels = ids.masked_fill(mask == 0, -100)
    if kind == "counted":
        labels = ids
    if kind == "prompt":
        labels = labels.clone()
        labels[:, :2] = -100
    if kind == "one by one":
        for row, real in zip(ids, mask, strict=True):
            alone = row[real == 1][None]
            (network(input_ids=alone, labels=alone).loss / len(ids)).backward()
        return
    logits = network(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
    functional.cross_entropy(
        logits,
        labels[:, 1:].flatten(),
        reduction="sum" if kind == "sum" else "mean",
        label_smoothing=0.2 if kind == "smoothed" else 0.0,
    ).backward()  # type: ignore[no-untyped-call]


OPTIONS: dict[str, dict[str, object]] = {
    "left": {"padding": "left"},
    "counted": {"padding": "counted"},
    "prompt": {"prompt": 2},
    "sum": {"reduction": "sum"},
    "one by one": {"reduction": "mean-of-means"},
    "smoothed": {"smoothing": 0.2},
}
SAID = {
    "left": "padded on the left",
    "counted": "counted padding as labels",
    "prompt": "no loss of the first 2 tokens",
    "sum": "summed the tokens' losses",
    "one by one": "each sentence's own mean",
    "smoothed": "smoothed its labels by 0.2",
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_told_loss_is_torchs_own(kind: str, toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    network = copy.deepcopy(model.network).requires_grad_(True)
    backward(network, kind, model)
    shared, _ = share(model, TWO, client=composed([CLIENTS.build("loss", OPTIONS[kind])]))
    for name, parameter in network.named_parameters():
        assert torch.allclose(shared.gradients[name], parameter.grad, rtol=1e-3, atol=2e-6), name


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_loss_that_nobody_told_shows_in_the_gradient(kind: str, wide: TextModel) -> None:
    network = copy.deepcopy(wide.network).requires_grad_(True)
    backward(network, kind, wide)
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in network.named_parameters()
        if name not in wide.embedding_names
    }
    shared = SharedGradient(
        gradients=gradients, model=wide.public(), share="no-embeddings", known=SideInformation(batch_size=2)
    )
    recovery = to_end(begin(ATTACKS.build("span", {}), shared, wide))
    assert recovery.stop.settled
    assert {sentence.text for sentence in recovery.sentences} == set(TWO)
    (note,) = recovery.notes
    assert SAID[kind] in note


def test_prompts_of_unlike_lengths_are_proved(wide: TextModel) -> None:
    rows = [wide.tokenizer(text)["input_ids"] for text in TWO]
    network = copy.deepcopy(wide.network).requires_grad_(True)
    total = sum(map(len, rows)) - 3 - 1
    for row, prompt in zip(rows, (3, 1), strict=True):
        ids = torch.tensor([row])
        logits = network(input_ids=ids).logits[0, :-1]
        labels = ids[0].index_fill(0, torch.arange(prompt), -100)[1:]
        (functional.cross_entropy(logits, labels, reduction="sum") / total).backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad for n, p in network.named_parameters() if n not in wide.embedding_names}
    shared = SharedGradient(
        gradients=gradients, model=wide.public(), share="no-embeddings", known=SideInformation(batch_size=2)
    )
    recovery = to_end(begin(ATTACKS.build("span", {}), shared, wide))
    assert recovery.stop.settled
    assert {sentence.text for sentence in recovery.sentences} == set(TWO)
    assert "no loss of the first tokens" in recovery.notes[0]


def test_what_was_told_is_said_no_more_and_no_other_loss_is_tried(wide: TextModel) -> None:
    client = composed([CLIENTS.build("loss", {"padding": "left", "prompt": 2, "reduction": "sum"})])
    shared, _ = share(wide, TWO, client=client, share="no-embeddings")
    recovery = to_end(begin(ATTACKS.build("span", {}), shared, wide))
    assert recovery.stop.settled
    assert recovery.notes == ()
    wrong = dataclasses.replace(
        shared, client=composed([CLIENTS.build("loss", {"padding": "left"})]).public(wide)
    )
    assert not to_end(begin(ATTACKS.build("span", {}), wrong, wide)).stop.settled


def test_a_loss_without_a_token_is_refused(toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match="no token with a loss"):
        share(
            toy_model("gpt2", task="causal-lm"), TWO, client=composed([CLIENTS.build("loss", {"prompt": 40})])
        )


@pytest.mark.parametrize(
    ("family", "task", "options", "why"),
    [
        ("gpt2", "causal-lm", {"weights": "1/2"}, "Classes of sentences are weighted"),
        ("bert", "masked-lm", {"prompt": 2}, "Prompts and padding are those of a causal"),
        ("bert", "classification", {"padding": "left"}, "about tokens' losses"),
    ],
)
def test_an_option_that_a_model_has_no_use_for_is_refused(
    family: str, task: str, options: dict[str, object], why: str, toy_model: ToyModel
) -> None:
    with pytest.raises(InputError, match=why):
        composed([CLIENTS.build("loss", options)]).prepare(toy_model(family, task=task))


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("bert", "masked-lm")])
def test_a_sum_of_sentences_or_of_masked_tokens_is_replayed(
    family: str, task: str, toy_model: ToyModel
) -> None:
    model = toy_model(family, task=task)
    mean, _ = share(model, TWO)
    summed, _ = share(model, TWO, client=composed([CLIENTS.build("loss", {"reduction": "sum"})]))
    name = next(iter(mean.gradients))
    ratio = float(summed.gradients[name].norm() / mean.gradients[name].norm())
    assert ratio == pytest.approx(round(ratio), rel=1e-4)
    assert ratio >= 2
    assert view_of(summed, model).client.kinds


def test_padding_on_the_left_that_no_position_shows_leaves_the_shorter_ones_last_token(
    tmp_path: Path,
) -> None:
    texts = ("she wrote a book", "the cat sat on it.", "he ran")
    folder = write_toy("opt", tmp_path, hidden_size=64, word_embed_proj_dim=64, init_std=0.1)
    model = load_model(str(folder), weights="random", task="causal-lm", device="cpu")
    sizes = [len(model.tokenizer(text)["input_ids"]) for text in texts]
    assert sizes[1] == sizes[0] - 1  # it could be as long as the first with its last token unread
    told = composed([CLIENTS.build("loss", {"padding": "left"})])
    shared, _ = share(model, texts, client=told, share="no-embeddings")
    recovery = to_end(begin(ATTACKS.build("span", {}), dataclasses.replace(shared, client=ONE_STEP), model))
    assert recovery.stop.settled
    assert {sentence.text for sentence in recovery.sentences} == set(texts)
    assert "padded on the left" in recovery.notes[0]
