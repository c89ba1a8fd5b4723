"""Padding isn't multiplied, and nothing that is there changes."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import ToyModel
from textleak.models.padding import OnlyThere


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_there_is_the_same_where_padding_isnt_multiplied(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family)
    ids = model.content_ids.tolist()
    ids_BT = torch.tensor([ids[:5], [*ids[5:8], model.pad_id, model.pad_id]])
    there_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected_BTC = model.logits(ids_BT, there_BT)
    with OnlyThere(there_BT):
        found_BTC = model.logits(ids_BT, there_BT)
    there_BT = there_BT.bool()
    assert torch.allclose(found_BTC[there_BT], expected_BTC[there_BT], rtol=1e-4, atol=1e-5)
    assert expected_BTC[~there_BT].any()
    assert not found_BTC[~there_BT].any()
