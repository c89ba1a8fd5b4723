"""What a run is asked to do: checked settings, YAML presets, and how they are laid over each other.

Defaults, then a preset (`-c NAME|PATH`), then flags, then `--set key=value`: the later wins. A key that
doesn't exist is an error with the nearest names. Knows nothing of models, tensors or attacks: an attack's or
defense's own options are checked where it is built.
"""

from __future__ import annotations

import difflib
import functools
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from textleak import foreign
from textleak.errors import InputError, unknown_name

Config = TypeVar("Config", bound="_ClientSettings")
Checked = TypeVar("Checked", bound="_Settings")
DEFAULT_ATTACK, DEFAULT_IMAGE_ATTACK = "match", "dlg"
EVALUATIONS = "evaluations"
# Bytes of a file (our choices): no batch that can be attacked is near the first, no preset near the second.
MOST_SENTENCES, MOST_PRESET = 64 * foreign.MIB, foreign.MIB
DType = Literal["float32", "float64", "bfloat16"]


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but for 1e-3, which it takes for a text as it has no dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Settings):
    """A named attack or defense with its own options; also written as a text, `name[:key=value,...]`."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_text_or_flat_mapping(cls, value: Any) -> Any:  # noqa: ANN401 - pydantic hands over anything
        return _named(_choice(value))

    @property
    def spec(self) -> str:
        """As it is written on a command line, where it is read as the same choice again."""
        listed = ",".join(f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{self.name}:{listed}" if listed else self.name


class AttackChoice(Choice):
    """An attack of an evaluation; `limit`, written among its options, gives it fewer sentences than the others."""

    limit: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text_or_flat_mapping(cls, value: Any) -> Any:  # noqa: ANN401 - as above
        chosen = _named(_choice(value))
        if not isinstance(chosen, Mapping):
            return chosen
        options = dict(chosen["options"])
        return {**chosen, "options": options, "limit": options.pop("limit", None)}


class _ClientSettings(_Settings):
    """What a client's settings have in common, whatever its batch is made of."""

    weights: Literal["auto", "pretrained", "random"] = "auto"
    labels: tuple[int, ...] = ()
    share: str = "all"
    client: tuple[Choice, ...] = ()
    defenses: tuple[Choice, ...] = ()
    know: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: DType = "float32"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    out: Path | None = None

    @field_validator("dtype", mode="before")
    @classmethod
    def _short_names(cls, value: object) -> object:
        return {"bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}.get(str(value), value)

    @field_validator("labels", mode="before")
    @classmethod
    def _one_label(cls, value: object) -> object:
        return (value,) if isinstance(value, int | str) else value

    @field_validator("client", "defenses", mode="before")
    @classmethod
    def _one_or_several_choices(cls, value: object) -> object:
        return (value,) if isinstance(value, str | Mapping) else value or ()


class _AttackSettings(_Settings):
    """What the settings of an attack have in common."""

    attack: Choice = Field(default_factory=lambda: Choice(name=DEFAULT_ATTACK))
    restarts: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    save_gradients: bool = False
    redact: bool = False

    def attack_options(self) -> dict[str, Any]:
        """The attack's options, K and steps included where they were given."""
        given = {"restarts": self.restarts, "steps": self.steps}
        return {**self.attack.options, **{key: value for key, value in given.items() if value is not None}}


class ClientConfig(_ClientSettings):
    """What a client needs to compute a gradient: the settings that `run` and `share` have in common.

    Attributes:
        model: alias, hub id, folder, or folder and .gguf file.
        weights: "auto" takes pretrained weights if they can be had, else random ones.
        task: "auto", "classification", "causal-lm" or "masked-lm".
        num_labels: classes of a classification head.
        sentences: the private batch.
        file: a text file with one sentence a line, instead of `sentences`.
        labels: one class a sentence; drawn from the seed where empty.
        share: "all", "no-embeddings", "attention" or an expression on parameter names.
        client: how the client trains: kinds that are composed in order; none for one plain step.
        defenses: what the client does before sharing, in order.
        know: what the attacker is told: "lengths,labels,batch-size" or "nothing"; None for the batch size,
            and the lengths too when there is one sentence.
        seed: splits into independent streams for weights, client, defense and attack.
        dtype: precision of the model.
        device: "auto", "cpu", "cuda[:N]" or "mps".
        threads: CPU threads; None for the cores at hand.
    """

    model: str = "bert-tiny"
    task: Literal["auto", "classification", "causal-lm", "masked-lm"] = "auto"
    num_labels: Annotated[int, Field(ge=2)] = 2
    sentences: tuple[str, ...] = ()
    file: Path | None = None

    @field_validator("sentences", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def batch(self) -> tuple[str, ...]:
        """The sentences, from the file where one is named (blank lines left out).

        Raises:
            InputError: no such file, not text, or no sentence in it.
        """
        if self.file is None:
            return self.sentences
        try:
            text = foreign.read(self.file, most=MOST_SENTENCES, pipes=True).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.file} can't be read as sentences.",
                why=str(error),
                fix="Give --file a UTF-8 text file with one sentence a line.",
            ) from None
        sentences = tuple(line.strip() for line in io.StringIO(text, newline=None) if line.strip())
        if not sentences:
            raise InputError(f"{self.file} has no sentence in it.", fix="Write one sentence a line.")
        return sentences


