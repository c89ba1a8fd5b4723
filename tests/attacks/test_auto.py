"""`auto` gives at least what the span gives, and where the span ends matching takes over, honestly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ToyModel
from textleak import attack, recover
from textleak.defenses import DEFENSES
from textleak.events import Phase, Stop
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

ONE = "a dog ran"


@pytest.mark.parametrize(
    "defense",
    [None, ("prune", {"ratio": 0.5}), ("gaussian", {"sigma": 1e-3})],
)
def test_matching_takes_over_where_the_span_ends(
    defense: tuple[str, dict[str, object]] | None, toy_model: ToyModel, tmp_path: Path
) -> None:
    model = toy_model("bert" if defense else "albert", task="classification")
    defenses = [DEFENSES.build(*defense)] if defense else []
    sentences = [ONE] if defense else [ONE, "he sat"]
    shared, secret = share(
        model, sentences, share="no-embeddings", know="batch-size,lengths", defenses=defenses
    )
    shared.save(tmp_path / "gradient.safetensors")
    shared = SharedGradient.load(tmp_path / "gradient.safetensors")
    phases, steps = [], attack(shared, model, "auto", time_limit=2.0)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            recovery = end.value
            break
        if isinstance(event, Phase):
            phases.append(event.name)
    assert phases[0] == "span"
    assert len(set(phases)) > 2  # beyond span and verify
    assert recovery.notes
    if recovery.stop is Stop.VERIFIED:
        assert sorted(tuple(p.id for p in s.positions) for s in recovery.sentences) == sorted(secret.ids)


def test_one_sentence_behind_rounding_is_read_without_matching(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    rounding = [DEFENSES.build("quantize", {"to": "bf16"})]
    shared, secret = share(model, [ONE], share="no-embeddings", know="batch-size", defenses=rounding)
    recovery = recover(shared, model, "auto", time_limit=20.0)
    assert recovery.stop.settled
    assert recovery.channel == "span"
    assert [tuple(p.id for p in s.positions) for s in recovery.sentences] == list(secret.ids)


def test_without_any_first_layer_the_answer_says_so(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, [ONE], share=r"layer\.1\.")
    assert "no span to read" in " ".join(recover(shared, model, "auto", time_limit=1.0).notes)
