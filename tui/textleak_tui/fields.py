"""What a run is set up with: its fields, and what each may hold.

No torch in here, as it runs under the user's fingers: what attacks and defenses there are comes from a
`Catalog`, which a child process lists.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from textleak import foreign
from textleak.errors import InputError, unknown_name
from textleak.models.loading.catalog import CATALOG, unknown_model
from textleak.settings.base import TASKS
from textleak.shared.known import NO_CLIENT, NO_DEFENSE, SideInformation
from textleak_tui.catalog import Catalog
from textleak_tui.field import Field, Option, fixed, known, whole
from textleak_tui.rare_fields import LABELS, REDACT, assignments_field, of_pictures, of_runs, preset_field


def check_model(text: str, _: Catalog) -> None:
    """An alias, a hub id, a folder or a file."""
    if not text:
        raise InputError("No model.", fix="Choose one, for example bert-tiny.")
    if text in CATALOG:
        return
    path = foreign.expanded(text)
    if path.exists():
        return
    if text.startswith(("/", "./", "../", "~")):
        raise InputError(f"{text} doesn't exist.", fix="Give a folder with a model in it, or an alias.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise unknown_model(text)


def check_attack(text: str, catalog: Catalog) -> None:
    """An attack that there is, with its options where it is given some."""
    names = [str(one["name"]) for one in catalog.attacks]
    if names and text.partition(":")[0] not in names:
        raise unknown_name("attack", text, names)
    _check_specs(text, "attack", catalog.attacks)


def check_share(text: str, _: Catalog) -> None:
    """A name, or an expression on parameter names."""
    try:
        re.compile(text)
    except re.error as error:
        raise InputError(
            f"{text!r} is no regular expression: {error}.", fix="Choose all, no-embeddings or attention."
        ) from None


def check_client(text: str, catalog: Catalog) -> None:
    """Kinds of client with their options, with blanks between them."""
    _check_specs(text, "client", catalog.clients)


def check_defense(text: str, catalog: Catalog) -> None:
    """Defenses with their options, with blanks between them."""
    _check_specs(text, "defense", catalog.defenses)


def _check_specs(text: str, kind: str, listed: Sequence[Mapping[str, Any]]) -> None:
    if not text:
        return
    from textleak.settings import Choice

    names = {str(one["name"]): one for one in listed}
    for spec in text.split():
        choice = Choice.model_validate(spec)
        if names and choice.name not in names:
            raise unknown_name(kind, choice.name, names)
        known = {str(one["name"]): one for one in names.get(choice.name, {}).get("options", ())}
        for key, value in choice.options.items():
            if known and key not in known:
                raise unknown_name(f"option of {kind} {choice.name}", key, known)
            numeric = bool(known) and str(known[key]["type"]) in ("float", "int")
            if numeric and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InputError(f"{key}={value} is not a number.", fix=f"Write {key}=0.01.")


def check_know(text: str, _: Catalog) -> None:
    """Kinds of side information, with commas between them."""
    SideInformation.parse(text or None, batch_size=1)


def _check_image_know(text: str, _: Catalog) -> None:
    SideInformation.parse(text or None, batch_size=1, kinds=SideInformation.PICTURE_KINDS)


def check_device(text: str, _: Catalog) -> None:
    """A device's name; whether it is there, the attack's process finds out."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise InputError(f"Unknown device {text!r}.", fix="Choose auto, cpu, cuda, cuda:0 or mps.")


def _models(_: Catalog) -> list[Option]:
    return [
        Option(
            name=entry.alias, words=f"{entry.model_type}, {entry.layers} layers, hidden {entry.hidden_size}"
        )
        for entry in CATALOG.values()
    ]


def _attacks(catalog: Catalog) -> list[Option]:
    return [Option(name=str(one["name"]), words=str(one.get("summary", ""))) for one in catalog.attacks]


def _clients(catalog: Catalog) -> list[Option]:
    # Their options have defaults that do; those of a defense say how strong it is.
    return [Option(name=str(one["name"]), words=str(one.get("summary", ""))) for one in catalog.clients]


