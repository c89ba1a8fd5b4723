"""From settings to a run that can go, in the same order for every kind of data.

Everything that can be the caller's fault is found here, so that a run folder is made only for a run that can go.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from textleak.errors import InputError
from textleak.jobs.base import Job
from textleak.jobs.files import check_model, done_to, tell_less
from textleak.jobs.parts import build_attack, build_client, build_defenses, set_threads
from textleak.settings import ImageConfig, RunConfig

if TYPE_CHECKING:
    from textleak.clients.view import AnyModel
    from textleak.private.secrets import ImageSecret, Secret
    from textleak.shared.gradient import SharedGradient

J = TypeVar("J", bound=Job)
"""A run on one kind of data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What a run is about.

    Attributes:
        model: the public model.
        shared: what a client shared of the batch.
        secret: what was really in it; None where that isn't known.
        more: what else the kind of data keeps in its `Job`.
    """

    model: AnyModel
    shared: SharedGradient
    secret: Secret | ImageSecret | None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def prepared(
    kind: type[J],
    config: RunConfig | ImageConfig,
    *,
    share: Callable[[], Batch],
    read: Callable[[], Batch],
) -> J:
    """Load and check all that a run needs; nothing is written.

    Args:
        kind: of run.
        config: what was asked for.
        share: loads the model and does the client's part, where the settings name a batch.
        read: reads a gradient and loads its model, where they name a file.

    Raises:
        InputError: whatever the caller can mend.
    """
    began = time.perf_counter()
    attack = build_attack(config)
    from textleak.attacks.base import check_reads

    check_reads(attack, kind.modality())
    build_client(config)
    build_defenses(config)  # what is wrong with them is said before anything is loaded
    threads = set_threads(config.threads)
    from_file = config.gradients is not None
    batch = read() if from_file else share()
    done, client = done_to(batch.shared, batch.secret)
    job = kind(
        config=config,
        attack=attack,
        shared=tell_less(batch.shared, config) if from_file else batch.shared,
        model=batch.model,
        secret=batch.secret,
        defenses=done,
        client=client,
        threads=threads,
        seconds_to_load=time.perf_counter() - began,
        **batch.more,
    )
    if from_file:
        check_model(job)
        check_truth(job)
    return job


def check_truth(job: Job) -> None:
    """Make sure that a file's truth can be what the gradient is of.

    Raises:
        InputError: it can't.
    """
    if job.secret is None or job.truth_fits():
        return
    raise InputError(
        f"{job.config.truth} doesn't fit {job.config.gradients or 'the update'}.",
        why=f"What it holds is not a batch for {job.model.name}, or not the one that the gradient is of.",
        fix="Give the .truth.json that was written beside the gradient.",
    )
