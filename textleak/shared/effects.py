"""What defenses do to a gradient, in a few words that a server can use without knowing the defense.

A defense says which of these it does, in order, with their strength; what its generator drew is not among them. A
server can then ask which gradients could have become the one that it saw (`nearest_accepted`), and an attack which
entries it can compare and how far it can trust them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from textleak.numerics import exact

Grid = Literal["float16", "bfloat16", "int8"]

# Bits of the mantissa that are stored, and the exponent of the smallest normal number (IEEE 754 binary16; bfloat16).
_FLOATING = {"float16": (10, -14), "bfloat16": (7, -126)}
_INT8_STEPS = 127


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """Scaled down to a norm of at most `max_norm`: all tensors together, each layer's, or each sample's."""

    kind: Literal["clipped"] = "clipped"
    max_norm: float
    per: Literal["all", "layer", "sample"] = "all"


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Entries set to 0; those left are the largest of each tensor or of all, or any."""

    kind: Literal["masked"] = "masked"
    left: Literal["largest-of-tensor", "largest-of-all", "any"] = "any"


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Rounded to a grid: to the nearest point, or up and down with chances that keep the mean."""

    kind: Literal["rounded"] = "rounded"
    grid: Grid
    stochastic: bool = False


@dataclass(frozen=True, kw_only=True)
class Signed:
    """Only signs are left: −1, 0 and 1."""

    kind: Literal["signed"] = "signed"


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Independent noise of mean 0 on every entry.

    Attributes:
        sigma: its standard deviation.
        kurtosis: its fourth moment in units of sigma⁴: 3 for Gaussian noise, 6 for Laplace's.
    """

    kind: Literal["noised"] = "noised"
    sigma: float
    kurtosis: float = 3.0


Effect = Annotated[Clipped | Masked | Rounded | Signed | Noised, Field(discriminator="kind")]


def hides_entries(effects: Iterable[Effect]) -> bool:
    """Whether entries were set to 0: nothing is known of them."""
    return any(isinstance(effect, Masked) for effect in effects)


def lost_scale(effects: Iterable[Effect]) -> Literal["all", "layer", "tensor"] | None:
    """Which tensors had their norm changed by one unknown factor: all together, each layer's or each; None for none."""
    lost: Literal["all", "layer", "tensor"] | None = None
    for effect in effects:
        if isinstance(effect, Clipped):
            lost = "layer" if effect.per == "layer" else lost or "all"
        elif isinstance(effect, Signed):
            lost = "tensor"
    return lost


def spacing(values: Tensor, grid: Grid) -> Tensor:
    """Distance between the grid's points around each value; the grid of int8 is scaled to the largest value."""
    if grid == "int8":
        return (values.abs().max() / _INT8_STEPS).expand_as(values)
    mantissa, smallest = _FLOATING[grid]
    exponents = torch.frexp(values).exponent.masked_fill(values == 0, smallest + 1).clamp_min(smallest + 1)
    return torch.ldexp(torch.ones_like(values), exponents - 1 - mantissa)


def rounded(values: Tensor, steps: Tensor, chances: Tensor | None = None) -> Tensor:
    """The nearest multiples of `steps`; given chances (uniform, 0 to 1), up or down so that the mean is kept."""
    multiples = torch.where(steps > 0, values / steps, 0.0)
    return (multiples.round() if chances is None else (multiples + chances).floor()) * steps


