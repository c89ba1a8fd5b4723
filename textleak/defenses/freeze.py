"""Parameters that are frozen in training, so that no gradient of theirs is shared."""

from __future__ import annotations

import dataclasses
import re

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step
from textleak.errors import InputError
from textleak.shared.effects import Effect

_FIX = "Use embeddings, or an expression that matches parameter names."


@DEFENSES.register("freeze")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Freeze(Defense):
    """Leaves out the gradients of some parameters, as if they weren't trained.

    Attributes:
        parameters: "embeddings" (every embedding, the output head and what is tied to them), or a regular expression
            that is searched for in each parameter's name.
    """

    parameters: str = "embeddings"

    def __post_init__(self) -> None:
        """Refuse what is no expression."""
        try:
            re.compile(self.parameters)
        except re.error as error:
            raise InputError(
                f"freeze: {self.parameters!r} is not a regular expression.", why=f"{error}.", fix=_FIX
            ) from None

    def on_shared(self, gradient: Gradients, step: Step) -> Gradients:
        """The gradients that are left."""
        if self.parameters == "embeddings":
            frozen = step.embeddings & gradient.keys()
        else:
            expression = re.compile(self.parameters)
            frozen = frozenset(name for name in gradient if expression.search(name))
            if not frozen:
                raise InputError(
                    f"freeze: {self.parameters!r} matches none of the {len(gradient)} shared parameters.",
                    why=f"They are called like {next(iter(gradient))}.",
                    fix=_FIX,
                )
        if len(frozen) == len(gradient):
            raise InputError(
                f"freeze: {self.parameters!r} leaves no gradient to share.", fix="Freeze fewer parameters."
            )
        return {name: value for name, value in gradient.items() if name not in frozen}

    def effects(self, step: Step) -> tuple[Effect, ...]:
        """None: what is missing is seen, and what is there is as it was."""
        del step
        return ()
