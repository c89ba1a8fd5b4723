"""What an attack may rely on of how a client computes what it shares."""

from __future__ import annotations

import enum


class Trait(enum.Enum):
    """A property of a client's procedure; the value says it in a sentence."""

    ONE_POINT = "All gradients were taken at the public weights."
    ADDITIVE = "The whole is the sum of its samples' parts."
    IN_SPAN = "Row spaces are those of the layers' clean inputs."
    SCALED = "The factor to the mean gradient is known."
    REPEATABLE = "The same batch gives the same tensors."

    @property
    def missing(self) -> str:
        """What to say of an attack that needs it and a client that hasn't it: what follows "it"."""
        return f"needs that {self.value[:1].lower()}{self.value[1:-1]}, which isn't so here."
