"""A plain loop under DistributedDataParallel: gloo, two processes, one sentence each, SGD, MiniLM."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.real.batches import LABELS, SENTENCES, minilm


def train(out: Path) -> None:
    """Two steps in two processes, both recorded."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (out, port), nprocs=2)  # type: ignore[no-untyped-call]


def _process(rank: int, out: Path, port: int) -> None:
    import torch
    from torch import distributed

    import textleak

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, tokenizer = minilm()
    model.eval()
    spread = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(spread.parameters(), lr=0.01)
    with textleak.record(
        spread, tokenizer, optimizer=optimizer, out=out, sends="gradient", truth=True, end=False
    ):
        batch = tokenizer([SENTENCES[rank]], return_tensors="pt")
        spread(**batch, labels=torch.tensor(LABELS[rank : rank + 1])).loss.backward()
        optimizer.step()
    distributed.destroy_process_group()
