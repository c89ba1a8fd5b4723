"""What defenses do to a gradient, in a few words that a server can use without knowing the defense.

A new effect is one class here. A defense says which of these it does, in order, with their strength; what its generator
drew is not among them. A server can then ask which gradients could have become the one that it saw
(`nearest_accepted`), and an attack which entries it can compare and how far it can trust them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from textleak.numerics import exact

Grid = Literal["float16", "bfloat16", "int8"]
Scale = Literal["all", "layer", "tensor"]
Left = Literal["largest-of-tensor", "largest-of-all", "any"]
STORED: tuple[Grid, ...] = ("float16", "bfloat16")
"""Grids that are types of tensors."""

# Bits of the mantissa that are stored, and the exponent of the smallest normal number (IEEE 754 binary16; bfloat16).
_FLOATING = {"float16": (10, -14), "bfloat16": (7, -126)}
_INT8_STEPS = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One tensor of a candidate as an effect meets it.

    Attributes:
        own: the candidate's, before the effect.
        seen: the shared one.
        factor: what clipping multiplied it by.
        bound: how large an entry that was set to 0 can have been.
    """

    own: Tensor
    seen: Tensor
    factor: float = 1.0
    bound: float = math.inf


class _Does:
    """What an effect does where it doesn't say otherwise: nothing.

    Attributes:
        hides_entries: whether entries were set to 0, so that nothing is known of them.
        leaves_grid: whether what isn't the batch's fills the spectrum of a gradient.
        before_mean: whether it is done to each sample.
        unbounded: whether it may have changed an entry by any amount.
    """

    hides_entries: ClassVar[bool] = False
    leaves_grid: ClassVar[bool] = False
    unbounded: ClassVar[bool] = False

    @property
    def before_mean(self) -> bool:
        return False

    @property
    def lost_scale(self) -> Scale | None:
        """Which tensors had their norm changed by one unknown factor; None for none."""
        return None

    @property
    def leaves(self) -> Left:
        """Which entries it leaves: those that it set to 0 were no larger."""
        return "any"

    @property
    def noise(self) -> Noised | None:
        """The noise that it is; None where it is something else."""
        return None

    def factors(self, gradient: dict[str, Tensor]) -> dict[str, float]:
        """What each tensor is multiplied by; empty where that is 1."""
        del gradient
        return {}

    def repeat(self, stage: Stage) -> Tensor:
        """The effect on a candidate, as far as a server can repeat it."""
        return stage.own

    def bounds(self, low: Tensor, high: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Between what an entry lay before, given that it lay between `low` and `high` after."""
        del stage
        return low, high

    def variance(self, gradient: Tensor) -> float:
        """Mean squared change of an entry, float64 gradient given."""
        del gradient
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Clipped(_Does):
    """Scaled down to a norm of at most `max_norm`: all tensors together, each layer's, or each sample's."""

    kind: Literal["clipped"] = "clipped"
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    per: Literal["all", "layer", "sample"] = "all"

    @property
    def before_mean(self) -> bool:
        """Where it is each sample's."""
        return self.per == "sample"

    @property
    def lost_scale(self) -> Scale | None:
        """That of what was clipped together."""
        return "layer" if self.per == "layer" else "all"

    def factors(self, gradient: dict[str, Tensor]) -> dict[str, float]:
        """At most 1."""
        return clip_factors(gradient, self.max_norm, self.per)

    def repeat(self, stage: Stage) -> Tensor:
        """Scaled as the candidate would have been."""
        return stage.own * stage.factor

    def bounds(self, low: Tensor, high: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Scaled back."""
        return low / stage.factor, high / stage.factor


@dataclass(frozen=True, kw_only=True)
class Masked(_Does):
    """Entries set to 0; those left are the largest of each tensor or of all, or any."""

    hides_entries: ClassVar[bool] = True
    leaves_grid: ClassVar[bool] = True

    kind: Literal["masked"] = "masked"
    left: Left = "any"

    @property
    def leaves(self) -> Left:
        """As it says."""
        return self.left

    def repeat(self, stage: Stage) -> Tensor:
        """With the same entries left."""
        return stage.own * (stage.seen != 0).to(stage.own)

    def bounds(self, low: Tensor, high: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Anything that the rest didn't crowd out."""
        empty = stage.seen == 0
        return low.masked_fill(empty, -stage.bound), high.masked_fill(empty, stage.bound)


@dataclass(frozen=True, kw_only=True)
class Rounded(_Does):
    """Rounded to a grid: to the nearest point, or up and down with chances that keep the mean.

    Attributes:
        grid: of what.
        stochastic: whether up and down.
        scale: what entries are multiplied by before they are rounded, and divided by after.
    """

    leaves_grid: ClassVar[bool] = True

    kind: Literal["rounded"] = "rounded"
    grid: Grid
    stochastic: bool = False
    scale: Annotated[float, Field(ge=1e-15, le=1e15)] = 1.0

    def _cells(self, values: Tensor) -> Tensor:
        """Distance between the points around each value."""
        return spacing(values * self.scale, self.grid) / self.scale

    def repeat(self, stage: Stage) -> Tensor:
        """To the nearest point; what was drawn can't be repeated."""
        return stage.own if self.stochastic else rounded(stage.own, self._cells(stage.own))

    def bounds(self, low: Tensor, high: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Anything within the cell, or within two."""
        low_around, high_around = (stage.own, stage.own) if self.grid == "int8" else (low, high)
        cells = 1.0 if self.stochastic else 0.5
        return low - cells * self._cells(low_around), high + cells * self._cells(high_around)

    def variance(self, gradient: Tensor) -> float:
        """Uniform over a cell, or over two, weighted, where rounding is stochastic; 0 isn't rounded."""
        cells = self._cells(gradient).where(gradient != 0, 0.0)
        return float(cells.square().mean()) / (6 if self.stochastic else 12)


@dataclass(frozen=True, kw_only=True)
class Signed(_Does):
    """Only signs are left: −1, 0 and 1."""

    leaves_grid: ClassVar[bool] = True

    kind: Literal["signed"] = "signed"

    @property
    def lost_scale(self) -> Scale | None:
        """Each tensor's."""
        return "tensor"

    def repeat(self, stage: Stage) -> Tensor:
        """The candidate's signs."""
        return stage.own.sign()

    def bounds(self, low: Tensor, high: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Anything of that sign."""
        del stage
        return (
            low.masked_fill(low > 0, 0.0).masked_fill(low < 0, -math.inf),
            high.masked_fill(high < 0, 0.0).masked_fill(high > 0, math.inf),
        )


@dataclass(frozen=True, kw_only=True)
class Noised(_Does):
    """Independent noise of mean 0 on every entry.

    Attributes:
        sigma: its standard deviation.
        kurtosis: its fourth moment in units of sigma⁴: 3 for Gaussian noise, 6 for Laplace's.
    """

    unbounded: ClassVar[bool] = True

    kind: Literal["noised"] = "noised"
    # What a file may tell of: squares and fourth powers stay numbers, and uniform noise has a kurtosis of 1.8.
    sigma: Annotated[float, Field(ge=1e-30, le=1e15)]
    kurtosis: Annotated[float, Field(ge=1.5, le=1000)] = 3.0

    @property
    def noise(self) -> Noised | None:
        """Itself."""
        return self

    def variance(self, gradient: Tensor) -> float:
        """The noise's."""
        del gradient
        return self.sigma**2


Effect = Annotated[Clipped | Masked | Rounded | Signed | Noised, Field(discriminator="kind")]


def hides_entries(effects: Iterable[Effect]) -> bool:
    """Whether entries were set to 0: nothing is known of them."""
    return any(effect.hides_entries for effect in effects)


def lost_scale(effects: Iterable[Effect]) -> Scale | None:
    """Which tensors had their norm changed by one unknown factor: all together, each layer's or each; None for none."""
    lost = [effect.lost_scale for effect in effects if effect.lost_scale is not None]
    finer = [
        scale for scale in lost if scale != "all"
    ]  # clipping all together afterwards leaves these unknown
    return (finer or lost)[-1] if lost else None


def of_batch(effects: Iterable[Effect]) -> list[Effect]:
    """Those that are done to the batch's gradient, in order."""
    return [effect for effect in effects if not effect.before_mean]


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
    clips = [effect for effect in effects if effect.before_mean]

    def clipped(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        for effect in clips:
            factors = effect.factors(gradient)
            gradient = {name: value * factors.get(name, 1.0) for name, value in gradient.items()}
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
        factors.append(effect.factors(now))
        found.append(
            {
                name: effect.repeat(Stage(own=value, seen=seen[name], factor=factors[-1].get(name, 1.0)))
                for name, value in now.items()
            }
        )
    return found, factors


Bounds = Mapping[str, tuple[Tensor, Tensor]]
"""Between what each entry of tensors lay: lower and upper, float64, infinite where there is none."""


def known_exactly(tensors: Mapping[str, Tensor]) -> Bounds:
    """Tensors as their own bounds."""
    exactly = {name: exact(tensor) for name, tensor in tensors.items()}
    return {name: (value, value) for name, value in exactly.items()}


def before_rounding(bounds: Bounds, effects: Sequence[Effect]) -> Bounds | None:
    """Between what tensors lay before they were rounded, given between what they lay afterwards.

    Returns:
        The bounds; None where an effect is no rounding.
    """
    if not all(isinstance(effect, Rounded) for effect in effects):
        return None
    for effect in reversed(effects):
        bounds = {
            name: effect.bounds(low, high, Stage(own=high, seen=high)) for name, (low, high) in bounds.items()
        }
    return bounds


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
        low = high = shared = exact(value).to(own[name].device)
        for index in reversed(range(len(effects))):
            effect = effects[index]
            # What was done to those left, after, hides how large they were.
            left = effect.leaves if effect is effects[-1] else "any"
            stage = Stage(
                own=before[index][name],
                seen=shared,
                factor=factors[index].get(name, 1.0),
                bound=bounds.get(left, smallest[name]),
            )
            low, high = effect.bounds(low, high, stage)
        nearest[name] = own[name].clamp(low, high)
    return nearest


def _smallest(value: Tensor) -> float:
    """The smallest magnitude that isn't 0."""
    magnitudes = value.abs()[value != 0]
    return float(magnitudes.min()) if len(magnitudes) else math.inf
