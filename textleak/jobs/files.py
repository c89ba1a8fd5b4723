"""A run on a gradient from a file: which model it is of, what was done to it, and how much of it the attack is told."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from textleak.errors import InputError
from textleak.jobs.base import Job
from textleak.settings import ImageConfig, RunConfig
from textleak.words import count_of

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.models import TextModel
    from textleak.models.base import Modality
    from textleak.private.secrets import ImageSecret, Secret
    from textleak.shared.gradient import SharedGradient
    from textleak.shared.public import PublicClient, PublicDefense, PublicModel

# As `models.loading` says it of a checkpoint without a head.
_DRAWN = re.compile(r"; (?P<names>[^;]+) random, seed (?P<seed>\d+)$")


def read_gradient(config: RunConfig | ImageConfig, modality: Modality) -> SharedGradient:
    """The gradient in the file that the settings name.

    Raises:
        InputError: it can't be read, or is of another kind of data.
    """
    from textleak.models.base import Modality
    from textleak.shared.gradient import SharedGradient

    assert config.gradients is not None
    shared = SharedGradient.load(config.gradients)
    found = Modality.TEXT if shared.model.picture is None else Modality.PICTURES
    if found is not modality:
        command = {Modality.TEXT: "run", Modality.PICTURES: "image"}[found]
        raise InputError(
            f"{config.gradients} is a gradient of {found.value}, not of {modality.value}.",
            why=f"Its model is {shared.model.name} ({shared.model.task}).",
            fix=f"Use `textleak {command} --gradients {config.gradients}`.",
        )
    return shared


def asked_by_file(
    config: RunConfig | ImageConfig, public: PublicModel, aliases: Collection[str]
) -> dict[str, Any]:
    """What the model of a file is asked for with: what the settings say, else what the file says.

    Of the names that a file says only an alias is loaded.

    Raises:
        InputError: the file names something else.
    """
    given = config.model_fields_set
    short = public.name.partition(":")[0]
    if "model" not in given and short not in aliases and public.name not in aliases:
        raise InputError(
            f"{config.gradients} names the model {public.name!r}, which no file can have loaded.",
            why="It could be anything from anywhere: a file has only an alias loaded (`textleak models`).",
            fix="Name it yourself, if you trust it: --model NAME.",
        )
    return {
        "name": config.model if "model" in given else public.name,
        "weights": config.weights if "weights" in given else public.weights,
        "device": config.device,
        "dtype": config.dtype if "dtype" in given else public.dtype,
        "weights_seed": public.weights_seed,
    }


def check_model(job: Job) -> None:
    """Make sure that a file's gradient is one of the model, by names, shapes and a hash of the weights.

    Of a model's first layers alone there is no such hash.

    Raises:
        InputError: it isn't.
    """
    file, public, model = job.config.gradients, job.shared.model, job.view.model
    if getattr(job.config, "layers", None) is not None:
        return  # the hash is of all weights
    if job.model.fingerprint != public.fingerprint:
        raise InputError(
            f"{file} is a gradient of another model than the {model.name} that was loaded.",
            why=f"The weights differ: the file names {public.name} ({public.weights}, {public.dtype}), "
            f"loaded was {model.source}.",
            fix="Load the model that the client used (--model, --weights, --task), or make the same weights "
            "available here.",
        )


def within(tensors: Mapping[str, Tensor], config: RunConfig, model: TextModel) -> dict[str, Tensor]:
    """What tensors are of the first layers, or of none, where no more of the model was read; else all of them.

    Args:
        tensors: gradients or differences, by whatever names.
        config: the settings.
        model: as it was read.

    Raises:
        InputError: none is.
    """
    if config.layers is None:
        return dict(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if _layer(name) < config.layers}
    if max(map(_layer, kept), default=-1) < 0:
        raise InputError(
            f"{config.gradients} has nothing of the first {count_of(config.layers, 'layer')} of {model.name}.",
            why=f"It has {', '.join([*tensors][:3])}.",
            fix="Give a larger --layers, or the file of these layers' gradients.",
        )
    return kept


def _layer(name: str) -> int:
    """Which layer a parameter is in: the first number in its name; that of none where it has no number."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def done_to(
    shared: SharedGradient, secret: Secret | ImageSecret | None
) -> tuple[tuple[PublicDefense, ...], PublicClient]:
    """What a client did before sharing, and how it trained, from what it shared and from the truth."""
    from textleak.shared.public import ONE_STEP

    if secret is None:
        return shared.defenses, shared.client
    return shared.defenses or secret.defenses, shared.client if secret.client == ONE_STEP else secret.client


def tell_less(shared: SharedGradient, config: RunConfig | ImageConfig) -> SharedGradient:
    """The gradient with no more side information than `--know` names.

    Raises:
        InputError: the file doesn't say what is to be told.
    """
    from textleak.clients import untold
    from textleak.shared.known import SideInformation, hides_client, hides_defense, leaves_default

    if hides_defense(config.know):
        shared = dataclasses.replace(shared, defenses=())
    if hides_client(config.know):
        shared = dataclasses.replace(shared, client=untold(shared.client))
    if config.know is None or leaves_default(config.know):
        return shared
    kinds = SideInformation.PICTURE_KINDS if isinstance(config, ImageConfig) else SideInformation.KINDS
    told = SideInformation.parse(config.know, batch_size=shared.known.batch_size or 0, kinds=kinds)
    for kind in sorted(told - {*shared.known.told}):
        raise InputError(
            f"--know {kind} can't be told.",
            why=f"{config.gradients} doesn't say it.",
            fix=f"Write the file with `textleak share --know {kind}`.",
        )
    return dataclasses.replace(shared, known=shared.known.only(told))


def drawn_parts(source: str) -> tuple[str, str] | None:
    """Parameters of a pretrained model that no checkpoint has, in words, and the seed they were drawn from.

    Args:
        source: where its weights are from, as `TextModel.source`.
    """
    drawn = _DRAWN.search(source)
    return None if drawn is None else (drawn["names"], drawn["seed"])


def drawn_here(model: TextModel) -> tuple[str, ...]:
    """What is said of a model that goes by a name, where parts of it are in no checkpoint: clients draw their own."""
    drawn = drawn_parts(model.source) if model.weights == "pretrained" else None
    if drawn is None:
        return ()
    names, seed = drawn
    return (
        f"{names} of {model.name} are in no checkpoint and were drawn here (seed {seed}); a client "
        "that drew others has another model, whose text can't be proved with this one. Save the model before its "
        "first step and give that folder: --model FOLDER.",
    )
