"""Layer rules: how a module's input and output gradient make the gradients of its own parameters.

A rule never forms a weight's gradient when it is a sum of outer products over tokens: it hands over the two
factors. Rules of modules that torch itself has are here; other rooms register theirs with `register_rule`.

Shapes: K candidates, R = K * B rows of the network's batch, N uses of a weight (a candidate's tokens),
O and I the two sides of a weight as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from textleak.matching.convolution import weight_gradient
from textleak.matching.kernels import layer_norm_scale


@dataclass(frozen=True, kw_only=True, eq=False)
class Outer:
    """A gradient (O, I) that is the sum of left_n right_nᵀ over N."""

    left_KNO: Tensor
    right_KNI: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A gradient (O, I) whose row rows_n receives right_n, for each of N (a look-up table)."""

    rows_KN: Tensor
    right_KNI: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum:
    """A gradient (D,) that is the sum of its terms over N (biases, norm scales)."""

    terms_KND: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Formed:
    """A gradient as it is, (K, *shape): what is small, or has no rule."""

    gradient_K: Tensor


Contribution = Outer | Rows | Sum | Formed


def in_dtype(part: Contribution, dtype: torch.dtype) -> Contribution:
    """The same in another precision."""
    match part:
        case Outer():
            return Outer(left_KNO=part.left_KNO.to(dtype), right_KNI=part.right_KNI.to(dtype))
        case Rows():
            return Rows(rows_KN=part.rows_KN, right_KNI=part.right_KNI.to(dtype))
        case Sum():
            return Sum(terms_KND=part.terms_KND.to(dtype))
        case Formed():
            return Formed(gradient_K=part.gradient_K.to(dtype))


def candidate(part: Contribution, k: int) -> Contribution:
    """That of one candidate, still with K first, and without a graph."""
    one = slice(k, k + 1)
    match part:
        case Outer():
            return Outer(left_KNO=part.left_KNO[one].detach(), right_KNI=part.right_KNI[one].detach())
        case Rows():
            return Rows(rows_KN=part.rows_KN[one], right_KNI=part.right_KNI[one].detach())
        case Sum():
            return Sum(terms_KND=part.terms_KND[one].detach())
        case Formed():
            return Formed(gradient_K=part.gradient_K[one].detach())


def negative(part: Contribution) -> Contribution:
    """The same with the other sign."""
    match part:
        case Outer():
            return Outer(left_KNO=-part.left_KNO, right_KNI=part.right_KNI)
        case Rows():
            return Rows(rows_KN=part.rows_KN, right_KNI=-part.right_KNI)
        case Sum():
            return Sum(terms_KND=-part.terms_KND)
        case Formed():
            return Formed(gradient_K=-part.gradient_K)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a module in a forward pass.

    Attributes:
        module: the module that was called.
        wanted: its own parameters (local names) whose gradients are asked for.
        input_R: its first argument.
        delta_R: gradient of the sum of all candidates' losses at its output.
        further: the same by what else its rule asks for.
        candidates: K; both tensors' first dimension is a multiple of it.
    """

    module: nn.Module
    wanted: frozenset[str]
    input_R: Tensor
    delta_R: Tensor
    candidates: int
    further: tuple[Tensor, ...] = ()
    views: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # of all calls, by the tensor's id

    def per_candidate(self, tensor_R: Tensor) -> Tensor:
        """(R, ..., D) as (K, N, D); the same view for the same tensor, so that moments are taken once."""
        if id(tensor_R) not in self.views:
            view_KND = tensor_R.reshape(self.candidates, -1, tensor_R.shape[-1])
            self.views[id(tensor_R)] = tensor_R, view_KND
        return self.views[id(tensor_R)][1]

    def channel_sums(self, tensor_R: Tensor) -> Tensor:
        """(R, C, ...) summed over all but candidates and channels: (K, C)."""
        return tensor_R.flatten(2).sum(2).view(self.candidates, -1, tensor_R.shape[1]).sum(1)


Rule = Callable[[Call], Mapping[str, Contribution]]
Kind = type[nn.Module] | Callable[[nn.Module], bool]

Further = Callable[[Tensor], tuple[Tensor, ...]]
"""Of a module's output, tensors by which its rule asks for gradients beside that by the output itself."""


_RULES: list[tuple[Kind, Rule]] = []
_FURTHER: dict[Rule, Further] = {}


def register_rule(kind: Kind, rule: Rule, *, further: Further | None = None) -> None:
    """File a rule. A later registration goes before an earlier one.

    Each rule is checked against autograd on the network at hand before it is used (see `Capture`).

    Args:
        kind: a module type (its subclasses too, unless they override `forward`) or a predicate.
        rule: gives a contribution for each name in `Call.wanted`.
        further: what else it asks for gradients by, for `Call.further`; None for nothing.
    """
    _RULES.insert(0, (kind, rule))
    if further is not None:
        _FURTHER[rule] = further


def find_rule(module: nn.Module) -> Rule | None:
    """The rule for `module`, or None: its parameters' gradients must then be formed."""
    for kind, rule in _RULES:
        if isinstance(kind, type):
            if isinstance(module, kind) and _forward_of(type(module)) is _forward_of(kind):
                return rule
        elif kind(module):
            return rule
    return None


def further_of(rule: Rule, output: Tensor) -> tuple[Tensor, ...]:
    """What a rule asks for gradients by, beside a module's output."""
    return _FURTHER[rule](output) if rule in _FURTHER else ()


def _forward_of(kind: type[nn.Module]) -> object:
    return next(vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base))


