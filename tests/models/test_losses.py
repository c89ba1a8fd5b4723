"""Heads of a loss of their own: trained with it, read whatever it is, and their labels solved for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

from tests.conftest import toy_tokenizer, write_network
from textleak import recover, wrap
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.errors import InputError
from textleak.events import Label, Position, Sentence, Stop
from textleak.models import TextModel, load_model
from textleak.models.own_labels import solved_labels
from textleak.private.share import share
from textleak.proof.certificate import certify
from textleak.scoring import score
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
ENCODER = {**SIZES, "intermediate_size": 96, "max_position_embeddings": 40}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.2}
SEVERAL = "multi_label_classification"
# Task: the ending of transformers' class, what its configuration has, and a label of the five tokens of "he sat down".
HEADS: dict[str, tuple[str, dict[str, Any], Label]] = {
    "regression": ("SequenceClassification", {"num_labels": 1}, 3.25),
    "multi-label": ("SequenceClassification", {"num_labels": 4, "problem_type": SEVERAL}, (1, 0, 0, 1)),
    "token-classification": ("TokenClassification", {"num_labels": 5}, (-100, 0, 4, 2, -100)),
    "question-answering": ("QuestionAnswering", {}, (1, 3)),
}
TEXT = "he sat by"
# Of a gradient's norm: what float32 rounds off of an entry where it is computed in another order (measured: 4e-8).
ROUNDING = 2e-7


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., TextModel]:
    """A small network with a head as its folder has it: trained("regression", "gpt2")."""

    def made(task: str, family: str = "bert", **options: Any) -> TextModel:
        kind, settings, _ = HEADS[task]
        tokens, shape = ("gpt2", GPT) if family == "gpt2" else ("wordpiece", ENCODER)
        folder = write_network(family, toy_tokenizer(tokens), {**shape, **settings}, tmp_path / task)
        config = transformers.AutoConfig.from_pretrained(folder)
        torch.manual_seed(0)
        auto = getattr(transformers, f"AutoModelFor{kind}")
        auto.from_config(config).save_pretrained(folder)
        return load_model(str(folder), **options)

    return made


def labels_of(task: str, lengths: tuple[int, ...]) -> list[Label]:
    """Labels that fit sentences of so many tokens."""
    _, _, label = HEADS[task]
    if task != "token-classification":
        return [label for _ in lengths]
    return [(-100, *(t % 5 for t in range(1, length))) for length in lengths]


@pytest.mark.parametrize("task", HEADS)
def test_a_checkpoints_own_head_is_trained_with_its_own_loss(
    task: str, trained: Callable[..., TextModel]
) -> None:
    model = trained(task)
    assert (model.task, model.num_labels) == (task, None)
    assert "random" not in model.source
    network = model.network.requires_grad_(True)
    assert wrap(network, model.tokenizer).task == task
    batch = model.encode(["he sat by the water", "she ran"])
    labels = labels_of(task, batch.lengths)
    own = model.own_loss
    assert own is not None
    targets = own.targets(labels, batch.mask_BT, model.outputs, model.loss_dtype)
    given = {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT}
    T = batch.ids_BT.shape[1]
    if task == "question-answering":
        starts, ends = torch.tensor(labels).T
        given |= {"start_positions": starts, "end_positions": ends}
    elif task == "token-classification":
        given["labels"] = torch.tensor([[*row, *(-100,) * (T - len(row))] for row in labels])
    else:
        given["labels"] = torch.tensor(labels, dtype=torch.float32)
    theirs = network(**given).loss
    ours = model.loss(batch.ids_BT[None], batch.mask_BT[None], targets.expand(1)).sum()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("task", HEADS)
def test_a_sentence_and_its_label_come_back_whatever_the_loss(
    task: str, family: str, trained: Callable[..., TextModel]
) -> None:
    model = trained(task, family)
    length = len(model.encode([TEXT]).sentences[0])
    labels = labels_of(task, (length,))
    shared, secret = share(model, [TEXT], labels, share="no-embeddings")
    recovery = recover(shared, model, "auto")
    assert recovery.stop is Stop.VERIFIED
    assert score(recovery, secret, model).token_match_rate == 1
    assert recovery.notes == ()
    assert recovery.sentences[0].label == pytest.approx(labels[0], rel=1e-4)


@pytest.mark.parametrize("task", HEADS)
def test_so_do_those_of_a_batch(task: str, trained: Callable[..., TextModel]) -> None:
    model = trained(task)
    texts = ["he sat by the water", "she ran home"]
    labels = labels_of(task, model.encode(texts).lengths)
    if task == "regression":
        labels = [1.5, -2.0]
    shared, secret = share(model, texts, labels, share="no-embeddings")
    recovery = recover(shared, model, "auto")
    assert recovery.stop is Stop.VERIFIED
    assert score(recovery, secret, model).token_match_rate == 1
    for text, label in zip(texts, labels, strict=True):
        found = next(s.label for s in recovery.sentences if s.text == text)
        assert found == pytest.approx(label, rel=1e-4)


def swapped(secret_ids: tuple[int, ...], label: Label) -> Sentence:
    """A sentence with its second and third token exchanged."""
    ids = [*secret_ids]
    ids[2], ids[3] = ids[3], ids[2]
    return Sentence(
        positions=tuple(Position(position=t, id=i, text="") for t, i in enumerate(ids)), text="", label=label
    )


@pytest.mark.parametrize("task", HEADS)
def test_no_label_makes_a_wrong_text_fit(task: str, trained: Callable[..., TextModel]) -> None:
    model = trained(task)
    shared, secret = share(model, [TEXT], labels_of(task, (5,)), share="no-embeddings")
    wrong = swapped(secret.ids[0], 0)
    exactly = model.double()
    solved = solved_labels(exactly, shared.gradients, [[p.id for p in wrong.positions]])
    norm = sum(float(g.square().sum()) for g in shared.gradients.values()) ** 0.5
    assert solved.off > 1e-4 * norm
    for label in solved.labels or (labels_of(task, (5,))[0],):
        assert certify(view_of(shared, model), (swapped(secret.ids[0], label),)).verified is False


def test_one_early_layer_tells_the_text_and_its_label(trained: Callable[..., TextModel]) -> None:
    model = trained("regression")
    shared, secret = share(model, [TEXT], [4.5], share=r"layer\.0\..*query")
    recovery = recover(shared, model, "auto")
    assert recovery.stop is Stop.VERIFIED
    assert score(recovery, secret, model).token_match_rate == 1
    assert recovery.sentences[0].label == pytest.approx(4.5, rel=1e-2)


def test_an_answer_without_its_label_cant_be_told(trained: Callable[..., TextModel]) -> None:
    model = trained("token-classification")
    shared, secret = share(model, [TEXT], share="no-embeddings")
    right = Sentence(
        positions=tuple(Position(position=t, id=i, text="") for t, i in enumerate(secret.ids[0])), text=""
    )
    certificate = certify(view_of(shared, model), (right,))
    assert certificate.verified is None
    assert "labels stay open" in str(certificate.reason)


def test_what_comes_after_a_decoders_last_labeled_token_is_not_vouched_for(
    trained: Callable[..., TextModel],
) -> None:
    model = trained("token-classification", "gpt2")
    length = len(model.encode([TEXT]).sentences[0])
    labels = [(1, *(-100,) * (length - 1))]
    told, _ = share(model, [TEXT], labels, share="no-embeddings")
    recovery = recover(told, model, "auto")
    assert not recovery.verified
    assert [p.id >= 0 for p in recovery.sentences[0].positions] == [True, *(False,) * (length - 1)]
    untold, _ = share(model, [TEXT], labels, share="no-embeddings", know="batch-size")
    assert recover(untold, model, "auto").stop is Stop.UNTOLD


@pytest.mark.parametrize(
    ("task", "label", "words"),
    [
        ("regression", (1.0, 2.0), "1 numbers"),
        ("multi-label", 1, "each of 4 classes"),
        ("token-classification", (1, 2), "each of the 5 tokens"),
        ("token-classification", (0, 1, 9, 0, 0), "from 0 to 4"),
        ("question-answering", (1, 7), "from 0 to 4"),
    ],
)
def test_a_label_of_another_kind_is_an_error_that_says_which_it_is(
    task: str, label: Label, words: str, trained: Callable[..., TextModel]
) -> None:
    with pytest.raises(InputError, match=words):
        share(trained(task), [TEXT], [label])


def test_attacks_that_try_labels_say_that_they_dont_know_these(trained: Callable[..., TextModel]) -> None:
    model = trained("regression")
    shared, _ = share(model, [TEXT], [2.0])
    with pytest.raises(InputError, match=r"doesn't know the loss .* \(regression\)"):
        recover(shared, model, "dlg")


def test_labels_travel_in_the_file_when_they_are_known(
    trained: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = trained("token-classification")
    label = labels_of("token-classification", (5,))[0]
    shared, _ = share(model, [TEXT], [label], know="labels,lengths")
    shared.save(tmp_path / "g.safetensors")
    again = SharedGradient.load(tmp_path / "g.safetensors")
    assert again.known.labels == (label,)
    assert recover(again, model, "auto").sentences[0].label == label


def test_another_head_can_be_asked_for(trained: Callable[..., TextModel]) -> None:
    own = trained("regression")
    fresh = load_model(own.name, task="classification")
    assert (fresh.task, fresh.num_labels) == ("classification", 2)
    assert "classifier.weight" in fresh.source
    assert load_model(own.name, task="multi-label", num_labels=3).outputs == 3


# Classes, with their loss changed


@pytest.fixture
def classifier(tmp_path: Path) -> TextModel:
    """A small classifier of three classes."""
    shape = {**ENCODER, "num_labels": 3}
    folder = write_network("bert", toy_tokenizer("wordpiece"), shape, tmp_path / "classifier")
    return load_model(str(folder), weights="random", num_labels=3)


def gradient_of(
    model: TextModel, texts: list[str], loss: Callable[[torch.Tensor], torch.Tensor]
) -> SharedGradient:
    """What a client with a loss of its own shares of some texts, without the embeddings."""
    network = copy.deepcopy(model.network).requires_grad_(True)
    batch = model.encode(texts)
    loss(network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits).backward()
    return SharedGradient(
        gradients={
            name: p.grad.clone()
            for name, p in network.named_parameters()
            if p.grad is not None and name not in model.embedding_names
        },
        model=model.public(),
        share="no-embeddings",
        known=SideInformation(batch_size=len(texts)),
    )


def assert_same(told: SharedGradient, theirs: SharedGradient) -> None:
    """Each entry but for rounding: of itself, or of what the gradient as a whole rounds off."""
    norm = float(torch.cat([gradient.flatten() for gradient in theirs.gradients.values()]).norm())
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(told.gradients[name], gradient, rtol=1e-4, atol=ROUNDING * norm)


@pytest.mark.parametrize("texts", [["he sat by the water"], ["he sat by the water", "she ran home"]])
def test_labels_that_were_smoothed_untold_are_part_of_the_answer(
    texts: list[str], classifier: TextModel
) -> None:
    classes = torch.tensor([2, 0][: len(texts)])
    shared = gradient_of(
        classifier, texts, lambda logits: functional.cross_entropy(logits, classes, label_smoothing=0.1)
    )
    recovery = recover(shared, classifier, "auto")
    assert recovery.stop is Stop.VERIFIED
    assert sorted(s.text for s in recovery.sentences) == sorted(texts)
    assert recovery.notes == ("The client smoothed its labels by 0.1.",)
    label = next(s.label for s in recovery.sentences if s.text == texts[0])
    assert label == pytest.approx((0.1 / 3, 0.1 / 3, 1 - 0.2 / 3), rel=1e-3)


def test_a_loss_that_the_server_was_told_of_is_replayed(classifier: TextModel) -> None:
    texts, classes, weights = ["he sat by the water", "she ran home"], [2, 0], torch.tensor([1.0, 2.0, 3.0])
    client = CLIENTS.build("loss", {"weights": "1/2/3", "smoothing": 0.1})
    told, _ = share(classifier, texts, classes, share="no-embeddings", client=client)
    theirs = gradient_of(
        classifier,
        texts,
        lambda logits: functional.cross_entropy(
            logits, torch.tensor(classes), weight=weights, label_smoothing=0.1
        ),
    )
    assert_same(told, theirs)
    recovery = recover(told, classifier, "auto")
    assert recovery.stop is Stop.VERIFIED
    assert {(s.text, s.label) for s in recovery.sentences} == set(zip(texts, classes, strict=True))


@pytest.mark.parametrize("task", ["regression", "multi-label", "token-classification"])
def test_a_sum_in_place_of_a_heads_mean_is_torchs_own_and_is_replayed(
    task: str, trained: Callable[..., TextModel]
) -> None:
    model = trained(task)
    texts = ["he sat by the water", "she ran home"]
    batch = model.encode(texts)
    labels = [1.5, -2.0] if task == "regression" else labels_of(task, batch.lengths)
    T = batch.ids_BT.shape[1]

    def summed(logits: torch.Tensor) -> torch.Tensor:
        if task == "token-classification":
            rows = [[*row, *(-100,) * (T - len(row))] for row in labels if isinstance(row, tuple)]
            return functional.cross_entropy(
                logits.flatten(0, 1), torch.tensor(rows).flatten(), reduction="sum"
            )
        wanted = torch.tensor(labels, dtype=torch.float32).view_as(logits)
        if task == "regression":
            return functional.mse_loss(logits, wanted, reduction="sum")
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")

    told, _ = share(
        model, texts, labels, share="no-embeddings", client=CLIENTS.build("loss", {"reduction": "sum"})
    )
    assert_same(told, gradient_of(model, texts, summed))
    recovery = recover(told, model, "auto")
    assert recovery.stop is Stop.VERIFIED
    for text, label in zip(texts, labels, strict=True):
        found = next(s.label for s in recovery.sentences if s.text == text)
        assert found == pytest.approx(label, rel=1e-4)


def test_an_answers_loss_has_no_sum(trained: Callable[..., TextModel]) -> None:
    with pytest.raises(InputError, match="no option here changes"):
        share(trained("question-answering"), [TEXT], client=CLIENTS.build("loss", {"reduction": "sum"}))


def test_classes_are_weighed_within_each_micro_batch(classifier: TextModel) -> None:
    texts = ["he sat by the water", "she ran home", "call me", "the red car"]
    classes, weights = [2, 0, 1, 1], torch.tensor([1.0, 2.0, 5.0])
    client = composed(
        [CLIENTS.build("loss", {"weights": "1/2/5"}), CLIENTS.build("accumulate", {"steps": 2})]
    )
    told, _ = share(classifier, texts, classes, share="no-embeddings", client=client)

    def accumulated(logits: torch.Tensor) -> torch.Tensor:
        halves = zip(logits.chunk(2), torch.tensor(classes).chunk(2), strict=True)
        return sum(functional.cross_entropy(one, two, weight=weights) / 2 for one, two in halves)

    assert_same(told, gradient_of(classifier, texts, accumulated))


def test_a_batch_of_classes_that_count_nothing_is_refused(classifier: TextModel) -> None:
    with pytest.raises(InputError, match="has no loss"):
        share(classifier, [TEXT], [0], client=CLIENTS.build("loss", {"weights": "0/1/1"}))


def test_a_loss_of_other_classes_than_the_models_is_refused(classifier: TextModel) -> None:
    with pytest.raises(InputError, match="weighs 2 classes"):
        share(classifier, [TEXT], [0], client=CLIENTS.build("loss", {"weights": "1/2"}))
