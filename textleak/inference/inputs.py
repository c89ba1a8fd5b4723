"""What the first layer read: the row space of its weight's gradient, with its dimensions counted.

Rounding of the weights fills the spectrum of an update; how far is known beforehand, as the weights are. Entries of
unlike error are brought to one by scaling rows and columns, which leaves the rank as it is.

Shapes: O the layers' output size, I their input size, R rank, S singular values, N inputs.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from textleak.exact.evened import evened
from textleak.exact.subspace import spectrum_end
from textleak.inference.adapters import is_adapter
from textleak.inference.base import Seen, measured
from textleak.inference.estimates import Estimate, estimate_of
from textleak.inference.kind import sent_as
from textleak.inference.precision import coarse, computed_eps
from textleak.models.probes.layers import LocalLayer, local_layers
from textleak.numerics import exact, svd

# Singular values in units of the largest that rounding makes: those that are surely the batch's,
# and those that may be (our choice; measured on minilm after one step of SGD or AdamW at 1e-5 to 1e-2: rounding's own
# is at 0.55 to 1.0).
_SURE, _MAYBE = 3.0, 1.15
# Or else how many times smaller what follows the span is than the least that is in it: anything lost there is as small
# beside all that was found (our choice).
APART = 1e3
# How many times the third singular value the second one is at most where both are what fills the rest (our choice;
# measured on minilm in bfloat16: 1.03 to 2.3).
_EVENLY = 2.0
# Steps of the grid that a move is to be beyond for its rounding to be spread evenly, entries that it takes, and the
# part of them that has the coarsest grid.
_WELL, _LEAST = 4.0, 2000
# Rounding of the weights is as large where they moved far: no more than so many times as large squared; and leaves some
# dimensions empty (our choice; measured on minilm and bert-tiny after 1 to 4 steps of SGD: up to 1.27, and 0.75 of the
# dimensions filled; after one under autocast 1.3 to 1.9, or 0.83 and more).
_GROWS, _FULL = 1.4, 0.8
# Units of rounding that what follows a gradient's own span has at most (as in `exact.subspace`).
_OF_ROUNDING = 16.0
# Squared part of an input outside the span, over what its directions' errors account for, up to which it is inside
# (our choice; measured likewise: up to 4 inside, 100 and more outside); rounding of an input's entry; and the part of
# an input that may be allowed outside when anything is to be told, with so many dimensions left for a wrong one.
_OUTSIDE, _ROUNDING, _TELLS, _ROOM = 25.0, 8 * torch.finfo(torch.float32).eps, 0.02, 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FirstInputs:
    """The span of what the first layer read.

    Attributes:
        layers: those that read it.
        rank: dimensions that stand out of rounding.
        clear: whether they do so clearly, so that none is likely to be missed.
        basis_RI: orthonormal, of inputs whose entries are multiplied by `scale_I`.
        scale_I: see there.
        unsure_R: how far each direction may be turned to each dimension outside.
        rounding: variance of what is outside the span, over that of one rounding of the weights; None where nothing
            was added to weights, or too little to tell.
        least: the smallest singular value of the span, over the largest that is rounding.
        following: the singular value after it, likewise.
        leading: how many times the second singular value the first one is, where the others fall off evenly from there;
            0 where the second stands out too.
        read_off: parameters whose gradients it was read off.
        down_AI: what inputs go through before: an adapter's A; None for nothing.
    """

    layers: tuple[LocalLayer, ...]
    rank: int
    clear: bool
    basis_RI: Tensor
    scale_I: Tensor
    unsure_R: Tensor
    rounding: float | None
    least: float
    following: float
    leading: float
    read_off: tuple[str, ...]
    down_AI: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether adapters have no dimension left, so that more inputs than these would not show."""
        return self.down_AI is not None and self.rank == len(self.down_AI)

    def ends_after(self, roundings: float) -> bool:
        """Whether it ends clearly where the weights were rounded so many times, one after the other."""
        return self.least > _SURE * math.sqrt(roundings) and self.following <= _MAYBE * math.sqrt(roundings)

    def inside(self, inputs_NI: Tensor) -> tuple[Tensor, Tensor]:
        """Which inputs lie in the span and which clearly don't, (N,) each; of some neither can be told."""
        if self.down_AI is not None:
            inputs_NI = inputs_NI @ self.down_AI.T
        scaled_NI = inputs_NI * self.scale_I
        parts_NR = scaled_NI @ self.basis_RI.T
        outside_N = (scaled_NI - parts_NR @ self.basis_RI).square().sum(1)
        whole_N = scaled_NI.square().sum(1)
        turned_N = (scaled_NI.shape[1] - self.rank) * (parts_NR * self.unsure_R).square().sum(1)
        allowed_N = _OUTSIDE * (turned_N + _ROUNDING**2 * whole_N)
        room = scaled_NI.shape[1] - self.rank
        tells_N = (allowed_N <= _TELLS * whole_N) & (room >= _ROOM)
        return tells_N & (outside_N <= allowed_N), (outside_N > allowed_N) & (room >= _ROOM)


