"""Recover again and again in one process: memory doesn't grow, and no file stays open. `python -m tests.soak`.

Each recovery has a sentence of its own, and its gradient goes through a file; attacks and shares take turns. For Linux,
whose /proc tells what a process has.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import WORDS, write_toy
from textleak import api
from textleak.errors import InputError
from textleak.models import load_model
from textleak.shared.gradient import SharedGradient

MIB = 1 << 20
# What the first calls of each kind import and keep for all others is no growth.
WARM_UP = 20
# Attack and its options, and what is shared.
KINDS: tuple[tuple[str, dict[str, object], str], ...] = (
    ("auto", {}, "all"),
    ("auto", {}, "no-embeddings"),
    ("span", {}, "no-embeddings"),
    ("match", {"budget": 200}, "no-embeddings"),
    ("dlg", {"steps": 2, "restarts": 1}, "all"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soaked:
    """What many recoveries came to.

    Attributes:
        calls: how many there were.
        right: answers that hold the sentence's tokens.
        mib_before: of memory in use after the first `WARM_UP` calls.
        mib_after: after the last.
        opened: files that are open after the last and were not before.
        seconds: all of them.
    """

    calls: int
    right: int
    mib_before: float
    mib_after: float
    opened: list[str]
    seconds: float

    @property
    def growth(self) -> float:
        """MiB more than after the first calls."""
        return self.mib_after - self.mib_before


def soak(folder: Path, calls: int, *, seed: int = 0, say: Callable[[str], object] = str) -> Soaked:
    """Recover so many times.

    Args:
        folder: for the model and the gradients.
        calls: how many; more than `WARM_UP`.
        seed: draws the sentences.
        say: is told now and then.
    """
    model = load_model(str(write_toy("bert", folder)), weights="random", device="cpu")
    rng = random.Random(seed)
    right, before, opened, began = 0, 0.0, set[str](), time.monotonic()
    for call in range(calls):
        if call == WARM_UP:
            before, opened = in_use(), open_files()
        right += recovered(model, " ".join(rng.sample(WORDS, 5)), call, folder / "gradient.safetensors")
        if call % 50 == 49:
            say(f"{call + 1} calls: {in_use():,.0f} MiB, {len(open_files())} open files")
    return Soaked(
        calls=calls,
        right=right,
        mib_before=before,
        mib_after=in_use(),
        opened=sorted(open_files() - opened),
        seconds=time.monotonic() - began,
    )


def recovered(model: Any, sentence: str, call: int, path: Path) -> bool:
    """Share a sentence and recover it; whether its tokens are the answer's."""
    attack, options, parts = KINDS[call % len(KINDS)]
    shared, secret = api.share(model, sentence, share=parts, know="lengths,batch-size", seed=call)
    shared.save(path)
    try:
        answer = api.recover(SharedGradient.load(path), model, attack, seed=call, **options)
    except InputError:  # what an attack can't work on is no recovery
        return False
    return api.score(answer, secret, model).token_match_rate == 1


def in_use() -> float:
    """MiB of memory that the process has."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def open_files() -> set[str]:
    """What the process has open: files and pipes by name, under their number."""
    found = set()
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the folder itself, which is closed again
            found.add(f"{number.name} {number.readlink()}")
    return found


def main() -> int:
    """Parse, recover, say what it came to; 1 where it grows by 50 MB or leaves files open."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="textleak-soak-") as name:
        soaked = soak(Path(name), options.calls, seed=options.seed, say=_say)
    _say(
        f"{soaked.calls} calls in {soaked.seconds:.0f} s, {soaked.right} right: {soaked.mib_before:,.0f} MiB after "
        f"{WARM_UP}, {soaked.mib_after:,.0f} MiB at the end; {len(soaked.opened)} files left open"
    )
    return int(soaked.growth * MIB >= 50e6 or bool(soaked.opened))


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
