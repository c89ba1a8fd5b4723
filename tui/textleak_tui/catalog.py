"""What attacks, defenses and image models there are, asked of the registries in a process of its own.

Listing them imports torch, which would hold up whoever types. `python -m textleak_tui.catalog` is that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalog:
    """What there is to choose from, attacks, clients and defenses described as by `textleak attacks --json`."""

    attacks: tuple[Mapping[str, Any], ...] = ()
    clients: tuple[Mapping[str, Any], ...] = ()
    defenses: tuple[Mapping[str, Any], ...] = ()
    image_models: tuple[Mapping[str, Any], ...] = ()

    def attack(self, name: str) -> Mapping[str, Any] | None:
        """One attack by its name."""
        return next((one for one in self.attacks if one["name"] == name), None)

    def option_default(self, attack: str, option: str) -> str | None:
        """What an attack's own option is at first, in words; None where it has none."""
        found = self.attack(attack)
        for one in found["options"] if found else ():
            if one["name"] == option and one["default"] is not None:
                return str(one["default"])
        return None

    def to_json(self) -> dict[str, Any]:
        """As it is remembered between starts."""
        return {name: list(kind) for name, kind in vars(self).items()}

    @classmethod
    def from_json(cls, value: object) -> Catalog:
        """What `to_json` gave; an empty one for anything else."""
        found = value if isinstance(value, dict) else {}
        kinds = {
            name: tuple(one for one in kind if isinstance(one, dict) and {"name", "options"} <= one.keys())
            for name in ("attacks", "clients", "defenses", "image_models")
            if isinstance(kind := found.get(name), list)
        }
        return cls(**kinds)


async def list_catalog() -> Catalog:
    """Ask the registries, in a process of its own: listing them imports torch. An empty one where that fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "textleak_tui.catalog",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):  # it may have ended meanwhile
            process.kill()
        await process.communicate()
        raise
    try:
        return Catalog.from_json(json.loads(out))
    except ValueError:
        return Catalog()


def main() -> None:
    """Write the catalog to standard output."""
    from textleak import describe

    sys.stdout.write(json.dumps(describe.catalog(), default=str))


if __name__ == "__main__":
    main()
