"""Tensors in a file of torch.save's: through `torch.load(weights_only=True)` alone, which runs nothing of the file's.

What such a file may still do to its reader is held against the file first: records that grow when they are unpacked,
and tensors that are larger than what they are made of.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from textleak.foreign import UnreadError, in_words, open_regular
from textleak.shared.tensors import size_in_memory

# Where training loops keep the state dict, of what they save along with it.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "gradients", "grads", "grad", "update")
_REFUSED = re.compile(r"GLOBAL ([\w.]{1,200})")
# What a training that is spread over processes keeps its tensors in, by what torch says that it needs to load it.
_SHARDED = re.compile(r"torch\.distributed|DTensor|ShardedTensor")
# What zipfile says to an archive that isn't whole.
_DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    RuntimeError,
    OverflowError,
    EOFError,
    struct.error,
)
_SHARDS = (
    "it holds shards of a training that is spread over processes, not whole weights. Save a full state dict: "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True))"
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """Tensors of a file.

    Attributes:
        tensors: of floating numbers, by name; by their place in words ("0") where they have no names.
        others: the type of each other one, which was passed over.
        places: how many there are, those that are missing counted; None where they have names.
    """

    tensors: dict[str, Tensor]
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    places: int | None = None


def read_pickle(path: Path) -> Read:
    """Tensors of floating numbers, and the type of each other one that was passed over.

    Raises:
        UnreadError: not a regular file, or one that is larger than the memory.
        ValueError: not weights alone, damaged, or no tensors by name in it.
        OSError: it isn't there, or may not be read.
    """
    with open_regular(path) as file:
        size = size_in_memory(file)
        _check_records(file)
        file.seek(0)
        loaded = _loaded(file)
    found = _tensors_in(loaded)
    if isinstance(found, Mapping):
        return _sorted_out(found, size)
    placed: dict[object, object] = {str(place): value for place, value in enumerate(found)}
    return dataclasses.replace(_sorted_out(placed, size), places=len(found))


def _check_records(file: BufferedReader) -> None:
    """Make sure that a zip archive holds what it takes on the disk: torch.save doesn't pack."""
    try:
        if not zipfile.is_zipfile(file):  # raises on what is damaged at its end
            return  # the format of before 2020
        with zipfile.ZipFile(file) as archive:
            packed = next((i for i in archive.infolist() if i.file_size != i.compress_size), None)
    except _DAMAGED as error:
        raise ValueError(f"its archive is damaged: {error}") from None
    if packed is not None:
        raise ValueError(
            f"its record {packed.filename} is packed ({in_words(packed.compress_size)} for "
            f"{in_words(packed.file_size)}), which torch.save never does"
        )


def _loaded(file: BufferedReader) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that torch itself gives up
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to run it
        if _SHARDED.search(str(error)):
            raise ValueError(_SHARDS) from None
        named = _REFUSED.search(str(error))
        names = f" It names {named[1]}." if named else ""
        raise ValueError(
            f"it holds more than weights, and reading that can run code.{names} "
            "Save tensors alone, by name: torch.save(model.state_dict(), FILE), or gradients as {name: p.grad, ...}"
        ) from None
    except MemoryError:
        raise UnreadError("there is no memory for it") from None
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        words = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(f"torch can't load it ({type(error).__name__}{words and ': '}{words})") from None


def _tensors_in(loaded: object) -> Mapping[object, object] | Sequence[object]:
    """The tensors in what was loaded: itself, or in what a training loop wraps it in."""
    if _is_list(loaded):
        return loaded
    if isinstance(loaded, Mapping):
        if any(isinstance(value, Tensor) for value in loaded.values()):
            return loaded
        for key in _INSIDE:
            inside = loaded.get(key)
            if _is_list(inside):
                return inside
            if isinstance(inside, Mapping) and any(isinstance(value, Tensor) for value in inside.values()):
                return inside
        only = [value for value in loaded.values() if _is_named(value)]
        if len(only) == 1:
            return only[0]
        keys = ", ".join(str(key)[:40] for key in list(loaded)[:8])
        raise ValueError(
            f"it holds no tensors by name, nor does any of {', '.join(_INSIDE)} in it, or one thing alone: {keys}"
        )
    raise ValueError(f"it holds a {type(loaded).__name__}, not tensors by name")


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Whether it is tensors in an order, as torch.autograd.grad returns them; None where a parameter has none."""
    return (
        isinstance(value, list | tuple)
        and all(one is None or isinstance(one, Tensor) for one in value)
        and any(one is not None for one in value)
    )


def _is_named(value: object) -> TypeGuard[Mapping[object, object]]:
    """Whether it is tensors by name, under whatever key a loop keeps them; an optimizer's state is by number."""
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and isinstance(inside, Tensor) for name, inside in value.items()
    )


def _sorted_out(state: Mapping[object, object], size: int) -> Read:
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    seen: set[int] = set()  # addresses of storages
    held = 0
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(name, str):
            raise ValueError(f"a tensor in it is called {str(name)[:40]}, which is no text")  # noqa: TRY004
        if type(value) not in (Tensor, torch.nn.Parameter):
            raise ValueError(_SHARDS)
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            others[name] = str(value.layout if value.layout is not torch.strided else value.dtype)
            continue
        storage = value.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held += storage.nbytes()
        if value.nbytes > storage.nbytes():
            raise ValueError(
                f"the tensor {name} of shape {tuple(value.shape)} is made of {in_words(storage.nbytes())}"
            )
        if held > size:
            raise ValueError(f"its tensors take {in_words(held)}, and it has {in_words(size)}")
        if value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            tensors[name] = value.detach()
        else:
            others[name] = str(value.dtype).removeprefix("torch.")
    return Read(tensors=dict(sorted(tensors.items())), others=others)
