"""The settings of `textleak eval`: lists that span a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from textleak.errors import InputError
from textleak.settings.base import (
    MOST_LABELS,
    DType,
    Seconds,
    Seed,
    Settings,
    TaskName,
    Threads,
    Word,
    validated,
)
from textleak.settings.choices import AttackChoice, Choice, composition
from textleak.settings.presets import EVALUATIONS, check_keys, parse_assignment, read_preset
from textleak.settings.run import DEFAULT_ATTACK

Names = Annotated[tuple[Word, ...], Field(min_length=1)]


class EvaluationConfig(Settings):
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

    flags: ClassVar[Mapping[str, str]] = dict.fromkeys(("num_labels", "dtype"), "")

    data: Names = ("sample",)
    column: Word | None = None
    label_column: Word | None = None
    limit: Annotated[int, Field(ge=1)] = 20
    max_words: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1,)
    model: Names = ("bert-tiny",)
    weights: Literal["auto", "pretrained", "random"] = "auto"
    task: TaskName = "auto"
    num_labels: Annotated[int, Field(ge=2, le=MOST_LABELS)] | None = None
    attack: Annotated[tuple[AttackChoice, ...], Field(min_length=1)] = Field(
        default_factory=lambda: (AttackChoice(name=DEFAULT_ATTACK),)
    )
    share: Names = ("all",)
    client: Annotated[tuple[tuple[Choice, ...], ...], Field(min_length=1)] = ((),)
    defense: Annotated[tuple[tuple[Choice, ...], ...], Field(min_length=1)] = ((),)
    know: Annotated[tuple[Word | None, ...], Field(min_length=1)] = (None,)
    seed: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    time_limit: Seconds | None = None
    dtype: DType = "float32"
    device: Word = "auto"
    threads: Threads | None = None
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
            found += [part.strip() for part in str(one).split(",")] if split else [one]
        return tuple(found)

    @field_validator("client", "defense", mode="before")
    @classmethod
    def _composed(cls, value: object, info: ValidationInfo) -> object:
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        return tuple(composition(one, str(info.field_name)) for one in values)

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


def parse_defense(value: object) -> tuple[Choice, ...]:
    """One cell's defenses, as `EvaluationConfig.defense` has them.

    Raises:
        InputError: nothing that says a defense.
    """
    return validated(EvaluationConfig, {"defense": [value]}).defense[0]


def parse_client(value: object) -> tuple[Choice, ...]:
    """One cell's client, as `EvaluationConfig.client` has it.

    Raises:
        InputError: nothing that says a client.
    """
    return validated(EvaluationConfig, {"client": [value]}).client[0]


def parse_attack(value: object) -> AttackChoice:
    """One attack, as `EvaluationConfig.attack` has them.

    Raises:
        InputError: nothing that says an attack.
    """
    first, *others = validated(EvaluationConfig, {"attack": [value]}).attack
    if others:
        raise InputError(f"{value!r} is more than one attack.", fix="Name one.")
    return first


def load_evaluation_config(
    preset: str | None = None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> EvaluationConfig:
    """Settings of `textleak eval`: as `load_run_config`, presets under `configs/evaluations/`."""
    merged: dict[str, Any] = {}
    if preset is not None:
        merged |= read_preset(preset, folder=EVALUATIONS)
        check_keys(merged, EvaluationConfig.model_fields, preset)
    merged |= {key: value for key, value in (flags or {}).items() if value not in (None, (), [])}
    for assignment in assignments:
        setting = parse_assignment(assignment)
        check_keys(setting, EvaluationConfig.model_fields, "--set")
        for key in ("attack", "client", "defense"):
            if isinstance(setting.get(key), Mapping) and "name" not in setting[key]:
                raise InputError(
                    f"--set {assignment} can't be used.",
                    why=f"An evaluation may have several {key}s, each with its own options.",
                    fix=f"Write them with its name: --{key} NAME:KEY=VALUE.",
                )
        merged |= setting
    return validated(EvaluationConfig, merged)
