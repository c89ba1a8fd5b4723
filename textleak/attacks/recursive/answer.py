"""The only picture of a batch, read back through the layers of a ReLU network, rebuilt and put to the exact test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator

import torch
from torch import Tensor

from textleak.attacks.base import Totals
from textleak.attacks.dummies.closed_form import classes_of, put_to_the_test
from textleak.attacks.recursive.reading import read_features
from textleak.attacks.recursive.rebuilt import WAYS, rebuilt
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Stop

CHANNEL = "layers"
"""What an answer is read off by."""

# Layers that read what was read up to this, squared and as a part of it, are those of that picture (our choice: right
# ones end at 1e-9 and less, and a unit whose input is nearly 0 may still keep their gradients apart).
_FIT = 1e-8

_NOTE = (
    "Read off the layers' gradients, one layer after another, and rebuilt from these; nothing was matched."
)


def read_back(
    view: View, labels_KB: Tensor | None, generator: torch.Generator, totals: Totals
) -> Generator[Phase | Progress, None, tuple[Recovery, Tensor] | None]:
    """The picture whose own gradient is nearest of those that its layers' inputs lead to, and its pixels (C, H, W).

    Args:
        view: what the server sees.
        labels_KB: the picture's class, for each candidate; None where it was told.
        generator: draws starts.
        totals: steps and evaluations of the attack, which these are added to.

    Returns:
        None where the gradient doesn't tell what any layer read (`read_features`).
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    features = yield from totals.followed(read_features(view, seed=seed))
    if features is None:
        return None
    labels = classes_of(view, labels_KB)
    nearest: tuple[Recovery, Tensor] | None = None
    for way in WAYS:
        if nearest is not None and view.clock.over:
            break
        if nearest is not None and way.first >= len(features.values):
            continue
        yield Phase(name="picture", detail="what makes the layers read what they read")
        pixels_CHW, loss = yield from totals.followed(rebuilt(view, features, way, generator, labels=labels))
        found = yield from totals.followed(
            put_to_the_test(view, pixels_CHW, labels, channel=CHANNEL, note=_NOTE)
        )
        if nearest is None or _distance(found) < _distance(nearest[0]):
            nearest = found, pixels_CHW
        if found.stop is Stop.MATCHED or loss <= _FIT:
            break
    if nearest is None:
        return None
    found, pixels_CHW = nearest
    stop = Stop.TIME if view.clock.over and found.stop is not Stop.MATCHED else found.stop
    return dataclasses.replace(
        found, stop=stop, steps=totals.steps, evaluations=totals.evaluations
    ), pixels_CHW


def _distance(found: Recovery) -> float:
    return math.inf if found.gradient_distance is None else found.gradient_distance
