"""Which tokens' layer inputs lie in the span of a weight's gradient (Petrov et al. 2024; soft: our choice).

G = ΔᵀX sums over the batch's tokens, so while these are fewer than the layer's inputs are wide, the row space of
G is the span of the layer's inputs X. The first layers' inputs depend on a token and its position alone, so every
token of the vocabulary can be ranked, at every position, by how much of its input that span explains. No threshold:
each singular direction counts by how far it stands above the noise.

Shapes: N tokens, T positions, V vocabulary, I a layer's input size, R rank.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from textleak.clients.view import Clock
from textleak.exact.completion import completed
from textleak.models import TextModel
from textleak.models.probes.additive import AdditiveInputs, additive_inputs
from textleak.models.probes.layers import (
    LinearLayer,
    LocalLayer,
    layer_inputs,
    local_layers,
    partly_local_layers,
)
from textleak.numerics import exact, svd
from textleak.shared.gradient import SharedGradient

NO_SPAN = "No gradient was shared of a layer that reads each token by itself: there is no span to read."
"""What is said where there is none; `why_no_span` tells it from those that show nothing."""
NOISE_COVERS = "Noise covers the span of the first layers' inputs."
"""What is said where none stands out of noise."""

OUTSIDE = 100.0
"""An input with more than this many times what rounding accounts for is outside (our choice; measured on minilm, gpt2
and smollm2 with n/D from 0.01 to 0.7: up to 4 inside, 1e7 and more outside)."""

# Directions that many inputs are first looked at along, and the part of an input that float32 can't tell from none,
# with room to spare.
_DIRECTIONS, _FLOAT32_MARGIN = 24, 1e-4
# The spectrum ends clearly where a singular value within this factor of rounding (eps times the largest) follows one
# that is this much larger (our choice; measured in float32: rounding lies at 0.2 to 0.5 eps with steps under 3 in it,
# the step to it is 1e4 to 1e6 on minilm with 1 to 4 sentences, 40 to 200 on a random bert-tiny with 2).
_ROUNDING_RANGE, _CLEAR_STEP = 16.0, 8.0
# Or where what follows is level, as independent errors of its entries are: those that a difference of weights keeps of
# their rounding, in units of the step. Its largest value is within this factor of the median of at least so many (our
# choice; Marchenko & Pastur 1967: 2.5 for a square matrix, less for others; measured on minilm after a step of SGD at
# rates of 1 to 1e-3: 1.9 to 2.2, behind steps of 1e4 to 14).
_LEVEL, _LEVEL_VALUES = 4.0, 32
# Rounding errors of an input of the second block, of one entry's eps (our choice; measured in float32 on gpt2 and
# smollm2: 1 to 13).
_ROUNDINGS = 8.0
# Random combinations that a low rank is first looked for in, singular values that must be rounding at their end, and
# directions that are kept beyond those above rounding (our choice; on random Llama shapes of width 1024 and minilm the
# largest rounding comes out 0.86 to 1 times that of a decomposition of everything, and no rank differs).
_FIRST_WIDTH, _ALL_ROUNDING, _BEYOND = 64, 8, 40
# Numbers of the inputs that are computed at once, and tokens at least: more than a processor's cache holds takes
# longer, and memory that the system hands out anew each time (32,768 tokens of minilm: four times as long).
_NUMBERS_A_PASS, _TOKENS_A_PASS = 2**20, 512
_NUMBERS_A_PASS_ELSEWHERE = 2**24  # what else computes needs more at once to be busy (our choice)
# Products of tokens with a span's directions that are held at once, 12 bytes each (our choice).
_HELD = 2**26

# What explains best, with the tokens: (C,) each.
_Best = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class InputSpan:
    """The span of a layer's inputs, as far as its gradients show it.

    Attributes:
        layers: names of the modules whose gradients show it; they read the same input.
        basis_RI: orthonormal directions, float64.
        weights_R: how much each direction counts, 0 to 1: (s² − f²) / s² above the noise floor f.
        rank: directions above the noise floor: the batch's distinct inputs, where that is below `size`.
        size: I.
        clear: whether the spectrum has a clear end; False when noise or too many tokens fill it.
        unsure_R: how far each direction may be turned out of the true span, to each dimension outside: noise over
            its singular value.
    """

    layers: tuple[str, ...]
    basis_RI: Tensor
    weights_R: Tensor
    rank: int
    size: int
    clear: bool
    unsure_R: Tensor

    def explained(self, inputs_NI: Tensor) -> Tensor:
        """The part of each input's squared norm that lies in the span, (N,), 0 to 1."""
        basis_RI, weights_R = self.basis_RI.to(inputs_NI), self.weights_R.to(inputs_NI)
        inside_N = (inputs_NI @ basis_RI.T).square() @ weights_R
        return inside_N / inputs_NI.square().sum(-1).clamp_min(torch.finfo(inputs_NI.dtype).tiny)

    @property
    def room(self) -> tuple[bool, int]:
        """Whether the spectrum ends clearly, and the dimensions nothing fills: the more, the more the span tells."""
        return self.clear, self.size - self.rank

    def directions_outside(self, most: int) -> Tensor:
        """Arbitrary orthonormal directions outside the span, at most so many, always the same: (directions, I)."""
        generator = torch.Generator().manual_seed(0)  # any will do
        drawn_IK = torch.randn(
            self.size, min(most, self.size - self.rank), generator=generator, dtype=torch.float64
        ).to(self.basis_RI)
        outside_IK: Tensor = torch.linalg.qr(drawn_IK - self.basis_RI.T @ (self.basis_RI @ drawn_IK)).Q
        return outside_IK.T

    @functools.cached_property
    def few_outside_RI(self) -> Tensor:
        """A few directions outside the span."""
        return self.directions_outside(_DIRECTIONS)

    @property
    def margin(self) -> float:
        """The part of its squared norm that an input which isn't outside has along `few_outside_RI` at most."""
        return OUTSIDE * (self.size - self.rank) * float(self.unsure_R.max()) ** 2 + _FLOAT32_MARGIN

    def may_hold(self, inputs_NI: Tensor, *, eps: float) -> Tensor:
        """Which inputs could be in the span, (N,), as far as a few directions outside show; as for `misfit`."""
        inputs_NI = inputs_NI.to(torch.promote_types(inputs_NI.dtype, torch.float32))
        along_N = (inputs_NI @ self.few_outside_RI.to(inputs_NI).T).square().sum(1)
        return along_N <= (self.margin + OUTSIDE * (_ROUNDINGS * eps) ** 2) * inputs_NI.square().sum(1)

    def misfit(self, inputs_NI: Tensor, *, eps: float) -> Tensor:
        """How much of each input's squared norm lies outside, over what rounding accounts for, (N,).

        An input that is in the span stays around 1, or below, however weak its own part in the gradient is.

        Args:
            inputs_NI: inputs of the layer.
            eps: relative rounding error of an entry of them.
        """
        inputs_NI = exact(inputs_NI)
        basis_RI, unsure_R = self.basis_RI.to(inputs_NI.device), self.unsure_R.to(inputs_NI.device)
        parts_NR = inputs_NI @ basis_RI.T
        outside_N = (inputs_NI - parts_NR @ basis_RI).square().sum(-1)
        turned_N = (self.size - self.rank) * (parts_NR * unsure_R).square().sum(-1)
        rounded_N = (_ROUNDINGS * eps) ** 2 * inputs_NI.square().sum(-1)
        return outside_N / (turned_N + rounded_N).clamp_min(torch.finfo(torch.float64).tiny)


