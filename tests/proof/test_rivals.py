"""How far another text's gradient is from the answer's shows in what their sentences add, and nothing is formed."""

from __future__ import annotations

import pytest

from tests.conftest import ToyModel
from textleak.matching.discrete import Guess
from textleak.models.gradient import formed_gradient
from textleak.models.guesses import examples_of
from textleak.proof.rivals import LAST, Parts, moved


@pytest.mark.parametrize("most", [LAST, None])
@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm"), ("gpt2", "classification")],
)
def test_how_far_texts_are_from_the_answer_is_what_running_them_gives(
    toy_model: ToyModel, family: str, task: str, most: int | None
) -> None:
    model = toy_model(family, task=task, dtype="float64")
    a, b, c, d, e = model.content_ids[:5].tolist()
    classes = (0, 1, 1) if task == "classification" else ()
    guess = Guess(rows=((a, b, c, d), (b, a), (c, d, e, a)), classes=classes)
    rivals = [
        guess,
        guess.with_symbol(0, 1, e),
        guess.with_symbol(2, 3, b),
        guess.with_row(0, (b, a, c, d)),
        guess.with_symbol(0, 2, e).with_symbol(2, 2, c),
    ]
    rivals += [guess.with_class(1, 0)] if classes else []
    parts = Parts(model, [*model.parameters], guess, most=most)
    assert len(parts.names) == LAST if most else len(parts.names) > LAST

    own = formed_gradient(model, examples_of(model, guess.rows, guess.classes), parts.names)
    for rival, found in zip(rivals, moved(parts, guess, rivals), strict=True):
        other = formed_gradient(model, examples_of(model, rival.rows, rival.classes), parts.names)
        expected = sum(float((other[name] - own[name]).square().sum()) for name in own) ** 0.5
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert (rival == guess) == (found == 0)
