"""`textleak bench`: candidates a second with factored gradients, against gradients formed one at a time."""

from __future__ import annotations

from textleak.cli import common


@common.guarded
def command(json_: common.Json = False) -> None:
    """Measure the engine."""
