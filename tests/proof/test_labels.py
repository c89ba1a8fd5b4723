"""Another class moves a classifier's gradient as far as is told without running it again."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from torch import Tensor

from tests.conftest import ToyModel
from textleak.matching.discrete import Guess
from textleak.models.gradient import formed_gradient
from textleak.models.guesses import examples_of
from textleak.proof.labels import label_distances, other_labels


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_how_far_other_classes_are_at_the_last_tensors_is_what_running_them_gives(
    toy_model: ToyModel, family: str
) -> None:
    model = toy_model(family, task="classification", num_labels=3, dtype="float64")
    a, b, c, d, e = model.content_ids[:5].tolist()
    guess = Guess(rows=((a, b, c, d), (b, a), (c, d, e, a)), classes=(0, 2, 1))
    others = [guess.with_class(1, 0), guess.with_class(2, 2), guess.with_class(0, 2).with_class(1, 0)]
    elsewhere = guess.with_symbol(0, 1, e).with_class(1, 0)
    names = list(model.parameters)

    own = formed_gradient(model, examples_of(model, guess.rows, guess.classes), names)
    asked: list[Mapping[str, Tensor]] = []

    def distance(some: Mapping[str, Tensor]) -> float:
        asked.append(some)
        return 1.0

    found = label_distances(model, guess, [*others, elsewhere], own, distance)
    assert found.keys() == set(others) == other_labels(guess, [*others, elsewhere]).keys()
    for rival, some in zip(others, asked, strict=True):
        other = formed_gradient(model, examples_of(model, rival.rows, rival.classes), names)
        moved = max(float((own[name] - other[name]).norm() / own[name].norm()) for name in some)
        assert moved > 1e-3
        for name, value in some.items():
            assert float((value - other[name]).norm()) <= 1e-5 * moved * float(own[name].norm())


def test_nothing_is_told_of_texts_without_a_class(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    a, b, c = model.content_ids[:3].tolist()
    guess = Guess(rows=((a, b),))
    assert label_distances(model, guess, [guess.with_symbol(0, 1, c)], {}, lambda _: 0.0) == {}
