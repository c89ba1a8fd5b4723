"""Who computes the batches: this process, several processes, or a ray cluster. Each yields records as they come."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, Protocol

from textleak import allocator, runs
from textleak.errors import InputError, TextleakError
from textleak.evaluation.grid import EvaluationError, Order, Watch, Work, failed
from textleak.evaluation.records import Cell, Record
from textleak.words import count_of

# A batch whose worker died is given to another one so many times before it counts as failed (our choice).
_TRIES = 3
# Where a system's GPU shows without a library: NVIDIA's, AMD's, and either under Windows' Linux.
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

Method = Literal["spawn", "forkserver"]


class Engine(Protocol):
    """Turns batches into records, in any order."""

    def run(self, works: Iterable[Work], order: Order) -> Iterator[Record]:
        """Compute the batches as they are asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
    """In this process, one batch after the other or several of a cell together.

    Attributes:
        together: how many; one call of the network is then a step of all of them, where attacks optimize dummies.
        watch: is told where attacks stand.
    """

    together: int = 1
    watch: Watch | None = None

    def run(self, works: Iterable[Work], order: Order) -> Iterator[Record]:
        """Compute the batches."""
        from textleak.evaluation.measure import measure, measure_together

        if self.together == 1:
            yield from (measure(work, order, self.watch) for work in works)
            return
        waiting: dict[Cell, list[Work]] = {}
        for work in works:
            same = waiting.setdefault(work.cell, [])
            same.append(work)
            if len(same) == self.together:
                yield from measure_together(waiting.pop(work.cell), order, self.watch)
        for same in waiting.values():
            yield from measure_together(same, order, self.watch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Several processes on this machine, one GPU each where there are several; they end with this one.

    Attributes:
        workers: how many.
        copies: whether they begin as copies of one that has loaded what they need (`load_for_copies`).
    """

    workers: int
    copies: bool = False

    def run(self, works: Iterable[Work], order: Order) -> Iterator[Record]:
        """Compute the batches; that of a process that died is given to another."""
        waiting, coming = deque[tuple[Work, int]](), iter(works)
        busy: dict[object, tuple[_Worker, Work, int]] = {}
        idle: list[_Worker] = []
        begun = 0
        method: Method = "forkserver" if self.copies and not _has_gpu() else "spawn"
        try:
            while True:
                while idle or begun < self.workers:
                    work, tries = waiting.popleft() if waiting else (next(coming, None), 0)
                    if work is None:
                        break
                    if not idle:
                        idle.append(_Worker(self._order(begun, order), method))
                        begun += 1
                    worker = idle.pop()
                    worker.give(work)
                    busy[worker.answers] = worker, work, tries + 1
                if not busy:
                    return
                for answers in wait([worker.answers for worker, _, _ in busy.values()]):
                    worker, work, tries = busy.pop(answers)
                    record = worker.answer()
                    if record is not None:
                        idle.append(worker)
                        yield record
                        continue
                    worker.end()
                    idle.append(_Worker(worker.order, method))
                    if tries < _TRIES:
                        waiting.append((work, tries))
                    else:
                        error = f"The batch was lost: its process died {count_of(tries, 'time')}."
                        yield failed(work, worker.order, error)
        finally:
            for worker in [*idle, *(one for one, _, _ in busy.values())]:
                worker.end()

    def _order(self, number: int, order: Order) -> Order:
        config = order.config
        if config.device == "auto" and (count := _gpus()) > 1:
            config = config.model_copy(update={"device": f"cuda:{number % count}"})
        return dataclasses.replace(
            order,
            config=config,
            threads=order.threads or max(1, runs.cores() // self.workers),
            worker=f"process {number + 1}",
        )


class _Worker:
    """A process and the pipe to it.

    Args:
        order: what it is told.
        method: "spawn", or "forkserver". A copy of this process, which may have used torch's threads or a GPU, can
            hang: it is a new interpreter, or a copy of one that has only loaded what is needed.
    """

    def __init__(self, order: Order, method: Method) -> None:
        self.order = order
        get = multiprocessing.get_context
        context = get("forkserver") if method == "forkserver" else get("spawn")
        self.answers, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, order), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, work: Work) -> None:
        """Hand it a batch."""
        with contextlib.suppress(OSError):  # it has died: `answer` finds out
            self.answers.send(work)

    def answer(self) -> Record | None:
        """The record of its batch; None where it died.

        Raises:
            EvaluationError: no batch can be computed.
        """
        try:
            answer: Record | EvaluationError = self.answers.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answer, EvaluationError):
            raise answer
        return answer

    def end(self) -> None:
        """Stop it, in the middle of a batch too."""
        self.answers.close()
        self.process.kill()
        self.process.join()


def _serve(works: Connection, order: Order) -> None:
    """What a worker process does: answer each batch with its record until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    allocator.keep_memory()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    from textleak.evaluation.measure import measure

    while True:
        try:
            work = works.recv()
        except EOFError:
            return
        try:
            works.send(measure(work, order))
        except EvaluationError as error:
            works.send(error)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended."""
    wait([parent])
    os._exit(1)


def load_for_copies() -> bool:
    """Begin the process that workers are copies of; it loads what they need while this one goes on.

    Once it has begun, this process's environment is that of all workers, so this is for the program, not for a library.

    Returns:
        Whether there is one. There is none where a GPU shows, which no copy could use, nor outside Linux.
    """
    if not sys.platform.startswith("linux") or any(Path(path).exists() for path in _GPUS):
        return False
    from multiprocessing import forkserver  # not on every system

    multiprocessing.get_context("forkserver").set_forkserver_preload(["textleak.evaluation.loaded"])
    forkserver.ensure_running()
    return True


def _has_gpu() -> bool:
    import torch

    return torch.accelerator.is_available()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ray:
    """A ray cluster, or one that ray makes of this machine.

    Attributes:
        address: of a cluster to join, "auto" for the one that runs here; None for a new one on this machine.
        workers: batches at once; None for as many as the cluster has room for.
    """

    address: str | None = None
    workers: int | None = None

    def run(self, works: Iterable[Work], order: Order) -> Iterator[Record]:
        """Compute the batches; ray runs those of a lost worker again."""
        try:
            import ray
        except ImportError:
            raise InputError(
                "The engine ray isn't installed.", fix="pip install 'textleak[ray]', or use --engine local."
            ) from None
        threads = order.threads or 1
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # an audit of private text reports to nobody
        try:
            ray.init(
                address=self.address,
                num_cpus=None if self.address or not self.workers else self.workers * threads,
                log_to_driver=False,
                configure_logging=False,
                include_dashboard=False if self.address is None else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise TextleakError(
                f"No ray cluster at {self.address or 'this machine'} can be used.",
                why=f"{error}",
                fix="Start one with `ray start --head`, or leave --address out.",
            ) from None
        there = ray.cluster_resources()
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if threads > largest:
            ray.shutdown()
            raise InputError(
                f"No node of the ray cluster has {count_of(threads, 'core')}: the largest has {largest:g}.",
                why="A batch runs on one node with --threads cores, so none would ever begin.",
                fix=f"Give --threads {max(1, int(largest))} or less.",
            )
        gpus = 1 if order.config.device in ("auto", "cuda") and there.get("GPU") else 0
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=_TRIES)(_on_ray)
        room = self.workers or max(1, int(there.get("CPU", 1) // threads))
        order = dataclasses.replace(order, threads=threads)
        flying: dict[object, Work] = {}
        coming = iter(works)
        try:
            while True:
                while len(flying) < room and (work := next(coming, None)) is not None:
                    flying[task.remote(work, order)] = work
                if not flying:
                    return
                (landed,), _ = ray.wait(list(flying), num_returns=1)
                work = flying.pop(landed)
                try:
                    yield ray.get(landed)
                except EvaluationError as error:
                    raise getattr(error, "cause", error) from None  # ray's own mixture of it and RayError
                except ray.exceptions.RayError as error:
                    reason = next(iter(str(error).splitlines()), "")
                    words = f"The batch was lost: {type(error).__name__}, {reason}"
                    yield failed(work, dataclasses.replace(order, worker="ray"), words)
        finally:
            ray.shutdown()


def _on_ray(work: Work, order: Order) -> Record:
    """A batch on a ray worker."""
    import ray

    allocator.keep_memory()
    from textleak.evaluation.measure import measure

    node = str(ray.get_runtime_context().get_node_id())[:8]
    return measure(work, dataclasses.replace(order, worker=f"ray {node}"))


def choose(
    engine: str,
    *,
    workers: int | None = None,
    address: str | None = None,
    program: bool = False,
    together: int = 1,
) -> Engine:
    """The engine of that name.

    Args:
        engine: "local" or "ray".
        workers: processes, or batches at once on a cluster; None for one in this process, or for all that ray has.
        address: of a ray cluster.
        program: whether this process is textleak's own, so that what it begins may stay until it ends.
        together: batches whose attacks take their steps together, in this process.

    Raises:
        InputError: an unknown engine, an address for one that has none, or batches together in several processes.
    """
    if together > 1 and (engine != "local" or workers not in (None, 1)):
        raise InputError(
            "--together is for one process.",
            why="Batches that take their steps together share the calls of one network.",
            fix="Leave out --engine and --workers, or --together.",
        )
    if engine == "ray":
        return Ray(address=address, workers=workers)
    if engine != "local":
        raise InputError(f"There is no engine {engine!r}.", fix="Use local or ray.")
    if address is not None:
        raise InputError("--address is for --engine ray.", fix="Leave it out, or add --engine ray.")
    if workers is None or workers == 1:
        return Local(together=together)
    return Processes(workers=workers, copies=program and load_for_copies())
