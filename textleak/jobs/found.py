"""An update as people have it: which model it is of, under which names, and what the server makes of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textleak import foreign
from textleak.errors import InputError
from textleak.jobs.files import asked_by_file, drawn_here, read_gradient, tell_less, within
from textleak.jobs.parts import asked_for, build_client, chosen_client
from textleak.jobs.telling import Kind, Telling, telling_of
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

# What a step of unknown size is taken for, where nothing says how the weights were moved: its direction is right.
_UNKNOWN_STEP = "fedavg:optimizer=sgd,lr=0.01,steps=1"
_MOST_CONFIG = foreign.MIB
# What transformers calls the last layer of a ForSequenceClassification.
_CLASSIFIERS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
_HEADS = {
    "ForSequenceClassification": "classification",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}


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
    """

    model: TextModel
    shared: SharedGradient
    secret: Secret | None
    telling: Telling
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


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
    model, before = _model(config, config.before)
    before = before or _published(config.before)
    _check_pair(model, before, after)
    where = str(config.after)
    moved = updates.difference(model, before.tensors if before else None, after.tensors, where=where)
    moved = {name: tensor for name, tensor in moved.items() if name in model.trainable or tensor.any()}
    moved = _only_shared(config, model, moved)
    telling = telling_of(moved, model, kind="update")
    client, notes = _client_of(config, model, telling, "update")
    known = _known(config, secret, telling)
    shared = updates.from_difference(model, moved, client=client, known=known, where=where)
    return Found(model=model, shared=_called(config, shared), secret=secret, telling=telling, notes=notes)


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
        model, _ = _model(config, config.model, public)
    else:
        model = _load(config, **_by_file(config, public))
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
    moved = updates.moved_by(client, sent, prepared) if kind == "update" else sent
    telling = telling_of(moved, prepared, kind=kind)
    shared = tell_less(_called(config, shared), config)
    if config.know is None:
        shared = dataclasses.replace(shared, known=with_shown(shared.known, telling))
    return Found(model=model, shared=shared, secret=secret, telling=telling)


def _by_file(config: AuditConfig, public: PublicModel) -> dict[str, Any]:
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG

    asked = asked_by_file(config, public, {*CATALOG, *BY_HUB_ID})
    task = config.task if "task" in config.model_fields_set else public.task
    return {**asked, "task": task, "num_labels": public.num_labels, "download": False}


def _from_state(config: AuditConfig, secret: Secret | None) -> Found:
    from textleak.clients import updates
    from textleak.shared.formats import read_state

    assert config.gradients is not None
    state = read_state(config.gradients)
    state.check_usable()
    if "model" not in config.model_fields_set:
        raise InputError(
            f"{config.gradients} doesn't say which model it is of.",
            why="A state dict is tensors by name, and no more.",
            fix="Name the model with the weights that it had: --model NAME or FOLDER.",
        )
    model, weights = _model(config, config.model)
    where = str(config.gradients)
    client = build_client(config) if config.client else None
    kind: Kind | None = None
    if client is not None:
        kind = "update" if updates.sends_weights(client) else "gradient"
    prepared = client.prepare(model) if client else model
    tensors = within(state.tensors, config, model)
    if config.layers is not None:  # the head may come along
        head = updates.names_of(prepared).fit(tensors, where).unknown
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    sent = updates.as_named(prepared, tensors, where=where)
    sent = _only_shared(config, model, sent)
    telling = telling_of(sent, model, kind=kind)
    client, notes = _client_of(config, model, telling, telling.kind)
    known = _known(config, secret, telling)
    make = updates.from_difference if updates.sends_weights(client) else updates.from_gradients
    shared = make(model, sent, client=client, known=known, where=where)
    return Found(
        model=model,
        shared=_called(config, shared),
        secret=secret,
        telling=telling,
        notes=notes,
        doubts=drawn_here(model) if weights is None else (),
    )


# Parts


