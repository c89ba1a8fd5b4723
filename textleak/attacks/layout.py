"""Moves of a picture as a whole, between which its gradient is nearly the same.

A network that reads the mean over its last feature map hardly tells a picture from one moved by the distance of that
map's places: only its border and the layers' reach do. Descent that found the right parts in a place so moved doesn't
get out, as any smaller move is off the strides and has a gradient further away.

Shapes: B pictures, M moves, C color channels, H and W height and width.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from textleak.models.vision import ImageModel


def distance_of_places(model: ImageModel) -> int | None:
    """Pixels from a place of the last feature map to the next; None where the head reads places one by one.

    None, too, where every pixel has a place of its own or one place has all, and for transformers.
    """
    maps: list[torch.Size] = []
    widths: list[int] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            maps.append(output.shape)
        else:
            widths.append(inputs[0].shape[-1])

    layers = [module for module in model.network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.no_grad():
            model.logits(torch.zeros(1, *model.shape, device=model.device, dtype=model.dtype))
    finally:
        for handle in handles:
            handle.remove()
    if model.attention_names or not maps or widths != [maps[-1][1]]:
        return None
    distance = model.shape[1] // maps[-1][2]
    return distance if 1 < distance < min(model.shape[1:]) else None


def moved(pixels_BCHW: Tensor, b: int, distance: int) -> Tensor:
    """The batch, and the batch with picture b moved by `distance` each of eight ways: (9, B, C, H, W).

    What a move uncovers is filled with the border that was there.
    """
    found = [pixels_BCHW]
    for down, right in itertools.product((-distance, 0, distance), repeat=2):
        if down or right:
            batch_BCHW = pixels_BCHW.clone()
            batch_BCHW[b] = _rolled(_rolled(pixels_BCHW[b], 1, down), 2, right)
            found.append(batch_BCHW)
    return torch.stack(found)


def _rolled(pixels_CHW: Tensor, dimension: int, by: int) -> Tensor:
    size = pixels_CHW.shape[dimension]
    places = (torch.arange(size, device=pixels_CHW.device) - by).clamp(0, size - 1)
    return pixels_CHW.index_select(dimension, places)
