"""Clipping of the gradient's norm, over all tensors or layer by layer (Pascanu et al. 2013, sec. 3.2)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.shared.effects import Clipped, Effect, clip_factors


@DEFENSES.register("clip")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Defense):
    """Scales the gradient down to a norm of at most max_norm.

    Attributes:
        max_norm: largest L2 norm that is left as it is.
        per: all tensors together, or each layer (a module's weight and bias) by itself.
    """

    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    per: Literal["all", "layer"] = "all"

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The gradient, scaled down where it is too large."""
        del step
        factors = clip_factors(gradient, self.max_norm, self.per)
        return {name: value * factors[name] for name, value in gradient.items()}

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """A clip that anyone can repeat."""
        del step
        return (Clipped(max_norm=self.max_norm, per=self.per),)
