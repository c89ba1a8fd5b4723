"""The calls of a script: attack a shared gradient, score the answer, or do a whole run in one go.

The examples below go on from here; a model with random weights is quick to make, and no statement about a trained one:

    >>> import textleak
    >>> model = textleak.load_model("bert-tiny", weights="random")
    >>> shared, secret = textleak.share(model, "the cat sat", seed=0)
    >>> recovery = textleak.recover(shared, model, seed=0)
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from textleak.attacks import ATTACKS, Attack
from textleak.attacks.base import Steps, begin, to_end
from textleak.clients import Client, updates
from textleak.defenses import DEFENSES, Defense
from textleak.errors import InputError
from textleak.events import Label, Recovery
from textleak.jobs.parts import build_client
from textleak.models import TextModel
from textleak.private.secrets import Secret
from textleak.private.share import share as share_batch
from textleak.registry import Registry
from textleak.scoring import Scores
from textleak.scoring import score as score_recovery
from textleak.settings import Choice, ClientConfig, load_evaluation_config, load_run_config
from textleak.settings.given import (
    AttackOptions,
    AuditSettings,
    EvaluationSettings,
    RunSettings,
    ShareOptions,
)
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import UNTOLD, SideInformation

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.clients.view import AnyModel
    from textleak.evaluation.answers import Records
    from textleak.evaluation.records import Record
    from textleak.jobs.base import Job
    from textleak.jobs.results import AuditResult, RunResult
    from textleak.models.vision import ImageModel
    from textleak.private.secrets import ImageSecret

T = TypeVar("T")
Procedure = str | Sequence[str] | Client
"""How a client trains: `--client` texts, or a client."""


@overload
def share(
    model: TextModel,
    batch: str | Sequence[str],
    labels: Sequence[Label] | None = None,
    *,
    client: Procedure | None = None,
    defenses: str | Sequence[str | Defense] = (),
    **options: Unpack[ShareOptions],
) -> tuple[SharedGradient, Secret]: ...


@overload
def share(
    model: ImageModel,
    batch: Tensor,
    labels: Sequence[Label] | None = None,
    *,
    client: Procedure | None = None,
    defenses: str | Sequence[str | Defense] = (),
    **options: Unpack[ShareOptions],
) -> tuple[SharedGradient, ImageSecret]: ...


def share(
    model: Any,
    batch: Any,
    labels: Sequence[Label] | None = None,
    *,
    client: Procedure | None = None,
    defenses: str | Sequence[str | Defense] = (),
    **options: Unpack[ShareOptions],
) -> tuple[SharedGradient, Any]:
    """What a client would share for one round on a batch, and what it was made from.

    Args:
        model: the public model, of text or of pictures.
        batch: the private batch: B sentences (a bare text is one), or pictures (B, C, H, W) of values 0 to 1.
        labels: a class each; drawn from the seed where None.
        client: how the client trains: a `Client`, or as `--client` takes it ("train-mode", ["lora:rank=8", ...]).
        defenses: in order: `Defense`s, or as `--defense` takes them ("gaussian:sigma=1e-3").
        options: `share` ("all", "no-embeddings", "attention" or an expression), `know` (as `--know`) and `seed`.

    Returns:
        what leaves the client, and the truth: for scoring only, never for an attack.

    Example:
        >>> noisy, truth = textleak.share(model, ["the cat sat"], defenses="gaussian:sigma=1e-3", seed=0)
        >>> [defense.name for defense in noisy.defenses], truth.sentences
        (['gaussian'], ('the cat sat',))

    Raises:
        InputError: an empty batch, sentences or pictures that the model can't read, labels that don't fit, an unknown
            client, defense or option of them, or a client that can't train on such a batch.
    """
    listed = (defenses,) if isinstance(defenses, str) else defenses
    built = [one if isinstance(one, Defense) else _named(DEFENSES, one, {}) for one in listed]
    procedure = None if client is None else _client(client)
    found: tuple[SharedGradient, Any] = share_batch(
        model, batch, labels, client=procedure, defenses=built, **options
    )
    return found


def attack(
    shared: SharedGradient,
    model: AnyModel,
    attack: str | Attack = "auto",
    *,
    seed: int = 0,
    **options: Unpack[AttackOptions],
) -> Steps:
    """Start an attack: a generator of `Phase` and `Progress`, which returns a `Recovery`.

    Args:
        shared: all that the server sees.
        model: the public model.
        attack: its name, or `name:key=value,...` as the command line takes it: "match:steps=3"; or an attack.
        seed: of the run; the attack gets its own stream of it.
        options: the attack's options, as `textleak attacks NAME` lists them; times in seconds.

    Example:
        >>> [event.name for event in textleak.attack(shared, model, seed=0) if hasattr(event, "name")]
        ['rows', 'verify']

    Raises:
        InputError: an unknown attack or option, or a gradient that the attack can't work on.
    """
    return begin(_attack(attack, options), shared, model, seed=seed)


def _attack(attack: str | Attack, options: Mapping[str, Any]) -> Attack:
    """The attack that is named; one that is given gets the options beside its own."""
    if isinstance(attack, str):
        return _named(ATTACKS, attack, options)
    own = {field.name: getattr(attack, field.name) for field in dataclasses.fields(cast("Any", attack))}
    return ATTACKS.build(attack.name, {**own, **options}) if options else attack


def _named(registry: Registry[T], text: str, options: Mapping[str, object]) -> T:
    """What a text names, `name[:key=value,...]` as on the command line; options win over the text's."""
    choice = Choice.model_validate(text)
    return registry.build(choice.name, {**choice.options, **options})


