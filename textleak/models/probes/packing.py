"""Many tokens after few beginnings in one pass of a causal network: each beginning is run once for all that follow.

Shapes: F beginnings of T tokens, K tokens tried after each, I a layer's input size.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from textleak.matching.replaced import ReplacedFunctions
from textleak.models.probes.layers import layer_inputs, local_layers
from textleak.models.text import TextModel

Row = tuple[int, ...]


def packed_inputs(
    model: TextModel, layers: Sequence[str], beginnings: Sequence[Row], tokens: Sequence[int]
) -> dict[str, Tensor]:
    """What layers read at each token that follows each beginning, (F, K, I) each, the beginning run only once.

    All tokens stand in one row, at one position, and see the beginning and themselves. Layers that read each token by
    itself are run on these tokens once, not once for each beginning.
    """
    F, T, K = len(beginnings), len(beginnings[0]), len(tokens)
    ids_FT = torch.tensor(beginnings, dtype=torch.long).view(F, T)
    ids = torch.cat([ids_FT, torch.tensor(tokens).expand(F, -1)], 1)
    positions = torch.cat([torch.arange(T), torch.full((K,), T)]).expand(F, -1)
    seen = torch.eye(T + K, dtype=torch.bool)
    seen[:, :T] |= torch.ones(T + K, T, dtype=torch.bool).tril()
    mask = torch.zeros(T + K, T + K, dtype=model.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(model.dtype).min).expand(F, 1, -1, -1)
    local = {id(model.parameters[layer.weight_name]) for layer in local_layers(model) if layer.used_once}
    with _Once(local, F, T, K):
        inputs = layer_inputs(
            model,
            ids.to(model.device),
            layers,
            mask=mask.to(model.device),
            positions=positions.to(model.device),
        )
    return {name: read[:, T:] for name, read in inputs.items()}


class _Once(ReplacedFunctions):
    """While it is active, products with some weights are taken once for tokens that all rows end with.

    Args:
        weights: identities of weights whose layers read each token by itself.
        rows, begun, tried: F, T and K of `packed_inputs`.
    """

    def __init__(self, weights: set[int], rows: int, begun: int, tried: int) -> None:
        super().__init__()
        self._weights, self._begun, self._shape = weights, begun, (rows, begun + tried)

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A product that is taken once."""
        if func is functional.linear and len(args) > 1 and id(args[1]) in self._weights:
            if args[0].shape[:-1] == self._shape:
                return self._apart(args[0], lambda part: func(part, *args[1:], **kwargs))
        elif func is torch.addmm and len(args) == 3 and id(args[2]) in self._weights:
            bias, input, weight = args
            if len(input) == math.prod(self._shape):
                product = self._apart(
                    input.view(*self._shape, -1),
                    lambda part: func(bias, part.flatten(0, 1), weight, **kwargs).view(*part.shape[:2], -1),
                )
                return product.flatten(0, 1)
        return None

    def _apart(self, input: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        tried = product(input[:1, self._begun :]).expand(len(input), -1, -1)
        return torch.cat([product(input[:, : self._begun]), tried], 1) if self._begun else tried.clone()


def packs(model: TextModel, layer: str) -> bool:
    """Whether the network takes rows as `packed_inputs` makes them: some read masks or positions their own way."""
    if "position_ids" not in inspect.signature(model.network.forward).parameters:
        return False
    first, second, third, *tried = model.content_ids[:6].tolist()
    beginnings: list[Row] = [(first, second), (third, first)]
    try:
        packed = packed_inputs(model, [layer], beginnings, tried)[layer]
    except (TypeError, ValueError, RuntimeError):  # whatever a network says to a mask that it can't read
        return False
    rows = torch.tensor([(*row, token) for row in beginnings for token in tried], device=model.device)
    plain = layer_inputs(model, rows, [layer])[layer][:, -1].view_as(packed)
    return bool((packed - plain).norm() <= 1e-2 * plain.norm())  # a wrong mask changes far more than rounding
