"""What the server knows beside the gradient: side information, and how `--know` names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from textleak.errors import InputError, unknown_name

# What a file may tell of (our choices: the largest batch and the longest text that any client here could train on).
MOST_SAMPLES, MOST_TOKENS = 100_000, 1 << 16
Length = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
# The largest label of a regression (our choice: nobody trains on larger ones), and -100 for a token without a class.
MOST_NUMBER, _LEAST = 1e6, -100
Number = Annotated[float, Field(ge=-MOST_NUMBER, le=MOST_NUMBER)]
Part = Annotated[int, Field(ge=_LEAST, le=MOST_TOKENS)]
Label = (
    Annotated[int, Field(ge=0)]
    | Number
    | Annotated[tuple[Part, ...], Field(min_length=1, max_length=MOST_TOKENS)]
    | Annotated[tuple[Number, ...], Field(min_length=1, max_length=MOST_TOKENS)]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideInformation:
    """What the server knows beside the gradient; None is "not known".

    Attributes:
        batch_size: how many sentences, B.
        lengths: tokens of each sentence, special tokens counted.
        labels: class of each sentence, or what the head's own loss takes, in the order of `lengths`.
        batch_norm: mean and variance of each channel of what each batch norm read, by the module's name: of image
            models whose batch norms use the batch's own.
    """

    batch_size: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    lengths: Annotated[tuple[Length, ...], Field(min_length=1, max_length=MOST_SAMPLES)] | None = None
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MOST_SAMPLES)] | None = None
    batch_norm: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] | None = None

    @property
    def size(self) -> int | None:
        """How many samples were in the batch, B, from whatever tells it; None where nothing does."""
        told = (self.batch_size, self.labels and len(self.labels), self.lengths and len(self.lengths))
        return next((number for number in told if number), None)

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The labels, where all of them are classes."""
        classes = tuple(label for label in self.labels or () if isinstance(label, int))
        return classes if self.labels is not None and len(classes) == len(self.labels) else None

    @property
    def told(self) -> tuple[str, ...]:
        """The kinds that are known, as `--know` names them."""
        return tuple(kind for kind, field in _FIELDS.items() if getattr(self, field) is not None)

    def only(self, kinds: Collection[str]) -> SideInformation:
        """No more than some kinds of it."""
        return dataclasses.replace(self, **{_FIELDS[kind]: None for kind in self.told if kind not in kinds})

    KINDS = ("batch-size", "labels", "lengths")
    PICTURE_KINDS = ("batch-norm", "batch-size", "labels")

    @classmethod
    def parse(cls, names: str | None, *, batch_size: int, kinds: Sequence[str] = KINDS) -> frozenset[str]:
        """Which kinds a `--know` text names; None stands for the default (lengths too when B = 1).

        "no-defense" and "no-client" are no kinds, and the default where they stand alone; see `hides_defense`.

        Args:
            names: separated by commas, or "nothing".
            batch_size: B.
            kinds: those that there are: `KINDS` of text, `PICTURE_KINDS` of pictures.

        Raises:
            InputError: a name that isn't one of `kinds`.
        """
        if names is not None and not _names(names):
            raise InputError(
                f"{names!r} names no side information.", fix=f"Give some of {', '.join(kinds)}, or nothing."
            )
        if leaves_default(names):
            return frozenset({"batch-size", "lengths"} if batch_size == 1 else {"batch-size"})
        chosen = [name for name in _names(names) if name not in _HIDDEN]
        if chosen == ["nothing"]:
            return frozenset()
        for name in chosen:
            if name not in kinds:
                raise unknown_name("side information", name, [*kinds, *_HIDDEN, "nothing"])
        return frozenset(chosen)


# Where each kind is held.
_FIELDS = {"batch-size": "batch_size", "lengths": "lengths", "labels": "labels", "batch-norm": "batch_norm"}

UNTOLD = SideInformation()
"""Nothing beside the gradient."""

NO_DEFENSE, NO_CLIENT = "no-defense", "no-client"
_HIDDEN = (NO_DEFENSE, NO_CLIENT)


def leaves_default(know: str | None) -> bool:
    """Whether a `--know` text names no side information, so that it is the default's."""
    names = set(_names(know))
    return know is None or (bool(names) and names <= set(_HIDDEN))


def hides_defense(know: str | None) -> bool:
    """Whether a `--know` text keeps the defenses from the server, which then takes the gradient for undefended."""
    return NO_DEFENSE in _names(know)


def hides_client(know: str | None) -> bool:
    """Whether a `--know` text keeps from the server how the client trains, which it then takes for one plain step."""
    return NO_CLIENT in _names(know)


def _names(know: str | None) -> list[str]:
    return [name.strip() for name in (know or "").split(",") if name.strip()]
