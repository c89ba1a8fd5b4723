"""What an attack may rely on of how a client computes what it shares."""

from __future__ import annotations

import enum


class Trait(enum.Enum):
    """A property of a client's procedure; the value is the sentence that an error shows."""

    ONE_POINT = "All gradients were taken at the public weights."
    ADDITIVE = "The whole is the sum of its samples' parts."
    IN_SPAN = "Row spaces are those of the layers' clean inputs."
    SCALED = "The factor to the mean gradient is known."
    REPEATABLE = "The same batch gives the same tensors."