def input_span(
    gradients: Sequence[Tensor],
    layers: Sequence[str],
    *,
    sigma: float = 0.0,
    bent: bool = False,
    likely: int = 0,
) -> InputSpan | None:
    """The span that the weight gradients of layers with one common input show; None where all of it is noise.

    Args:
        gradients: (outputs, I) each.
        layers: their modules' names.
        sigma: standard deviation of the noise on each entry, 0 for none.
        bent: entries were rounded, set to 0 or cut down to their signs: what isn't the batch's fills the spectrum.
        likely: a rank that it probably has at least, as another input of the batch has it; nothing depends on it.
    """
    stacked_OI = exact(torch.cat(list(gradients)))
    if sigma > 0:
        # One layer's signal can drown in another's noise: keep the one that stands out most.
        strongest = max(gradients, key=lambda g: _excess(g, sigma))
        layers = [name for name, g in zip(layers, gradients, strict=True) if g is strongest]
        stacked_OI = exact(strongest)
    eps = torch.finfo(gradients[0].dtype).eps
    s_R, basis_RI = _leading(stacked_OI, 0.0 if sigma > 0 or bent else eps, likely)
    if float(s_R[0]) == 0.0:
        return None
    rounding = float(s_R[0]) * eps
    if sigma > 0:
        floor, clear = sigma * sum(size**0.5 for size in stacked_OI.shape), False
        noise = floor
    elif bent:
        floor = noise = float(s_R.median())  # most of the spectrum is what isn't the batch's (our choice)
        clear = False
    else:
        floor, noise, clear = spectrum_end(s_R, rounding)
    rank = int((s_R > floor).sum())
    if rank == 0:
        return None
    shape = (stacked_OI.shape[0], stacked_OI.shape[1])
    span = span_of(layers, s_R[:rank], basis_RI[:rank], shape=shape, noise=noise, clear=clear)
    return span if clear else dataclasses.replace(span, weights_R=1 - (floor / s_R[:rank]).square())


