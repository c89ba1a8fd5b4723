"""Whether tensors are weights or an update of weights: each is easily given in the other's place.

Training moves weights by a small part of what they are, so states of one training are near each other, and gradients
and differences are near neither of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from textleak.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from textleak.models import TextModel
    from textleak.shared.formats import State

# Tensors are weights where they are nearer to the model's than half of these' norm; and none where what they leave of
# that norm is so little (our choice).
_NEAR, _LITTLE = 0.5, 0.1
# Weights of one training keep their direction, at least so far (our choice).
_ALIKE = 0.5
_UPDATE = "An update is a gradient, or by how much weights moved."
_AS_PAIR = "Give it as the second of two checkpoints: --before A --after B."


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Beside:
    """Tensors beside the model's weights of the same names: their norm, that of the weights, and the cosine."""

    norm: float
    weights: float
    cosine: float

    @property
    def apart(self) -> float:
        """Norm of the difference, as a part of the weights'."""
        times = self.norm / self.weights
        return math.sqrt(max(0.0, 1 - 2 * times * self.cosine + times**2))


def check_no_adapter(state: State) -> None:
    """Make sure that what was given as an update isn't an adapter's folder.

    Raises:
        InputError: it is.
    """
    if state.adapter is not None:
        raise InputError(
            f"{state.path} is an adapter: its weights, not an update of them.",
            why=_UPDATE,
            fix=f"{_AS_PAIR} If what it holds was already subtracted, give the file of tensors, not the folder.",
        )


def check_update(path: Path, sent: Mapping[str, Tensor], model: TextModel) -> None:
    """Make sure that what was given as an update isn't a checkpoint.

    Args:
        path: where it is from.
        sent: its tensors by the model's own names.
        model: the public model.

    Raises:
        InputError: tensors that are near the model's own weights.
    """
    beside = _beside(sent, model)
    if beside is not None and beside.apart < _NEAR:
        raise InputError(
            f"{path} holds weights, not an update of them.",
            why=f"They are the model's own but for little (cosine {beside.cosine:.4f}). {_UPDATE}",
            fix=_AS_PAIR,
        )


def check_after(path: Path, moved: Mapping[str, Tensor], model: TextModel) -> tuple[str, ...]:
    """Make sure that what was given as weights after a training isn't an update.

    Args:
        path: where they are from.
        moved: by how much each parameter moved from the model's own.
        model: with the weights before.

    Returns:
        Why they may be another model's, in sentences.

    Raises:
        InputError: tensors that have nothing of the model's own weights.
    """
    own = {name: model.parameters[name].detach() for name in moved if ".lora_" not in name}
    beside = _beside({name: moved[name] + weights.to(moved[name]) for name, weights in own.items()}, model)
    if beside is None or beside.cosine >= _ALIKE:
        return ()
    if beside.norm < _LITTLE * beside.weights:
        raise InputError(
            f"{path} holds no weights that the model's can have become in training.",
            why=f"Their norm is {beside.norm / beside.weights:.2g} of that of the weights before, and they point "
            f"elsewhere (cosine {beside.cosine:.2f}), as a gradient does, or a difference.",
            fix=f"Give it as the update, with the weights before as the model: textleak audit {path} --model A.",
        )
    return (
        f"The weights after have little in common with those before (cosine {beside.cosine:.2f}): they are another "
        "model's, or of a long training from random weights. What two models differ by tells of no text.",
    )


def _beside(tensors: Mapping[str, Tensor], model: TextModel) -> _Beside | None:
    """None where the model has no weights of these names, or all of them are 0."""
    norm = weights = inner = 0.0
    for name, tensor in tensors.items():
        before = model.parameters.get(name)
        if before is None or before.shape != tensor.shape:
            continue
        own, there = (one.detach().cpu().double().flatten() for one in (tensor, before))
        norm, weights, inner = (
            norm + float(own @ own),
            weights + float(there @ there),
            inner + float(own @ there),
        )
    if not weights:
        return None
    norm, weights = norm**0.5, weights**0.5
    return _Beside(norm=norm, weights=weights, cosine=inner / (norm * weights) if norm else 0.0)
