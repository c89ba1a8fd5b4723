"""Which layers' inputs the shared gradients measure, by fewer numbers than would span them.

Shapes: M measurements, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.exact.adaptive.spans import showing
from textleak.exact.subspace import layer_span
from textleak.models import TextModel
from textleak.models.probes.layers import LinearLayer, LocalLayer, following_layers, local_layers
from textleak.models.probes.reach import sees_ahead
from textleak.shared.gradient import SharedGradient

# Later layers' inputs that are used together, and those looked at to find them (our choice; measured on smollm2: one
# tells 34 beginnings apart from 16 measurements, four leave no near miss).
_LAYERS, _LOOKED_AT = 4, 64

FIRST_ROUND = (
    "The gradient of every adapter's A is exactly 0, as it always is in the first round, while its B is 0: this says "
    "nothing about safety. What later rounds give away shows with lora:at=5."
)
"""What is said where an update is `in_first_round`'s."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A layer's input as some gradients measure it.

    Attributes:
        layers: modules that read it.
        gradient_MI: the gradients of their weights, one under the other.
    """

    layers: tuple[LinearLayer, ...]
    gradient_MI: Tensor

    @classmethod
    def of(cls, shared: SharedGradient, layers: Sequence[LinearLayer]) -> Measured:
        """What the shared gradients of layers with a common input show of it."""
        rows = [layer.as_rows(shared.gradients[layer.weight_name]) for layer in layers]
        return cls(layers=tuple(layers), gradient_MI=torch.cat(rows))

    @property
    def name(self) -> str:
        """A module that reads the input."""
        return self.layers[0].name

    def spanned(self, shared: SharedGradient) -> bool:
        """Whether there are fewer distinct inputs than measurements, so that these span them."""
        span = layer_span(shared, self.layers)
        return span is not None and span.clear and span.rank < len(self.gradient_MI)


def measures(view: View) -> bool:
    """Whether gradients narrower than their layers' inputs, as adapters' are, are all that tells these inputs.

    Not where spans tell more: behind defenses, or where an encoder's sentence is so short that they span its inputs, or
    a decoder's padding was read, which is told there alone.
    """
    model, shared = view.text_model, view.shared
    layers = first_layers(model, shared)
    if not layers:
        return False
    if not showing(view, layers):
        return True
    spans_alone = sees_ahead(model) or model.language.padding != "masked"
    return not shared.effects and not (spans_alone and Measured.of(shared, layers).spanned(shared))


def in_first_round(view: View) -> bool:
    """Whether the first layers' adapters show no gradient of A, as while their B is still 0."""
    layers = first_layers(view.text_model, view.shared)
    return bool(layers) and not showing(view, layers)


def first_layers(model: TextModel, shared: SharedGradient) -> tuple[LocalLayer, ...]:
    """The layers that read the first block's input together, with shared gradients; none where as wide as that is."""
    groups: dict[str, list[LocalLayer]] = {}
    for layer in local_layers(model):
        if layer.weight_name in shared.gradients and layer.used_once:
            groups.setdefault(layer.input_group, []).append(layer)
    wide = [layers for layers in groups.values() if layers[0].input_size >= model.hidden_size]
    # One that isn't narrow tells more than all others: blocks may run their attention and feed-forward side by side.
    if any(sum(layer.output_size for layer in layers) >= layers[0].input_size for layers in wide):
        return ()
    sizes = [layers[0].input_size for layers in wide]
    return tuple(wide[sizes.index(max(sizes))]) if wide else ()


def later_measured(model: TextModel, shared: SharedGradient) -> list[Measured]:
    """The first of the later layers' inputs that shared gradients measure."""
    found: list[Measured] = []
    for layers in following_layers(model, _LOOKED_AT):
        read = [layer for layer in layers if layer.weight_name in shared.gradients]
        if not read:
            continue
        one = Measured.of(shared, read)
        if one.gradient_MI.shape[1] >= model.hidden_size and one.gradient_MI.any():
            found.append(one)
        if len(found) == _LAYERS:
            break
    return found
