"""Is this the text? A certificate that needs no truth.

The recovered batch's own gradient is formed in float64 and compared with the shared one. Equal means that a client
with this batch would have shared exactly this gradient.
"""

from __future__ import annotations

import dataclasses

import torch

from textleak.events import Sentence
from textleak.gradients import SharedGradient
from textleak.models import Batch, TextModel
from textleak.models.gradient import formed_gradient
from textleak.models.guesses import inputs_and_targets

# Our choice: far above what float32 rounding does to a gradient, far below what a changed
# token does.
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "bfloat16": 8e-3, "float16": 8e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far the recovery's own gradient is from the shared one.

    Attributes:
        gradient_distance: relative L2 distance over all shared tensors; None where a token was left open.
        verified: whether the distance is within the shared gradient's precision; None where noise or another
            defense makes equality meaningless.
    """

    gradient_distance: float | None
    verified: bool | None


def certify(shared: SharedGradient, model: TextModel, sentences: tuple[Sentence, ...]) -> Certificate:
    """Form the gradient of `sentences` in float64 and compare.

    Args:
        shared: the shared gradient.
        model: the public model, in any precision.
        sentences: a recovery's answer.
    """
    meaningful = not shared.defenses
    complete = bool(sentences) and all(s.positions and all(p.id >= 0 for p in s.positions) for s in sentences)
    if not complete:
        return Certificate(gradient_distance=None, verified=False if meaningful else None)
    exact = model.double()
    longest = max(len(sentence.positions) for sentence in sentences)
    shape = (len(sentences), longest)
    ids_BT = torch.full(shape, model.pad_id)
    mask_BT = torch.zeros(shape, dtype=torch.long)
    hidden_BT = torch.zeros(shape, dtype=torch.bool)
    for row, sentence in enumerate(sentences):
        length = len(sentence.positions)
        ids_BT[row, :length] = torch.tensor([p.id for p in sentence.positions])
        hidden_BT[row, :length] = torch.tensor([p.masked for p in sentence.positions])
        mask_BT[row, :length] = 1
    labels_B = torch.tensor([s.label or 0 for s in sentences]).to(exact.device)
    inputs_BT, targets = inputs_and_targets(
        exact,
        ids=ids_BT.to(exact.device),
        mask=mask_BT.to(exact.device),
        labels=labels_B,
        hidden=hidden_BT.to(exact.device),
    )
    batch = Batch(ids_BT=inputs_BT, mask_BT=mask_BT.to(exact.device))
    own = formed_gradient(exact, batch, targets, list(shared.gradients))
    squared_distance = squared_norm = 0.0
    for name, gradient in shared.gradients.items():
        reference = gradient.to(exact.device).double()
        difference = reference - own[name] if name in own else reference
        squared_distance += float(difference.square().sum())
        squared_norm += float(reference.square().sum())
    distance = (squared_distance / squared_norm) ** 0.5 if squared_norm else float("inf")
    return Certificate(
        gradient_distance=distance,
        verified=distance <= TOLERANCES[shared.model.dtype] if meaningful else None,
    )