class RunConfig(ClientConfig, _AttackSettings):
    """The settings of `textleak run`.

    Attributes:
        attack: its name and its own options (`--set attack.KEY=VALUE`).
        restarts: candidates attacked at once, K; None for the attack's own default.
        steps: at most so many; None for the attack's own default.
        prior: language model that judges texts, for attacks that have one (`attack.prior`).
        gradients: attack a gradient read from this file instead of sentences.
        truth: what that gradient was computed from, for scoring.
        out: the run folder; None for a new one in the usual place.
        save_gradients: keep the shared gradient in the run folder.
        redact: no text, no token and no truth in any record.
        fail_above: exit code 3 when the token match rate is above it.
    """

    prior: str | None = None
    gradients: Path | None = None
    truth: Path | None = None
    fail_above: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None

    def attack_options(self) -> dict[str, Any]:
        """The attack's options, the prior included where one was given."""
        return {**super().attack_options(), **({} if self.prior is None else {"prior": self.prior})}


class ImageConfig(_ClientSettings, _AttackSettings):
    """The settings of `textleak image`; those that it shares with `RunConfig` mean the same.

    Attributes:
        model: alias with its options, hub id or folder of an image classifier.
        num_labels: classes; None for 100, or for what a checkpoint has.
        size: height and width of a picture; None for the model's own.
        channels: 3, or 1 for gray pictures.
        images: picture files, the private batch.
        indices: or numbers of pictures in `dataset`; the first where none is given.
        dataset: "cifar100", "cifar10", "mnist" or a folder; None for the sample pictures.
    """

    model: str = "lenet"
    num_labels: Annotated[int, Field(ge=2)] | None = None
    size: Annotated[int, Field(ge=1)] | None = None
    channels: Literal[1, 3] = 3
    images: tuple[Path, ...] = ()
    indices: tuple[int, ...] = ()
    dataset: str | None = None
    attack: Choice = Field(default_factory=lambda: Choice(name=DEFAULT_IMAGE_ATTACK))

    @field_validator("images", "indices", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str | int | Path) else value


Names = Annotated[tuple[str, ...], Field(min_length=1)]


