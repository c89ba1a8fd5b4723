"""Data sets that aren't at hand: the cache is read without asking anybody, and the hub is asked once, shortly."""

from __future__ import annotations

from typing import Any

import pytest

from textleak.data.hub import load_dataset
from textleak.models.loading import places


def test_the_cache_is_read_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []

    def refuse(*_: object, **request: object) -> None:
        asked.append(request)
        raise OSError("no route to host")

    for name in ("hf_hub_download", "dataset_info", "repo_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(places, "why_unreachable", lambda *_: "the hub can't be reached: no route to host")

    found, why = load_dataset("somebody/something-that-is-in-no-cache")

    assert found is None
    assert why == "it is not in the local cache, and the hub can't be reached: no route to host"
    assert not asked
    assert datasets.config.HF_HUB_OFFLINE is False
