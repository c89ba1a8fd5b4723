"""A state dict from wherever people keep one: a file, a checkpoint's folder, an adapter's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from textleak import foreign
from textleak.errors import InputError
from textleak.shared.formats.adapters import CONFIG, WEIGHTS, Adapter, read_adapter
from textleak.shared.formats.arrays import read_arrays
from textleak.shared.formats.names import Names
from textleak.shared.formats.pickles import read_pickle
from textleak.shared.tensors import read_floating

SAFETENSORS, PICKLES, ARRAYS = (".safetensors",), (".pt", ".pth", ".bin", ".ckpt"), (".npz",)
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MOST_INDEX = 64 * foreign.MIB
_MOST_SHARDS = 1000  # our choice: the largest open models have some 200
_FORMS = (
    "a .safetensors file, a .pt, .pth or .bin of torch.save, an .npz of numpy.savez, or a folder that save_pretrained "
    "wrote"
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """Tensors by name, as a file or a folder holds them.

    Attributes:
        path: that file or folder.
        tensors: of floating numbers, by the name they have there; by their place in words ("0") where they have none.
        others: types of the tensors that aren't of floating numbers, by name; their values were not read.
        adapter: of a PEFT folder.
        places: how many tensors without names there are, those that are missing counted; None where they have names.
    """

    path: Path
    tensors: dict[str, Tensor]
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    adapter: Adapter | None = None
    places: int | None = None

    def named(self, names: Names) -> State:
        """The same, with the model's own names where its tensors had none.

        Args:
            names: of the model.

        Raises:
            InputError: which tensor is whose can't be told.
        """
        if self.places is None:
            return self
        placed = {int(place): tensor for place, tensor in self.tensors.items()}
        tensors = names.in_order(placed, self.places, str(self.path))
        return dataclasses.replace(self, tensors=tensors, places=None)

    @property
    def quantized(self) -> str | None:
        """Name of a weight that is kept in 4 or 8 bits (bitsandbytes), None where none is."""
        marks = (
            name for name in [*self.others, *self.tensors] if "bitsandbytes" in name or name.endswith(".SCB")
        )
        mark = next(marks, None)
        return None if mark is None else mark.partition(".quant_state")[0].removesuffix(".SCB")

    def check_usable(self) -> None:
        """Raise where no update can be made of it.

        Raises:
            InputError: quantized weights, no floating numbers, or a value that is not finite.
        """
        if self.quantized is not None:
            raise InputError(
                f"The weights in {self.path} are quantized ({self.quantized}, bitsandbytes).",
                why="Training doesn't move such weights, and no gradient of them leaves a client.",
                fix="Audit what is trained, the adapters: give the folders that PEFT's save_pretrained writes, and "
                "name the base model in 16 or 32 bits (--model).",
            )
        if not self.tensors:
            raise InputError(
                f"{self.path} holds no tensor of floating numbers.",
                why=f"What it holds is of {', '.join(sorted(set(self.others.values())))}."
                if self.others
                else "It is empty.",
                fix=f"Give {_FORMS}.",
            )
        for name, tensor in self.tensors.items():
            if not torch.isfinite(tensor.float()).all():  # what float64 alone can hold is no weight either
                raise not_finite(name, str(self.path))


def not_finite(name: str, where: str) -> InputError:
    """The error for a tensor with a value that is not finite."""
    return InputError(
        f"{name} in {where} is not finite.",
        why="A NaN or an infinity leaves nothing to compare.",
        fix="Look for an overflow in the training (fp16, an unstable loss), and save it again.",
    )


def read_state(path: Path) -> State:
    """Read a state dict.

    Args:
        path: a file of tensors by name, or a folder with a checkpoint or an adapter.

    Raises:
        InputError: nothing there, of another format, more than weights, damaged, or larger than the memory.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.", fix=f"Name {_FORMS}.")
    suffix = path.suffix.lower()
    if suffix not in (*SAFETENSORS, *PICKLES, *ARRAYS):
        raise InputError(
            f"{path} is of no format that is read.",
            why=f"Its name ends in {suffix!r}."
            if suffix
            else "Its name has no ending that tells the format.",
            fix=f"Give {_FORMS}.",
        )
    return _read_files(path, [path])


def _read_folder(folder: Path) -> State:
    if (folder / CONFIG).is_file():
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights is None:
            raise InputError(
                f"The adapter in {folder} has no weights.",
                why=f"There is none of {' and '.join(WEIGHTS)} beside {CONFIG}.",
                fix="Write the folder with PEFT's model.save_pretrained(FOLDER).",
            )
        return dataclasses.replace(_read_files(folder, [weights]), adapter=read_adapter(folder))
    for name in _WHOLE:
        if (folder / name).is_file():
            return _read_files(folder, [folder / name])
    for name in _INDICES:
        if (folder / name).is_file():
            return _read_files(folder, _shards(folder / name))
    if any(folder.glob("*.distcp")):
        raise InputError(
            f"{folder} is a distributed checkpoint.",
            why="Its files hold shards, each of some processes' parts of the weights.",
            fix=f"Put them together: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt",
        )
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*SAFETENSORS, *PICKLES))
    if len(found) == 1:
        return _read_files(folder, found)
    raise InputError(
        f"There are no weights in the folder {folder}.",
        why=f"It has none of {', '.join((*_WHOLE, *_INDICES, CONFIG))}"
        + (f", and {len(found)} other files that could be meant." if found else "."),
        fix="Name the file itself." if found else f"Give {_FORMS}.",
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all there.

    Raises:
        InputError: the index is damaged, names something elsewhere, or a file that is missing.
    """
    try:
        places = json.loads(foreign.read(index, most=_MOST_INDEX))["weight_map"]
        names = sorted(set(places.values()))
    except OSError as error:
        raise InputError(f"{index} can't be read.", why=f"{error}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{index} is not an index of shards.", why="It has no weight_map of names and files."
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
            raise InputError(
                f"{index} names the file {name!r}.",
                why="Shards lie beside their index; a file elsewhere could be anything.",
            )
    if len(names) > _MOST_SHARDS:
        raise InputError(
            f"{index} names {len(names):,} files.", why=f"No more than {_MOST_SHARDS:,} are read."
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"Of the {len(names)} shards of {index.parent}, {len(missing)} are missing.",
            why=f"There is no {missing[0]}.",
            fix="Copy the whole folder.",
        )
    return [index.parent / name for name in names]


def _read_files(path: Path, files: Iterable[Path]) -> State:
    """The tensors of all files together."""
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    places: int | None = None
    for file in files:
        try:
            if file.suffix.lower() in SAFETENSORS:
                _, found, passed = read_floating(file)
            else:
                read = read_arrays(file) if file.suffix.lower() in ARRAYS else read_pickle(file)
                found, passed, places = read.tensors, read.others, read.places
        except OSError as error:
            raise InputError(f"{file} can't be read.", why=f"{error}.") from None
        except ValueError as error:
            raise InputError(
                f"{file} can't be read as weights.", why=f"{error}.", fix=f"Give {_FORMS}."
            ) from None
        tensors |= found
        others |= passed
    return State(path=path, tensors=tensors, others=others, places=places)
