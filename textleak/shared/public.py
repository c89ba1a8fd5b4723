"""What both sides know of the model, the client's procedure and its defenses, as it travels with a gradient."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

from textleak.shared.effects import Effect
from textleak.shared.traits import Trait

# Our choice: no classification has more, and the head for as many takes 400 MB on the widest model here.
MOST_LABELS = 100_000


# Our choices: no classifier's pictures have more.
Channels = Annotated[int, Field(ge=1, le=64)]
Side = Annotated[int, Field(ge=1, le=1024)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicModel:
    """The model both sides know, as far as is needed to load the same one again.

    Attributes:
        name: alias, hub id or folder as it was asked for.
        task: "classification", "causal-lm", "masked-lm" or that of a head's own loss, for example "regression";
            "image-classification" for pictures.
        weights: "pretrained" or "random".
        weights_seed: seed of the weights that were drawn at random (all of them, or a classification head).
        num_labels: classes of a classification head, or what a head of another loss gives for each prediction; None
            for tasks without one; a file may have up to `MOST_LABELS`.
        dtype: for example "float32".
        fingerprint: hash of names, shapes and a sample of the values, to notice another model.
        picture: channels, height and width that an image model reads; None for text.
    """

    name: str
    task: str
    weights: str
    weights_seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]  # what torch takes
    num_labels: Annotated[int, Field(ge=1, le=MOST_LABELS)] | None
    dtype: str
    fingerprint: str
    picture: tuple[Channels, Side, Side] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicDefense:
    """A defense as the server knows it: its name and strength, never its noise.

    Attributes:
        name: as it was registered.
        options: its settings.
        effects: what it does to a gradient, in order; None where it doesn't say.
        epsilon: the differential privacy that it accounts for, None where it accounts for none.
    """

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    effects: tuple[Effect, ...] | None = None
    epsilon: float | None = None


def _trait(value: object) -> Trait:
    if isinstance(value, Trait):
        return value
    try:
        return Trait[str(value)]
    except KeyError:
        raise ValueError(f"no trait is called {str(value)[:40]!r}") from None


TraitByName = Annotated[Trait, PlainValidator(_trait), PlainSerializer(lambda trait: trait.name)]
"""A trait as it is written in a file: by its name, as sentences may be said better one day."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicClient:
    """How the client trains, as the server knows it: the kinds and their options, never what was drawn.

    Attributes:
        kinds: names and options, in the order in which they were composed; none for one plain backward pass.
        traits: what an attack may rely on.
        effects: what the procedure itself does to the gradient, in order.
    """

    kinds: tuple[tuple[str, dict[str, Any]], ...] = ()
    traits: frozenset[TraitByName] = frozenset(Trait)
    effects: tuple[Effect, ...] = ()

    @property
    def spec(self) -> str:
        """The kinds in words."""
        return " + ".join(name for name, _ in self.kinds) or "one-step"


ONE_STEP = PublicClient()
"""One backward pass of the mean loss, in eval mode, at the public weights."""