@measured
def first_inputs(seen: Seen) -> FirstInputs | None:
    """The span of the widest input that depends on a token and its position alone; None where none was sent."""
    groups: dict[str, list[LocalLayer]] = {}
    layers = [layer for layer in local_layers(seen.model) if not is_adapter(layer.weight_name)]
    for layer in layers:
        if layer.weight_name in seen.sent and layer.used_once and bool(seen.sent[layer.weight_name].any()):
            groups.setdefault(layer.input_group, []).append(layer)
    widest = max(groups.values(), key=lambda layers: layers[0].input_size, default=[])
    if not widest:
        found = [one for layer in layers if (one := _through_adapter(seen, layer)) is not None]
        return max(found, key=lambda one: (one.rank, one.clear), default=None)
    estimates = [estimate_of(seen, layer.weight_name) for layer in widest]
    rows = [_rows(one, layer) for one, layer in zip(estimates, widest, strict=True) if one is not None]
    if len(rows) < len(widest):
        return None
    value_OI = torch.cat([one.value for one in rows])
    if sent_as(seen).kind == "gradient":
        return _of_gradient(
            tuple(widest), value_OI, computed_eps(seen, [layer.weight_name for layer in widest])
        )
    error_OI = torch.cat([one.error for one in rows if one.error is not None])
    steps = [one.steps for one in rows if one.steps is not None]
    return _of_update(tuple(widest), value_OI, error_OI, torch.cat(steps) if steps else None)


def coarse_span(seen: Seen, span: FirstInputs) -> bool:
    """Whether what it was read off was computed in a short type, whose rounding may hide more of it."""
    return coarse(seen, span.read_off)


def _through_adapter(seen: Seen, layer: LocalLayer) -> FirstInputs | None:
    """What the gradient of an adapter's B shows of the layer's inputs, which went through A.

    PEFT calls what it puts an adapter around its `base_layer`; the model may have them in place or not.
    """
    wrapped = layer.name.removesuffix(".base_layer")
    b = next((name for name in seen.sent if name.startswith(f"{wrapped}.lora_B.")), None)
    a = None if b is None else seen.weights(b.replace(".lora_B.", ".lora_A."))
    one = None if b is None or a is None else estimate_of(seen, b)
    if b is None or a is None or one is None or not bool(one.value.any()):
        return None
    span = (
        _of_gradient((layer,), one.value, computed_eps(seen, [b]))
        if one.error is None
        else _of_update((layer,), one.value, one.error, None)
    )
    return None if span is None else dataclasses.replace(span, read_off=(b,), down_AI=exact(a).cpu())


