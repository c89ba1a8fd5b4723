"""The calls of a script: attack a shared gradient, score the answer, or do a whole run in one go."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from textleak.attacks import ATTACKS
from textleak.attacks.base import Steps, begin, to_end
from textleak.clients import Client, updates
from textleak.defenses import DEFENSES, Defense
from textleak.errors import InputError
from textleak.events import Recovery
from textleak.jobs.parts import build_client
from textleak.models import TextModel
from textleak.private.secrets import Secret
from textleak.private.share import share as share_batch
from textleak.registry import Registry
from textleak.scoring import Scores
from textleak.scoring import score as score_recovery
from textleak.settings import Choice, ClientConfig, load_evaluation_config, load_run_config
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import UNTOLD, SideInformation

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.evaluation.answers import Records

T = TypeVar("T")
Procedure = str | Sequence[str] | Client
"""How a client trains: `--client` texts, or a client."""


def share(
    model: Any,  # noqa: ANN401 - a TextModel, or an ImageModel
    batch: Any,  # noqa: ANN401 - sentences, or pictures
    labels: Sequence[int] | None = None,
    *,
    client: Procedure | None = None,
    defenses: str | Sequence[str | Defense] = (),
    **options: Any,  # noqa: ANN401 - `share`, `know`, `seed`
) -> tuple[SharedGradient, Any]:
    """What a client would share for one round on a batch, and what it was made from.

    Args:
        model: the public model, of text or of pictures.
        batch: the private batch: B sentences (a bare text is one), or pictures (B, C, H, W) of values 0 to 1.
        labels: a class each; drawn from the seed where None.
        client: how the client trains: a `Client`, or as `--client` takes it ("train-mode", ["lora:rank=8", ...]).
        defenses: in order: `Defense`s, or as `--defense` takes them ("gaussian:sigma=1e-3").
        options: `share` ("all", "no-embeddings", "attention" or an expression), `know` (as `--know`) and `seed`.

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
    shared: SharedGradient, model: TextModel, attack: str = "auto", *, seed: int = 0, **options: object
) -> Steps:
    """Start an attack: a generator of `Phase` and `Progress`, which returns a `Recovery`.

    Args:
        shared: all that the server sees.
        model: the public model.
        attack: its name, or `name:key=value,...` as the command line takes it: "match:steps=3".
        seed: of the run; the attack gets its own stream of it.
        options: the attack's options, as `textleak attacks NAME` lists them.

    Raises:
        InputError: an unknown attack or option, or a gradient that the attack can't work on.
    """
    return begin(_named(ATTACKS, attack, options), shared, model, seed=seed)


def _named(registry: Registry[T], text: str, options: Mapping[str, object]) -> T:
    """What a text names, `name[:key=value,...]` as on the command line; options win over the text's."""
    choice = Choice.model_validate(text)
    return registry.build(choice.name, {**choice.options, **options})


def recover(
    shared: SharedGradient, model: TextModel, attack: str = "auto", *, seed: int = 0, **options: object
) -> Recovery:
    """Run an attack to its end; arguments and errors as for `textleak.attack`."""
    return to_end(begin(_named(ATTACKS, attack, options), shared, model, seed=seed))


def score(recovery: Recovery, secret: Secret, model: TextModel) -> Scores:
    """The figures of an attack's answer: token match rate, recall, exact rate, ROUGE."""
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
    **settings: object,
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
        settings: as in a configuration file: `data`, `limit`, `model`, `attack`, `defense`, ... With `out`, a folder,
            the records are kept there and the same call goes on where it stopped; without, they are in memory only.

    Raises:
        InputError: a setting that can't be used. A batch that fails doesn't raise: it is in `.failed` with its error.
    """
    from textleak.evaluation import drive, engines

    config = load_evaluation_config(preset, settings)
    if workers is not None and workers < 1:
        raise InputError(
            f"workers can't be {workers}.", why="Nobody would compute a batch.", fix="Give 1 or more."
        )
    chosen = engines.choose(engine, workers=workers, address=address)
    evaluation = drive.begin(config, stored=config.out is not None, many=yes, here=engine == "local")
    loud: set[str] = set()
    for record in itertools.chain(evaluation.records(), evaluation.run(chosen, retry_failed=retry_failed)):
        model = record.cell.model
        if record.weights == "random" and config.weights != "random" and model not in loud:
            loud.add(model)
            warnings.warn(
                f"{model} has random weights, as no pretrained ones are at hand. What leaks depends on the weights: "
                'weights="pretrained" insists on them, weights="random" says that these are meant.',
                stacklevel=2,
            )
    return evaluation.records()


def run(**settings: object) -> dict[str, Any]:
    """One whole run without a run folder: what `textleak run --json` prints, as a dictionary.

    Args:
        settings: as in a configuration file: `model`, `sentences`, `attack`, `share`, `seed`, ...

    Raises:
        InputError: a setting that can't be used.
    """
    import time

    from textleak.jobs.text import prepare

    job = prepare(load_run_config(None, settings, ()))
    began = time.perf_counter()
    recovery = to_end(job.steps())
    return job.result(recovery, outcome="done", seconds=time.perf_counter() - began, run_dir=None)