def linear_rule(call: Call) -> dict[str, Contribution]:
    """Y = x Wᵀ + b: the weight gets Δᵀ X, the bias the sum of Δ over tokens."""
    delta_KNO = call.per_candidate(call.delta_R)
    found: dict[str, Contribution] = {}
    if "weight" in call.wanted:
        found["weight"] = Outer(left_KNO=delta_KNO, right_KNI=call.per_candidate(call.input_R))
    if "bias" in call.wanted:
        found["bias"] = Sum(terms_KND=delta_KNO)
    return found


def embedding_rule(call: Call) -> dict[str, Contribution]:
    """A look-up: row ids_n gets Δ_n; the padding row gets nothing."""
    assert isinstance(call.module, nn.Embedding)
    rows_KN = call.input_R.reshape(call.candidates, -1)
    delta_KNI = call.per_candidate(call.delta_R)
    if call.module.padding_idx is not None:
        delta_KNI = delta_KNI.masked_fill((rows_KN == call.module.padding_idx).unsqueeze(-1), 0.0)
    return {"weight": Rows(rows_KN=rows_KN, right_KNI=delta_KNI)}


def layer_norm_rule(call: Call) -> dict[str, Contribution]:
    """A norm, x̂ ∘ w + b: the scale gets the sum of Δ ∘ x̂, the bias the sum of Δ."""
    module = call.module
    assert isinstance(module, nn.LayerNorm)
    if len(module.normalized_shape) > 1:
        return scale_and_bias(
            call, lambda: functional.layer_norm(call.input_R, module.normalized_shape, eps=module.eps)
        )
    found: dict[str, Contribution] = {}
    if "weight" in call.wanted:
        x_R = call.input_R.contiguous()
        scale_KD = layer_norm_scale(call.delta_R, x_R, module.eps, call.candidates)
        found["weight"] = Formed(gradient_K=scale_KD)
    if "bias" in call.wanted:
        found["bias"] = Sum(terms_KND=call.per_candidate(call.delta_R))
    return found


def rms_norm_rule(call: Call) -> dict[str, Contribution]:
    """Y = x̂ ∘ w, x̂ = x / root mean square: the scale gets the sum of Δ ∘ x̂."""
    module = call.module
    assert isinstance(module, nn.RMSNorm)
    return scale_and_bias(
        call, lambda: functional.rms_norm(call.input_R, module.normalized_shape, eps=module.eps)
    )


def convolution_rule(call: Call) -> dict[str, Contribution]:
    """Each place of the output reads a patch: the weight gets Σ Δ patchᵀ over places, the bias Σ Δ.

    With many places the sum is smaller than its factors and is formed at once, for all candidates; with few it is
    kept as factors.
    """
    module = call.module
    assert isinstance(module, nn.Conv2d)
    assert not isinstance(module.padding, str)
    K, found = call.candidates, dict[str, Contribution]()
    if "weight" in call.wanted:
        outputs, inputs = len(module.weight), module.weight[0].numel()
        uses = len(call.delta_R) // K * call.delta_R[0, 0].numel()
        if uses * (outputs + inputs) < outputs * inputs:
            patches_RIP = functional.unfold(
                call.input_R, module.kernel_size, module.dilation, module.padding, module.stride
            )
            left_KNO = call.delta_R.flatten(2).mT.reshape(K, uses, -1)
            found["weight"] = Outer(left_KNO=left_KNO, right_KNI=patches_RIP.mT.reshape(K, uses, -1))
        else:
            found["weight"] = Formed(gradient_K=weight_gradient(call.delta_R, call.input_R, module, K))
    if "bias" in call.wanted:
        found["bias"] = Formed(gradient_K=call.channel_sums(call.delta_R))
    return found


def batch_norm_rule(call: Call) -> dict[str, Contribution]:
    """Y = x̂ ∘ w + b with running statistics: the scale gets Σ Δ ∘ x̂ over places, the bias Σ Δ."""
    module = call.module
    assert isinstance(module, nn.BatchNorm2d)
    assert module.running_mean is not None
    assert module.running_var is not None
    found: dict[str, Contribution] = {}
    if "weight" in call.wanted:
        apart_R = call.input_R - module.running_mean[:, None, None]
        scale_C = (module.running_var + module.eps).rsqrt()
        found["weight"] = Formed(gradient_K=call.channel_sums(call.delta_R * apart_R) * scale_C)
    if "bias" in call.wanted:
        found["bias"] = Formed(gradient_K=call.channel_sums(call.delta_R))
    return found


def scale_and_bias(call: Call, normalized_R: Callable[[], Tensor]) -> dict[str, Contribution]:
    """Contributions to `weight` and `bias` of y = x̂ ∘ weight + bias, for any norm over trailing dimensions.

    Args:
        call: the call.
        normalized_R: gives x̂; only asked when the scale is wanted.
    """
    weight = call.module.weight
    assert isinstance(weight, Tensor)
    kept = (call.candidates, -1, weight.numel())
    found: dict[str, Contribution] = {}
    if "weight" in call.wanted:
        found["weight"] = Sum(terms_KND=(call.delta_R * normalized_R()).reshape(kept))
    if "bias" in call.wanted:
        found["bias"] = Sum(terms_KND=call.delta_R.reshape(kept))
    return found


def _is_plain_embedding(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and not module.scale_grad_by_freq
        and module.max_norm is None
    )


def _is_plain_convolution(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _has_running_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and not module.training and module.running_mean is not None


register_rule(nn.Linear, linear_rule)
register_rule(_is_plain_convolution, convolution_rule)
register_rule(_has_running_statistics, batch_norm_rule)
register_rule(_is_plain_embedding, embedding_rule)
register_rule(nn.LayerNorm, layer_norm_rule)
register_rule(nn.RMSNorm, rms_norm_rule)
