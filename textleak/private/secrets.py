"""What a gradient was computed from; for scoring only, never for an attack."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, TypeVar

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from textleak import foreign, owned, typed
from textleak.errors import InputError, unwritten
from textleak.events import Label
from textleak.shared.public import ONE_STEP, PublicClient, PublicDefense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Secret:
    """The sentences that a gradient was computed from.

    Attributes:
        sentences: as they were given.
        ids: their tokens, special tokens counted, padding left out.
        labels: one class a sentence, or what the head's own loss takes; None for tasks whose labels are the tokens.
        defenses: what was done to the gradient, whether the server was told or not.
        client: how the client trained, whether the server was told or not.

    Example:
        >>> secret.sentences, len(secret.ids[0])
        (('the cat sat',), 5)
    """

    sentences: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    labels: tuple[Label, ...] | None = None
    defenses: tuple[PublicDefense, ...] = ()
    client: PublicClient = ONE_STEP

    def save(self, path: Path | str) -> None:
        """Write it as JSON, for its owner alone.

        Raises:
            InputError: the file can't be written.
        """
        _write(self, path)

    @classmethod
    def load(cls, path: Path | str) -> Secret:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a truth file of sentences.
        """
        return _read(cls, path, "sentences")


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

    def save(self, path: Path | str) -> None:
        """Write it as JSON, for its owner alone.

        Raises:
            InputError: the file can't be written.
        """
        _write(
            _WrittenPictures(
                pictures=self.pictures_BCHW.tolist(),
                labels=self.labels,
                defenses=self.defenses,
                client=self.client,
            ),
            path,
        )

    @classmethod
    def load(cls, path: Path | str) -> ImageSecret:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a truth file of pictures.
        """
        written = _read(_WrittenPictures, path, "pictures")
        try:
            pictures_BCHW = torch.tensor(written.pictures)
        except ValueError:
            raise _unread(path, "pictures", "Its pictures are not of one size.") from None
        return cls(
            pictures_BCHW=pictures_BCHW,
            labels=written.labels,
            defenses=written.defenses,
            client=written.client,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WrittenPictures:
    """An `ImageSecret` as its file holds it.

    Attributes:
        pictures: values 0 to 1 by picture, channel, row and column.
        labels, defenses, client: as in `ImageSecret`.
    """

    pictures: list[list[list[list[Annotated[float, Field(ge=0, le=1)]]]]]
    labels: tuple[int, ...]
    defenses: tuple[PublicDefense, ...] = ()
    client: PublicClient = ONE_STEP


W = TypeVar("W")


def _write(secret: object, path: Path | str) -> None:
    indent = 1 if isinstance(secret, Secret) else None  # a line a sentence, but not a line a pixel
    written = typed.adapter(type(secret)).dump_json(secret, indent=indent, ensure_ascii=False)
    with unwritten(f"The truth can't be written to {path}.", fix="Choose another --out."):
        owned.write(Path(path), written + b"\n")


def _read(kind: type[W], path: Path | str, what: str) -> W:
    try:
        return typed.adapter(kind).validate_json(foreign.read(Path(path)))
    except OSError as error:
        raise _unread(path, what, f"{error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _unread(path, what, f"{where and f'{where}: '}{first['msg']}.") from None


def _unread(path: Path | str, what: str, why: str) -> InputError:
    return InputError(
        f"{path} can't be read as a truth file of {what}.",
        why=why,
        fix="`textleak share --out FILE` writes FILE.truth.json beside the gradient.",
    )
