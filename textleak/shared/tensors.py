"""A safetensors file of an unknown sender, read into memory of its own.

Not through a memory map: a file that is cut short while it is mapped ends the process. The header says how large each
tensor is, and is held against the file and the memory before any of it is taken. Format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textleak.foreign import MIB, UnreadError, in_words, memory_at_hand, open_regular

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bits of a value of the types that are not gradients': counters and positions, quantized weights, masks.
_OTHERS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16"), 16),
    **dict.fromkeys(("I32", "U32"), 32),
    **dict.fromkeys(("I64", "U64", "C64"), 64),
    "F4": 4,
}
# How files begin that aren't safetensors, where a header's length would stand.
_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive, which torch.save and numpy.savez write,",
    b"\x80": "a pickle",
    b"\x93NUMPY": "an array of numpy.save",
    b"GGUF": "a GGUF model",
    b"version ": "a pointer of Git LFS's (`git lfs pull` fetches the file)",
}
# Our choices: 100 bytes a tensor are usual, so it has room for 80,000 tensors; and no parameter has 9 dimensions.
MOST_HEADER = 8 * MIB
MOST_DIMENSIONS = 8
_LONGEST = 1 << 48  # of a dimension: beyond any address
# Where the system doesn't say how much memory there is.
MOST_BYTES = 64 * 1024 * MIB
# Smaller files may have any holes: they cost little, and a file system that compresses makes holes too.
_SPARSE_FROM = 1024 * MIB
_BLOCK = 512  # bytes in a unit of `st_blocks`, POSIX


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, these sorted by name.

    Raises:
        UnreadError: not a regular file, or one that is larger than the memory or mostly holes.
        ValueError: not in the format, truncated, or values that aren't floating numbers.
        OSError: it isn't there, or may not be read.
    """
    metadata, tensors, others = read_floating(path)
    for name, kind in others.items():
        raise ValueError(f"the tensor {name} is of type {kind}, and a gradient is of {', '.join(DTYPES)}")
    return metadata, tensors


def read_floating(path: Path) -> tuple[dict[str, str], dict[str, Tensor], dict[str, str]]:
    """As `read_tensors`, of a file that may hold others than floating numbers: these aren't read.

    Returns:
        Metadata, tensors sorted by name, and the type of each one that was passed over, by name.

    Raises:
        UnreadError, ValueError, OSError: as for `read_tensors`.
    """
    with open_regular(path) as file:
        size = size_in_memory(file)
        metadata, entries, begin = _header(file, size)
        parts = sorted((_part(name, entry) for name, entry in entries.items()), key=lambda part: part[3:])
        told = 0
        for name, _, _, start, end in parts:
            if start != told:
                raise ValueError(f"the tensor {name} begins at byte {start:,}, where {told:,} were told of")
            told = end
        if begin + told != size:
            raise ValueError(f"its header tells of {begin + told:,} bytes, and it has {size:,}")
        tensors: dict[str, Tensor] = {}
        others: dict[str, str] = {}
        for name, kind, shape, start, end in parts:
            if kind in DTYPES:
                tensors[name] = _read(file, name, DTYPES[kind], shape)
            else:
                others[name] = kind
                file.seek(end - start, os.SEEK_CUR)
        return metadata, dict(sorted(tensors.items())), others


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone.

    Raises:
        UnreadError, ValueError, OSError: as for `read_tensors`.
    """
    with open_regular(path) as file:
        return _header(file, size_in_memory(file))[0]


def size_in_memory(file: BufferedReader) -> int:
    """Bytes of an open file, made sure that they fit into memory.

    Raises:
        UnreadError: they don't, or most of them were never written.
    """
    found = os.fstat(file.fileno())
    most = memory_at_hand() or MOST_BYTES
    if found.st_size > most:
        raise UnreadError(f"it has {in_words(found.st_size)}, and there is memory for {in_words(most)}")
    blocks = getattr(found, "st_blocks", 0)  # 0 where a file system doesn't tell
    if found.st_size > _SPARSE_FROM and 0 < blocks * _BLOCK < found.st_size // 2:
        raise UnreadError(
            f"of its {in_words(found.st_size)} no more than {in_words(blocks * _BLOCK)} were ever written, the rest "
            "are holes"
        )
    return found.st_size


def _header(file: BufferedReader, size: int) -> tuple[dict[str, str], dict[str, Any], int]:
    """Metadata, what is said of each tensor, and where the first one begins."""
    first = file.read(8)
    if not first:
        raise ValueError("it is empty")
    other = next((words for start, words in _BEGINNINGS.items() if first.startswith(start)), None)
    length = int.from_bytes(first, "little")
    if other is not None and length > size - 8:
        raise ValueError(f"it begins as {other} does")
    if size < 8 or length > size - 8:
        raise ValueError(f"its header should have {length:,} bytes, and the file has {size:,}")
    if length > MOST_HEADER:
        raise ValueError(
            f"its header has {in_words(length)}, and no more than {in_words(MOST_HEADER)} are read"
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004 - of the file, not of a call
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts by name")
    return metadata, header, 8 + length


def _part(name: str, entry: object) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, type, shape, and the bytes from which and up to which a tensor goes, checked."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise ValueError(f"what its header says of the tensor {name} is not in the format")
    if kind not in DTYPES and kind not in _OTHERS:
        raise ValueError(f"the tensor {name} is of type {kind}, which the format doesn't have")
    if len(shape) > MOST_DIMENSIONS or not all(
        type(length) is int and 0 <= length < _LONGEST for length in shape
    ):
        raise ValueError(f"the tensor {name} can't be of shape {shape}")
    bits = _OTHERS.get(kind) or 8 * DTYPES[kind].itemsize
    if 8 * (end - start) != math.prod(shape) * bits:
        raise ValueError(
            f"the tensor {name} of shape {shape} and type {kind} can't have {end - start:,} bytes"
        )
    return name, kind, tuple(shape), start, end


def _read(file: BufferedReader, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The next tensor of the file."""
    try:
        tensor = torch.empty(shape, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        raise UnreadError(f"there is no memory for the tensor {name}: {error}") from None
    if tensor.numel() and file.readinto(tensor.view(-1).view(torch.uint8).numpy().data) < tensor.nbytes:
        raise ValueError(f"it ends within the tensor {name}")
    return tensor
