"""A network in another precision without a copy of it: each weight is converted where it is used, and no longer.

A float64 copy of a wide model is twice its size. Here a parameter stands for its values in the other precision: a
product converts it block by block, whatever else reads it converts it whole, and nothing holds on to what was
converted; what autograd keeps for a backward pass is the parameter.

Shapes: N rows, O and I the sides of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from textleak.models.copies import copy_of
from textleak.models.mapped import let_go

# A float64 copy of a model's weights is made up to so many bytes (our choice: bert-base and smollm2 are below it; where
# a model runs tens of times a copy saves time).
MOST_COPIED = 2**31
# Converted at once in a product, numbers (our choice: 8 MiB in float64, a core's share of the last cache).
_BLOCK = 2**20

_aten = torch.ops.aten
# What looks at all of a tensor another way, and what takes a part of it: done before the conversion.
_VIEWS = {
    _aten.alias.default,
    _aten.detach.default,
    _aten.permute.default,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}
_PARTS = {
    _aten.embedding.default,
    _aten.index.Tensor,
    _aten.index_select.default,
    _aten.select.int,
    _aten.slice.Tensor,
}


class CastTensor(torch.Tensor):
    """A tensor that reads as another one's values in another precision; it can't be changed in place."""

    original: Tensor

    @staticmethod
    def __new__(cls, original: Tensor, dtype: torch.dtype) -> CastTensor:
        """Stand for `original` in `dtype`."""
        made: CastTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            original.size(),
            strides=original.stride(),
            storage_offset=original.storage_offset(),
            dtype=dtype,
            device=original.device,
            requires_grad=False,
        )
        made.original = original
        return made

    def whole(self) -> Tensor:
        """All of it, converted."""
        return self.original.to(self.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """A parameter of its own, which can be changed."""
        if id(self) not in memo:
            memo[id(self)] = nn.Parameter(self.original.to(self.dtype, copy=True), self.requires_grad)
        found: nn.Parameter = memo[id(self)]
        return found

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,  # noqa: ANN401 - torch's own
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Called by torch for each of its operations, below autograd."""
        named = dict(kwargs or {})
        first = args[0] if args else None
        if func in _VIEWS and isinstance(first, CastTensor):
            return CastTensor(func(first.original, *args[1:], **named), first.dtype)
        if func in _PARTS and isinstance(first, CastTensor):
            return func(first.original, *args[1:], **named).to(first.dtype)
        if func._schema.is_mutable and isinstance(first, CastTensor):
            raise RuntimeError("a weight that is converted where it is used can't be changed in place")
        if func is _aten.mm.default and _dense(args[1]):
            return _product(*args)
        if func is _aten.addmm.default and _dense(args[2]) and not named:
            return _product(*args[1:]).add_(_whole(args[0]))
        args, named = pytree.tree_map(_whole, (args, named))
        return func(*args, **named)


def _whole(value: Any) -> Any:  # noqa: ANN401
    return value.whole() if isinstance(value, CastTensor) else value


def _dense(value: object) -> bool:
    return isinstance(value, CastTensor) and value.dim() == 2 and value.numel() > _BLOCK


def _product(x_NI: Tensor, weight_IO: CastTensor) -> Tensor:
    """X W, with so much of W converted at once as caches hold."""
    x_NI, stored_IO = _whole(x_NI), weight_IO.original
    inputs, outputs = stored_IO.shape
    made_NO = x_NI.new_empty(len(x_NI), outputs)
    if (
        stored_IO.stride(1) != 1
    ):  # a transposed one, as linear layers use theirs: its columns lie in one piece
        step = max(1, _BLOCK // inputs)
        for o in range(0, outputs, step):
            torch.mm(x_NI, stored_IO[:, o : o + step].to(weight_IO.dtype), out=made_NO[:, o : o + step])
        let_go([stored_IO])
        return made_NO
    step = max(1, _BLOCK // outputs)
    for i in range(0, inputs, step):
        made_NO.addmm_(x_NI[:, i : i + step], stored_IO[i : i + step].to(weight_IO.dtype), beta=float(i > 0))
    let_go([stored_IO])
    return made_NO


def wide(network: nn.Module) -> bool:
    """Whether a network's weights are too large for a copy in float64."""
    return sum(p.numel() for p in network.parameters()) * torch.float64.itemsize > MOST_COPIED


def cast_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a network that computes in another precision, with its parameters' values where they are."""
    cast = {id(parameter): standing_for(parameter, dtype) for parameter in network.parameters()}
    copied = copy_of(network, cast)
    convert_buffers(copied, dtype)
    return copied


def convert_buffers(network: nn.Module, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Bring what a network has besides parameters to a device, and what of it isn't whole numbers to a precision."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else None)


def standing_for(parameter: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A parameter that reads as another one's values in another precision."""
    return nn.Parameter(CastTensor(parameter.detach(), dtype), requires_grad=False)
