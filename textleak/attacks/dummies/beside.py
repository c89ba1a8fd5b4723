"""Candidates for one picture of a batch beside dummies of the others, which are held.

A trial that changes one picture of B costs the evaluation of one picture.

Shapes: K candidates, B pictures, C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import weakref
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from textleak.attacks.dummies.pictures import DummyPictures, roughness, with_statistics
from textleak.matching import Leaves, Matcher, ModelFunction, Target
from textleak.matching.factored import requiring_grad
from textleak.models.beside import Held, beside, held_at, loss_beside
from textleak.models.vision import ImageModel, Statistics


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldBatch:
    """A batch as it is, its labels the dummies' own.

    Attributes:
        dummies: of it; their labels are given, the same in all candidates.
        pixels_BCHW: as the network reads them.
        held: its gradient and its pictures' parts.
    """

    dummies: DummyPictures
    pixels_BCHW: Tensor
    held: Held

    @classmethod
    def at(cls, dummies: DummyPictures, pixels_BCHW: Tensor) -> HeldBatch:
        """At these pictures, by one run of the network on all of them."""
        model = dummies.model
        held = held_at(model, pixels_BCHW.to(model.dtype), model.targets(_labels(dummies)))
        return cls(dummies=dummies, pixels_BCHW=pixels_BCHW, held=held)

    def beside(self, b: int) -> Beside:
        """For candidates in the place of picture b."""
        dummies, label = self.dummies, _labels(self.dummies)[b]
        model = beside(dummies.model, self.held, b)
        own = _gradient(model, self.pixels_BCHW[b : b + 1], label, 1 / dummies.batch_size)
        rest = {
            name: gradient.to(model.device).double() - (self.held.gradient[name] - own[name]).double()
            for name, gradient in dummies.shared.gradients.items()
        }
        target = Target.from_gradients(rest, dtype=dummies.matcher.target.dtype, device=model.device)
        rough_B = roughness(dummies.model.pictures(self.pixels_BCHW))
        return Beside(
            dummies=dummies,
            model=model,
            matcher=Matcher.of(model.network, target, dummies.objective),
            name=f"pixels {b}",
            label=label,
            rough=float(rough_B.sum() - rough_B[b]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """What tells how good candidates for one picture are.

    Attributes:
        dummies: of the batch.
        model: runs a candidate beside the others.
        matcher: compares a candidate's part of the gradient with what the others leave of the shared one.
        name: the picture's leaf.
        label: its class.
        rough: roughness of the others, all together.
    """

    dummies: DummyPictures
    model: ImageModel
    matcher: Matcher
    name: str
    label: int
    rough: float

    def value_and_gradient(self, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized of the batch with each candidate in it, (K,), and its gradient by the picture's leaf."""
        losses, prior = self._losses_and_prior
        found = self.matcher.value_and_gradient(losses, leaves, [self.name], beside=prior)
        return self.dummies.roughened(found, leaves, self.pixels, self.rough)

    @cached_property
    def _losses_and_prior(self) -> tuple[ModelFunction, ModelFunction]:
        """As those of the batch's dummies."""
        weight, place = 1 / self.dummies.batch_size, weakref.proxy(self)

        def losses(some: Leaves) -> Tensor:
            return loss_beside(place.model, place.pixels(some)[:, 0], place.label, weight)

        def prior(some: Leaves, own: Statistics | None) -> Tensor:
            assert own is not None  # the batch's, which the picture alone doesn't tell
            return cast(Tensor, place.dummies.prior(place.pixels(some), own))

        return with_statistics(self.model, losses, prior)

    def pixels(self, leaves: Leaves) -> Tensor:
        """Each candidate alone, (K, 1, C, H, W), as the network reads it."""
        return self.dummies.as_pixels(leaves[self.name])[:, None]


def _labels(dummies: DummyPictures) -> list[int]:
    assert dummies.labels_KB is not None
    labels_B: list[int] = dummies.labels_KB[0].tolist()
    return labels_B


def _gradient(model: ImageModel, pixels_1CHW: Tensor, label: int, weight: float) -> dict[str, Tensor]:
    """A picture's own part of the batch's gradient."""
    parameters = model.parameters
    with torch.enable_grad(), requiring_grad(parameters.values()):
        loss = loss_beside(model, pixels_1CHW.to(model.dtype), label, weight).sum()
        found = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
    return dict(zip(parameters, found, strict=True))