class EvaluationConfig(_Settings):
    """The settings of `textleak eval`: those with several values span the grid.

    Attributes:
        data: names of data sets, or files.
        column: the column of the sentences; None for `sentence` or `text`.
        label_column: the column of their classes; None for `label` where there is one, else they are drawn.
        limit: sentences of each data set, the first ones; an attack may have a lower one of its own.
        max_words: longer sentences are left out.
        batch_size: sentences in a batch, B.
        model: as for `run`; likewise `weights`, `task`, `num_labels`, `dtype`, `device` and `threads`.
        attack: names with their options and `limit`.
        share: what is shared.
        client: how the client trains: each is one cell's, several kinds composed with a plus, or `one-step`.
        defense: each is one cell's, several defenses in order: `clip:max_norm=1+gaussian:sigma=1e-3`, or `none`.
        know: what the attacker is told; None or "default" for the default.
        seed: of everything that is drawn.
        time_limit: seconds after which an attack's best answer so far counts; None for no limit.
        out: the folder of the records; None for one of its own for these settings.
    """

    data: Names = ("sample",)
    column: str | None = None
    label_column: str | None = None
    limit: Annotated[int, Field(ge=1)] = 20
    max_words: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1,)
    model: Names = ("bert-tiny",)
    weights: Literal["auto", "pretrained", "random"] = "auto"
    task: Literal["auto", "classification", "causal-lm", "masked-lm"] = "auto"
    num_labels: Annotated[int, Field(ge=2)] = 2
    attack: Annotated[tuple[AttackChoice, ...], Field(min_length=1)] = Field(
        default_factory=lambda: (AttackChoice(name=DEFAULT_ATTACK),)
    )
    share: Names = ("all",)
    client: Annotated[tuple[tuple[Choice, ...], ...], Field(min_length=1)] = ((),)
    defense: Annotated[tuple[tuple[Choice, ...], ...], Field(min_length=1)] = ((),)
    know: Annotated[tuple[str | None, ...], Field(min_length=1)] = (None,)
    seed: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    time_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    dtype: DType = "float32"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    out: Path | None = None

    @field_validator("data", "share", "know", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if value is None or isinstance(value, str) else value

    @field_validator("know", mode="after")
    @classmethod
    def _default(cls, values: tuple[str | None, ...]) -> tuple[str | None, ...]:
        return tuple(None if value == "default" else value for value in values)

    @field_validator("batch_size", "model", "seed", "attack", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """One, several, or several in a text with commas (which an attack's options have too)."""
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        found: list[object] = []
        for one in values:
            split = isinstance(one, str) and ":" not in one
            found += [part.strip() for part in str(one).split(",") if part.strip()] if split else [one]
        return tuple(found)

    @field_validator("client", "defense", mode="before")
    @classmethod
    def _composed(cls, value: object, info: ValidationInfo) -> object:
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        return tuple(_composition(one, str(info.field_name)) for one in values)

    @field_validator("attack")
    @classmethod
    def _one_limit_each(cls, choices: tuple[AttackChoice, ...]) -> tuple[AttackChoice, ...]:
        limits: dict[str, int | None] = {}
        for choice in choices:
            if limits.setdefault(choice.spec, choice.limit) != choice.limit:
                raise InputError(
                    f"The attack {choice.spec} was given with more than one limit.",
                    why="A batch that both of them have would be recorded once.",
                    fix="Name it once, with the larger limit.",
                )
        return choices

    @field_validator("data", "batch_size", "model", "attack", "share", "client", "defense", "know", "seed")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple({_name_of(value): value for value in values}.values())


def _name_of(value: object) -> object:
    """What a value of the grid is told by in the records."""
    if isinstance(value, tuple):
        return tuple(map(_name_of, value))
    return value.spec if isinstance(value, Choice) else value


def _composition(value: object, kind: str) -> object:
    """One cell's clients or defenses, in order, from `a:x=1+b`, `none`, `one-step`, one mapping or a list."""
    if value is None or value in ("none", "one-step"):
        return ()
    if isinstance(value, str):
        return tuple(
            part.strip() for part in _split(value, _PLUS, functools.partial(_begins_choice, kind=kind))
        )
    return (value,) if isinstance(value, Mapping | Choice) else value


def parse_defense(value: object) -> tuple[Choice, ...]:
    """One cell's defenses, as `EvaluationConfig.defense` has them.

    Raises:
        InputError: nothing that says a defense.
    """
    return _validated(EvaluationConfig, {"defense": [value]}).defense[0]


def parse_attack(value: object) -> AttackChoice:
    """One attack, as `EvaluationConfig.attack` has them.

    Raises:
        InputError: nothing that says an attack.
    """
    first, *others = _validated(EvaluationConfig, {"attack": [value]}).attack
    if others:
        raise InputError(f"{value!r} is more than one attack.", fix="Name one.")
    return first


def _begins_choice(before: str, after: str, *, kind: str) -> bool:
    """Whether a plus between two texts separates choices: it may also belong to an expression or to 1e+3."""
    if ":" not in before:
        return True  # no name has a plus in it
    name = re.match(r"\s*([\w.-]+)\s*(?=(:\s*\w+\s*=)|[:+]|$)", after)
    return name is not None and (name[2] is not None or name[1] in _registered(kind))


def _registered(kind: str) -> list[str]:
    """Names of the clients or defenses there are."""
    if kind == "client":
        from textleak.clients import CLIENTS

        return list(CLIENTS)
    from textleak.defenses import DEFENSES

    return list(DEFENSES)


def load_evaluation_config(
    preset: str | None = None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> EvaluationConfig:
    """Settings of `textleak eval`: as `load_run_config`, presets under `configs/evaluations/`."""
    merged: dict[str, Any] = {}
    if preset is not None:
        merged |= read_preset(preset, folder=EVALUATIONS)
        _check_keys(merged, EvaluationConfig.model_fields, preset)
    merged |= {key: value for key, value in (flags or {}).items() if value not in (None, (), [], "")}
    for assignment in assignments:
        setting = parse_assignment(assignment)
        _check_keys(setting, EvaluationConfig.model_fields, "--set")
        for key in ("attack", "client", "defense"):
            if isinstance(setting.get(key), Mapping) and "name" not in setting[key]:
                raise InputError(
                    f"--set {assignment} can't be used.",
                    why=f"An evaluation may have several {key}s, each with its own options.",
                    fix=f"Write them with its name: --{key} NAME:KEY=VALUE.",
                )
        merged |= setting
    return _validated(EvaluationConfig, merged)


def load_run_config(
    preset: str | None = None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> RunConfig:
    """Settings of a run from a preset, flags and `key=value` texts, later ones winning.

    Args:
        preset: a name under `configs/` or a path to a YAML file.
        flags: settings by name; those that are None or empty were not given.
        assignments: as `--set` takes them; dotted keys reach inside, values are YAML.

    Raises:
        InputError: an unknown preset or key (with the nearest names), a value that can't be used, or settings
            that contradict each other.
    """
    return _load(RunConfig, preset, flags, assignments)


def load_image_config(
    preset: str | None = None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> ImageConfig:
    """Settings of `textleak image`: as `load_run_config`."""
    return _load(ImageConfig, preset, flags, assignments)


def load_client_config(
    preset: str | None = None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> ClientConfig:
    """Settings of `textleak share`: as `load_run_config`; what a preset says of an attack is passed over."""
    return _load(ClientConfig, preset, flags, assignments)


def _load(
    kind: type[Config],
    preset: str | None,
    flags: Mapping[str, Any] | None,
    assignments: Sequence[str],
) -> Config:
    default = DEFAULT_IMAGE_ATTACK if kind is ImageConfig else DEFAULT_ATTACK
    merged: dict[str, Any] = {}
    if preset is not None:
        from_file = read_preset(preset)
        _check_keys(from_file, {**RunConfig.model_fields, **kind.model_fields}, preset)
        kept = {key: value for key, value in from_file.items() if key in kind.model_fields}
        _lay_over(merged, kept, default)
    given = {key: value for key, value in (flags or {}).items() if value not in (None, (), [], "")}
    _lay_over(merged, given, default)
    for assignment in assignments:
        setting = parse_assignment(assignment)
        _check_keys(setting, kind.model_fields, "--set")
        _lay_over(merged, setting, default)
        of_attack = setting.get("attack")
        for key in ("restarts", "steps", "prior"):  # the same setting under its longer name
            if isinstance(of_attack, Mapping) and key in of_attack:
                merged.pop(key, None)
    config = _validated(kind, merged)
    if isinstance(config, ClientConfig):
        _check_batch(config)
    if isinstance(config, RunConfig) and config.gradients:
        for key in ("share", "client", "defenses"):
            if key in given:
                raise InputError(
                    f"{_flag(key)} was given with --gradients.",
                    why="What the client shared, and how it defended it, is fixed in the file.",
                    fix=f"Leave {_flag(key)} out, or give it to `textleak share`.",
                )
    return config


def _check_batch(config: ClientConfig) -> None:
    """Raise where the settings contradict each other."""
    sources = ["sentences"] if config.sentences else []
    sources += ["file"] if config.file else []
    if isinstance(config, RunConfig):
        sources += ["gradients"] if config.gradients else []
        if config.truth and not config.gradients:
            raise InputError(
                f"--truth {config.truth} was given without --gradients.",
                why="With sentences the truth is known already.",
                fix="Leave it out, or name the gradient file with --gradients.",
            )
        if config.gradients and config.labels:
            raise InputError(
                "--label was given with --gradients.",
                why="The labels of a gradient in a file are fixed; an attack finds them.",
                fix="Leave --label out.",
            )
    if not sources:
        raise InputError(
            "There is nothing to attack."
            if isinstance(config, RunConfig)
            else "There is no sentence to share.",
            why="No sentence, file or gradient was given.",
            fix='Give --sentence "some text", --file PATH'
            + (" or --gradients FILE." if isinstance(config, RunConfig) else "."),
        )
    if len(sources) > 1:
        raise InputError(
            f"{' and '.join(sources)} were given together.",
            why="A run has one batch.",
            fix="Choose one of them.",
        )


# Where a batch may come from: naming one sets aside what a layer below named.
_SOURCES = frozenset({"sentences", "file", "gradients"})


def _lay_over(below: dict[str, Any], above: Mapping[str, Any], default_attack: str) -> None:
    """Put `above` over `below`; an attack's options stay only while the attack does."""
    if _SOURCES & above.keys():
        for key in (_SOURCES | {"truth", "labels"}) - above.keys():
            below.pop(key, None)
    for key, value in above.items():
        if key != "attack":
            below[key] = value
            continue
        new = _choice(value)
        old = below.get("attack", {})
        if not isinstance(new, Mapping):
            below[key] = value
            continue
        same = "name" not in new or new["name"] == old.get("name", default_attack)
        options = {**(old.get("options", {}) if same else {}), **new.get("options", {})}
        name = new.get("name", old.get("name", default_attack))
        below[key] = {"name": name, "options": options}


def _choice(value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a flag held
    """A choice as `{"name": ..., "options": {...}}`, from a text or from options beside the name."""
    if isinstance(value, str):
        name, _, rest = value.partition(":")
        pairs = [part for part in _split(rest, _BETWEEN_OPTIONS) if part.strip()]
        return {"name": name.strip(), "options": dict(_key_and_value(part) for part in pairs)}
    if isinstance(value, Mapping):
        fields = {key: item for key, item in value.items() if key in ("name", "options")}
        options = {key: item for key, item in value.items() if key not in fields}
        return {**fields, "options": {**(fields.get("options") or {}), **options}}
    return value


def _named(chosen: Any) -> Any:  # noqa: ANN401 - what `_choice` gives
    """Refuse options without a name."""
    if isinstance(chosen, Mapping) and "name" not in chosen:
        options = chosen["options"]
        raise InputError(
            f"{options!r} has no name of an attack or defense.",
            fix="Write NAME:KEY=VALUE, or {name: NAME, KEY: VALUE}.",
        )
    return chosen


def parse_assignment(text: str) -> dict[str, Any]:
    """`a.b=value` as `{"a": {"b": value}}`; the value is YAML.

    Raises:
        InputError: no equals sign, no key, or a value that isn't YAML.
    """
    dotted, value = _key_and_value(text)
    setting: Any = value
    for part in reversed(dotted.split(".")):
        if not part:
            raise InputError(f"--set {text!r} has an empty key.", fix="Write KEY=VALUE, for example seed=1.")
        setting = {part: setting}
    assert isinstance(setting, dict)
    return setting


# A quoted value as YAML writes it, passed over in the search for what separates options.
_QUOTED = r"""(?<=[=\s\[{,:])(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")"""
# A comma before another option or the end; any other belongs to a value, as in an expression's {0,1}.
_BETWEEN_OPTIONS = re.compile(rf"{_QUOTED}|(,)(?=\s*(?:[\w.-]+\s*=|,|$))")


_PLUS = re.compile(rf"{_QUOTED}|(\+)")


def _split(
    text: str, separator: re.Pattern[str], separates: Callable[[str, str], bool] = lambda _, __: True
) -> list[str]:
    """The parts between the matches of a pattern's first group, where these do separate what is before and after."""
    parts, begin = [], 0
    for match in separator.finditer(text):
        if match[1] and separates(text[begin : match.start()], text[match.end() :]):
            parts.append(text[begin : match.start()])
            begin = match.end()
    return [*parts, text[begin:]]


def _written(value: object) -> str:
    """An option's value as it is read back: plain where that does, else quoted."""
    ways = [str(value)]
    try:
        for style in ("'", '"') if isinstance(value, str) and value.isprintable() else ('"',):
            ways.append(yaml.safe_dump(value, default_style=style, width=math.inf).strip())
        ways.insert(1, yaml.safe_dump(value, default_flow_style=True, width=math.inf).partition("\n")[0])
    except yaml.YAMLError:  # nothing that a file could hold
        return ways[0]
    return next((way for way in ways if _reads_as(way, value)), ways[-1])


def _reads_as(text: str, value: object) -> bool:
    """Whether a written value is read back, with another option behind it and in a row of defenses."""
    if text == value and re.search(r"""\+\s*[^\W\d]|(?:^|[=\s\[{,:])['"]""", text):
        return False  # a plus may begin another defense, a quotation mark would go on into the next option
    try:
        options = _choice(f"x:a={text},b=0")["options"]
    except InputError:
        return False
    plain = list(value) if isinstance(value, tuple) else value
    found = options.get("a")
    return (
        options.keys() == {"a", "b"} and found == plain and isinstance(found, bool) == isinstance(plain, bool)
    )


def _key_and_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{text!r} is not KEY=VALUE.", fix="Write for example attack.span_proposals=false.")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"The value of {text!r} can't be read.", why=f"{error}.") from None
    return key.strip(), parsed


def presets_folder() -> Path:
    """Where presets lie: inside the installed package, else in the checkout beside it."""
    installed = Path(str(files("textleak") / "configs"))
    return installed if installed.is_dir() else installed.parent.parent / "configs"


def preset_names(folder: str = "") -> list[str]:
    """Names that `-c` takes: file names without their ending, with the folder where they lie in one.

    Args:
        folder: "evaluations" for those of `textleak eval`, "" for all others.
    """
    root = presets_folder()
    names = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return [name for name in names if name.startswith(f"{EVALUATIONS}/") == (folder == EVALUATIONS)]


def read_preset(name: str, folder: str = "") -> dict[str, Any]:
    """The settings in a preset.

    Args:
        name: a name of `preset_names`, its last part, or a path to a YAML file.
        folder: as for `preset_names`.

    Raises:
        InputError: unknown (with the nearest names), unreadable, or not a mapping.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        known = preset_names(folder)
        found = [candidate for candidate in known if name in (candidate, candidate.rpartition("/")[2])]
        if not found:
            raise unknown_name(
                "config", name, known or ["(none)"], fix="Give one of the presets, or a path to a YAML file."
            )
        path = presets_folder() / f"{found[0]}.yaml"
    try:
        content = yaml.load(foreign.read(path, most=MOST_PRESET).decode("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The config {path} can't be read.", why=str(error)) from None
    if not isinstance(content, dict):
        raise InputError(
            f"The config {path} holds no settings.", fix="Write `key: value` lines, for example seed: 1."
        )
    return {str(key): value for key, value in content.items()}


def _check_keys(settings: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in settings:
        if key not in known:
            raise _unknown_setting(key, known, where)


def _unknown_setting(key: str, known: Iterable[str], where: str) -> InputError:
    written = "with its name, -a NAME:KEY=VALUE" if "batch_size" in known else "attack.KEY"
    fix = f"An attack's own options are written {written}; `textleak attacks NAME` lists them."
    return unknown_name(f"setting{where and f' in {where}'}", key, known, fix=fix)


def _validated(kind: type[Checked], settings: Mapping[str, Any]) -> Checked:
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise _unknown_setting(str(first["loc"][-1]), kind.model_fields, "") from None
        value = first.get("input")
        fix = ""
        if first["type"] == "literal_error":
            allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
            near = difflib.get_close_matches(str(value), allowed, n=2, cutoff=0.4)
            fix = f"Did you mean {' or '.join(near)}?" if near else ""
        message = str(first["msg"])
        raise InputError(f"{_flag(key)} can't be {value!r}.", why=f"{message}.", fix=fix) from None


def _flag(key: str) -> str:
    """A setting as a person knows it."""
    names = {
        "sentences": "--sentence",
        "labels": "--label",
        "defenses": "--defense",
        "images": "--image",
        "indices": "--index",
    }
    first = key.partition(".")[0]
    known = {*RunConfig.model_fields, *names, "dataset"}
    if first in ("num_labels", "dtype") or (first == key and first not in known):
        return f"The setting {key}"
    return names.get(first, f"--{first.replace('_', '-')}")