def _rows(one: Estimate, layer: LocalLayer) -> Estimate:
    """With rows of outputs and columns of inputs."""
    error, steps = (None if t is None else layer.as_rows(t) for t in (one.error, one.steps))
    return Estimate(value=layer.as_rows(one.value), error=error, steps=steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The rank of a gradient and whether it ends clearly, with `least` and `leading` as in `FirstInputs`."""

    rank: int
    clear: bool
    least: float
    leading: float


def spectrum_of(seen: Seen, name: str) -> Spectrum | None:
    """The rank of one weight's gradient; None where it can't be had."""
    one = estimate_of(seen, name)
    if one is None or not bool(one.value.any()):
        return None
    if one.error is None:
        span = _of_gradient((), one.value, computed_eps(seen, [name]))
    else:
        span = _of_update((), one.value, one.error, None)
    return (
        None
        if span is None
        else Spectrum(
            rank=span.rank,
            clear=span.clear and not coarse(seen, [name]),
            least=span.least,
            leading=span.leading,
        )
    )


def _decomposed(value_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors, descending."""
    _, s_S, basis_SI = svd(value_OI)
    return s_S, basis_SI


def _leading(s_S: Tensor) -> float:
    if len(s_S) < 3:
        return 0.0
    first, second, third = s_S[:3].tolist()
    return first / second if 0 < second <= _EVENLY * third else 0.0


def _of_gradient(layers: tuple[LocalLayer, ...], value_OI: Tensor, eps: float) -> FirstInputs | None:
    s_S, basis_SI = _decomposed(value_OI)
    if not float(s_S[0]):
        return None
    rounding = float(s_S[0]) * eps
    floor, noise, clear = spectrum_end(s_S, rounding)
    clear = clear and noise <= _OF_ROUNDING * rounding  # noise may hide weak tokens
    rank = int((s_S > floor).sum())
    sizes = sum(size**0.5 for size in (len(value_OI), value_OI.shape[1] - rank))
    return FirstInputs(
        layers=layers,
        read_off=tuple(layer.weight_name for layer in layers),
        rank=rank,
        clear=clear and rank < min(value_OI.shape),
        basis_RI=basis_SI[:rank],
        scale_I=torch.ones(value_OI.shape[1], dtype=torch.float64),
        unsure_R=noise / sizes / s_S[:rank],
        rounding=None,
        least=float(s_S[rank - 1]) / noise if rank else 0.0,
        following=float(s_S[rank]) / noise if rank < len(s_S) else 0.0,
        leading=_leading(s_S),
    )


def _of_update(
    layers: tuple[LocalLayer, ...], value_OI: Tensor, error_OI: Tensor, steps_OI: Tensor | None
) -> FirstInputs | None:
    even = evened(error_OI)
    s_S, basis_SI = _decomposed(even.of(value_OI))
    scale_1I, noise = even.scale_1I, even.largest
    rank = int((s_S > _SURE * noise).sum())
    if not rank:
        return None
    sizes = sum(size**0.5 for size in (len(value_OI), value_OI.shape[1] - rank))
    following = float(s_S[rank]) if rank < len(s_S) else 0.0
    basis_RI = basis_SI[:rank]
    return FirstInputs(
        layers=layers,
        read_off=tuple(layer.weight_name for layer in layers),
        rank=rank,
        clear=(following <= _MAYBE * noise or float(s_S[rank - 1]) >= APART * following)
        and rank < min(value_OI.shape),
        basis_RI=basis_RI,
        scale_I=scale_1I[0],
        unsure_R=noise / sizes / s_S[:rank],
        rounding=None if steps_OI is None else _rounding(value_OI, steps_OI, scale_1I, s_S, basis_SI, noise),
        least=float(s_S[rank - 1]) / noise,
        following=following / noise,
        leading=_leading(s_S),
    )


def _rounding(
    value_OI: Tensor, steps_OI: Tensor, scale_1I: Tensor, s_S: Tensor, basis_SI: Tensor, noise: float
) -> float | None:
    """Variance outside all that may be the batch's, over that of one rounding; None where too little moved enough."""
    rank = int((s_S > _MAYBE * noise).sum())
    scaled_OI = value_OI * scale_1I
    inside_OI = (scaled_OI @ basis_SI[:rank].T) @ basis_SI[:rank] / scale_1I
    coarse_OI = (steps_OI >= steps_OI.median()) & (inside_OI.abs() >= _WELL * steps_OI)
    if int(coarse_OI.sum()) < _LEAST or rank > _FULL * value_OI.shape[1]:
        return None
    left_N = ((value_OI - inside_OI) / steps_OI)[coarse_OI].square()
    moved_N = (inside_OI / steps_OI)[coarse_OI].abs()
    far_N = moved_N >= moved_N.median()
    if float(left_N[far_N].mean()) > _GROWS * float(left_N[~far_N].mean()):
        return None  # products in a short type are off by a part of what they are
    kept = 1 - rank / value_OI.shape[1]
    return float(left_N.mean()) * 12 / kept