def recover(
    shared: SharedGradient,
    model: AnyModel,
    attack: str | Attack = "auto",
    *,
    seed: int = 0,
    progress: bool = False,
    **options: Unpack[AttackOptions],
) -> Recovery:
    """Run an attack to its end.

    Args:
        shared: all that the server sees.
        model: the public model.
        attack: as for `textleak.attack`; likewise `seed` and `options`.
        seed: of the run.
        progress: show a bar meanwhile: on stderr, or in the notebook's cell.
        options: the attack's options, as `textleak attacks NAME` lists them.

    Example:
        >>> recovery = textleak.recover(shared, model, "embedding", seed=0)
        >>> recovery.sentences[0].text, recovery.channel
        ('the cat sat', 'embedding')

    Raises:
        InputError: as for `textleak.attack`.
    """
    return _ended(begin(_attack(attack, options), shared, model, seed=seed), progress=progress)


def _ended(steps: Steps, *, progress: bool) -> Recovery:
    if not progress:
        return to_end(steps)
    from textleak.view.bars import watched

    return watched(steps)


def score(recovery: Recovery, secret: Secret, model: TextModel) -> Scores:
    """The figures of an attack's answer: token match rate, recall, exact rate, ROUGE, all from 0 to 1.

    Args:
        recovery: the answer; its sentences may stand in any order.
        secret: what `share` handed back beside the gradient, or `Secret.load` read.
        model: whose tokens they are.

    Example:
        >>> scores = textleak.score(recovery, secret, model)
        >>> scores.token_match_rate, scores.sentences[0].exact
        (1.0, True)
    """
    return score_recovery(recovery, secret, model)


def from_gradients(
    model: TextModel,
    gradients: Mapping[str, Tensor | None],
    *,
    client: Procedure = (),
    known: SideInformation = UNTOLD,
) -> SharedGradient:
    """Gradients of your own training, as a server would see them.

        model = textleak.wrap(network, tokenizer)
        loss.backward()
        shared = textleak.from_gradients(
            model, {name: p.grad for name, p in network.named_parameters()}, client="train-mode"
        )
        textleak.recover(shared, model, "auto")

    Args:
        model: the public model: `textleak.wrap(network, tokenizer)` as it was when they were computed, or `load_model`.
        gradients: by parameter name, as the network or what wraps it (DDP, torch.compile, PEFT, Opacus) calls them;
            None where there is none.
        client: how they were computed, as `--client` says it ("train-mode", "autocast", "accumulate:steps=4"); nothing
            for one backward pass of the mean loss in eval mode.
        known: what the server knows besides: `SideInformation(batch_size=2)`.

    Example:
        >>> own = textleak.from_gradients(model, shared.gradients, known=shared.known)
        >>> textleak.recover(own, model, seed=0).sentences[0].text
        'the cat sat'

    Raises:
        InputError: names or shapes that aren't the model's, values that aren't finite, a client that sends weights.
    """
    return updates.from_gradients(model, gradients, client=_client(client), known=known)


def from_update(
    model: TextModel,
    before: Mapping[str, Tensor] | None,
    after: Mapping[str, Tensor],
    *,
    client: Procedure,
    known: SideInformation = UNTOLD,
) -> SharedGradient:
    """What your own training made of the weights, as a server would see it.

        model = textleak.wrap(network, tokenizer)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        train(network)
        shared = textleak.from_update(
            model, before, network.state_dict(), client="fedavg:optimizer=sgd,lr=0.01,steps=1"
        )

    Args:
        model: the public model, with the weights before.
        before: the weights before, to make sure that they are the model's; None to take the model's.
        after: the weights after, under any names that the network or what wraps it gives them.
        client: the procedure, as `--client` says it.
        known: what the server knows besides.

    Example:
        >>> after = {name: model.parameters[name] - 0.01 * tensor for name, tensor in shared.gradients.items()}
        >>> procedure = "fedavg:optimizer=sgd,lr=0.01,steps=1"
        >>> own = textleak.from_update(model, None, after, client=procedure, known=shared.known)
        >>> textleak.recover(own, model, seed=0).sentences[0].text
        'the cat sat'

    Raises:
        InputError: names or shapes that aren't the model's, other weights before than the model's, values that aren't
            finite, a client that sends gradients.
    """
    return updates.from_update(model, before, after, client=_client(client), known=known)


