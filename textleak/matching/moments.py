"""‖g'‖², ⟨g', g⟩ and ‖g' − g‖₁ of every candidate and tensor, from what the gradients are made of.

Shapes: K candidates, P tensors, G groups of tensors that are rescaled together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from textleak.matching.objectives import Moments
from textleak.matching.plan import Plan
from textleak.matching.rules import Contribution, in_dtype
from textleak.matching.single import absolute_distance, cross, masked, own
from textleak.matching.target import Rescaled, Target


def moments_of(found: Mapping[str, list[Contribution]], target: Target, *, absolute: bool = False) -> Moments:
    """Moments of the tensors in `found`, in the target's order.

    Args:
        found: what each gradient is made of, by parameter name.
        target: the shared gradient.
        absolute: ask for ‖g' − g‖₁ too, which forms one gradient at a time and keeps none.
    """
    names = tuple(name for name in target.tensors if name in found)
    if target.dtype is not None:
        found = {name: [in_dtype(part, target.dtype) for part in parts] for name, parts in found.items()}
    plan = Plan(target.joined_columns)
    others: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        tensor = target.tensors[name]
        if not plan.take(name, found[name], tensor):
            others[name] = (
                (own(found[name], tensor.shape), cross(found[name], tensor))
                if tensor.mask is None
                else masked(found[name], tensor)
            )
    parts = []
    if plan.factors:
        parts.append(plan.moments())
    parts += [(own_K.unsqueeze(1), cross_K.unsqueeze(1)) for own_K, cross_K in others.values()]
    computed = [*plan.names, *others]
    order = [computed.index(name) for name in names]
    own_KP, cross_KP = (torch.cat(moment, 1)[:, order] for moment in zip(*parts, strict=True))
    norms = [target.tensors[name].squared_norms or target.tensors[name].squared_norm for name in names]
    target_P = own_KP.new_tensor(norms)
    target_P = target_P if target_P.dim() == 1 else target_P.mT  # of a stack each candidate's, (K, P)
    scale_KP = None if target.rescaled is None else _scale(own_KP, target_P, names, target.rescaled)
    if scale_KP is not None:
        own_KP, cross_KP = own_KP * scale_KP.square(), cross_KP * scale_KP
    distant = [
        absolute_distance(found[name], target.tensors[name], None if scale_KP is None else scale_KP[:, index])
        for index, name in enumerate(names)
        if absolute
    ]
    return Moments(
        names=names,
        own_KP=own_KP,
        cross_KP=cross_KP,
        target_P=target_P,
        absolute_KP=torch.stack(distant, 1) if absolute else None,
    )


def _scale(own_KP: Tensor, target_P: Tensor, names: Sequence[str], rescaled: Rescaled) -> Tensor:
    """What brings each candidate's gradient to the norm of the shared one, (K, P)."""
    groups = [{"all": "", "layer": name.rpartition(".")[0], "tensor": name}[rescaled] for name in names]
    member_PG = own_KP.new_tensor(
        [[float(group == one) for one in dict.fromkeys(groups)] for group in groups]
    )
    tiny = torch.finfo(own_KP.dtype).tiny ** 0.5
    squared_KG = (target_P @ member_PG) / (own_KP @ member_PG).clamp_min(tiny)
    return squared_KG.sqrt() @ member_PG.mT