def _defenses(catalog: Catalog) -> list[Option]:
    found = []
    for one in catalog.defenses:
        options = ",".join(
            f"{option['name']}={option['default']}"
            for option in one["options"]
            if option.get("default") is not None
        )
        name = str(one["name"]) + (f":{options}" if options else "")
        found.append(Option(name=name, words=str(one.get("summary", ""))))
    return found


def _check_time(text: str, _: Catalog) -> None:
    if text and not re.fullmatch(r"\d+(\.\d+)?\s*[smh]?", text):
        raise InputError(f"{text!r} is not a time.", fix="Write for example 90s, 10m or 1h.")


def _check_prior(text: str, _: Catalog) -> None:
    if text:
        check_model(text, _)


FIELDS = (
    Field(
        name="model",
        title="Model",
        flag="--model",
        words="an alias, a hub id (owner/name), or a folder",
        default="bert-tiny",
        options=_models,
        check=check_model,
    ),
    Field(
        name="weights",
        title="Weights",
        flag="--weights",
        words="pretrained ones where they can be had",
        default="auto",
        options=fixed(
            auto="pretrained where they can be had, else random",
            pretrained="pretrained or not at all",
            random="drawn from the seed",
        ),
        check=known("weights", ("auto", "pretrained", "random")),
    ),
    Field(
        name="task",
        title="Task",
        flag="--task",
        words="what the client trains the model for",
        default="auto",
        options=fixed(
            auto="what suits the model",
            classification="one class a sentence",
            causal_lm="each next token",
            masked_lm="tokens behind masks",
            regression="a number",
            multi_label="several classes a sentence",
            token_classification="a class of every token",
            question_answering="where an answer is",
        ),
        check=known("task", TASKS),
    ),
    Field(
        name="attack",
        title="Attack",
        flag="--attack",
        words="how the server goes about it",
        default="auto",
        options=_attacks,
        check=check_attack,
    ),
    Field(
        name="share",
        title="Share",
        flag="--share",
        words="which gradients the client shares; an expression on parameter names works too",
        default="all",
        options=fixed(
            all="every parameter's gradient",
            no_embeddings="without every embedding and the output head",
            attention="query, key and value alone",
        ),
        check=check_share,
    ),
    Field(
        name="client",
        title="Client",
        flag="--client",
        words="how the client trains; several kinds with blanks between",
        options=_clients,
        check=check_client,
        empty="one plain step",
    ),
    Field(
        name="defenses",
        title="Defense",
        flag="--defense",
        words="what the client does to them before; several with blanks between",
        options=_defenses,
        check=check_defense,
        empty="none",
    ),
    Field(
        name="know",
        title="Known",
        flag="--know",
        words="what the attacker is told: else the batch size, and one sentence's length",
        options=fixed(
            batch_size="how many sentences there are",
            nothing="nothing at all",
            **{
                "lengths,batch-size": "how long each is, too",
                "lengths,labels,batch-size": "and its class",
                NO_DEFENSE: "the usual, but not that there is a defense",
                NO_CLIENT: "the usual, but not how the client trains",
            },
        ),
        check=check_know,
        empty="the usual",
    ),
    Field(
        name="restarts",
        title="Restarts",
        flag="--restarts",
        words="candidates that are attacked at once",
        check=whole(1, "a number of candidates"),
        empty="the attack's own",
    ),
    Field(
        name="steps",
        title="Steps",
        flag="--steps",
        words="optimizer steps, at most",
        check=whole(1, "a number of steps"),
        empty="the attack's own",
    ),
    Field(
        name="time_limit",
        title="Time",
        flag="--time-limit",
        words="such as 90s or 10m; the best answer by then counts",
        check=_check_time,
        empty="the attack's own",
    ),
    Field(
        name="seed",
        title="Seed",
        flag="--seed",
        words="weights, client, defense and attack draw from it",
        default="0",
        check=whole(0, "a seed"),
    ),
    Field(
        name="device",
        title="Device",
        flag="--device",
        words="where the attack computes",
        default="auto",
        options=fixed(
            auto="a GPU where there is one", cpu="the processor", cuda="an NVIDIA GPU", mps="an Apple GPU"
        ),
        check=check_device,
    ),
    Field(
        name="threads",
        title="Threads",
        flag="--threads",
        words="CPU threads",
        check=whole(1, "a number of threads"),
        empty="the cores at hand",
    ),
    LABELS,
    Field(
        name="prior",
        title="Prior",
        flag="--prior",
        words="a language model that judges texts, for attacks that have one",
        options=_models,
        check=_check_prior,
        empty="the attack's own",
        rare=True,
    ),
    preset_field(),
    assignments_field(of_runs),
    REDACT,
)


