"""The gradient of a batch's loss as training forms it: what a client shares, and what a certificate compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from textleak.models.text import Batch, Targets, TextModel
from textleak.models.vision import ImageModel


def formed_gradient(
    model: TextModel, batch: Batch, targets: Targets, names: Sequence[str]
) -> dict[str, Tensor]:
    """The gradient of the batch's loss for the named parameters, formed by autograd as in training.

    Parameters that the loss doesn't reach are left out.
    """
    return _formed(
        lambda: model.loss(batch.ids_BT[None], batch.mask_BT[None], targets.expand(1)),
        model.parameters,
        names,
    )


def formed_image_gradient(
    model: ImageModel, pixels_BCHW: Tensor, targets: Targets, names: Sequence[str]
) -> dict[str, Tensor]:
    """The same of a batch of pictures."""
    return _formed(lambda: model.loss(pixels_BCHW[None], targets.expand(1)), model.parameters, names)


def _formed(
    loss: Callable[[], Tensor], every: Mapping[str, nn.Parameter], names: Sequence[str]
) -> dict[str, Tensor]:
    parameters = [every[name] for name in names]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(loss().sum(), parameters, allow_unused=True)
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
    return {name: _own(g.detach()) for name, g in zip(names, gradients, strict=True) if g is not None}


def _own(gradient: Tensor) -> Tensor:
    """The gradient in memory of its own: autograd may hand out parts of a larger tensor, which can't be saved."""
    return gradient if gradient.untyped_storage().nbytes() == gradient.nbytes else gradient.clone()
