"""A picture from what a network's layers gave of it: descent on these values, no gradient of a gradient in it.

Mahendran and Vedaldi (2015, arXiv 1412.0035) invert a network's layers so. ReLUs before the layer hold descent up where
they are wrongly off: they leak at first, so much that the network is linear, and then ever less, while total variation,
which stands for what is not determined yet, falls with the leak (our own).

Shapes: C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Generator

import torch
from torch import Tensor

from textleak.attacks.recursive.reading import Features
from textleak.attacks.recursive.relu_network import Inputs
from textleak.clients.view import View
from textleak.events import Progress
from textleak.matching import LBFGS, Leaves, minimize

# The leaks, and evaluations with each (our choice; measured, `tests/figures`).
_LEAKS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_EACH = 60
# Evaluations with none after that, at most, and by what part of it so many as with a leak must bring the distance down
# for descent to go on (our choice: trained networks take thousands; what stands at a few percent stays there).
_LAST, _GAIN = 3000, 0.05
# Deviation of the start's pixels as the network reads them (our choice; with none, some networks have no slope there).
_SPREAD = 0.3
# Weight of what is beyond a picture's values, as a mean of squares, beside the layers' squared distance as a part of
# what they read (our choice).
_BEYOND = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way to descend.

    Attributes:
        first: the earliest source that is compared, of those that were read.
        count: how many are compared from there on.
        variation: weight of the squared difference between neighbors, as a mean, in units of the leak.
    """

    first: int = 0
    count: int = 2
    variation: float = 3.0


# One after another until a picture's gradient is the shared one (our choice: descent ends in other places from one
# picture to the next, and no one way is best for most; measured, `tests/figures`).
WAYS = (Way(), Way(variation=30.0), Way(first=1), Way(first=1, count=1), Way(count=100))


def rebuilt(
    view: View, features: Features, way: Way, generator: torch.Generator, *, labels: tuple[int, ...]
) -> Generator[Progress, None, tuple[Tensor, float]]:
    """Pixels (C, H, W) as the network reads them whose layers read what was read, and how far off these still are.

    Args:
        view: what the server sees; time that is up ends the descent where it stands.
        features: what was read.
        way: how to descend.
        generator: draws the start.
        labels: the picture's class, to be shown with it.
    """
    model = view.image_model.in_dtype(view.image_model.loss_dtype)
    numbers = [number for number, values in sorted(features.values.items()) if values.any()]
    numbers = numbers[way.first :][: way.count]
    wanted = {number: features.values[number].to(model.device, model.dtype) for number in numbers}
    inputs = Inputs(model, features.network)

    def loss(pixels_CHW: Tensor, leak: float) -> Tensor:
        read = inputs.of(pixels_CHW[None], wanted, leak)
        total = pixels_CHW.new_zeros(())
        for number, values in wanted.items():
            wrong = read[number] - values
            if features.network.sources[number].relu is not None:
                wrong = torch.where(values > 0, wrong, wrong.clamp_min(0))
            total = total + wrong.square().sum() / values.square().sum()
        beyond = (model.pictures(pixels_CHW) - 0.5).abs() - 0.5
        total = total + _BEYOND * beyond.clamp_min(0).square().mean()
        rough = sum(pixels_CHW.diff(dim=dim).square().mean() for dim in (-2, -1))
        return total + way.variation * leak * rough

    def value_and_slope(leaves: Leaves, leak: float) -> tuple[Tensor, dict[str, Tensor]]:
        point_1CHW = leaves["pixels"]
        with torch.enable_grad():
            pixels_CHW = point_1CHW[0].to(model.device, model.dtype).detach().requires_grad_()
            value = loss(pixels_CHW, leak)
            (slope_CHW,) = torch.autograd.grad(value, pixels_CHW)
        return value.detach()[None].to(point_1CHW), {"pixels": slope_CHW[None].to(point_1CHW)}

    drawn = torch.randn(model.shape, generator=generator, dtype=torch.float64)
    point_CHW = _SPREAD * drawn
    optimizer = LBFGS(gradient_tolerance=0.0, change_tolerance=0.0)
    steps, evaluations = len(_LEAKS) * _EACH + _LAST, 0
    for leak in (*_LEAKS, 0.0):
        before = math.inf
        objective_fn = functools.partial(value_and_slope, leak=leak)
        limits = view.clock.limits(_EACH if leak else _LAST)
        for iterate in minimize(objective_fn, {"pixels": point_CHW[None]}, optimizer, limits=limits):
            if iterate.step % _EACH and not iterate.ending:
                continue
            point_CHW, lowest = iterate.best["pixels"][0], float(iterate.best_losses_K)
            picture_CHW = model.pictures(point_CHW.to(model.device, model.dtype)).clamp(0, 1)
            yield Progress(
                phase="picture",
                step=evaluations + iterate.step,
                steps=steps,
                loss=lowest,
                evaluations=evaluations + iterate.step,
                total_steps=evaluations + iterate.step,
                image=(picture_CHW.permute(1, 2, 0).tolist(),),
                labels=labels,
            )
            if not leak and lowest > (1 - _GAIN) * before:
                break
            before = lowest
        evaluations += iterate.step
        if view.clock.over:
            break
    return point_CHW, lowest
