"""Attacks: what a server can make of a shared gradient. One published attack, one file; found through `ATTACKS`.

An attack sees a `SharedGradient` and the public model, never the secret. To add one: a file here with a frozen
keyword-only dataclass under `@ATTACKS.register("name")` and a `run` generator, and a row in the contract test.
"""

from textleak.attacks.base import ATTACKS, Attack

__all__ = ["ATTACKS", "Attack"]
