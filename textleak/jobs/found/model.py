"""The public model that an update is of, with the weights that it had before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textleak import foreign
from textleak.errors import InputError
from textleak.jobs.parts import asked_for
from textleak.settings.audit import AuditConfig

if TYPE_CHECKING:
    from textleak.models import TextModel
    from textleak.shared.formats import State
    from textleak.shared.public import PublicModel

_MOST_CONFIG = foreign.MIB
# What transformers calls the last layer of a ForSequenceClassification.
_CLASSIFIERS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
_HEADS = {
    "ForSequenceClassification": "classification",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}


def model_of(
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
        return load_named(config, **{"name": source, **told}), None
    if not path.exists() or path.suffix.lower() == ".gguf":
        if source == config.before:  # others than those that were trained would be no weights before
            told["weights"] = "pretrained"
        return load_named(config, **{"name": name or source, **told}), None
    state = read_state(path)
    state.check_usable()
    if state.adapter is not None:
        task = told["task"] if told["task"] != "auto" else state.adapter.task or "auto"
        base = load_named(config, **{**told, "name": name or _base_of(state), "task": task})
        return updates.with_adapter(base, state.adapter, state.tensors, where=path), state
    if name is None:
        if not (path / "config.json").is_file():
            raise InputError(
                f"{path} has weights and no configuration.",
                why="Which architecture they are of can't be told from their names.",
                fix="Name a model of that architecture, or its folder: --model NAME.",
            )
        task = told["task"] if told["task"] != "auto" else _task_in(path)
        return load_named(config, **{**told, "name": str(path), "task": task}), state
    if told["task"] in ("auto", "classification"):
        told["num_labels"] = told.get("num_labels") or _classes_in(state)
    model = load_named(config, **{"name": name, **told})
    state = state.named(updates.names_of(model))
    return updates.with_weights(model, state.tensors, where=str(path)), state


def published(name: str) -> State | None:
    """The weights that go by an alias or a hub id, as they are found; None of a .gguf file."""
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG
    from textleak.models.loading.places import find_place
    from textleak.shared.formats import read_state

    place, _ = find_place(name, CATALOG.get(name) or BY_HUB_ID.get(name), "pretrained")
    return None if place is None or place.gguf is not None else read_state(place.folder)


def load_named(config: AuditConfig, **told: Any) -> TextModel:  # noqa: ANN401 - fields of a request
    """A model by its name, with the tokenizer that the settings name."""
    from textleak.models.loading.memory import check_tokenizer
    from textleak.models.loading.text import TextRequest, load

    asked = {**asked_for(config), **told, "tokenizer": config.tokenizer, "layers": config.layers}
    model = load(TextRequest(**asked))
    check_tokenizer(model)
    return model


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
