"""An encoder's batch comes back whole from its file, or what can't be told is said; nothing wrong is claimed."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import WORDS, write_toy
from textleak import recover
from textleak.defenses import DEFENSES
from textleak.events import Recovery, Stop
from textleak.models import TextModel, load_model
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

WIDE = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 3}
SHAPES = {
    "bert": WIDE,
    "roberta": WIDE,
    "electra": {**WIDE, "embedding_size": 64},
    "albert": {**WIDE, "embedding_size": 64},
    "distilbert": {"dim": 96, "n_heads": 4, "hidden_dim": 128, "n_layers": 3},
}
THREE = ("he sat on the mat", "we ran home", "a dog")
SECOND_BLOCK = r"layer\.[01]\.attention\.self\.(query|key|value)"

BATCHES = {
    "one token": (["cat"], None),
    "one sentence": (["he sat on the mat"], None),
    "one token many times": (["he he he he"], None),
    "three sentences": (list(THREE), None),
    "a sentence twice": (["a dog sat", "a dog sat", "we ran home"], (1, 1, 0)),
    "a sentence seven times of eight": (["a dog sat"] * 7 + ["we ran home"], (1,) * 7 + (0,)),
    "twice with different labels": (["a dog sat", "a dog sat", "we ran home"], (0, 2, 1)),
    "once with every label": (["a dog sat"] * 3 + ["we ran home"], (0, 1, 2, 1)),
    "beginnings of one another": (["he sat", "he sat on", "he sat on the mat"], None),
    "one token apart": (["the cat sat on", "the dog sat on"], None),
    "of very unequal lengths": (["cat", "we ran", "he told the doctor about a secret plan to meet"], None),
    "of one token each": (["cat", "dog", "he"], None),
    "of two parts each": (["he sat [SEP] on the mat", "we ran home [SEP] a dog"], None),
    "of two parts or one": (["he sat [SEP] on the mat", "we ran home", "a dog [SEP] he sat"], None),
}
ALSO_BY_AUTO = ("one sentence", "three sentences", "twice with different labels", "of two parts each")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextModel]:
    """Toy encoders with room for a batch's tokens."""

    @functools.cache
    def model(family: str = "bert", *, task: str = "classification", num_labels: int = 3) -> TextModel:
        folder = write_toy(family, tmp_path_factory.mktemp("wide"), **SHAPES[family])
        return load_model(str(folder), weights="random", task=task, num_labels=num_labels)

    return model


def attacked(
    model: TextModel,
    sentences: Sequence[str],
    folder: Path,
    labels: Sequence[int] | None = None,
    *,
    attack: str = "span",
    time_limit: float | None = None,
    **options: object,
) -> tuple[Recovery, Secret]:
    """The answer to a gradient that is read from a file."""
    options = {"share": "no-embeddings", "know": "nothing", "seed": 1, **options}
    shared, secret = share(model, sentences, labels, **options)
    shared.save(folder / "gradient.safetensors")
    shared = SharedGradient.load(folder / "gradient.safetensors")
    return recover(shared, model, attack, time_limit=time_limit), secret


def rows(recovery: Recovery) -> list[tuple[int, ...]]:
    return [tuple(p.id for p in sentence.positions) for sentence in recovery.sentences]


def assert_whole(recovery: Recovery, secret: Secret) -> None:
    """Every sentence with its label, and certified."""
    labels = [sentence.label for sentence in recovery.sentences]
    assert secret.labels is not None
    found = Counter(zip(rows(recovery), labels, strict=True))
    assert found == Counter(zip(secret.ids, secret.labels, strict=True))
    assert recovery.stop is Stop.VERIFIED
    assert not recovery.notes


def assert_nothing_wrong_is_claimed(recovery: Recovery, secret: Secret) -> None:
    """Whatever is shown without a doubt is true."""
    assert recovery.stop is not Stop.VERIFIED
    for row, sentence in zip(rows(recovery), recovery.sentences, strict=True):
        if all(p.confidence == 1 for p in sentence.positions):
            assert row in secret.ids


