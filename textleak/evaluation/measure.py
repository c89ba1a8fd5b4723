"""One batch of one cell: a client shares its gradient through a file, an attack reads it back, the answer is scored.

An engine calls `measure` in its own process or in any other; nothing but plain values goes in and comes out.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from textleak import owned, runs, scoring, seeds
from textleak.attacks.base import ATTACKS, begin_on, least_limit, to_end
from textleak.clients import CLIENTS, composed
from textleak.data.planted import holds
from textleak.defenses import DEFENSES
from textleak.errors import InputError, TextleakError
from textleak.evaluation.grid import EvaluationError, Order, Watch, Work, failed
from textleak.evaluation.records import PlantedSecret, Record, SentenceRecord
from textleak.exact.second_parts import view_as_seen
from textleak.jobs.base import finite, stop_of
from textleak.jobs.parts import set_threads
from textleak.jobs.telling import named_tokens
from textleak.jobs.text import SCORES, WORD_SCORES
from textleak.matching import Pool, Spent
from textleak.models import TextModel, load_model
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.proof.certificate import certificate_of
from textleak.registry import Registry
from textleak.settings import Choice, EvaluationConfig
from textleak.shared.gradient import SharedGradient

T = TypeVar("T")


def measure(work: Work, order: Order, watch: Watch | None = None) -> Record:
    """The record of one batch; whatever goes wrong in it becomes a failed record.

    Raises:
        EvaluationError: what would go wrong in every other batch too.
    """
    return _measure(work, order, watch, None)


def measure_together(works: Sequence[Work], order: Order, watch: Watch | None = None) -> Iterator[Record]:
    """The records of batches of one cell, as they come, whose attacks take their steps together.

    Raises:
        EvaluationError: what would go wrong in every other batch too.
    """
    pool = Pool()
    return pool.run([functools.partial(_measure, work, order, watch, pool) for work in works])


def _measure(work: Work, order: Order, watch: Watch | None, pool: Pool | None) -> Record:
    try:
        return _measured(work, order, watch, pool)
    except EvaluationError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        known = isinstance(error, TextleakError)
        return failed(work, order, words if known else f"{type(error).__name__}: {words}")


def _measured(work: Work, order: Order, watch: Watch | None, pool: Pool | None) -> Record:
    cell, config = work.cell, order.config
    threads = set_threads(order.threads)
    model = _model(cell.model, cell.seed, config)
    choice = Choice.model_validate(cell.attack)
    attack = ATTACKS.build(choice.name, choice.options)
    seed = seeds.of_batch(cell.seed, work.batch)
    shared, secret = _client(work, model, seed)
    began = _spent(pool)
    view = dataclasses.replace(view_as_seen(shared, model), pool=pool)
    steps = begin_on(attack, view, seed=seed, time_limit=config.time_limit)
    recovery = to_end(steps, None if watch is None else functools.partial(watch, cell))
    ended = _spent(pool)
    certificate = certificate_of(recovery, view, limit=least_limit(attack, config.time_limit))
    scores = scoring.score(recovery, secret, model)
    outputs = (*(score.recovered for score in scores.sentences), *scores.surplus)
    tokens = sum(map(len, secret.ids))
    named: frozenset[int] = frozenset()
    if not certificate.verified:
        named = named_tokens(view, shared.gradients, secret.defenses)
    return Record(
        identity=order.identity,
        cell=cell,
        batch=work.batch,
        status="done",
        sentences=tuple(
            SentenceRecord(**vars(score), secrets=_planted(example.secrets, outputs))
            for score, example in zip(scores.sentences, work.examples, strict=True)
        ),
        surplus=scores.surplus,
        tokens=tokens,
        hidden_size=model.hidden_size,
        tokens_per_hidden=round(tokens / model.hidden_size, 4),
        **{figure: getattr(scores, figure) for figure in (*SCORES, *WORD_SCORES)},
        final_loss=finite(recovery.final_loss),
        gradient_distance=finite(certificate.gradient_distance),
        verified=certificate.verified,
        named_rate=scoring.named_rate(named, secret, model),
        channel=recovery.channel,
        stop=stop_of(recovery, certificate).value,
        notes=(*recovery.notes, *([certificate.reason] if certificate.reason else [])),
        steps=recovery.steps,
        evaluations=recovery.evaluations,
        seconds=round(ended.clock - began.clock, 3),
        cpu_seconds=round(ended.processor - began.processor, 3),
        weights=model.weights,
        fingerprint=model.fingerprint,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=threads,
        epsilon=finite(next((d.epsilon for d in secret.defenses if d.epsilon is not None), None)),
        labels_given=_given(work, model) is not None,
        worker=order.worker,
        versions=runs.versions(),
    )


def _spent(pool: Pool | None) -> Spent:
    """Seconds from some moment on; in a pool those of the batch that asks, its part of common calls among them."""
    return Spent(clock=time.perf_counter(), processor=time.process_time()) if pool is None else pool.spent


def _model(name: str, seed: int, config: EvaluationConfig) -> TextModel:
    return _loaded(name, config.weights, config.task, config.device, config.dtype, config.num_labels, seed)


@functools.lru_cache(maxsize=1)
def _loaded(
    name: str, weights: str, task: str, device: str, dtype: str, num_labels: int | None, seed: int
) -> TextModel:
    """The public model; the last one is kept, as the batches of one model follow each other."""
    return load_model(
        name,
        weights=weights,
        task=task,
        device=device,
        dtype=dtype,
        weights_seed=seeds.derive(seed, "weights"),
        num_labels=num_labels,
    )


def _client(work: Work, model: TextModel, seed: int) -> tuple[SharedGradient, Secret]:
    """What the server reads from the client's file, and the truth."""
    shared, secret = share(
        model,
        [example.sentence for example in work.examples],
        _given(work, model),
        share=work.cell.share,
        client=composed(_built(CLIENTS, work.cell.client)),
        defenses=_built(DEFENSES, work.cell.defense),
        know=work.cell.know,
        seed=seed,
    )
    try:
        with owned.scratch(Path(tempfile.gettempdir())) as folder:
            path = folder / "gradient.safetensors"
            shared.save(path)
            return SharedGradient.load(path), secret
    except (OSError, InputError) as error:
        raise EvaluationError(
            f"The client's gradient can't go through a file in {tempfile.gettempdir()}: "
            f"{error.why if isinstance(error, InputError) else error}",
            why="Attacks read it back from there, so no batch can be computed; every record before is kept.",
            fix="Make room there, or set TMPDIR, then run the same command again: it goes on where it stopped.",
        ) from None


def _given(work: Work, model: TextModel) -> list[int] | None:
    """The classes that the data say; None where they are drawn."""
    labels = [example.label for example in work.examples if example.label is not None]
    return None if model.num_labels is None or len(labels) < len(work.examples) else labels


def _built(registry: Registry[T], specs: Sequence[str]) -> list[T]:
    """What some specs name, in order."""
    choices = map(Choice.model_validate, specs)
    return [registry.build(choice.name, choice.options) for choice in choices]


def _planted(secrets: tuple[str, ...], outputs: tuple[str, ...]) -> tuple[PlantedSecret, ...]:
    return tuple(
        PlantedSecret(text=text, recovered=any(holds(output, text) for output in outputs)) for text in secrets
    )
