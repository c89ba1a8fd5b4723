"""What the engine must know of layers that only image models have: how their gradients are made.

Importing this module registers the rules with `textleak.matching.rules`.
"""

from __future__ import annotations

from torch import Tensor, nn

from textleak.matching.rules import Call, Contribution, Formed, register_rule
from textleak.models.beside import NormBesideHeld
from textleak.models.networks import BatchStatisticsNorm, made_by


def batch_statistics_rule(call: Call) -> dict[str, Contribution]:
    """Y = x̂ ∘ w + b with the batch's own statistics: each candidate has a scale and bias of its own."""
    return {
        name: Formed(gradient_K=gradient.view(call.candidates, -1))
        for name, gradient in zip(("weight", "bias"), call.further, strict=True)
        if name in call.wanted
    }


def scales_and_biases(output: Tensor) -> tuple[Tensor, ...]:
    """What stood for a batch norm's weight and bias, a candidate after the other: (K C,) each."""
    return made_by(output).weight, made_by(output).bias


def beside_held_rule(call: Call) -> dict[str, Contribution]:
    """The same of one picture beside others that are held: its own part of both sums."""
    module = call.module
    assert isinstance(module, NormBesideHeld)
    assert module.made is not None
    found: dict[str, Contribution] = {}
    if "weight" in call.wanted:
        along_KC = call.channel_sums(call.delta_R * (call.input_R - module.made.mean_KC[:, :, None, None]))
        found["weight"] = Formed(gradient_K=along_KC * (module.made.variance_KC + module.eps).rsqrt())
    if "bias" in call.wanted:
        found["bias"] = Formed(gradient_K=call.channel_sums(call.delta_R))
    return found


def patches_rule(call: Call) -> dict[str, Contribution]:
    """A ViT's first module puts a class token before the patches and adds positions: sums of Δ over pictures."""
    K = call.candidates
    delta_KTD = call.delta_R.view(K, -1, *call.delta_R.shape[1:]).sum(1)
    found: dict[str, Contribution] = {}
    if "cls_token" in call.wanted:
        found["cls_token"] = Formed(gradient_K=delta_KTD[:, None, :1])
    if "position_embeddings" in call.wanted:
        found["position_embeddings"] = Formed(gradient_K=delta_KTD[:, None])
    return found


def adds_positions_to_patches(module: nn.Module) -> bool:
    """Whether a module's own parameters are a class token and positions; the engine checks the rest."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return bool(own) and own <= {"cls_token", "position_embeddings"}


register_rule(BatchStatisticsNorm, batch_statistics_rule, further=scales_and_biases)
register_rule(NormBesideHeld, beside_held_rule)
register_rule(adds_positions_to_patches, patches_rule)
