"""What a gradient was computed from; for scoring only, never for an attack."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from textleak import foreign, owned
from textleak.errors import InputError
from textleak.shared.public import ONE_STEP, PublicClient, PublicDefense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Secret:
    """The sentences that a gradient was computed from.

    Attributes:
        sentences: as they were given.
        ids: their tokens, special tokens counted, padding left out.
        labels: one class a sentence; None for tasks whose labels are the tokens.
        defenses: what was done to the gradient, whether the server was told or not.
        client: how the client trained, whether the server was told or not.
    """

    sentences: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...] | None = None
    defenses: tuple[PublicDefense, ...] = ()
    client: PublicClient = ONE_STEP

    def save(self, path: Path) -> None:
        """Write it as JSON, for its owner alone.

        Raises:
            InputError: the file can't be written.
        """
        written = TypeAdapter(type(self)).dump_json(self, indent=1, ensure_ascii=False)
        try:
            owned.write(path, written + b"\n")
        except OSError as error:
            raise InputError(
                f"The truth can't be written to {path}.",
                why=owned.why_not(error),
                fix="Choose another --out.",
            ) from None

    @classmethod
    def load(cls, path: Path) -> Secret:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a truth file.
        """
        try:
            return TypeAdapter(cls).validate_json(foreign.read(path))
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{path} can't be read as a truth file.",
                why=str(error).splitlines()[0],
                fix="`textleak share --out FILE` writes FILE.truth.json beside the gradient.",
            ) from None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSecret:
    """The pictures that a gradient was computed from.

    Attributes:
        pictures_BCHW: values 0 to 1, on the CPU.
        labels: the class of each.
        defenses: what was done to the gradient, whether the server was told or not.
        client: how the client trained, whether the server was told or not.
    """

    pictures_BCHW: Tensor
    labels: tuple[int, ...]
    defenses: tuple[PublicDefense, ...] = ()
    client: PublicClient = ONE_STEP
