"""The rate at which a text that was found has the very update that was sent."""

from __future__ import annotations

import dataclasses

import pytest

import textleak
from textleak.clients.view import view_of
from textleak.events import Recovery, Stop
from textleak.exact.second_parts import view_as_seen
from textleak.jobs.rates import with_rate
from textleak.models.decoding import to_sentence


def test_a_sentence_that_was_found_twice_with_both_labels_is_one_at_its_own_rate():
    model = textleak.load_model("bert-tiny", weights="random")
    shared, secret = textleak.share(
        model, ["the cat sat on the mat"], labels=[1], client="fedavg:optimizer=sgd,lr=0.02,steps=1"
    )
    kinds = tuple((name, {**options, "lr": 0.01}) for name, options in shared.client.kinds)
    assumed = dataclasses.replace(shared, client=dataclasses.replace(shared.client, kinds=kinds))
    (ids,) = secret.ids
    twice = tuple(to_sentence(model, ids, label=label) for label in (0, 1))
    recovery = Recovery(sentences=twice, stop=Stop.CONVERGED, final_loss=None)

    found, rate = with_rate(recovery, assumed, model, view_of(assumed, model))

    assert found.stop is Stop.VERIFIED
    assert [(sentence.text, sentence.label) for sentence in found.sentences] == [
        ("the cat sat on the mat", 1)
    ]
    assert rate == pytest.approx(0.02, rel=1e-3)


def test_texts_of_two_parts_are_proved_at_the_rate_that_clipping_left_of_theirs():
    model = textleak.load_model("bert-tiny", weights="random")
    texts = ["the cat sat [SEP] on the mat", "we ran"]
    shared, secret = textleak.share(
        model,
        texts,
        labels=[1, 0],
        client=["pairs", "fedavg:optimizer=sgd,lr=0.02,steps=1,max_grad_norm=0.02"],
    )
    unclipped = textleak.share(
        model, texts, labels=[1, 0], client=["pairs", "fedavg:optimizer=sgd,lr=0.02,steps=1"]
    )[0]
    left = [
        sum(float(tensor.double().square().sum()) for tensor in one.gradients.values()) ** 0.5
        for one in (shared, unclipped)
    ]
    assert left[0] < 0.9 * left[1]
    # Neither that there are pairs nor that gradients were clipped is said.
    kinds = tuple(
        (name, {**options, "max_grad_norm": None})
        for name, options in shared.client.kinds
        if name == "fedavg"
    )
    assumed = dataclasses.replace(shared, client=dataclasses.replace(shared.client, kinds=kinds))
    assert secret.labels is not None
    sentences = tuple(
        to_sentence(model, ids, label=label) for ids, label in zip(secret.ids, secret.labels, strict=True)
    )
    recovery = Recovery(sentences=sentences, stop=Stop.CONVERGED, final_loss=None)

    found, rate = with_rate(recovery, assumed, model, view_as_seen(assumed, model))

    assert found.stop is Stop.VERIFIED
    assert rate == pytest.approx(0.02 * left[0] / left[1], rel=1e-3)


@pytest.mark.parametrize(
    ("stop", "distance"), [(Stop.UNTOLD, None), (Stop.PROVED, None), (Stop.VERIFIED, 1e-7), (Stop.TIME, 1e-7)]
)
def test_an_answer_that_fits_is_tried_at_no_other_rate(stop: Stop, distance: float | None) -> None:
    model = textleak.load_model("bert-tiny", weights="random")
    shared, secret = textleak.share(model, ["the cat sat"], labels=[1], client="fedavg:lr=0.02,steps=1")
    kinds = tuple((name, {**options, "lr": 0.01}) for name, options in shared.client.kinds)
    assumed = dataclasses.replace(shared, client=dataclasses.replace(shared.client, kinds=kinds))
    (ids,) = secret.ids
    recovery = Recovery(
        sentences=(to_sentence(model, ids, label=1),), stop=stop, final_loss=None, gradient_distance=distance
    )
    assert with_rate(recovery, assumed, model, view_of(assumed, model)) == (recovery, None)
