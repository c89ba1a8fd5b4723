"""The public model that client and attacker both know: names, weights, vocabularies, ids, losses.

`load_model` gives a `TextModel`; `catalog` lists the aliases. This room knows Hugging Face models and
tokenizers. It must not know attacks, defenses or how gradients are matched; `rules` tells the engine what it
needs to know of layers that only language models have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textleak.models.batches import Batch, Targets
    from textleak.models.loading.listing import ModelRow, describe
    from textleak.models.loading.request import find_device
    from textleak.models.loading.text import load_model
    from textleak.models.text import TextModel

__all__ = ["Batch", "ModelRow", "Targets", "TextModel", "describe", "find_device", "load_model"]

_HOMES = {
    "Batch": "batches",
    "ModelRow": "loading.listing",
    "Targets": "batches",
    "TextModel": "text",
    "describe": "loading.listing",
    "find_device": "loading.request",
    "load_model": "loading.text",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import torch only when something of the room is used."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"textleak.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
