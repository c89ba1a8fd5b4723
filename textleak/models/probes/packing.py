"""Many tokens after few beginnings in one pass of a causal network: each beginning is run once for all that follow.

Shapes: F beginnings of T tokens, K tokens tried after each, I a layer's input size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.models.probes.layers import layer_inputs
from textleak.models.text import TextModel

Row = tuple[int, ...]


def packed_inputs(
    model: TextModel, layers: Sequence[str], beginnings: Sequence[Row], tokens: Sequence[int]
) -> dict[str, Tensor]:
    """What layers read at each token that follows each beginning, (F, K, I) each, the beginning run only once.

    All tokens stand in one row, at one position, and see the beginning and themselves.
    """
    F, T, K = len(beginnings), len(beginnings[0]), len(tokens)
    ids_FT = torch.tensor(beginnings, dtype=torch.long).view(F, T)
    ids = torch.cat([ids_FT, torch.tensor(tokens).expand(F, -1)], 1)
    positions = torch.cat([torch.arange(T), torch.full((K,), T)]).expand(F, -1)
    seen = torch.eye(T + K, dtype=torch.bool)
    seen[:, :T] |= torch.ones(T + K, T, dtype=torch.bool).tril()
    mask = torch.zeros(T + K, T + K, dtype=model.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(model.dtype).min).expand(F, 1, -1, -1)
    inputs = layer_inputs(
        model,
        ids.to(model.device),
        layers,
        mask=mask.to(model.device),
        positions=positions.to(model.device),
    )
    return {name: read[:, T:] for name, read in inputs.items()}


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