def _client(procedure: Procedure) -> Client:
    """The client that texts say, its options checked."""
    if isinstance(procedure, Client):
        return procedure
    return build_client(ClientConfig.model_validate({"client": procedure}))


def evaluate(
    preset: str | None = None,
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    yes: bool = False,
    progress: bool = False,
    **settings: Unpack[EvaluationSettings],
) -> Records:
    """A whole evaluation: what `textleak eval` does, as typed records.

    Warns of each model that had no pretrained weights, where random ones weren't asked for.

    Args:
        preset: name or path of a configuration, or None.
        engine: "local" or "ray".
        workers: processes; with more than one, a script needs `if __name__ == "__main__":`.
        address: of a ray cluster.
        retry_failed: take failed batches again.
        yes: allow grids above 100,000 batches.
        progress: show a bar of the batches meanwhile: on stderr, or in the notebook's cell.
        settings: as in a configuration file: `data`, `limit`, `model`, `attack`, `defense`, ... With `out`, a folder,
            the records are kept there and the same call goes on where it stopped; without, they are in memory only.

    Example:
        >>> records = textleak.evaluate(model="bert-tiny", weights="random", limit=1, attack="embedding")
        >>> len(records), round(records.mean("token_recall"), 2)
        (1, 1.0)

    Raises:
        InputError: a setting that can't be used. A batch that fails doesn't raise: it is in `.failed` with its error.
    """
    from textleak.evaluation import drive, engines

    config = load_evaluation_config(preset, cast("Mapping[str, Any]", settings))
    if workers is not None and workers < 1:
        raise InputError(
            f"workers can't be {workers}.", why="Nobody would compute a batch.", fix="Give 1 or more."
        )
    chosen = engines.choose(engine, workers=workers, address=address)
    evaluation = drive.begin(config, stored=config.out is not None, many=yes, here=engine == "local")
    loud: set[str] = set()
    found: Iterator[Record] = evaluation.run(chosen, retry_failed=retry_failed)
    if progress:
        from textleak.view.bars import counted

        left = evaluation.plan.batches() - len(evaluation.records())
        found = counted(found, left)
    for record in itertools.chain(evaluation.records(), found):
        model = record.cell.model
        if record.weights == "random" and config.weights != "random" and model not in loud:
            loud.add(model)
            warnings.warn(
                f"{model} has random weights, as no pretrained ones are at hand. What leaks depends on the weights: "
                'weights="pretrained" insists on them, weights="random" says that these are meant.',
                stacklevel=2,
            )
    return evaluation.records()


def run(*, progress: bool = False, **settings: Unpack[RunSettings]) -> RunResult:
    """One whole run without a run folder: what `textleak run --json` prints, as a dictionary.

    Args:
        progress: show a bar meanwhile: on stderr, or in the notebook's cell.
        settings: as in a configuration file: `model`, `sentences`, `attack`, `share`, `seed`, ... What is about files
            and exit codes (`out`, `save_gradients`, `redact`, `fail_above`) does nothing here.

    Example:
        >>> result = textleak.run(model="bert-tiny", weights="random", sentences="the cat sat", seed=0)
        >>> result["token_match_rate"], result["verified"], result["attack"]
        (1.0, True, 'auto')

    Raises:
        InputError: a setting that can't be used.
    """
    from textleak.jobs.text import prepare

    job = prepare(load_run_config(None, cast("Mapping[str, Any]", settings), ()))
    return cast("RunResult", _result(job, progress=progress))


def audit(*, progress: bool = False, **settings: Unpack[AuditSettings]) -> AuditResult:
    """Audit an update of your own training: what `textleak audit --json` prints, as a dictionary.

    Args:
        progress: show a bar meanwhile: on stderr, or in the notebook's cell.
        settings: `gradients`, the file of an update, or `before` and `after`, two checkpoints; and `model`, `client`,
            `know`, `time_limit` (seconds, or "10m"), ... as the command's flags. Those about files and exit codes do
            nothing here.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "update.safetensors")
        ...     shared.save(file)
        ...     result = textleak.audit(gradients=file, weights="random", time_limit=60)
        >>> result["verdict"], result["sentences"][0]["recovered"]
        ('LEAKS', 'the cat sat')

    Raises:
        InputError: a setting that can't be used, or an update that can't be read.
    """
    from textleak.jobs.audit import prepare
    from textleak.settings.audit import load_audit_config

    job = prepare(load_audit_config(cast("Mapping[str, Any]", settings)))
    return cast("AuditResult", _result(job, progress=progress))


def _result(job: Job, *, progress: bool) -> dict[str, Any]:
    began = time.perf_counter()
    recovery = _ended(job.steps(), progress=progress)
    return job.result(recovery, outcome="done", seconds=time.perf_counter() - began, run_dir=None)
