"""How this process gets its memory: what it frees it keeps for its next tensors, in large pages where there are some.

A client's steps are simulated on copies of a whole model, tens of megabytes a tensor. glibc hands blocks of that size
back to the system when they are freed, and the system fills each page of the next one with zeros: an audit of FedAvg on
minilm spent half of its time so. What belongs to a host that only imports textleak is left alone: this is for processes
that are textleak's own.
"""

from __future__ import annotations

import os

# mallopt's parameters (malloc.h), and glibc's own settings of the same from outside.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_FROM_OUTSIDE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
# Bytes of a block from which on it is the system's again when it is freed (the same of a glibc before 2.35, its most),
# and of free memory at the end of all that is kept (our choice: a copy of gpt2's embeddings is below the one. The peak
# of a wide model, whose layers are above it or fill what others left, was 2.0 times its weights at 2**26 to 2**28, at
# 2**30 without large pages 2.5 times).
_KEPT_BLOCK, _KEPT_BLOCK_BEFORE, _KEPT_IN_ALL = 2**28, 2**25, 2**31 - 1
# torch's own setting: tensors of 2 MiB and more lie in large pages where the system has them to give.
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def keep_memory() -> None:
    """Have this process keep memory; before torch's first tensor. Those that it starts have its large pages alone.

    What somebody has set in the environment stays. Nothing is done where the C library isn't glibc.
    """
    os.environ.setdefault(_LARGE_PAGES, "1")
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):  # Windows has no confstr, others no such name
        return
    if any(name in os.environ for name in _FROM_OUTSIDE) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    # Until one is set, glibc moves both by itself; an older one takes none beyond 32 MiB.
    if mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK) or mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BEFORE):
        mallopt(_M_TRIM_THRESHOLD, _KEPT_IN_ALL)
