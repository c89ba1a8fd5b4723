"""What the first layers read of a text bounds from below how far its gradient is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import write_toy
from textleak.attacks.replaying.scores import sentences_of
from textleak.clients.view import view_of
from textleak.matching.discrete import Guess
from textleak.models import load_model
from textleak.models.guesses import examples_of
from textleak.models.probes.layers import local_layers
from textleak.private.share import share
from textleak.proof import texts
from textleak.proof.certificate import certify
from textleak.proof.distances import plainly_apart
from textleak.proof.rivals import alike, further
from textleak.proof.spans import LayerSpan, first_layers, leaves_room

TWO = ("the cat sat on the mat", "a dog ran home.")
WIDE = {
    "bert": {"hidden_size": 96, "intermediate_size": 128},
    "gpt2": {"n_embd": 96, "n_head": 4},
    "llama": {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 24},
}


@pytest.mark.parametrize("family", WIDE)
def test_no_text_is_nearer_than_what_its_first_layers_leave_of_the_gradient(
    family: str, tmp_path: Path
) -> None:
    folder = write_toy(family, tmp_path, **WIDE[family])
    model = load_model(str(folder), weights="random", task="classification", num_labels=3, dtype="float64")
    shared, secret = share(model, TWO, (2, 0), share="no-embeddings")
    answer = Guess(rows=tuple(map(tuple, secret.ids)), classes=(2, 0))
    rivals = [*alike(model, answer), *further(model, answer)]
    view = view_of(shared, model)
    first, next_ = first_layers(model, shared.gradients)
    told = {}
    for layers in (first, next_):
        span = LayerSpan.of(
            model,
            shared.gradients,
            layers,
            local_layers(model),
            answer=answer,
            rivals=rivals,
            go_on=lambda: None,
        )
        assert span.least(answer) == 0
        least = [span.least(rival) for rival in rivals]
        for most in (1e-9, *torch.tensor(least).quantile(torch.tensor([0.3, 0.7])).tolist()):
            farther = {rival for rival, one in zip(rivals, least, strict=True) if one > most}
            left = set(span.within(rivals, most))
            assert set(rivals) - left <= farther
            assert len(set(rivals) - left) >= 0.9 * sum(one > 1.01 * most for one in least)
        told[layers[0].name] = sum(one > 1e-9 for one in least)
        # The tightest and every tenth: each whole gradient takes its time.
        order = sorted(range(len(rivals)), key=least.__getitem__)
        for k in (*order[-2:], *order[::10]):
            own = view.own(examples_of(model, rivals[k].rows, rivals[k].classes))
            assert least[k] <= plainly_apart(shared.gradients, own)[0] * (1 + 1e-9)
    # After the attention it shows wherever a token or its place is another, in all but labels.
    others_labels = sum(rival.rows == answer.rows for rival in rivals)
    assert told[next_[0].name] >= 0.8 * (len(rivals) - others_labels)
    assert told[first[0].name] > 0


def test_with_the_gradient_of_no_first_layer_nothing_is_told(tmp_path: Path) -> None:
    model = load_model(
        str(write_toy("bert", tmp_path)), weights="random", task="classification", num_labels=3
    )
    shared, _ = share(model, TWO, (2, 0), share=r"classifier|pooler")
    assert first_layers(model, shared.gradients) == []


def test_an_answer_that_fills_all_dimensions_leaves_no_room_and_is_judged_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4}
    folder = write_toy("llama", tmp_path, **narrow)
    model = load_model(str(folder), weights="random", task="classification", num_labels=3, dtype="float64")
    local, seen = local_layers(model), {}
    for sentences in (
        ("the cat sat",),
        ("a quick brown fox jumps over the lazy dog, which they saw",),
    ):
        shared, secret = share(model, sentences, (2,), share="no-embeddings")
        answer = Guess(rows=tuple(map(tuple, secret.ids)), classes=(2,))
        first, _ = first_layers(model, shared.gradients)
        seen[len(answer.rows[0])] = leaves_room(model, shared.gradients, first, local, answer)
        told = certify(view_of(shared, model), sentences_of(view_of(shared, model), answer))
        with monkeypatch.context() as patched:
            patched.setattr(texts, "leaves_room", lambda *_: True)
            assert certify(view_of(shared, model), sentences_of(view_of(shared, model), answer)) == told
        assert told.verified
    assert list(seen.values()) == [True, False], seen
