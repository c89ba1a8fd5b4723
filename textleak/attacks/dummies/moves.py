"""Moves of a picture as a whole, between which its gradient is nearly the same.

A network that reads the mean over its last feature map hardly tells a picture from one moved by the distance of that
map's places: only its border and the layers' reach do. Descent that found the right parts in a place so moved doesn't
get out, as any smaller move is off the strides and has a gradient further away.

Shapes: B pictures, C color channels, H and W height and width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from textleak.models.vision import ImageModel


def distance_of_places(model: ImageModel) -> int | None:
    """Pixels from a place of the last feature map to the next; None where the head reads places one by one.

    None, too, where every pixel has a place of its own or one place has all, and for transformers.
    """
    calls = model.layer_calls()
    maps = [call.given for call in calls if isinstance(call.layer, nn.Conv2d)]
    widths = [call.read[-1] for call in calls if isinstance(call.layer, nn.Linear)]
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


def _rolled(pixels: Tensor, dimension: int, by: int) -> Tensor:
    """Moved, with what that uncovers filled with the border that was there."""
    size = pixels.shape[dimension]
    places = (torch.arange(size, device=pixels.device) - by).clamp(0, size - 1)
    return pixels.index_select(dimension, places)
