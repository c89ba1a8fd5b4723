"""Only the gradient's signs are shared (Bernstein et al. 2018, alg. 1)."""

from __future__ import annotations

import dataclasses

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.shared.effects import Effect, Signed


@DEFENSES.register("sign")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sign(Defense):
    """Shares −1, 0 or 1 for every entry."""

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The signs."""
        del step
        return {name: value.sign() for name, value in gradient.items()}

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """Signs."""
        del step
        return (Signed(),)
