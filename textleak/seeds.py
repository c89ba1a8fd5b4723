"""One seed, independent streams: weights, client, defense, attack.

Each stream's seed is a hash of the run's seed and the stream's name. An attack is handed its own generator only, and
the weights' seed is public: neither gives the defense's noise away to an attack that doesn't enumerate run seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

_CPU = torch.device("cpu")

Stream = Literal["weights", "client", "defense", "attack"]


def derive(seed: int, stream: Stream) -> int:
    """The seed of one stream: 63 bits of a hash that can't be turned around."""
    digest = hashlib.blake2b(f"textleak:{seed}:{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def of_batch(seed: int, batch: int) -> int:
    """The seed of one batch of an evaluation, so that noise, labels and restarts of two batches have nothing in common.

    The weights are the evaluation's own: they are drawn from `seed` itself.
    """
    digest = hashlib.blake2b(f"textleak:{seed}:batch:{batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: Stream) -> torch.Generator:
    """A CPU generator for one stream."""
    return torch.Generator().manual_seed(derive(seed, stream))


@contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Draw from `seed` on the CPU and on a device, and leave every global generator as it was."""
    with torch.random.fork_rng(devices=[]), _seeded_on(device, seed):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _seeded_on(device: torch.device, seed: int) -> Iterator[None]:
    if device.type == "cuda":
        before = torch.cuda.get_rng_state(device)
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.cuda.set_rng_state(before, device)
    elif device.type == "mps":
        before = torch.mps.get_rng_state()
        torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            torch.mps.set_rng_state(before)
    else:
        yield
