"""Float64 on every device: Apple's MPS has none, and few of the decompositions."""

from __future__ import annotations

from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """The tensor in float64 where it is, or on the CPU where its device has no float64."""
    return on_capable_device(tensor).double()


def on_capable_device(tensor: Tensor) -> Tensor:
    """The tensor where it is, or on the CPU where its device has neither float64 nor decompositions."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
