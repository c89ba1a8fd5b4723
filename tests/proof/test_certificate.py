"""The certificate: the true batch verifies, anything else does not."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from tests.conftest import EVERY_TASK, ToyModel
from textleak import seeds
from textleak.clients.view import Clock, view_of
from textleak.defenses import DEFENSES
from textleak.events import Recovery, Sentence, Stop
from textleak.models import TextModel
from textleak.models.decoding import to_sentence
from textleak.private.share import share
from textleak.proof import answers
from textleak.proof.certificate import CutOffError, certificate_of, certify

TWO = ("the cat sat on the mat", "a dog ran home.")


def truth(
    model: TextModel, sentences: tuple[str, ...], labels: tuple[int, ...] | None
) -> tuple[Sentence, ...]:
    """The answer that a perfect attack would give."""
    original = model.encode(sentences)
    read, _ = model.targets(original, labels, seeds.generator(0, "client"))
    return tuple(
        to_sentence(
            model,
            [i + model.vocab_size * (t != i) for t, i in zip(seen, ids, strict=False)],
            label=labels[b] if labels is not None else None,
        )
        for b, (ids, seen) in enumerate(zip(original.sentences, read.ids_BT.tolist(), strict=True))
    )


def with_tokens(sentence: Sentence, ids: dict[int, int]) -> Sentence:
    return dataclasses.replace(
        sentence,
        positions=tuple(
            dataclasses.replace(position, id=ids.get(position.position, position.id))
            for position in sentence.positions
        ),
    )


def labels_for(task: str) -> tuple[int, ...] | None:
    return (2, 1) if task == "classification" else None


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_the_true_batch_verifies(family: str, task: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task=task)
    labels = labels_for(task)
    shared, _ = share(model, TWO, labels, know="nothing")
    certificate = certify(view_of(shared, model), truth(model, TWO, labels))
    assert certificate.verified is True
    assert certificate.gradient_distance is not None
    assert certificate.gradient_distance < 1e-5


@pytest.mark.parametrize("share_", ["no-embeddings", "attention"])
def test_it_verifies_on_whatever_was_shared(share_: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1), share=share_)
    assert certify(view_of(shared, model), truth(model, TWO, (2, 1))).verified is True


@pytest.mark.parametrize(("dtype", "rounding"), [("float64", 1e-13), ("float32", 1e-5), ("bfloat16", 0.03)])
def test_a_clients_rounding_is_far_below_what_one_token_changes(
    dtype: str, rounding: float, toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification", dtype=dtype)
    shared, _ = share(model, TWO[:1], (2,))
    (right,) = truth(model, TWO[:1], (2,))
    wrong = with_tokens(right, {2: int(model.content_ids[5])})
    assert certify(view_of(shared, model), (right,)).gradient_distance < rounding
    certificate = certify(view_of(shared, model), (wrong,))
    assert certificate.gradient_distance > 2 * rounding
    assert certificate.verified is False


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_one_changed_token_does_not_verify(family: str, task: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task=task)
    labels = labels_for(task)
    shared, _ = share(model, TWO, labels)
    right = truth(model, TWO, labels)
    at = len(model.prefix_ids) + 1
    old = right[0].positions[at].id
    new = next(int(i) for i in model.content_ids if int(i) != old)
    certificate = certify(view_of(shared, model), (with_tokens(right[0], {at: new}), right[1]))
    assert certificate.verified is False
    assert certificate.gradient_distance > 1e-3


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_two_swapped_tokens_do_not_verify(family: str, task: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task=task)
    labels = labels_for(task)
    shared, _ = share(model, TWO, labels)
    right = truth(model, TWO, labels)
    at = len(model.prefix_ids)
    one, other = (right[0].positions[at + i].id for i in (0, 1))
    assert one != other
    assert (
        certify(view_of(shared, model), (with_tokens(right[0], {at: other, at + 1: one}), right[1])).verified
        is False
    )


def test_the_last_token_of_a_causal_model_counts(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    shared, _ = share(model, TWO[:1])
    (right,) = truth(model, TWO[:1], None)
    last = len(right.positions) - 1
    new = next(int(i) for i in model.content_ids if int(i) != right.positions[last].id)
    assert certify(view_of(shared, model), (right,)).verified is True
    assert certify(view_of(shared, model), (with_tokens(right, {last: new}),)).verified is False


def test_a_wrong_class_does_not_verify(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1))
    assert certify(view_of(shared, model), truth(model, TWO, (2, 0))).verified is False
    assert certify(view_of(shared, model), truth(model, TWO, (1, 2))).verified is False


def test_a_text_without_its_labels_is_not_denied(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1))
    unlabeled = truth(model, TWO, None)
    certificate = certify(view_of(shared, model), unlabeled)
    assert certificate.verified is None
    assert certificate.reason is not None
    assert "labels" in certificate.reason
    assert certificate.gradient_distance is not None
    assert certificate.gradient_distance > 0.1
    shared, _ = share(model, TWO, (0, 0))
    assert certify(view_of(shared, model), unlabeled).verified is True


def test_masks_in_the_wrong_place_do_not_verify(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="masked-lm")
    shared, _ = share(model, TWO[:1])
    (right,) = truth(model, TWO[:1], None)
    assert any(position.masked for position in right.positions)
    moved = dataclasses.replace(
        right,
        positions=tuple(
            dataclasses.replace(p, masked=not p.special and not p.masked) for p in right.positions
        ),
    )
    assert certify(view_of(shared, model), (right,)).verified is True
    assert certify(view_of(shared, model), (moved,)).verified is False


def test_the_order_of_the_sentences_does_not_matter(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1))
    assert certify(view_of(shared, model), truth(model, TWO, (2, 1))[::-1]).verified is True


@pytest.mark.parametrize("texts", [("the cat sat", "a"), ("the cat sat", "the cat sat")])
def test_a_sentence_that_stands_twice_is_not_told_from_one_and_a_single_token(
    texts: tuple[str, str], toy_model: ToyModel
) -> None:
    model = toy_model("gpt2", task="causal-lm")
    twice = truth(model, ("the cat sat", "the cat sat"), None)
    shared, secret = share(model, texts)
    assert len(secret.ids[1]) in (1, len(secret.ids[0]))
    certificate = certify(view_of(shared, model), twice)
    assert certificate.verified is None
    assert "leave no trace" in certificate.notes[0]
    lengths, _ = share(model, ("the cat sat", "the cat sat"), know="lengths")
    assert certify(view_of(lengths, model), twice).verified is True


def test_a_missing_sentence_does_not_verify(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1))
    assert certify(view_of(shared, model), truth(model, TWO, (2, 1))[:1]).verified is False


def test_an_open_position_is_no_answer(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO[:1], (2,))
    (right,) = truth(model, TWO[:1], (2,))
    for unfinished in ((with_tokens(right, {3: -1}),), ()):
        certificate = certify(view_of(shared, model), unfinished)
        assert certificate.gradient_distance is None
        assert certificate.verified is False


def test_noise_makes_the_question_meaningless(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO[:1], (2,), defenses=[DEFENSES.build("gaussian", {"sigma": 0.01})])
    certificate = certify(view_of(shared, model), truth(model, TWO[:1], (2,)))
    assert certificate.verified is None
    assert certificate.gradient_distance is not None
    assert certificate.gradient_distance > 1e-3


def test_the_model_is_left_as_it_was(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO[:1], (2,))
    certify(view_of(shared, model), truth(model, TWO[:1], (2,)))
    assert model.dtype == torch.float32
    assert not any(p.requires_grad for p in model.parameters.values())


def test_a_sentence_that_leaves_next_to_no_gradient_is_not_vouched_for(toy_model: ToyModel) -> None:
    """A classifier that is sure of a sentence's class learns nothing from it: any other such sentence would do."""
    ordinary = toy_model("bert", task="classification")
    model = dataclasses.replace(ordinary, network=copy.deepcopy(ordinary.network))
    with torch.no_grad():
        model.network.classifier.weight.mul_(300)
        batch = model.encode(TWO)
        sure = model.network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits.argmax(-1).tolist()
    labels = ((sure[0] + 1) % 3, sure[1])
    shared, _ = share(model, TWO, labels)
    right = truth(model, TWO, labels)
    wrong = (right[0], with_tokens(right[1], {2: right[1].positions[3].id}))
    certificate = certify(view_of(shared, model), wrong)
    assert certificate.gradient_distance < 1e-4
    assert certificate.verified is None
    assert certify(view_of(shared, model), right).verified is None
    assert (
        certify(
            view_of(shared, model), (with_tokens(right[0], {2: right[0].positions[3].id}), right[1])
        ).verified
        is False
    )


def test_a_certificate_leaves_the_gradient_as_it_was(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    shared, _ = share(model, TWO, (2, 1))
    before = {name: gradient.clone() for name, gradient in shared.gradients.items()}
    assert certify(view_of(shared, model), truth(model, TWO, (2, 1))).verified is True
    assert all(torch.equal(gradient, before[name]) for name, gradient in shared.gradients.items())


def test_a_proof_that_time_cuts_off_is_neither_verified_nor_refuted(
    toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1))
    answer, view = truth(model, TWO, (2, 1)), view_of(shared, model)
    attacking = dataclasses.replace(view, clock=Clock.of(0.0))
    assert certify(attacking, answer).verified  # a proof has its own time
    monkeypatch.setattr(answers, "_LEAST_SECONDS", 0.0)
    with pytest.raises(CutOffError) as cut_off:
        certify(attacking, answer)
    assert cut_off.value.sentences == answer
    recovery = Recovery(sentences=answer, stop=Stop.READ, final_loss=None)
    late = certificate_of(recovery, view, limit=0.0)
    assert (late.verified, late.cut_off, late.gradient_distance) == (None, True, cut_off.value.distance)
    assert late.reason is not None
    assert "Time was up" in late.reason
    assert certificate_of(recovery, view).verified
    told = dataclasses.replace(recovery, stop=Stop.TIME, gradient_distance=late.gradient_distance)
    assert certificate_of(told, view) == late  # what an attack's own proof left untold isn't begun anew
