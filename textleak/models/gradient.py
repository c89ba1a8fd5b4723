"""The gradient of a batch's loss as training forms it: what a client shares, and what a certificate compares."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked
from textleak.models.base import Examples, Model, Tensors
from textleak.numerics import exact

# Entries compared at once, and formed at once, in so many rows at least (our choice: a piece fits a core's cache, and
# few rows make slow products).
_PIECE, _FORMED, _LEAST_ROWS = 2**17, 2**17, 64


class InRows(Mapping[str, Tensor]):
    """A gradient by parameter name of which some rows can be had without the others."""

    @abc.abstractmethod
    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Some rows of one parameter's."""


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
    with noted_modules(model) as ran, torch.no_grad():
        forward()
    return last_of(model, names, ran)


@contextmanager
def noted_modules(model: Model) -> Iterator[list[nn.Module]]:
    """The modules that run while this is active, the last one at the end."""
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.network.modules()
    ]
    with hooked(handles):
        yield ran


def last_of(model: Model, names: Sequence[str], ran: Sequence[nn.Module]) -> list[str]:
    """Those of some parameters that modules have which ran, those of the last one first."""
    known = {id(model.parameters[name]): name for name in names}
    owned = (p for module in reversed(ran) for p in module.parameters(recurse=False))
    return list(dict.fromkeys(known[id(p)] for p in owned if id(p) in known))


def plainly_apart(seen: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[float, float]:
    """How far a gradient is from another one, and the other's norm, in float64.

    A piece after the other, so that nothing large is in memory twice.
    """
    return _rooted(
        _squares(some, _rows(own, name, rows))
        for name, gradient in seen.items()
        for rows, some in _in_rows(gradient)
    )


def mutually_apart(
    seen: Mapping[str, Tensor], own: Mapping[str, Tensor], again: Mapping[str, Tensor]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """How far `own` is from `seen`, with the norm of that, and `again` from `own`: each row is asked for once."""
    first, second = [], []
    for name in dict.fromkeys([*seen, *own]):
        there = name in seen
        for rows, some in _in_rows(seen[name] if there else own[name]):
            mine = _rows(own, name, rows)
            if there:
                first.append(_squares(some, mine))
            if mine is not None:
                second.append(_squares(mine, _rows(again, name, rows)))
    return _rooted(first), _rooted(second)


def _in_rows(tensor: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a tensor after the other; a number is a row."""
    tensor = tensor if tensor.dim() else tensor[None]
    step = max(_LEAST_ROWS, _FORMED * len(tensor) // max(1, tensor.numel()))
    for begin in range(0, len(tensor), step):
        rows = slice(begin, min(begin + step, len(tensor)))
        yield rows, tensor[rows]


def _rows(gradient: Mapping[str, Tensor], name: str, rows: slice) -> Tensor | None:
    """Some rows of a parameter's gradient; None where the loss doesn't reach it."""
    if name not in gradient:
        return None
    if isinstance(gradient, InRows):
        return gradient.rows(name, rows.start, rows.stop)
    tensor = gradient[name]
    return tensor[rows] if tensor.dim() else tensor[None]


def _squares(gradient: Tensor, own: Tensor | None) -> tuple[float, float]:
    """Squared distance of two tensors and squared norm of the first; None for one of zeros.

    A parameter that an answer's loss doesn't reach has a gradient of 0.
    """
    device = gradient.device if own is None else own.device
    pieces_P = _pieces(gradient)
    own_P = (None,) * len(pieces_P) if own is None else _pieces(own)
    squared_distance = squared_norm = 0.0
    for piece, other in zip(pieces_P, own_P, strict=True):
        reference = exact(piece.to(device))
        difference = reference if other is None else reference - exact(other)
        squared_norm += float(reference.dot(reference))
        squared_distance += float(difference.dot(difference))
    return squared_distance, squared_norm


def _rooted(squares: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Distance and norm of squared ones of each part."""
    squared_distance = squared_norm = 0.0
    for distance, norm in squares:
        squared_distance += distance
        squared_norm += norm
    return squared_distance**0.5, squared_norm**0.5


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    flat = tensor.reshape(-1)
    return (flat,) if flat.numel() <= _PIECE else torch.split(flat, _PIECE)


def _own(gradient: Tensor) -> Tensor:
    """The gradient in memory of its own: autograd may hand out parts of a larger tensor, which can't be saved."""
    return gradient if gradient.untyped_storage().nbytes() == gradient.nbytes else gradient.clone()
