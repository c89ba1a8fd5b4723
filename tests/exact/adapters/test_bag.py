"""The tokens of a batch, no other one and none missing, from adapters of a rank below their number."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.conftest import ToyModel
from tests.exact.adapters.conftest import Seen
from textleak.clients.view import Clock, View
from textleak.exact.adapters.bag import Bag, find_bag
from textleak.exact.adapters.measured import Measured, first_layers

FOUR = ("a dog ran home at night", "he read the letter", "she told nobody", "the bank fell again")


def first(view: View) -> Measured:
    return Measured.of(view.shared, first_layers(view.model, view.shared))


def bag_of(view: View, measured: Measured) -> Bag | None:
    steps = find_bag(view.model, measured, longest=None, clock=Clock())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Bag | None = end.value
            return found


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_twice_as_many_tokens_as_measurements_are_found(
    family: str, wide_model: ToyModel, seen: Seen
) -> None:
    model = wide_model(family)
    view = seen(model, FOUR)
    found = bag_of(view, first(view))
    read = {token for row in model.encode(FOUR).sentences for token in row[:-1]}
    assert len(read) > 8
    assert found is not None
    assert found.complete
    assert found.tokens == tuple(sorted(read))


def test_a_changed_gradient_gives_no_complete_bag(wide_model: ToyModel, seen: Seen) -> None:
    view = seen(wide_model(), FOUR)
    measured = first(view)
    noise_MI = torch.randn(measured.gradient_MI.shape, generator=torch.Generator().manual_seed(0))
    changed_MI = measured.gradient_MI + 0.1 * noise_MI * measured.gradient_MI.std()
    found = bag_of(view, dataclasses.replace(measured, gradient_MI=changed_MI))
    assert found is not None
    assert not found.complete
