"""What a defense costs the model that is trained behind it: the form of a utility file (`report --utility`)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from textleak import foreign, owned
from textleak.errors import InputError

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtilityRun:
    """One training and how good its model is on the test sentences.

    Attributes:
        seed: of the head's weights, the order of the sentences and the defense.
        accuracy: share of the test sentences that are classified rightly.
        accuracy_error: its standard error, as other test sentences would give another figure.
        mcc: Matthews' correlation coefficient; 0 where only one class is predicted.
        mcc_error: its standard error.
        cpu_seconds: of training and testing.
    """

    seed: int
    accuracy: float
    accuracy_error: float
    mcc: float
    mcc_error: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtilityRow:
    """What training behind one defense gave.

    Attributes:
        defense: specs in order, empty for none.
        runs: one a seed.
    """

    defense: tuple[str, ...]
    runs: tuple[UtilityRun, ...]

    @property
    def accuracy(self) -> float:
        """Mean over the runs."""
        return statistics.fmean(run.accuracy for run in self.runs)

    @property
    def accuracy_error(self) -> float:
        """Its standard error."""
        return _error([run.accuracy for run in self.runs], [run.accuracy_error for run in self.runs])

    @property
    def mcc(self) -> float:
        """Mean over the runs."""
        return statistics.fmean(run.mcc for run in self.runs)

    @property
    def mcc_error(self) -> float:
        """Its standard error."""
        return _error([run.mcc for run in self.runs], [run.mcc_error for run in self.runs])


def _error(figures: Sequence[float], errors: Sequence[float]) -> float:
    """Standard error of a mean over trainings that were tested on the same sentences.

    More trainings average out what differs between them, not what the choice of test sentences does.
    """
    between = statistics.variance(figures) / len(figures) if len(figures) > 1 else 0.0
    return math.sqrt(between + statistics.fmean(error**2 for error in errors))


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
        return TypeAdapter(Utility).validate_json(foreign.read(path))
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{path} can't be read as a table of what defenses cost.",
            why=str(error).splitlines()[0],
            fix="`python -m tests.utility --out FILE` writes one.",
        ) from None


def write_utility(path: Path, utility: Utility) -> None:
    """Write a utility file."""
    owned.write(path, TypeAdapter(Utility).dump_json(utility, indent=1) + b"\n")
