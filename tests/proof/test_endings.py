"""Another last token moves a causal model's gradient as far as is told without running it again."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from torch import Tensor

from tests.conftest import ToyModel
from textleak.matching.discrete import Guess
from textleak.models.gradient import formed_gradient
from textleak.models.guesses import examples_of
from textleak.proof.endings import ending_distances, other_endings


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2"])
def test_how_far_another_ending_is_at_a_tensor_is_what_running_it_gives(
    toy_model: ToyModel, family: str
) -> None:
    model = toy_model(family, task="causal-lm", dtype="float64")
    a, b, c, d, e = model.content_ids[:5].tolist()
    guess = Guess(rows=((a, b, c, d), (b, a), (c, d, e, a)))
    rivals = [guess.with_symbol(0, 3, e), guess.with_symbol(1, 1, d), guess.with_symbol(2, 3, b)]
    elsewhere = guess.with_symbol(0, 1, e)
    names = list(model.parameters)

    own = formed_gradient(model, examples_of(model, guess.rows), names)
    asked: set[str] = set()

    def distance(some: Mapping[str, Tensor]) -> float:
        asked.update(some)
        return float(sum((value - own[name]).square().sum() for name, value in some.items()) ** 0.5)

    found = ending_distances(model, guess, [*rivals, elsewhere], own, distance)
    assert found.keys() == set(rivals) == other_endings(guess, [*rivals, elsewhere]).keys()
    (name,) = asked
    for rival in rivals:
        other = formed_gradient(model, examples_of(model, rival.rows), names)
        expected = float((other[name] - own[name]).norm())
        assert expected > 0
        assert found[rival] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("family", "task"), [("gpt2", "classification"), ("bert", "masked-lm")])
def test_nothing_is_told_of_a_model_that_predicts_no_next_token(
    toy_model: ToyModel, family: str, task: str
) -> None:
    model = toy_model(family, task=task)
    a, b, c = model.content_ids[:3].tolist()
    guess = Guess(rows=((a, b),), classes=(0,) if task == "classification" else ())
    assert ending_distances(model, guess, [guess.with_symbol(0, 1, c)], {}, lambda _: 0.0) == {}
