"""What a defense costs the model that is trained behind it: the form of a utility file (`report --utility`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from textleak.errors import InputError

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtilityRun:
    """One training: its seed, and how good the model is on the test sentences."""

    seed: int
    accuracy: float
    mcc: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtilityRow:
    """What training behind one defense gave.

    Attributes:
        defense: specs in order, empty for none.
        runs: one a seed.
        accuracy: mean over the runs, with its standard error; likewise `mcc`, Matthews' correlation.
    """

    defense: tuple[str, ...]
    runs: tuple[UtilityRun, ...]
    accuracy: float
    accuracy_error: float
    mcc: float
    mcc_error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utility:
    """A table of costs and how it was measured."""

    model: str
    data: str
    train: int
    test: int
    epochs: int
    batch_size: int
    learning_rate: float
    command: str
    versions: dict[str, str]
    rows: tuple[UtilityRow, ...]
    format: int = FORMAT_VERSION


def read_utility(path: Path) -> Utility:
    """Read a utility file.

    Raises:
        InputError: no such file, or something else.
    """
    try:
        return TypeAdapter(Utility).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{path} can't be read as a table of what defenses cost.",
            why=str(error).splitlines()[0],
            fix="`python -m tests.utility --out FILE` writes one.",
        ) from None


def write_utility(path: Path, utility: Utility) -> None:
    """Write a utility file."""
    path.write_bytes(TypeAdapter(Utility).dump_json(utility, indent=1) + b"\n")
