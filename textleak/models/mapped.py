"""Memory that is done with: pages of weights in a file's memory map, which come back where they are read again.

A page counts as the process's memory from its first reading on, though the file holds it as well. A wide model's layers
are read one after the other, so that few of them have to be there at a time.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from textleak.matching.replaced import ReplacedFunctions

# Of a page's entry in /proc/self/pagemap: swapped out, or a file's or shared (Linux, admin-guide/mm/pagemap).
_SWAPPED, _OF_A_FILE, _PRESENT = 1 << 62, 1 << 61, 1 << 63
_ENTRY = 8  # bytes
# Smaller ones stay (our choice: the question takes as long as reading them).
_LEAST_BYTES = 2**20


class LayerByLayer(ReplacedFunctions):
    """While it is active, a layer's weight is let go when it has been multiplied with."""

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A product, as torch makes it."""
        place = 1 if func is functional.linear else 2 if func is torch.addmm else len(args)
        if len(args) <= place:
            return None
        made = func(*args, **kwargs)
        let_go([args[place]])
        return made


def let_go(tensors: Iterable[Tensor]) -> None:
    """Have the system take back the memory of tensors that a file holds just as they are; their values stay.

    What isn't in a file's memory map, or was changed since, stays where it is; so does all where the system doesn't
    tell (others than Linux).
    """
    if sys.platform != "linux":
        return
    for named in tensors:
        tensor = getattr(named, "original", named)  # what stands for it in another precision
        tensor = tensor.T if tensor.dim() == 2 and not tensor.is_contiguous() else tensor
        if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes >= _LEAST_BYTES:
            _let_go(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def _let_go(begin: int, end: int) -> None:
    page = mmap.PAGESIZE
    first, last = -(-begin // page), end // page  # whole pages alone
    if last > first and _unchanged(first, last - first):
        span = ctypes.c_void_p(first * page), ctypes.c_size_t((last - first) * page)
        ctypes.CDLL(None).madvise(*span, mmap.MADV_DONTNEED)


def give_back() -> None:
    """Have the system take back memory that was freed and that the C library keeps between what is in use (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _unchanged(first: int, count: int) -> bool:
    """Whether all of some pages that are in memory are a file's own, or shared: none is the process's alone."""
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            file.seek(first * _ENTRY)
            read = file.read(count * _ENTRY)
    except OSError:
        return False
    if len(read) != count * _ENTRY:
        return False
    pages = np.frombuffer(read, np.uint64)
    there = pages[(pages & np.uint64(_PRESENT | _SWAPPED)) != 0]
    return bool(((there & np.uint64(_OF_A_FILE)) != 0).all())
