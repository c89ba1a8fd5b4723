"""A copy of a network is the same network, and nothing that is done to it is done to the other."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import FAMILIES, ToyModel
from textleak.models.copies import copy_of


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_shares_neither_tensors_nor_hooks_and_ties_what_was_tied(
    family: str, toy_model: ToyModel
) -> None:
    network = toy_model(family).network
    copied = copy_of(network)
    theirs, ours = copied.state_dict(keep_vars=True), network.state_dict(keep_vars=True)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) and theirs[name] is not ours[name] for name in ours)
    assert len({id(one) for one in theirs.values()}) == len({id(one) for one in ours.values()})
    lists = [
        {id(value) for module in one.modules() for value in vars(module).values() if isinstance(value, dict)}
        for one in (network, copied)
    ]
    assert lists[0].isdisjoint(lists[1])
    assert len(lists[0]) == len(lists[1])


def test_what_is_kept_stands_in_the_copy(toy_model: ToyModel) -> None:
    network = toy_model("bert").network
    kept = {id(parameter): parameter for parameter in network.parameters()}
    copied = copy_of(network, kept)
    assert copied is not network
    assert {id(parameter) for parameter in copied.parameters()} == set(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_another_precision_has_modules_and_tensors_of_its_own(
    family: str, toy_model: ToyModel
) -> None:
    model = toy_model(family)
    _ = model.word_embedding, model.parameters, model.content_ids, model.fingerprint
    double = model.double()
    assert double.word_embedding is double.network.get_input_embeddings() is not model.word_embedding
    assert {parameter.dtype for parameter in double.parameters.values()} == {torch.float64}
    assert double.parameters.keys() == model.parameters.keys()
    assert double.dtype == torch.float64 != model.dtype
    assert torch.equal(double.content_ids, model.content_ids)
