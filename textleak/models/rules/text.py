"""What the engine must know of layers that only language models have: how their gradients are made.

Importing this module registers the rules with `textleak.matching.rules`.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from textleak.matching.rules import (
    Call,
    Contribution,
    Outer,
    Rows,
    Sum,
    linear_rule,
    register_rule,
    scale_and_bias,
)


def conv1d_rule(call: Call) -> dict[str, Contribution]:
    """Y = x W + b, as GPT-2 has it: the weight (I, O) gets Xᵀ Δ, the bias the sum of Δ over tokens."""
    delta_KNO = call.per_candidate(call.delta_R)
    found: dict[str, Contribution] = {}
    if "weight" in call.wanted:
        found["weight"] = Outer(left_KNO=call.per_candidate(call.input_R), right_KNI=delta_KNO)
    if "bias" in call.wanted:
        found["bias"] = Sum(terms_KND=delta_KNO)
    return found


def scale_rule(call: Call) -> dict[str, Contribution]:
    """Y = x̂ ∘ w + b, or x̂ ∘ (1 + w), for any normalization: the scale gets the sum of Δ ∘ x̂."""
    unit = _unit_weight(call.module)
    assert unit is not None

    def normalized() -> Tensor:
        # The module itself says what x̂ is, so its epsilon and its casts needn't be known here.
        scale = torch.full_like(_weight(call.module), unit)
        return _scaled(call.module, scale, call.input_R)

    return scale_and_bias(call, normalized)


def lookup_rule(call: Call) -> dict[str, Contribution]:
    """Y = s · w[f(x)], an embedding that shifts its ids or scales its rows: row f(x) gets s · Δ."""
    module = call.module
    assert isinstance(module, nn.Embedding)
    # Which rows it takes, and how it scales them, is read off by letting it look up a table of row numbers.
    rows_V = torch.arange(module.num_embeddings, dtype=torch.float32, device=call.delta_R.device)
    table_V2 = torch.stack([rows_V, torch.ones_like(rows_V)], -1)
    with torch.no_grad():
        looked_up = functional_call(module, {"weight": table_V2}, (call.input_R,))
        scale = looked_up[..., 1]
        rows = (looked_up[..., 0] / scale).round().long()
    delta = call.delta_R * scale.to(call.delta_R).unsqueeze(-1)
    if module.padding_idx is not None:
        delta = delta.masked_fill((rows == module.padding_idx).unsqueeze(-1), 0.0)
    return {
        "weight": Rows(
            rows_KN=rows.reshape(call.candidates, -1),
            right_KNI=call.per_candidate(delta),
        )
    }


def holder_rule(_call: Call) -> dict[str, Contribution]:
    """A module that only holds a parameter which a module inside it uses: nothing of its own."""
    return {}


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D) and type(module).forward is Conv1D.forward


def _is_linear_in_its_own_way(module: nn.Module) -> bool:
    """A subclass of `nn.Linear` with another forward; whether it's still linear is the engine's check."""
    return isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward


def _looks_up_its_own_way(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and type(module).forward is not nn.Embedding.forward


def _holds_only(module: nn.Module) -> bool:
    """Whether each of the module's own parameters also belongs to a module inside it (heads' tied biases)."""
    own = {id(parameter) for parameter in module.parameters(recurse=False)}
    inside = {
        id(parameter)
        for child in module.modules()
        if child is not module
        for parameter in child.parameters(recurse=False)
    }
    return bool(own) and own <= inside


def _scaled(module: nn.Module, scale: Tensor, inputs: Tensor) -> Tensor:
    """The module's output for another scale, without its bias."""
    values = {"weight": scale}
    if getattr(module, "bias", None) is not None:
        values["bias"] = torch.zeros_like(scale)
    output: Tensor = functional_call(module, values, (inputs,))
    return output


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


_units: WeakKeyDictionary[nn.Module, float | None] = WeakKeyDictionary()


def _unit_weight(module: nn.Module) -> float | None:
    """The weight at which a scaling module gives x̂ itself: 1, or 0 if it scales by 1 + weight; else None."""
    if module not in _units:
        _units[module] = _find_unit(module)
    return _units[module]


def _find_unit(module: nn.Module) -> float | None:
    parameters = dict(module.named_parameters())
    shapes = {tuple(parameter.shape) for parameter in parameters.values()}
    scales = "weight" in parameters and parameters.keys() <= {"weight", "bias"} and len(shapes) == 1
    if not scales or parameters["weight"].dim() != 1 or isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return None
    weight = parameters["weight"].detach()
    generator = torch.Generator().manual_seed(0)
    input_1ND = torch.randn(1, 3, len(weight), generator=generator).to(weight)
    scale_D = torch.rand(len(weight), generator=generator).to(weight)

    def output(scale: Tensor) -> Tensor | None:
        found = _scaled(module, scale, input_1ND)
        return found if isinstance(found, Tensor) and found.shape == input_1ND.shape else None

    try:
        with torch.no_grad():
            outputs = [output(scale) for scale in (scale_D, scale_D * 0, scale_D * 0 + 1, scale_D * 0 - 1)]
    except (RuntimeError, TypeError, ValueError, IndexError):  # not a module of one tensor: no scale
        return None
    if any(found is None for found in outputs):
        return None
    scaled, at_zero, at_one, at_minus_one = (found for found in outputs if found is not None)
    tolerance = 1e-2 if weight.dtype == torch.bfloat16 else 1e-5
    if not at_zero.any() and torch.allclose(scaled, scale_D * at_one, rtol=tolerance, atol=tolerance):
        return 1.0
    if not at_minus_one.any() and torch.allclose(
        scaled, (1 + scale_D) * at_zero, rtol=tolerance, atol=tolerance
    ):
        return 0.0
    return None


def _scales(module: nn.Module) -> bool:
    return _unit_weight(module) is not None


register_rule(_is_conv1d, conv1d_rule)
register_rule(_scales, scale_rule)
register_rule(_is_linear_in_its_own_way, linear_rule)
register_rule(_looks_up_its_own_way, lookup_rule)
register_rule(_holds_only, holder_rule)
