"""Moves of a picture as a whole, between which its gradient is nearly the same.

A network that reads the mean over its last feature map hardly tells a picture from one moved by the distance of that
map's places: only its border and the layers' reach do. Descent that found the right parts in a place so moved doesn't
get out, as any smaller move is off the strides and has a gradient further away.

Shapes: B pictures, M points, steps or changes of D numbers, C color channels, H and W height and width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from textleak.attacks.dummies.waves import Waves
from textleak.matching import Move
from textleak.models.vision import ImageModel


def distance_of_places(model: ImageModel) -> int | None:
    """Pixels from a place of the last feature map to the next; None where the head reads places one by one.

    None, too, where every pixel has a place of its own or one place has all, and for transformers.
    """
    distance = _distance(model)
    return distance if distance is not None and distance > 1 else None


def _distance(model: ImageModel) -> int | None:
    """As `distance_of_places`, 1 where every pixel has a place of its own."""
    calls = model.layer_calls()
    maps = [call.given for call in calls if isinstance(call.layer, nn.Conv2d)]
    widths = [call.read[-1] for call in calls if isinstance(call.layer, nn.Linear)]
    if model.attention_names or not maps or widths != [maps[-1][1]]:
        return None
    distance = model.shape[1] // maps[-1][2]
    return distance if distance < min(model.shape[1:]) else None


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


def batch_moves(model: ImageModel, waves: Waves | None, sizes: Sequence[int]) -> tuple[Move, ...]:
    """Moves of each picture of a batch: mirrored, and by one and by two places of the last feature map four ways.

    None where the head reads places one by one, and for transformers.

    Args:
        model: the network.
        waves: what pictures are optimized as; None for pixels.
        sizes: numbers of a candidate's point that are a picture's and its label's, one picture after the other.
    """
    distance = _distance(model)
    if distance is None:
        return ()
    made: list[tuple[_PixelMap, _PixelMap]] = [(_mirrored, _mirrored)]
    for by, dimension in itertools.product((-2, -1, 1, 2), (-2, -1)):
        filled = functools.partial(_rolled, dimension=dimension, by=by * distance)
        made.append((filled, functools.partial(_turned, dimension=dimension, by=by * distance)))
    ends = list(itertools.accumulate(sizes))
    return tuple(
        _move(b, slice(end - size, end - size + model.numbers), model.shape, waves, *ways)
        for b, (size, end) in enumerate(zip(sizes, ends, strict=True))
        for ways in made
    )


_PixelMap = Callable[[Tensor], Tensor]


def _move(
    b: int,
    own: slice,
    shape: tuple[int, int, int],
    waves: Waves | None,
    filled: _PixelMap,
    turned: _PixelMap,
) -> Move:
    """A move of one picture, whose numbers are `own` among a point's.

    Args:
        b: the picture.
        own: its numbers.
        shape: of it.
        waves: what it is optimized as.
        filled: moves its pixels.
        turned: does so without losing any: a permutation, whose inverse is its transpose.
    """

    def mapped(rows_MD: Tensor, pixel_map: _PixelMap, *, changes: bool = False) -> Tensor:
        leaf_MCHW = rows_MD[:, own].view(-1, *shape)
        if waves is None:
            moved_MCHW = pixel_map(leaf_MCHW)
        else:
            # A change has the reverse of a step's units.
            there = waves.inverted() if changes else waves
            moved_MCHW = there.waves(pixel_map(there.pixels(leaf_MCHW)))
        rows_MD = rows_MD.clone()
        rows_MD[:, own] = moved_MCHW.flatten(1)
        return rows_MD

    return Move(
        of=f"picture {b}",
        point=lambda rows_MD: mapped(rows_MD, filled),
        steps=lambda rows_MD: mapped(rows_MD, turned),
        changes=lambda rows_MD: mapped(rows_MD, turned, changes=True),
    )


def _mirrored(pixels: Tensor) -> Tensor:
    return pixels.flip(-1)


def _turned(pixels: Tensor, *, dimension: int, by: int) -> Tensor:
    """Moved, with what leaves on one side coming in on the other."""
    return pixels.roll(by, dimension)


def _rolled(pixels: Tensor, dimension: int, by: int) -> Tensor:
    """Moved, with what that uncovers filled with the border that was there."""
    size = pixels.shape[dimension]
    places = (torch.arange(size, device=pixels.device) - by).clamp(0, size - 1)
    return pixels.index_select(dimension, places)