def span_of(
    layers: Sequence[str], s_R: Tensor, basis_RI: Tensor, *, shape: tuple[int, int], noise: float, clear: bool
) -> InputSpan:
    """The span of the leading directions of gradients.

    Args:
        layers: their modules' names.
        s_R: singular values.
        basis_RI: right singular vectors.
        shape: of the gradients, stacked.
        noise: the largest singular value that is noise.
        clear: whether there is a clear step from the last of the leading ones to it.
    """
    rank = len(s_R)
    return InputSpan(
        layers=tuple(layers),
        basis_RI=basis_RI,
        weights_R=torch.ones_like(s_R),
        rank=rank,
        size=shape[1],
        clear=clear,
        # Noise of standard deviation a on each entry has (√O + √I') a as its largest singular value.
        unsure_R=noise / (shape[0] ** 0.5 + (shape[1] - rank) ** 0.5) / s_R,
    )


def _leading(stacked_OI: Tensor, eps: float, likely: int) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors, descending; the last ones may be left out where all is rounding.

    A decomposition of everything takes seconds for a large layer. The range of a low rank shows in few random
    combinations of the rows (Halko, Martinsson & Tropp 2011, alg. 4.4), well enough in float32 to count them; one
    power iteration in float64 is exact.
    """
    found_IK = _rough_range(stacked_OI, eps, likely) if eps > 0 else None
    if found_IK is not None:
        range_IK, _ = torch.linalg.qr(stacked_OI.T @ (stacked_OI @ found_IK))
        # The triangle has the same right singular vectors.
        triangle_KK = torch.linalg.qr(stacked_OI @ range_IK, mode="r").R
        _, s_K, turn_KK = svd(triangle_KK)
        if _ends(s_K, eps):
            return s_K, turn_KK @ range_IK.T
    _, s_R, basis_RI = svd(stacked_OI)
    return s_R, basis_RI


def _rough_range(stacked_OI: Tensor, eps: float, likely: int) -> Tensor | None:
    """About the leading right singular vectors, and some more, (I, K); None where they are nearly all."""
    generator = torch.Generator().manual_seed(0)
    rough_OI = stacked_OI.float() if eps >= torch.finfo(torch.float32).eps else stacked_OI
    mixed_IK = rough_OI.new_zeros(stacked_OI.shape[1], 0)
    width = _FIRST_WIDTH
    while width < likely + _ALL_ROUNDING:
        width *= 2
    while 2 * width <= min(stacked_OI.shape):
        more_OK = torch.randn(len(stacked_OI), width - mixed_IK.shape[1], generator=generator).to(rough_OI)
        mixed_IK = torch.cat([mixed_IK, rough_OI.T @ more_OK], 1)
        range_IK, s_K = _by_size(mixed_IK)
        if _ends(s_K, eps):
            return range_IK[:, : int((s_K > _ROUNDING_RANGE * eps * s_K[0]).sum()) + _BEYOND]
        width *= 2
    return None


def _by_size(mixed_IK: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors, about, and singular values, descending."""
    if mixed_IK.dtype == torch.float64:
        left_IK, s_K, _ = svd(mixed_IK)
        return left_IK, s_K
    # By their squares, which float64 tells apart down to a tenth of float32's rounding.
    columns_IK = mixed_IK.double()
    squares_K, turn_KK = torch.linalg.eigh(columns_IK.T @ columns_IK)
    s_K = squares_K.flip(0).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return columns_IK @ turn_KK.flip(1) / s_K, s_K


