"""Arrays in a file of numpy.savez's, as Flower's servers save weights: none of its pickles is read.

Each record says how large its array is, and is held against that before any of it is taken. Format:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from textleak.foreign import MIB, UnreadError, in_words, memory_at_hand, open_regular
from textleak.shared.formats.pickles import Read
from textleak.shared.tensors import MOST_BYTES, MOST_DIMENSIONS

_ENDING = ".npy"
_PLACE = re.compile(r"arr_(\d{1,6})")  # how numpy.savez calls arrays without names
_FLOATING = (np.float64, np.float32, np.float16)
# Bytes that arrays may take for each of the file's (our choice: zeros shrink by a factor of 1000, the gradient of an
# embedding whose rows are mostly zeros by 20), where they are many at all.
_PACKED, _MANY = 100, 256 * MIB


def read_arrays(path: Path) -> Read:
    """Tensors of floating numbers; by their place where numpy.savez was given no names.

    Raises:
        UnreadError: not a regular file, or arrays that are larger than the memory.
        ValueError: damaged, packed beyond measure, or arrays of objects.
        OSError: it isn't there, or may not be read.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive)
        except OSError:
            raise
        except MemoryError:
            raise UnreadError("there is no memory for it") from None
        except Exception as error:  # a damaged file fails in as many ways as there are bytes
            words = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(words) from None


def _arrays(archive: zipfile.ZipFile) -> Read:
    records = archive.infolist()
    size, packed = sum(one.file_size for one in records), sum(one.compress_size for one in records)
    most = memory_at_hand() or MOST_BYTES
    if size > most:
        raise UnreadError(f"its arrays take {in_words(size)}, and there is memory for {in_words(most)}")
    if size > max(_MANY, _PACKED * packed):
        raise ValueError(f"its {in_words(packed)} unpack to {in_words(size)}")
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    for record in records:
        name = record.filename.removesuffix(_ENDING)
        found = _array(archive, record)
        if isinstance(found, Tensor):
            tensors[name] = found
        else:
            others[name] = found
    places = {name: _PLACE.fullmatch(name) for name in (*tensors, *others)}
    if not places or not all(places.values()):
        return Read(tensors=dict(sorted(tensors.items())), others=others)
    placed = {name: str(int(match[1])) for name, match in places.items() if match is not None}
    if len({*placed.values()}) < len(placed) or max(map(int, placed.values())) >= len(placed):
        raise ValueError("its arrays have no names, and some are missing")
    return Read(
        tensors={placed[name]: tensor for name, tensor in tensors.items()},
        others={placed[name]: kind for name, kind in others.items()},
        places=len(placed),
    )


def _array(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> Tensor | str:
    """An array of floating numbers; the type of another one, which isn't read."""
    with archive.open(record) as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{record.filename} holds objects of Python's, and reading them can run code")
        if dtype.newbyteorder("=") not in _FLOATING:
            return str(dtype)
        taken = math.prod(shape) * dtype.itemsize
        if (
            len(shape) > MOST_DIMENSIONS
            or min(shape, default=0) < 0
            or taken != record.file_size - file.tell()
        ):
            raise ValueError(f"{record.filename} has not the bytes that its shape {shape} takes")
        values = np.frombuffer(bytearray(file.read(taken)), dtype)
    array = values.reshape(shape, order="F" if by_columns else "C")
    return torch.from_numpy(np.ascontiguousarray(array, dtype.newbyteorder("=")))