def _client_of(
    config: AuditConfig, model: TextModel, telling: Telling, kind: str | None
) -> tuple[Client, tuple[str, ...]]:
    """How the client trains, as it was said, else as the update tells; and what had to be assumed."""
    from textleak.clients import updates

    if config.client:
        return build_client(config), ()
    specs = telling.client
    assumed = specs is None and kind == "update"
    if specs is None:
        specs = ("train-mode",) if telling.dropout else ()
        specs += (telling.nearest_steps or _UNKNOWN_STEP,) if assumed else ()
    client = chosen_client(map(Choice.model_validate, specs))
    if model.trained is not None:  # its adapters are in place
        client = updates.without_adapters(client)
    if not assumed:
        return client, ()
    return client, (
        f"How the weights were moved can't be told in full; taken for {specs[-1]}. --client says it.",
    )


def _model(
    config: AuditConfig, source: str, public: PublicModel | None = None
) -> tuple[TextModel, State | None]:
    """The public model, and its weights as they were found; None for these where it goes by a name.

    Args:
        config: the settings.
        source: where its weights are: a folder, a file, an adapter's folder, an alias, a hub id.
        public: what a gradient file says of it.

    Raises:
        InputError: it can't be loaded, or the architecture has to be named besides.
    """
    from textleak.clients import updates
    from textleak.shared.formats import read_state

    path = foreign.expanded(source)
    name = config.model if "model" in config.model_fields_set and source != config.model else None
    told: dict[str, Any] = {} if public is None else {"num_labels": public.num_labels, "task": public.task}
    told["task"] = config.task if config.task != "auto" else told.get("task", "auto")
    if config.layers is not None:  # what is found beside them isn't read
        return _load(config, **{"name": source, **told}), None
    if not path.exists() or path.suffix.lower() == ".gguf":
        if source == config.before:  # others than those that were trained would be no weights before
            told["weights"] = "pretrained"
        return _load(config, **{"name": name or source, **told}), None
    state = read_state(path)
    state.check_usable()
    if state.adapter is not None:
        task = told["task"] if told["task"] != "auto" else state.adapter.task or "auto"
        base = _load(config, **{**told, "name": name or _base_of(state), "task": task})
        return updates.with_adapter(base, state.adapter, state.tensors, where=path), state
    if name is None:
        if not (path / "config.json").is_file():
            raise InputError(
                f"{path} has weights and no configuration.",
                why="Which architecture they are of can't be told from their names.",
                fix="Name a model of that architecture, or its folder: --model NAME.",
            )
        task = told["task"] if told["task"] != "auto" else _task_in(path)
        return _load(config, **{**told, "name": str(path), "task": task}), state
    if told["task"] in ("auto", "classification"):
        told["num_labels"] = told.get("num_labels") or _classes_in(state)
    return updates.with_weights(
        _load(config, **{"name": name, **told}), state.tensors, where=str(path)
    ), state


def _published(name: str) -> State | None:
    """The weights that go by an alias or a hub id, as they are found; None of a .gguf file."""
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG
    from textleak.models.loading.places import find_place
    from textleak.shared.formats import read_state

    place, _ = find_place(name, CATALOG.get(name) or BY_HUB_ID.get(name), "pretrained")
    return None if place is None or place.gguf is not None else read_state(place.folder)


def _base_of(state: State) -> str:
    """The base model that an adapter's file names: an alias, or the folder that the adapter's own is in."""
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG

    assert state.adapter is not None
    name = state.adapter.base
    if (
        name == ".." and (state.path.parent / "config.json").is_file()
    ):  # as recorders write it: beside its base
        return str(state.path.parent)
    if name in CATALOG or name in BY_HUB_ID:
        return str(name)
    raise InputError(
        f"The adapter in {state.path} is of {name!r}, which no file can have loaded."
        if name
        else f"The adapter in {state.path} doesn't say of which model it is.",
        why="It could be anything from anywhere: a file has only an alias loaded (`textleak models`).",
        fix="Name the base model yourself, if you trust it: --model NAME or FOLDER.",
    )