def _check_image_model(text: str, catalog: Catalog) -> None:
    names = [str(one["name"]) for one in catalog.image_models]
    path = foreign.expanded(text)
    if names and text.partition(":")[0] not in names and not path.exists() and "/" not in text:
        raise unknown_name("image model", text, names)


def _check_image_attack(text: str, catalog: Catalog) -> None:
    check_attack(text, catalog)
    found = catalog.attack(text)
    if found is not None and not _reads_pictures(found):
        names = [str(one["name"]) for one in catalog.attacks if _reads_pictures(one)]
        raise InputError(f"{text} recovers text, not pictures.", fix=f"Choose {', '.join(names)}.")


def _image_models(catalog: Catalog) -> list[Option]:
    return [Option(name=str(one["name"]), words=str(one["summary"])) for one in catalog.image_models]


def _image_attacks(catalog: Catalog) -> list[Option]:
    return _attacks(Catalog(attacks=tuple(filter(_reads_pictures, catalog.attacks))))


def _reads_pictures(attack: Mapping[str, Any]) -> bool:
    return "pictures" in attack.get("reads", ())


def named(name: str, /, **changes: Any) -> Field:  # noqa: ANN401
    """A field of text runs as other kinds have it."""
    return dataclasses.replace(next(field for field in FIELDS if field.name == name), **changes)


def _check_file(text: str, _: Catalog) -> None:
    if text and not foreign.expanded(text).is_file():
        raise InputError(f"{text} is no file.", fix="Leave it empty, or name the file.")


def _check_audit_model(text: str, catalog: Catalog) -> None:
    if text:
        check_model(text, catalog)


AUDIT_FIELDS = (
    named(
        "model",
        words="for adapters the base model: an alias, a hub id or a folder",
        default="",
        check=_check_audit_model,
        empty="the file's own",
    ),
    named("task"),
    named("client", words="how the client trains, else what the update tells", empty="the update's own"),
    named("share", words="audit no more than this of it", default="", empty="all that is there"),
    named(
        "know", words="what the server knows besides: batch-size=2,lengths=12/9", empty="what the file says"
    ),
    Field(
        name="truth",
        title="Truth",
        flag="--truth",
        words="what it was computed from, for scoring only",
        check=_check_file,
        empty="not known",
    ),
    named("attack"),
    named("time_limit", empty="10m"),
    named("device"),
    named("threads"),
    REDACT,
)


IMAGE_FIELDS = (
    Field(
        name="dataset",
        title="Data set",
        flag="--dataset",
        words="where a number's picture is from",
        options=fixed(
            cifar100="CIFAR-100, from the cache or the hub",
            cifar10="CIFAR-10, likewise",
            mnist="MNIST, likewise",
        ),
        empty="sample pictures",
    ),
    named(
        "model",
        words="an image classifier: an alias, a hub id or a folder",
        default="lenet",
        options=_image_models,
        check=_check_image_model,
    ),
    named("weights"),
    named("attack", default="dlg", options=_image_attacks, check=_check_image_attack),
    named("share"),
    named("client"),
    named("defenses"),
    named(
        "know",
        words="what the attacker is told: else the batch size",
        options=fixed(
            batch_size="how many pictures there are",
            **{
                "labels,batch-size": "and their classes",
                "labels,batch-norm,batch-size": "and what the batch norms read",
                NO_DEFENSE: "the usual, but not that there is a defense",
                NO_CLIENT: "the usual, but not how the client trains",
            },
        ),
        check=_check_image_know,
    ),
    named("restarts"),
    named("steps", words="evaluations of each candidate, at most"),
    named("time_limit"),
    named("seed"),
    named("device"),
    named("threads"),
    named("labels", words="the true classes, one a picture, with blanks between"),
    preset_field(),
    assignments_field(of_pictures),
    REDACT,
)
