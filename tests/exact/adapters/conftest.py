"""Toy decoders wide enough for a sparse regression, and what clients with adapters share of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest

from tests.conftest import ToyModel, write_toy
from textleak.clients import CLIENTS, composed
from textleak.clients.view import View, view_of
from textleak.models import TextModel, load_model
from textleak.private.share import share

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "initializer_range": 0.08,
}
Seen = Callable[..., View]


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> ToyModel:
    """wide_model("llama", task="causal-lm")."""

    @functools.cache
    def model(family: str = "llama", *, task: str = "causal-lm") -> TextModel:
        folder = write_toy(family, tmp_path_factory.mktemp("wide"), **SHAPE)
        return load_model(str(folder), weights="random", task=task, device="cpu", num_labels=3)

    return model


@pytest.fixture(scope="session")
def seen() -> Seen:
    """What a server sees of a client with adapters: seen(model, sentences, know="nothing", rank=8)."""

    def view(
        model: TextModel, sentences: Sequence[str], *, know: str | None = None, **options: object
    ) -> View:
        client = composed([CLIENTS.build("lora", {"at": 5, "rank": 4, **options})])
        shared, _ = share(model, sentences, client=client, know=know, seed=1)
        return view_of(shared, model)

    return view