def _classes_in(state: State) -> int | None:
    """How many classes the head of a state dict tells apart; None where it has none for as many as two."""
    from textleak.shared.formats import plain_name

    heads = [
        t for name, t in state.tensors.items() if plain_name(name).endswith(_CLASSIFIERS) and t.dim() == 2
    ]
    return len(heads[0]) if heads and len(heads[0]) > 1 else None


def _task_in(folder: Path) -> str:
    """The task that the head of a folder's checkpoint is for; "auto" where its configuration doesn't say."""
    try:
        kinds = json.loads(foreign.read(folder / "config.json", most=_MOST_CONFIG))["architectures"]
        kind = str(kinds[0])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "auto"
    return next((task for ending, task in _HEADS.items() if kind.endswith(ending)), "auto")


def _load(config: AuditConfig, **told: Any) -> TextModel:  # noqa: ANN401 - fields of a request
    """A model by its name, with the tokenizer that the settings name."""
    from textleak.models.loading.memory import check_tokenizer
    from textleak.models.loading.text import TextRequest, load

    asked = {**asked_for(config), **told, "tokenizer": config.tokenizer, "layers": config.layers}
    model = load(TextRequest(**asked))
    check_tokenizer(model)
    return model


def _known(config: AuditConfig, secret: Secret | None, telling: Telling) -> SideInformation:
    """What the server knows of the batch: what --know says it is, else the truth of what it names, else what shows.

    Raises:
        InputError: a number that isn't one, or something that nothing says.
    """
    from pydantic import ValidationError

    from textleak import typed
    from textleak.shared.known import UNTOLD, SideInformation

    names, values = _values(config.know)
    if secret is not None:
        told = SideInformation.parse(names, batch_size=len(secret.ids))
        true = SideInformation(
            batch_size=len(secret.ids), lengths=tuple(map(len, secret.ids)), labels=secret.labels
        )
        known = true.only(told)
    else:
        known = UNTOLD if config.know is not None else _shown(telling)
        told = SideInformation.parse(names, batch_size=0) if config.know is not None else frozenset()
    for kind in sorted(told - {*values} - {*known.told}):
        raise InputError(
            f"--know {kind} can't be told.",
            why="Neither the update nor a truth file says it.",
            fix=f"Say what it is, --know {kind}={'12' if kind == 'batch-size' else '12/9'}, or give --truth FILE.",
        )
    plain = {name.replace("-", "_"): value for name, value in values.items()}
    try:
        return typed.adapter(SideInformation).validate_python({**dataclasses.asdict(known), **plain})
    except ValidationError as error:
        raise InputError(
            f"--know {config.know!r} can't be used.",
            why=f"{error.errors()[0]['msg']}.",
            fix="Write batch-size=2,lengths=12/9,labels=0/1, or names alone with --truth FILE.",
        ) from None


def _shown(telling: Telling) -> SideInformation:
    """What an update tells of its batch's size."""
    from textleak.shared.known import SideInformation

    one = telling.sentences == 1 and telling.tokens is not None
    return SideInformation(
        batch_size=telling.sentences, lengths=(telling.tokens,) if one and telling.tokens else None
    )


def with_shown(known: SideInformation, telling: Telling) -> SideInformation:
    """What a file says that a server knows, and of the batch's size what the update tells besides."""
    shown = _shown(telling)
    said = {known.batch_size, *(len(one) for one in (known.lengths, known.labels) if one is not None)}
    if shown.batch_size is None or not said <= {None, shown.batch_size}:  # equal sentences show once
        return known
    return dataclasses.replace(known, batch_size=shown.batch_size, lengths=known.lengths or shown.lengths)


def _values(know: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """The names in a --know text, and the values that it gives to some."""
    if know is None:
        return None, {}
    names, values = [], {}
    for part in know.split(","):
        name, is_given, value = (word.strip() for word in part.partition("="))
        names.append(name)
        if is_given:
            values[name] = value if name == "batch-size" else value.split("/")
    return ",".join(names), values


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
