"""Configurations of folders that make no network: an error that says why, in a moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textleak.errors import InputError
from textleak.models import load_model


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"architectures": ["BertModel", 2]}, "names of classes"),
        ({"num_hidden_layers": 1_000_000}, "more than 2000 layers"),
        ({"hidden_size": -1}, "-1"),
        ({"num_attention_heads": 0}, "zero"),
        ({"attention_probs_dropout_prob": 2}, "between 0 and 1"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(
    toy_folder: Callable[..., Path], settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(toy_folder("bert"), tmp_path / "changed")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(InputError, match=r"The configuration of the model .* can't be read from") as raised:
        load_model(str(folder), weights="random")
    assert why in str(raised.value)
