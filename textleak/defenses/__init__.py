"""What a client does to a gradient before it shares it. One defense, one file; found through `DEFENSES`.

A defense works on gradients by parameter name. It knows neither the model nor the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from textleak.defenses.base import DEFENSES, Defense, Gradients

__all__ = ["DEFENSES", "Defense", "Gradients", "parse_defenses"]


def parse_defenses(specs: Sequence[str]) -> tuple[Defense, ...]:
    """Defenses from `name[:key=value,...]` texts, in order.

    Raises:
        InputError: an unknown name or option, or a value that doesn't fit.
    """
    return tuple(_parse(spec) for spec in specs)


def _parse(spec: str) -> Defense:
    name, _, rest = spec.partition(":")
    options = dict(part.partition("=")[::2] for part in rest.split(",") if part.strip())
    return DEFENSES.build(name.strip(), {key.strip(): value.strip() for key, value in options.items()})