def _ends(s_K: Tensor, eps: float) -> bool:
    """Whether the last of descending singular values are rounding."""
    return float(s_K[-_ALL_ROUNDING]) <= _ROUNDING_RANGE * eps * float(s_K[0])


def spectrum_end(s_R: Tensor, rounding: float) -> tuple[float, float, bool]:
    """Where signal ends and rounding begins in descending singular values.

    Args:
        s_R: the singular values.
        rounding: what rounding of the largest entry makes, in the same units.

    Returns:
        A floor between the two, the largest singular value that is rounding, and whether there is a clear step.
    """
    if len(s_R) < 2:
        return rounding / 8, rounding, False
    after_R = s_R[1:].clamp_min(rounding / 8)
    step_R = (s_R[:-1] / after_R).where((after_R <= _ROUNDING_RANGE * rounding) | _level(after_R), 0.0)
    last = int(step_R.argmax())
    if float(step_R[last]) < _CLEAR_STEP:
        return rounding / 8, rounding, False
    return float((s_R[last] * after_R[last]).sqrt()), float(after_R[last]), True


def _level(after_R: Tensor) -> Tensor:
    """At which of descending values the rest, that one first, is as level as the singular values of noise."""
    count = len(after_R)
    first_R = torch.arange(count)
    medians_R = after_R[((first_R + count) // 2).clamp(max=count - 1)]
    many_R = (count - first_R >= _LEVEL_VALUES).to(after_R.device)
    return (after_R <= _LEVEL * medians_R) & many_R


def _excess(gradient_OI: Tensor, sigma: float) -> float:
    """How much of the gradient's energy is signal, by expectation."""
    noise = sigma**2 * gradient_OI.numel()
    return (float(exact(gradient_OI).square().sum()) - noise) / noise


def why_no_span(model: TextModel, shared: SharedGradient) -> str:
    """Why `shared_spans` has none, a sentence."""
    layers = local_layers(model) or partly_local_layers(model)
    if not layers:
        return "The model has no layer that reads each token by itself: there is no span to read."
    seen = [shared.gradients[layer.weight_name] for layer in _readable(layers, shared)]
    if not seen:
        return NO_SPAN
    if shared.noise_sigma > 0:
        return NOISE_COVERS
    if not any(bool(gradient.any()) for gradient in seen):
        return "The first layers' gradients are zero: there is no span to read."
    return "Nothing in the first layers' gradients stands out of their rounding: there is no span to read."


def _readable(layers: Iterable[LocalLayer], shared: SharedGradient) -> Iterator[LocalLayer]:
    """Those whose gradient was shared, and is of one pass."""
    return (layer for layer in layers if layer.weight_name in shared.gradients and layer.used_once)


Spans = list[tuple[tuple[LocalLayer, ...], InputSpan]]
"""Layers that read one input, and the span of that."""

# Of the gradient and the network that were asked about: whoever asks first wants to know what the texts are like.
_SPANS: WeakKeyDictionary[SharedGradient, tuple[object, Spans]] = WeakKeyDictionary()


def shared_spans(model: TextModel, shared: SharedGradient) -> Spans:
    """One span for each distinct local input (a token and its position decide it) whose gradients were shared.

    Each comes with the layers that read that input. Another call for the same gradient and network takes no time.
    """
    network, spans = _SPANS.get(shared, (None, []))
    if network != id(model.network):
        spans = _found_spans(model, shared)
        _SPANS[shared] = id(model.network), spans
    return spans


def _found_spans(model: TextModel, shared: SharedGradient) -> Spans:
    groups: dict[str, list[LocalLayer]] = {}
    for layer in _readable(local_layers(model) or partly_local_layers(model), shared):
        groups.setdefault(layer.input_group, []).append(layer)
    found = []
    for layers in groups.values():
        span = layer_span(shared, layers)
        if span is not None:
            found.append((tuple(layers), span))
    if any(layers[0].rows is not None for layers, _ in found):
        # Groups of one convolution read the same tokens: the one that shows the most of them does for all.
        return [max(found, key=lambda pair: (pair[1].clear, pair[1].rank))]
    return found


def layer_span(shared: SharedGradient, layers: Sequence[LinearLayer], *, likely: int = 0) -> InputSpan | None:
    """The span of the input that `layers` share; of a rank of `likely` at least, if that is known."""
    gradients = [layer.as_rows(shared.gradients[layer.weight_name]) for layer in layers]
    names = [layer.name for layer in layers]
    bent = [effect for effect in shared.effects if effect.leaves_grid]
    if shared.noise_sigma > 0 or not bent:
        return input_span(gradients, names, sigma=shared.noise_sigma, likely=likely)
    if all(effect.hides_entries for effect in bent) and shared.known.lengths is not None:
        whole_OI = completed(torch.cat(gradients), sum(shared.known.lengths))
        if whole_OI is not None:
            return input_span([whole_OI.to(gradients[0])], names)
    scaled = [gradient / gradient.norm().clamp_min(1e-30) for gradient in map(exact, gradients)]
    return input_span(scaled, names, bent=True)


def stacked(gradients: Mapping[str, Tensor], layers: Iterable[LinearLayer]) -> Tensor:
    """The gradients of layers that read one input, one below the other: (O, I) in float64."""
    return torch.cat([exact(layer.as_rows(gradients[layer.weight_name])) for layer in layers])


def rank_vocabulary(
    model: TextModel,
    layer: LocalLayer,
    span: InputSpan,
    *,
    positions: int,
    keep: int,
    clock: Clock | None = None,
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """For each position the `keep` tokens whose input the span explains best: (id, explained), best first.

    Where the layer's input doesn't depend on the position, the only position is 0 and stands for all. Nothing comes
    where the clock is over before all of the vocabulary was read.
    """
    count = positions if layer.depends_on_position else 1
    # Of several positions, what tokens and positions each add is looked at apart.
    apart = count > 1 and model.vocab_size * span.rank <= _HELD and not layer.columns
    made = additive_inputs(model, layer) if apart else None
    if made is None:
        found = _ranked_as_read(model, layer, span, count=count, keep=keep, clock=clock)
    else:
        found = _ranked_as_made(model, made, span, count=count, keep=keep, clock=clock)
    for t, (values_C, ids_C) in enumerate(found):
        yield t, list(zip(ids_C.tolist(), values_C.tolist(), strict=True))


def _ranked_as_made(
    model: TextModel, made: AdditiveInputs, span: InputSpan, *, count: int, keep: int, clock: Clock | None
) -> list[_Best]:
    """The same of inputs that are made of a token's and a position's part."""
    basis_RI = span.basis_RI * span.weights_R.sqrt()[:, None]
    explained = made.share_along(basis_RI.to(made.table_VI))
    found = []
    for position in range(count):
        if clock is not None and clock.over:
            return []
        values_C, ids_C = explained(position)[: model.vocab_size].topk(min(keep, model.vocab_size))
        found.append((values_C, ids_C))
    return found


def _ranked_as_read(
    model: TextModel, layer: LocalLayer, span: InputSpan, *, count: int, keep: int, clock: Clock | None
) -> list[_Best]:
    """The same of inputs as the network itself makes them, some tokens at a time."""
    numbers = _NUMBERS_A_PASS if model.device.type == "cpu" else _NUMBERS_A_PASS_ELSEWHERE
    rows = max(1, max(_TOKENS_A_PASS, numbers // span.size) // count)
    best_TC = torch.empty(count, 0)
    best_ids_TC = torch.empty(count, 0, dtype=torch.long)
    for start in range(0, model.vocab_size, rows):
        if clock is not None and clock.over:
            return []
        ids_N = torch.arange(start, min(start + rows, model.vocab_size), device=model.device)
        read = layer_inputs(model, ids_N[:, None].expand(-1, count), [layer.name])[layer.name]
        inputs_NTI = layer.meant(read)
        explained_NT = span.explained(inputs_NTI.flatten(0, 1)).view(len(ids_N), count)
        values = torch.cat([best_TC.to(explained_NT), explained_NT.T], dim=1)
        ids = torch.cat([best_ids_TC.to(ids_N), ids_N.expand(count, -1)], dim=1)
        best_TC, places_TC = values.topk(min(keep, values.shape[1]), dim=1)
        best_ids_TC = ids.gather(1, places_TC)
    return list(zip(best_TC, best_ids_TC, strict=True))
