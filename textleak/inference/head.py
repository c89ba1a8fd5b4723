"""The classification head at one sentence: its gradient tells its input, that the prediction, and this the rate.

The weight's gradient is (p − y) hᵀ and the bias's p − y, both times the rate: their ratio is the input h of whatever
scale, h and the public head make p, and p makes the scale.

Shapes: C classes, D the head's input size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.inference.base import Seen, measured
from textleak.inference.kind import sent_as
from textleak.inference.single import Linear, alone, linears_of, moves_of
from textleak.numerics import exact

# How far the bias's move may be from what the head predicts (our choice; measured on minilm after one step of SGD at
# 1e-4 to 1e-2: 1e-6 to 1e-4).
_OFF = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What the head tells of a batch of one sentence.

    Attributes:
        label: its class.
        scale: what the gradient was multiplied by: the rate of SGD, times what clipping left.
    """

    label: int
    scale: float


def head_of(seen: Seen) -> Linear | None:
    """The classification head, where its weight and bias were sent and the loss reaches them."""
    classes = seen.model.num_labels
    heads = [
        layer
        for layer in linears_of(seen.model)
        if classes is not None
        and layer.bias in seen.sent
        and layer.weight in seen.sent
        and seen.sent[layer.weight].shape[0] == classes
        and bool(seen.sent[layer.weight].any())
    ]
    return heads[-1] if heads else None


@measured
def read_head(seen: Seen) -> Head | None:
    """Label and scale, for one sentence and a gradient or SGD's step; None for anything else."""
    layer = head_of(seen)
    if layer is None or layer.bias is None or not alone(seen):
        return None
    weight, bias = seen.weights(layer.weight), seen.weights(layer.bias)
    moved = [moves_of(seen, name) for name in (layer.weight, layer.bias)]
    if weight is None or bias is None or moved[0] is None or moved[1] is None:
        return None
    way = 1.0 if sent_as(seen).kind == "gradient" else -1.0
    return _read(way * moved[0][0], way * moved[1][0], exact(weight).cpu(), exact(bias).cpu())


def _read(gradient_CD: Tensor, gradient_C: Tensor, weight_CD: Tensor, bias_C: Tensor) -> Head | None:
    if not bool(gradient_C.any()):
        return None
    input_D = (gradient_C @ gradient_CD) / gradient_C.square().sum()
    wrong_C = torch.softmax(weight_CD @ input_D + bias_C, 0)
    label = int(gradient_C.argmin())
    wrong_C[label] -= 1
    scale = float(gradient_C @ wrong_C / wrong_C.square().sum())
    off = float((gradient_C - scale * wrong_C).norm() / gradient_C.norm())
    outer = float((gradient_CD - gradient_C[:, None] * input_D).norm() / gradient_CD.norm())
    return Head(label=label, scale=scale) if scale > 0 and off <= _OFF and outer <= _OFF else None