def layers(names: Iterable[str]) -> dict[str, list[str]]:
    """Parameter names by the module that owns them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def clip_factors(gradient: dict[str, Tensor], max_norm: float, per: str) -> dict[str, float]:
    """What clipping multiplies each tensor by, at most 1."""
    groups = layers(gradient).values() if per == "layer" else [list(gradient)]
    factors: dict[str, float] = {}
    for names in groups:
        norm = math.sqrt(sum(float(exact(gradient[name]).square().sum()) for name in names))
        factors |= dict.fromkeys(names, 1.0 if norm <= max_norm else max_norm / norm)
    return factors


def clipped_samples(effects: Iterable[Effect]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    """What the effects do to one sample's gradient, before the mean over the batch; None where they do nothing."""
    clips = [effect.max_norm for effect in effects if isinstance(effect, Clipped) and effect.per == "sample"]

    def clipped(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        for max_norm in clips:
            factors = clip_factors(gradient, max_norm, "all")
            gradient = {name: value * factors[name] for name, value in gradient.items()}
        return gradient

    return clipped if clips else None


def stages(
    own: dict[str, Tensor], seen: dict[str, Tensor], effects: Sequence[Effect]
) -> tuple[list[dict[str, Tensor]], list[dict[str, float]]]:
    """A candidate's gradient before each effect and after the last, as far as a server can repeat them.

    Returns:
        The stages, and for each effect the factors by which it scaled each tensor, where it clipped.
    """
    found = [own]
    factors: list[dict[str, float]] = []
    for effect in effects:
        now = found[-1]
        factors.append(clip_factors(now, effect.max_norm, effect.per) if isinstance(effect, Clipped) else {})
        found.append(
            {
                name: _repeated(value, seen[name], effect, factors[-1].get(name, 1.0))
                for name, value in now.items()
            }
        )
    return found, factors


def nearest_accepted(
    own: dict[str, Tensor], seen: dict[str, Tensor], effects: Sequence[Effect]
) -> dict[str, Tensor]:
    """Of all gradients that the defenses turn into the one seen, the nearest to a candidate's.

    Without defenses that is the seen gradient itself. Entries set to 0 can have been anything that the rest didn't
    crowd out; a rounded one, anything within its cell; a sign, anything of that sign. Noise is taken for none, and
    clipping per sample for that of a batch of one.

    Args:
        own: the candidate's gradient, float64.
        seen: the shared one, for the same names.
        effects: in the order in which they were done.
    """
    before, factors = stages(own, seen, effects)
    smallest = {name: _smallest(value) for name, value in seen.items()}
    bounds = {"largest-of-all": min(smallest.values(), default=math.inf), "any": math.inf}
    nearest = {}
    for name, value in seen.items():
        low = high = exact(value).to(own[name].device)
        empty = low == 0
        for index in reversed(range(len(effects))):
            effect = effects[index]
            if isinstance(effect, Clipped):
                low, high = low / factors[index][name], high / factors[index][name]
            elif isinstance(effect, Masked):
                # What was done to those left, after, hides how large they were.
                bound = bounds.get(effect.left, smallest[name]) if effect is effects[-1] else math.inf
                low, high = low.masked_fill(empty, -bound), high.masked_fill(empty, bound)
            elif isinstance(effect, Rounded):
                around = before[index][name] if effect.grid == "int8" else torch.maximum(-low, high)
                reach = spacing(around, effect.grid) * (1.0 if effect.stochastic else 0.5)
                low, high = low - reach, high + reach
            elif isinstance(effect, Signed):
                low, high = (
                    low.masked_fill(low > 0, 0.0).masked_fill(low < 0, -math.inf),
                    high.masked_fill(high < 0, 0.0).masked_fill(high > 0, math.inf),
                )
        nearest[name] = own[name].clamp(low, high)
    return nearest


def _repeated(value: Tensor, seen: Tensor, effect: Effect, factor: float) -> Tensor:
    """The effect on a candidate's gradient, as far as the server can repeat it."""
    if isinstance(effect, Clipped):
        return value * factor
    if isinstance(effect, Masked):
        return value * (seen != 0).to(value)
    if isinstance(effect, Signed):
        return value.sign()
    if isinstance(effect, Rounded) and not effect.stochastic:
        return rounded(value, spacing(value, effect.grid))
    return value


def _smallest(value: Tensor) -> float:
    """The smallest magnitude that isn't 0."""
    magnitudes = value.abs()[value != 0]
    return float(magnitudes.min()) if len(magnitudes) else math.inf
