"""What a client does to a gradient before it shares it. One defense, one file; found through `DEFENSES`.

A defense works on gradients by parameter name. It knows neither the model nor the text.
"""

from __future__ import annotations

from textleak.defenses.base import DEFENSES, Defense, Gradients, Step, check_order

__all__ = ["DEFENSES", "Defense", "Gradients", "Step", "check_order"]
