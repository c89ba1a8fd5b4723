"""The rate at which a text that was found has the very update that was sent."""

from __future__ import annotations

import dataclasses

import pytest

import textleak
from textleak.clients.view import view_of
from textleak.events import Recovery, Stop
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