@pytest.mark.parametrize(
    ("batch", "attack"),
    [
        *((batch, "span") for batch in BATCHES),
        # Which asks `span` too: by default of a few.
        *(
            pytest.param(batch, "auto", marks=[] if batch in ALSO_BY_AUTO else pytest.mark.slow)
            for batch in BATCHES
        ),
    ],
)
def test_a_batch_comes_back_whole_without_being_told_anything(
    batch: str, attack: str, encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    sentences, labels = BATCHES[batch]
    assert_whole(*attacked(encoder(), sentences, tmp_path, labels, attack=attack))


@pytest.mark.parametrize("know", ["batch-size", "labels", "lengths", "batch-size,labels,lengths"])
def test_what_is_known_beside_does_no_harm(
    know: str, encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    assert_whole(*attacked(encoder(), THREE, tmp_path, know=know))


@pytest.mark.parametrize("attack", ["span", "auto"])
def test_how_often_the_only_sentence_is_there_shows_nowhere_but_in_the_batch_size(
    attack: str, encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    same, labels = ["a dog sat", "a dog sat"], (1, 1)
    assert_whole(*attacked(encoder(), same, tmp_path, labels, attack=attack, know="batch-size"))
    recovery, secret = attacked(encoder(), same, tmp_path, labels, attack=attack)
    assert rows(recovery) == [secret.ids[0]]


@pytest.mark.parametrize("share_", ["all", "attention", SECOND_BLOCK])
def test_it_comes_back_from_whatever_holds_two_blocks_attention(
    share_: str, encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    assert_whole(*attacked(encoder(), THREE, tmp_path, share=share_))


@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra"])
def test_every_family_of_encoders_gives_its_batch_away(
    family: str, encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    assert_whole(*attacked(encoder(family), THREE, tmp_path))


@pytest.mark.parametrize("num_labels", [2, 5])
def test_any_number_of_classes_will_do(
    num_labels: int, encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    assert_whole(*attacked(encoder(num_labels=num_labels), THREE, tmp_path))


@pytest.mark.parametrize(
    ("family", "share_", "says"),
    [
        ("albert", "no-embeddings", "share their weights"),
        ("bert", r"layer\.0\.attention\.self\.query", "No layer beyond"),
        ("bert", r"layer\.[12]\.", "no span to read"),
        ("bert", "classifier", "no span to read"),
    ],
)
def test_where_the_span_ends_is_said(
    family: str, share_: str, says: str, encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    recovery, secret = attacked(encoder(family), THREE, tmp_path, share=share_)
    assert says in " ".join(recovery.notes)
    assert_nothing_wrong_is_claimed(recovery, secret)


@pytest.mark.parametrize(
    "defense", [("gaussian", {"sigma": 1e-3}), ("quantize", {"to": "bf16"}), ("quantize", {"to": "int8"})]
)
def test_behind_noise_and_rounding_nothing_is_claimed(
    defense: tuple[str, dict[str, object]], encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    recovery, secret = attacked(encoder(), THREE, tmp_path, defenses=[DEFENSES.build(*defense)])
    assert recovery.notes
    assert_nothing_wrong_is_claimed(recovery, secret)


def test_a_batch_that_fills_the_layers_input_is_said_and_not_made_up(
    encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    sentences = [" ".join(WORDS[8 * b : 8 * b + 8]) for b in range(14)]
    recovery, secret = attacked(encoder(), sentences, tmp_path, time_limit=2.0)
    assert "(n/D)" in " ".join(recovery.notes)
    assert_nothing_wrong_is_claimed(recovery, secret)


def test_the_sentences_found_so_far_are_kept_when_the_time_is_up(
    encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    sentences = [" ".join(WORDS[6 * b : 6 * b + 6]) for b in range(8)]
    recovery, secret = attacked(encoder(), sentences, tmp_path, time_limit=0.5)
    if recovery.stop is not Stop.VERIFIED:
        assert_nothing_wrong_is_claimed(recovery, secret)
        assert "were not found" in " ".join(recovery.notes)


def test_a_sentence_without_a_gradient_is_missed_and_said_to_be(
    encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = copy.deepcopy(encoder(num_labels=2))
    with torch.no_grad():  # so sure of its predictions that the right label leaves next to nothing
        for name, parameter in model.parameters.items():
            if "classifier" in name:
                parameter.mul_(20)
    sentences = ["he sat on the mat", "we ran home", "a dog", "paris is a river"]
    recovery, secret = attacked(model, sentences, tmp_path, [0, 0, 0, 0])
    assert len(recovery.sentences) < 4
    assert_nothing_wrong_is_claimed(recovery, secret)
    assert "leave no gradient beyond rounding" in " ".join(recovery.notes)


def test_a_masked_text_is_read_off_but_for_what_stands_behind_the_masks(
    encoder: Callable[..., TextModel], tmp_path: Path
) -> None:
    recovery, secret = attacked(encoder(task="masked-lm"), THREE[:1], tmp_path)
    (row,) = rows(recovery)
    (positions,) = (sentence.positions for sentence in recovery.sentences)
    assert len(row) == len(secret.ids[0])
    opened = [t for t, token in enumerate(row) if token < 0]
    assert opened
    assert all(positions[t].confidence == 0 for t in opened)
    assert all(token == true for token, true in zip(row, secret.ids[0], strict=True) if token >= 0)
