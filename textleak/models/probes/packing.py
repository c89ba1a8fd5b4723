"""Many tokens after few beginnings in one pass of a causal network: what rows have in common is run once.

Shapes: F beginnings of T tokens, K tokens tried after each, in C rows for each beginning, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from textleak.matching.replaced import ReplacedFunctions
from textleak.models.probes.layers import LocalLayer, layer_inputs, local_layers
from textleak.models.probes.layout import layouts
from textleak.models.text import TextModel

Row = tuple[int, ...]

# Tokens tried in one row at least (our choice): attention is over all of a row, so that long ones cost more.
_TRIED_A_ROW = 32


def packed_inputs(
    model: TextModel,
    layers: Sequence[str],
    beginnings: Sequence[Row],
    tokens: Sequence[int],
    kept: dict[int, Kept] | None = None,
) -> dict[str, Tensor]:
    """What layers read at each token that follows each beginning, (F, K, I) each.

    Some tokens stand in one row after it, at one position, and see the beginning and themselves. Layers that read
    each token by itself are run once on each.

    Args:
        model: a causal one.
        layers: names of modules.
        beginnings: all of one length.
        tokens: tried after each of them.
        kept: as for `EachOnce`.
    """
    F, T, K = len(beginnings), len(beginnings[0]), len(tokens)
    each = min(K, max(_TRIED_A_ROW, T))
    C = -(-K // each)
    tried_Ce = torch.tensor([*tokens, *[tokens[0]] * (C * each - K)]).view(C, each)
    ids_FT = torch.tensor(beginnings, dtype=torch.long).view(F, T)
    ids = torch.cat([ids_FT.repeat_interleave(C, 0), tried_Ce.repeat(F, 1)], 1).to(model.device)
    positions = torch.cat([torch.arange(T), torch.full((each,), T)]).expand(len(ids), -1).to(model.device)
    seen = torch.eye(T + each, dtype=torch.bool)
    seen[:, :T] |= torch.ones(T + each, T, dtype=torch.bool).tril()
    mask = torch.zeros(T + each, T + each, dtype=model.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(model.dtype).min).expand(len(ids), 1, -1, -1)
    with EachOnce(model, local_layers(model), ids, positions, kept):
        inputs = layer_inputs(model, ids, layers, mask=mask.to(model.device), positions=positions)
    return {name: read[:, T:].reshape(F, C * each, -1)[:, :K] for name, read in inputs.items()}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """What a layer makes of tokens that it reads by themselves.

    Attributes:
        keys_U: what tells them from one another, ascending.
        made_UO: what it makes of each.
    """

    keys_U: Tensor
    made_UO: Tensor


class EachOnce(ReplacedFunctions):
    """While it is active, layers that read each token by itself are run once for each token at each position.

    Args:
        model: in any precision.
        layers: its local layers.
        ids_NT: what the network is run on, as `TextModel.marked`.
        positions_NT: where these tokens stand.
        kept: what the layers made of tokens before, by their weights' identities: read, and filled.
    """

    def __init__(
        self,
        model: TextModel,
        layers: Sequence[LocalLayer],
        ids_NT: Tensor,
        positions_NT: Tensor,
        kept: dict[int, Kept] | None = None,
    ) -> None:
        super().__init__()
        self._kept = {} if kept is None else kept
        others = layouts(model)
        self._weights = {
            id(model.parameters[layer.weight_name])
            for layer in layers
            if layer.used_once and layer.name not in others
        }
        ordered = any(layer.depends_on_position for layer in layers)
        keys_NT = positions_NT * model.marks + ids_NT if ordered else ids_NT
        self._keys_U, self._index_P = torch.unique(keys_NT.flatten(), return_inverse=True)
        self._first_U = torch.empty_like(self._keys_U)
        self._first_U[self._index_P] = torch.arange(len(self._index_P), device=ids_NT.device)

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A product that is taken once."""
        if func is functional.linear and len(args) > 1 and id(args[1]) in self._weights:
            input, weight, *bias = args
            return self._product(input, weight, lambda rows: func(rows, weight, *bias, **kwargs))
        if func is torch.addmm and len(args) == 3 and id(args[2]) in self._weights:
            bias, input, weight = args
            return self._product(input, weight, lambda rows: func(bias, rows, weight, **kwargs))
        return None

    def _product(self, input: Tensor, weight: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor | None:
        rows_PI = input.flatten(0, -2)
        if len(rows_PI) != len(self._index_P):
            return None
        kept = self._kept.get(id(weight))
        new_U = torch.ones_like(self._keys_U, dtype=torch.bool)
        if kept is not None:
            new_U = ~torch.isin(self._keys_U, kept.keys_U)
        if bool(new_U.any()):
            made_UO, keys_U = product(rows_PI[self._first_U[new_U]]), self._keys_U[new_U]
            if kept is not None:
                keys_U, order_U = torch.cat([kept.keys_U, keys_U]).sort()
                made_UO = torch.cat([kept.made_UO, made_UO])[order_U]
            kept = self._kept[id(weight)] = Kept(keys_U=keys_U, made_UO=made_UO)
        assert kept is not None
        where_P = torch.searchsorted(kept.keys_U, self._keys_U)[self._index_P]
        return kept.made_UO[where_P].view(*input.shape[:-1], -1)


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
