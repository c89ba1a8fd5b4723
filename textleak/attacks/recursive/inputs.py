"""What a layer read, by least squares: its weight's gradient is linear in it, once the gradient at its output is known.

This is the step from layer to layer of R-GAP (Zhu and Blaschko 2021, arXiv 2010.07733, sec. 3). Theirs adds the layer's
own forward equations where the gradient's don't suffice; here the recursion ends there (`reading`).

Shapes: O and I channels that a layer gives and reads, P places of what it reads, E equations for each channel read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from textleak.attacks.recursive.relu_network import Call, Layer

# Below this part of the largest, an entry of the equations' triangle is none: some places are in no equation.
_SINGULAR = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Equations:
    """One layer's weight gradient.

    Attributes:
        call: of the layer.
        gradient: of its weight, float64.
        delta: the loss's gradient at its output, (1, O, H, W) or (1, O).
    """

    call: Call
    gradient: Tensor
    delta: Tensor

    @property
    def layer(self) -> Layer:
        """The layer."""
        return self.call.layer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What layers read.

    Attributes:
        values: as the ReLU gave it, (1, I, H, W).
        deviations: of each value, by what is left over of the equations.
        left: what is left over of the equations, as a part of them.
    """

    values: Tensor
    deviations: Tensor
    left: float


def solve(equations: Sequence[Equations], shape: torch.Size) -> Read | None:
    """What layers read that all read the same.

    Args:
        equations: of each of them.
        shape: of what they read, (I, H, W).

    Returns:
        None where the equations don't determine it.
    """
    if any(isinstance(one.layer, nn.Linear) for one in equations):
        return _flat(equations, shape)
    count = sum(one.gradient[:, 0].numel() for one in equations)
    places = shape[1:].numel()
    if count <= places:
        return None
    columns, wanted = [], []
    for one in equations:
        # Each gradient was rounded by about the same part of its own size.
        weight = math.sqrt(one.gradient.numel()) / float(one.gradient.norm().clamp_min(1e-300))
        columns.append(weight * columns_of(one.delta[0].flatten(1), seen_places(one.layer, shape[1:])))
        wanted.append(weight * one.gradient.permute(0, 2, 3, 1).reshape(-1, shape[0]))
    columns_EP, wanted_EI = torch.cat(columns), torch.cat(wanted)
    q_EP, triangle_PP = torch.linalg.qr(columns_EP)
    sizes_P = triangle_PP.diagonal().abs()
    if not float(sizes_P.min()) > _SINGULAR * float(sizes_P.max()):
        return None
    found_PI = torch.linalg.solve_triangular(triangle_PP, q_EP.mT @ wanted_EI, upper=True)
    left_EI = wanted_EI - columns_EP @ found_PI
    inverse_PP = torch.linalg.solve_triangular(
        triangle_PP, torch.eye(places, dtype=triangle_PP.dtype), upper=True
    )
    deviations_PI = inverse_PP.norm(dim=1)[:, None] * (left_EI.norm(dim=0) / math.sqrt(count - places))
    return Read(
        values=found_PI.mT.reshape(1, *shape),
        deviations=deviations_PI.mT.reshape(1, *shape),
        left=float(left_EI.norm() / wanted_EI.norm().clamp_min(1e-300)),
    )


def _flat(equations: Sequence[Equations], shape: torch.Size) -> Read | None:
    """The same behind a linear layer, whose weight's gradient is one outer product."""
    if len(equations) > 1 or equations[0].gradient.shape[1] != shape.numel():
        return None
    gradient_OP, delta_O = equations[0].gradient, equations[0].delta[0]
    square = float(delta_O.square().sum())
    if square == 0.0:
        return None
    values_P = delta_O @ gradient_OP / square
    left_OP = gradient_OP - delta_O[:, None] * values_P
    count = max(1, len(delta_O) - 1)
    return Read(
        values=values_P.reshape(1, *shape),
        deviations=(left_OP.norm(dim=0) / math.sqrt(count * square)).reshape(1, *shape),
        left=float(left_OP.norm() / gradient_OP.norm().clamp_min(1e-300)),
    )


def seen_places(layer: Layer, places: torch.Size) -> Tensor:
    """1 where a convolution's kernel at place K sees place P of what it reads for place L of what it gives."""
    assert isinstance(layer, nn.Conv2d)
    height, width = places
    count = height * width
    each_P1HW = torch.eye(count, dtype=torch.float64).view(count, 1, height, width)
    return functional.unfold(
        each_P1HW,
        layer.kernel_size,
        dilation=layer.dilation,
        padding=layer.padding,  # type: ignore[arg-type]  # numbers: `reads_plainly`
        stride=layer.stride,
    )


def columns_of(delta_OL: Tensor, seen_PKL: Tensor) -> Tensor:
    """A row an entry of the weight (O, K), a column a place of what is read, the same for all channels: (E, P)."""
    columns_OKP = torch.einsum("ol,pkl->okp", delta_OL, seen_PKL)
    return columns_OKP.reshape(-1, len(seen_PKL))


def left_over(one: Equations, values: Tensor) -> Tensor:
    """What is left over of a layer's equations, as a part of them, squared; differentiable in `delta`."""
    if isinstance(one.layer, nn.Linear):
        made = one.delta[0][:, None] * values.flatten()
    else:
        layer = one.layer
        made = conv2d_weight(  # type: ignore[no-untyped-call]
            values, one.gradient.shape, one.delta, layer.stride, layer.padding, layer.dilation
        )
    left: Tensor = (made - one.gradient).square().sum() / one.gradient.square().sum().clamp_min(1e-300)
    return left


def curvature_of(one: Equations, values: Tensor) -> Tensor:
    """Half of the second derivative of `left_over` along each entry of a convolution's `delta`, in units of it."""
    layer, total = one.layer, values.square().sum(1, keepdim=True)
    assert isinstance(layer, nn.Conv2d)
    kernel = total.new_ones(1, 1, *layer.kernel_size)
    around = functional.conv2d(total, kernel, None, layer.stride, layer.padding, layer.dilation)
    return one.delta.square() * around / one.gradient.square().sum().clamp_min(1e-300)


def reads_plainly(layer: Layer) -> bool:
    """Whether a layer is one that `solve` knows: linear, or a convolution of all channels, padded with zeros."""
    return isinstance(layer, nn.Linear) or (
        layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )
