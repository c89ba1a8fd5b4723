"""An update as people have it: which model it is of, under which names, and what the server makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textleak.errors import InputError
from textleak.jobs.files import asked_by_file, drawn_here, read_gradient, tell_less, within
from textleak.jobs.found.known import known_of, with_shown
from textleak.jobs.found.model import load_named, model_of, published
from textleak.jobs.found.weights import check_after, check_no_adapter, check_update
from textleak.jobs.parts import build_client, chosen_client
from textleak.jobs.telling import UNKNOWN_STEP, Kind, Telling, telling_of
from textleak.settings import Choice
from textleak.settings.audit import AuditConfig

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.clients import Client
    from textleak.models import TextModel
    from textleak.private.secrets import Secret
    from textleak.shared.formats import State
    from textleak.shared.gradient import SharedGradient
    from textleak.shared.known import SideInformation
    from textleak.shared.public import PublicModel


# What a file is taken for that doesn't say it, as one of 16 bits doesn't.
_TAKEN_FOR: dict[Kind, str] = {
    "gradient": "Whether a gradient was sent or weights' difference can't be told; it was taken for a gradient, "
    "rounded when it was saved. Another procedure has to be named: --client fedavg:optimizer=sgd,lr=...,steps=1, or "
    "--client autocast for a network that ran in bfloat16.",
    "update": "Whether a gradient was sent or weights' difference can't be told; it was taken for a difference, as all "
    "tensors moved alike. Of a gradient: --client one-step.",
}
_TURNED = "The file holds before − after: only so is all of it on the weights' grid. Its sign was turned for the audit."
_DROPOUT = "train-mode"
_DROPOUT_COUNTED = (
    "Whether dropout was on can't be told: it counts as on, as people train, unless a text proves that it was off. "
    "Where you know that it was, say so: --client one-step for a gradient, or the steps without train-mode."
)
# What transformers calls the embedding of a text's parts.
_PARTS = "token_type_embeddings"
_IN_PARTS = (
    "The client's texts are of two parts (token_type_ids of 1, as pairs of sentences have), and are read here as of "
    "one: what stands in a second part isn't found. That it wasn't is no sign of safety."
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """An update, ready to be attacked.

    Attributes:
        model: the public model.
        shared: what the server has.
        secret: what it was computed from; None where that isn't known.
        telling: what it tells by itself.
        notes: what had to be assumed, in sentences: the size of a step.
        doubts: why the model may not be the client's, in sentences.
        undropped: what the server has if nothing was dropped, where that can't be told and dropout was assumed.
        inferred: whether the client is what the update tells, so that it may have done what doesn't show.
        says_known: whether it is a file that says itself what the server knows.
    """

    model: TextModel
    shared: SharedGradient
    secret: Secret | None
    telling: Telling
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    undropped: SharedGradient | None = None
    inferred: bool = False
    says_known: bool = False


def find(config: AuditConfig) -> Found:
    """Read the update that the settings name, and its model.

    Raises:
        InputError: a file or folder that can't be read, another model's, or one that leaves open what has to be known.
    """
    from textleak.private.secrets import Secret

    secret = None if config.truth is None else Secret.load(config.truth)
    if config.before is not None:
        return _between(config, secret)
    return _from_file(config, secret) if _is_gradient_file(config) else _from_state(config, secret)


# Two checkpoints


def _between(config: AuditConfig, secret: Secret | None) -> Found:
    from textleak.clients import updates
    from textleak.shared.formats import read_state

    assert config.before is not None
    assert config.after is not None
    after = read_state(config.after)
    after.check_usable()
    model, before = model_of(config, config.before)
    before = before or published(config.before)
    after = after.named(updates.names_of(model))
    _check_pair(model, before, after)
    where = str(config.after)
    moved = updates.difference(model, before.tensors if before else None, after.tensors, where=where)
    doubts = check_after(config.after, moved, model)
    moved = {name: tensor for name, tensor in moved.items() if name in model.trainable or tensor.any()}
    moved = _only_shared(config, model, moved)
    telling = telling_of(moved, model, kind="update")

    def shared(client: Client, known: SideInformation) -> SharedGradient:
        return updates.from_difference(model, moved, client=client, known=known, where=where)

    doubts += _parts_of(moved, model)
    return _told(config, model, secret, telling, shared, kind="update", doubts=doubts)


def _check_pair(model: TextModel, before: State | None, after: State) -> None:
    """Make sure that what two checkpoints have in common is all that is trained.

    Raises:
        InputError: adapters or a head that only the later one has.
    """
    if after.adapter is not None and (before is None or before.adapter is None):
        raise InputError(
            f"{after.path} is an adapter, and what was before it isn't one.",
            why="Its matrices are drawn when it is made, so what they were before the training can't be known.",
            fix="Save the adapter before the first step (model.save_pretrained(FOLDER)) and give that as --before.",
        )
    if before is None:
        return
    if after.adapter != before.adapter:
        raise InputError(
            f"{before.path} and {after.path} are not two states of one adapter.",
            why="Rank, targets or other options of theirs differ.",
            fix="Give the folders of one training.",
        )
    from textleak.clients.updates import names_of

    names = names_of(model)
    there = names.fit(before.tensors, str(before.path)).tensors
    later = names.fit(after.tensors, str(after.path)).tensors
    new = [name for name in later if name not in there]
    if new:
        raise InputError(
            f"{new[0]} is in {after.path} and not in {before.path}.",
            why="What it was before the training can't be known, so neither can its update, nor the loss.",
            fix="Save the model, with its head, before the first step: model.save_pretrained(FOLDER).",
        )


# An update by itself


def _is_gradient_file(config: AuditConfig) -> bool:
    """Whether textleak wrote it, with all that a server knows."""
    from textleak.shared.tensors import read_metadata

    assert config.gradients is not None
    if config.gradients.suffix.lower() != ".safetensors" or config.gradients.is_dir():
        return False
    try:
        return "textleak" in read_metadata(config.gradients)
    except (OSError, ValueError):
        return False  # whoever reads it says why it can't be read


def _from_file(config: AuditConfig, secret: Secret | None) -> Found:
    from textleak.clients import client_of, updates
    from textleak.models.base import Modality

    shared = read_gradient(config, Modality.TEXT)
    public, given = shared.model, config.model_fields_set
    if "model" in given:
        model, _ = model_of(config, config.model, public)
    else:
        model = load_named(config, **_by_file(config, public))
    shared = dataclasses.replace(shared, gradients=within(shared.gradients, config, model))
    client = client_of(shared.client)
    if model.trained is not None:  # its adapters are in place
        client = updates.without_adapters(client)
    if config.client:
        client = build_client(config)
    prepared = client.prepare(model)
    shared = dataclasses.replace(
        shared, client=client.public(prepared), gradients=_only_shared(config, prepared, shared.gradients)
    )
    shared.validate(prepared.parameters)
    sent = {name: tensor.to(model.device) for name, tensor in shared.gradients.items()}
    kind: Kind = "update" if updates.sends_weights(client) else "gradient"
    moved = updates.moved_by(client, sent, prepared)
    telling = telling_of(moved, prepared, kind=kind)
    shared = tell_less(_called(config, shared), config)
    if config.know is None:
        shared = dataclasses.replace(shared, known=with_shown(shared.known, telling))
    return Found(model=model, shared=shared, secret=secret, telling=telling, says_known=True)


def _by_file(config: AuditConfig, public: PublicModel) -> dict[str, Any]:
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG

    asked = asked_by_file(config, public, {*CATALOG, *BY_HUB_ID})
    task = config.task if "task" in config.model_fields_set else public.task
    return {**asked, "task": task, "num_labels": public.num_labels, "download": False}


def _from_state(config: AuditConfig, secret: Secret | None) -> Found:
    from textleak.clients import updates
    from textleak.inference import turned
    from textleak.shared.formats import read_state

    assert config.gradients is not None
    state = read_state(config.gradients)
    state.check_usable()
    check_no_adapter(state)
    if "model" not in config.model_fields_set:
        raise InputError(
            f"{config.gradients} doesn't say which model it is of.",
            why="A state dict is tensors by name, and no more.",
            fix="Name the model with the weights that it had: --model NAME or FOLDER.",
        )
    model, weights = model_of(config, config.model)
    where = str(config.gradients)
    client = build_client(config) if config.client else None
    kind: Kind | None = None
    if client is not None:
        kind = "update" if updates.sends_weights(client) else "gradient"
    prepared = client.prepare(model) if client else model
    state = state.named(updates.names_of(prepared))
    tensors = within(state.tensors, config, model)
    if config.layers is not None:  # the head may come along
        head = updates.names_of(prepared).fit(tensors, where).unknown
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    sent = updates.as_named(prepared, tensors, where=where)
    check_update(config.gradients, sent, model)
    doubts = drawn_here(model) if weights is None else ()
    if kind != "gradient" and turned(sent, model):
        sent = {name: -tensor for name, tensor in sent.items()}
        doubts += (_TURNED,)
    sent = _only_shared(config, model, sent)
    telling = telling_of(sent, model, kind=kind)
    if telling.moved and telling.kind is None:
        telling = _taken_for(sent, model)
        doubts += (_TAKEN_FOR[telling.kind or "gradient"],)
    doubts += _parts_of(sent, model)

    def shared(client: Client, known: SideInformation) -> SharedGradient:
        make = updates.from_difference if updates.sends_weights(client) else updates.from_gradients
        return make(model, sent, client=client, known=known, where=where)

    return _told(config, model, secret, telling, shared, kind=telling.kind, doubts=doubts)


def _parts_of(moved: Mapping[str, Tensor], model: TextModel) -> tuple[str, ...]:
    """What is said of texts of several parts that aren't read as such, where the parts' own embedding shows them."""
    if model.parts is not None:
        return ()
    tables = [table for name, table in moved.items() if _PARTS in name and table.dim() == 2]
    return (_IN_PARTS,) if any(bool(table[1:].any()) for table in tables) else ()


def _taken_for(sent: Mapping[str, Tensor], model: TextModel) -> Telling:
    """What was sent tells, whose kind doesn't show: as a gradient's, unless all moved alike, as by Adam alone."""
    as_update = telling_of(sent, model, kind="update")
    optimizer = next((one["value"] for one in as_update.told if one["what"] == "optimizer"), None)
    return as_update if optimizer == "adamw" else telling_of(sent, model, kind="gradient")


# What they share


def _told(
    config: AuditConfig,
    model: TextModel,
    secret: Secret | None,
    telling: Telling,
    shared: Callable[[Client, SideInformation], SharedGradient],
    *,
    kind: Kind | None,
    doubts: tuple[str, ...],
) -> Found:
    """An update whose client is the one that was said, or else what it tells; `shared` is what a client made it of."""
    client, notes = _client_of(config, model, telling, kind)
    known = known_of(config, secret, telling)
    other = _undropped(config, model, telling)
    return Found(
        model=model,
        shared=_called(config, shared(client, known)),
        secret=secret,
        telling=telling,
        notes=notes,
        doubts=doubts if other is None else (*doubts, _DROPOUT_COUNTED),
        undropped=None if other is None else _called(config, shared(other, known)),
        inferred=not config.client,
    )


def _client_of(
    config: AuditConfig, model: TextModel, telling: Telling, kind: str | None
) -> tuple[Client, tuple[str, ...]]:
    """How the client trains, as it was said, else as the update tells; and what had to be assumed."""
    if config.client:
        return build_client(config), ()
    specs = telling.client
    assumed = specs is None and kind == "update"
    if specs is None:
        specs = (_DROPOUT,) if telling.dropout else ()
        specs += (telling.nearest_steps or UNKNOWN_STEP,) if assumed else ()
    client = _chosen(model, specs)
    if not assumed:
        return client, ()
    return client, (
        f"How the weights were moved can't be told in full; taken for {specs[-1]}. --client says it.",
    )


def _undropped(config: AuditConfig, model: TextModel, telling: Telling) -> Client | None:
    """The client without dropout, where it was assumed to be on as nothing tells it."""
    if config.client or telling.dropout is not None or _DROPOUT not in (telling.client or ()):
        return None
    return _chosen(model, [spec for spec in telling.client or () if spec != _DROPOUT])


def _chosen(model: TextModel, specs: Sequence[str]) -> Client:
    from textleak.clients import updates

    client = chosen_client(map(Choice.model_validate, specs))
    # A model that was trained has its adapters in place.
    return client if model.trained is None else updates.without_adapters(client)


def _only_shared(config: AuditConfig, model: TextModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No more of an update than `--share` names."""
    from textleak.shared.choice import choose_shared

    if "share" not in config.model_fields_set:
        return dict(tensors)
    names = choose_shared(
        config.share, list(tensors), embeddings=model.embedding_names, attention=model.attention_names
    )
    return {name: tensors[name] for name in names}


def _called(config: AuditConfig, shared: SharedGradient) -> SharedGradient:
    """The same, with what it shares in the words of `--share` where they were given."""
    return dataclasses.replace(shared, share=config.share) if "share" in config.model_fields_set else shared
