"""The gradient of a batch's loss as training forms it: what a client shares, and what a certificate compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked
from textleak.models.base import Examples, Model, Tensors
from textleak.numerics import exact

# Entries compared at once (our choice: a piece fits a core's cache).
_PIECE = 2**18


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
    with opened(model, names) as parameters:
        gradients = torch.autograd.grad(loss_scale * batch.loss(model), parameters, allow_unused=True)
    formed = {name: g.detach() for name, g in zip(names, gradients, strict=True) if g is not None}
    return {name: _own(g) if loss_scale == 1 else g / loss_scale for name, g in formed.items()}


@contextmanager
def opened(model: Model, names: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """The named parameters, with gradients flowing to them for a while."""
    parameters = [model.parameters[name] for name in names]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


def last_used(model: Model, names: Sequence[str], forward: Callable[[], object]) -> list[str]:
    """Those of some parameters whose modules a forward pass runs, the last one first."""
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.network.modules()
    ]
    with hooked(handles), torch.no_grad():
        forward()
    known = {id(model.parameters[name]): name for name in names}
    owned = (p for module in reversed(ran) for p in module.parameters(recurse=False))
    return list(dict.fromkeys(known[id(p)] for p in owned if id(p) in known))


def plainly_apart(seen: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[float, float]:
    """How far a gradient is from another one, and the other's norm, in float64.

    A piece after the other, so that nothing large is in memory twice.
    """
    device = next(iter(own.values())).device
    squared_distance = squared_norm = 0.0
    for name, gradient in seen.items():
        pieces_P = _pieces(gradient)
        # A parameter that the answer's loss doesn't reach has a gradient of 0.
        own_P = _pieces(own[name]) if name in own else (None,) * len(pieces_P)
        for piece, other in zip(pieces_P, own_P, strict=True):
            reference = exact(piece.to(device))
            difference = reference if other is None else reference - exact(other)
            squared_norm += float(reference.dot(reference))
            squared_distance += float(difference.dot(difference))
    return squared_distance**0.5, squared_norm**0.5


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    flat = tensor.reshape(-1)
    return (flat,) if flat.numel() <= _PIECE else torch.split(flat, _PIECE)


def _own(gradient: Tensor) -> Tensor:
    """The gradient in memory of its own: autograd may hand out parts of a larger tensor, which can't be saved."""
    return gradient if gradient.untyped_storage().nbytes() == gradient.nbytes else gradient.clone()
