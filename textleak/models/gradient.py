"""The gradient of a batch's loss as training forms it: what a client shares, and what a certificate compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.models.base import Examples, Model, Tensors


def formed_gradient(
    model: Model, batch: Examples, names: Sequence[str], *, loss_scale: float = 1.0
) -> Tensors:
    """The gradient of the batch's loss for the named parameters, formed by autograd as in training.

    Parameters that the loss doesn't reach are left out.

    Args:
        model: whose parameters they are.
        batch: whose loss it is.
        names: of the parameters.
        loss_scale: what the loss is multiplied by, and its gradient divided by afterwards, as for float16.
    """
    parameters = [model.parameters[name] for name in names]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(loss_scale * batch.loss(model), parameters, allow_unused=True)
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
    formed = {name: g.detach() for name, g in zip(names, gradients, strict=True) if g is not None}
    return {name: _own(g) if loss_scale == 1 else g / loss_scale for name, g in formed.items()}


def _own(gradient: Tensor) -> Tensor:
    """The gradient in memory of its own: autograd may hand out parts of a larger tensor, which can't be saved."""
    return gradient if gradient.untyped_storage().nbytes() == gradient.nbytes else gradient.clone()
