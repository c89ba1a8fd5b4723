"""Matrices that are no layer's: parameters that a module multiplies what it reads by itself, as XLNet's attention does.

Their gradients are XᵀΔ as a layer's are, and so are found by that: on a text shorter than its input is wide, the
gradient lies in the span of what the module reads.

Shapes: T tokens, I the module's input size, O the matrix's other side, all its other dimensions in one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked
from textleak.models.probes.layout import laid_out, layouts
from textleak.models.running import run
from textleak.numerics import exact

if TYPE_CHECKING:
    from textleak.models.text import TextModel

_LENGTH = 4  # of the text that tells
# The part of a gradient outside the span beyond which it isn't made of what the module reads, even in bfloat16 (our
# choice: that of another input, which spans 4 of at least 8 dimensions, has 0.7 and more there).
_OUTSIDE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BareMatrix:
    """A parameter that a module multiplies its input by.

    Attributes:
        name: the module.
        weight_name: the parameter among the model's.
        transposed: whether it is (I, O), its dimensions but the first in one, instead of (O, I).
        input_size: I.
        output_size: O.
        used_once: whether no other module has it and this one runs once.
    """

    name: str
    weight_name: str
    transposed: bool
    input_size: int
    output_size: int
    used_once: bool


def bare_matrices(model: TextModel) -> tuple[BareMatrix, ...]:
    """All of a network's body, in the order in which it runs their modules."""
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    owners = Counter(id(p) for module in model.network.modules() for p in module._parameters.values())
    own = {
        name: parameters
        for name, module in model.network.named_modules()
        if (parameters := [p for p in module._parameters.values() if p is not None and p.dim() > 2])
        and not isinstance(module, nn.modules.conv._ConvNd)
    }
    if not own:
        return ()
    _ = layouts(model)  # before there are hooks
    read: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor) and arguments[0].dim() == 3:
                read.setdefault(name, []).append(arguments[0].detach())

        return hook

    parameters = [parameter for some in own.values() for parameter in some]
    before = [parameter.requires_grad for parameter in parameters]
    modules = ((name, model.network.get_submodule(name)) for name in own)
    handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with hooked(handles), torch.enable_grad():
            output_TD = run(model, model.content_ids[:_LENGTH][None], whole=False).last_hidden_state[0]
            # An arbitrary direction, as a plain sum over a normalized output is constant.
            direction = torch.arange(1, output_TD.numel() + 1, device=model.device).cos().view_as(output_TD)
            slopes = torch.autograd.grad(
                (output_TD * direction.to(output_TD)).sum(), parameters, allow_unused=True
            )
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
    by_id = {id(p): slope for p, slope in zip(parameters, slopes, strict=True) if slope is not None}
    found: list[BareMatrix] = []
    for name, inputs in read.items():
        input_TI = laid_out(model, name, inputs[0], 1, _LENGTH)[0]
        for parameter in own[name]:
            transposed = _transposed(by_id.get(id(parameter)), input_TI)
            if transposed is None:
                continue
            found.append(
                BareMatrix(
                    name=name,
                    weight_name=names[id(parameter)],
                    transposed=transposed,
                    input_size=input_TI.shape[1],
                    output_size=parameter.numel() // input_TI.shape[1],
                    used_once=len(inputs) == 1 and owners[id(parameter)] == 1,
                )
            )
    return tuple(found)


def _transposed(slope: Tensor | None, input_TI: Tensor) -> bool | None:
    """Whether a gradient is XᵀΔ or ΔᵀX of what is read; None where it is neither, and where any would be."""
    size = input_TI.shape[1]
    if slope is None or size < 2 * _LENGTH or not bool(slope.any()):
        return None
    basis_IT = torch.linalg.qr(exact(input_TI).T).Q
    for transposed, rows in ((True, slope.flatten(1).T), (False, slope.flatten(0, -2))):
        if rows.shape[1] != size:
            continue
        rows_OI = exact(rows)
        if float((rows_OI - rows_OI @ basis_IT @ basis_IT.T).norm()) <= _OUTSIDE * float(rows_OI.norm()):
            return transposed
    return None
