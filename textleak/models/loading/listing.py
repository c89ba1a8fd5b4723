"""What `textleak models` lists: every alias, and what would be loaded here and now. No torch, no network."""

from __future__ import annotations

import dataclasses

from textleak.models.loading.catalog import CATALOG
from textleak.models.loading.places import cached, packaged

_OTHERWISE = "the hub if it can be reached, else random weights"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One alias.

    Attributes:
        alias: what to type.
        hub_id: the checkpoint on the hub.
        architecture: as transformers calls it.
        layers: transformer layers.
        hidden_size: their width.
        vocabulary: the bundled vocabulary that random weights go with.
        vocab_size: its entries.
        at_hand: whether pretrained weights are on this machine.
        source: where they would come from.
        package: what to pip-install for the weights, "" where no package ships them.
    """

    alias: str
    hub_id: str
    architecture: str
    layers: int
    hidden_size: int
    vocabulary: str
    vocab_size: int
    at_hand: bool
    source: str
    package: str


def describe() -> tuple[ModelRow, ...]:
    """A row for every alias, smallest of a family first. Asks no network."""
    rows = []
    for entry in CATALOG.values():
        place = cached(entry.hub_id) or packaged(entry)
        rows.append(
            ModelRow(
                alias=entry.alias,
                hub_id=entry.hub_id,
                architecture=entry.model_type,
                layers=entry.layers,
                hidden_size=entry.hidden_size,
                vocabulary=entry.vocabulary_name,
                vocab_size=entry.vocab_size,
                at_hand=place is not None,
                source=place.words
                if place is not None
                else "the hub if it can be reached, else random weights",
                package=entry.distribution,
            )
        )
    return tuple(rows)
