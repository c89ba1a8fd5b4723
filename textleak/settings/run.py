"""The settings of `textleak run`, `image` and `share`: what a client does, and what an attack."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from textleak import foreign
from textleak.errors import InputError
from textleak.settings.base import (
    MOST_LABELS,
    MOST_RESTARTS,
    MOST_STEPS,
    DType,
    Seconds,
    Seed,
    Settings,
    TaskName,
    Threads,
    Word,
    flag,
    validated,
)
from textleak.settings.choices import Choice
from textleak.settings.presets import check_keys, client_kinds, lay_over, parse_assignment, read_preset
from textleak.shared.known import MOST_NUMBER, Label

Config = TypeVar("Config", "RunConfig", "ImageConfig", "ClientConfig", "PictureConfig")
DEFAULT_ATTACK, DEFAULT_IMAGE_ATTACK = "auto", "dlg"
# Bytes of a file of sentences (our choice): no batch that can be attacked is near it.
MOST_SENTENCES = 64 * foreign.MIB


def _label(value: object) -> object:
    """A label as a person writes it: 2, 3.5, or 0,1,1 for one that is several numbers."""
    if not isinstance(value, str):
        return value
    parts = tuple(_number(part.strip()) for part in value.split(","))
    if any(isinstance(part, float) and MOST_NUMBER < abs(part) < math.inf for part in parts):
        raise ValueError(f"a label is a number from {-MOST_NUMBER:,.0f} to {MOST_NUMBER:,.0f}")
    return parts if len(parts) > 1 else parts[0]


def _number(text: str) -> object:
    """The number, or the text itself for the settings to complain of."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class _ClientSettings(Settings):
    """What a client's settings have in common, whatever its batch is made of."""

    flags: ClassVar[Mapping[str, str]] = {
        "sentences": "--sentence",
        "images": "--image",
        "indices": "--index",
        "labels": "--label",
        "defenses": "--defense",
        **dict.fromkeys(("num_labels", "of_batch", "dtype", "size", "channels"), ""),
    }

    weights: Literal["auto", "pretrained", "random"] = "auto"
    labels: tuple[Label, ...] = ()
    share: Word = "all"
    client: tuple[Choice, ...] = ()
    defenses: tuple[Choice, ...] = ()
    know: Word | None = None
    seed: Seed = 0
    dtype: DType = "float32"
    device: Word = "auto"
    threads: Threads | None = None
    out: Path | None = None

    @field_validator("dtype", mode="before")
    @classmethod
    def _short_names(cls, value: object) -> object:
        return {"bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}.get(str(value), value)

    @field_validator("labels", mode="before")
    @classmethod
    def _one_label(cls, value: object) -> object:
        several = (value,) if isinstance(value, int | float | str) else value
        return tuple(map(_label, several)) if isinstance(several, Sequence) else several

    @field_validator("client", "defenses", mode="before")
    @classmethod
    def _one_or_several_choices(cls, value: object, info: ValidationInfo) -> object:
        several = (value,) if isinstance(value, str | Mapping) else value or ()
        if info.field_name != "client" or not isinstance(several, Sequence):
            return several
        return tuple(kind for one in several for kind in client_kinds(one))


class _AttackSettings(Settings):
    """What the settings of an attack have in common."""

    attack: Choice = Field(default_factory=lambda: Choice(name=DEFAULT_ATTACK))
    restarts: Annotated[int, Field(ge=1, le=MOST_RESTARTS)] | None = None
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    time_limit: Seconds | None = None
    gradients: Path | None = None
    truth: Path | None = None
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
        task: "auto", "classification", "causal-lm", "masked-lm", or a loss of a head's own: "regression",
            "multi-label", "token-classification", "question-answering".
        num_labels: classes of a classification head; None for the checkpoint's own, or 2.
        sentences: the private batch.
        file: a text file with one sentence a line, instead of `sentences`.
        labels: one class a sentence, or what the head's own loss takes; drawn from the seed where empty.
        share: "all", "no-embeddings", "attention" or an expression on parameter names.
        client: how the client trains: kinds that are composed in order; none for one plain step.
        defenses: what the client does before sharing, in order.
        know: what the attacker is told: "lengths,labels,batch-size" or "nothing"; None for the batch size,
            and the lengths too when there is one sentence.
        seed: splits into independent streams for weights, client, defense and attack.
        of_batch: draw what client, defense and attack draw as the batch of this number in an evaluation of the same
            seed does, counted from 0; None for a run of its own.
        dtype: precision of the model.
        device: "auto", "cpu", "cuda[:N]" or "mps".
        threads: CPU threads; None for the cores at hand.
    """

    model: Word = "bert-tiny"
    task: TaskName = "auto"
    num_labels: Annotated[int, Field(ge=2, le=MOST_LABELS)] | None = None
    sentences: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    file: Path | None = None
    of_batch: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None

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
            text = foreign.read(self.file, most=MOST_SENTENCES, pipes=True).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.file} can't be read as sentences.",
                why=str(error),
                fix="Give --file a UTF-8 text file with one sentence a line"
                + ("; standard input is /dev/stdin." if str(self.file) == "-" else "."),
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
        time_limit: seconds after which the attack's best answer so far counts; None for no limit but the attack's own.
        prior: language model that judges texts, for attacks that have one (`attack.prior`).
        gradients: attack a gradient read from this file instead of sentences.
        truth: what that gradient was computed from, for scoring.
        out: the run folder; None for a new one in the usual place.
        save_gradients: keep the shared gradient in the run folder.
        redact: no text, no token and no truth in any record.
        fail_above: exit code 3 when the token match rate is above it.
        layers: of a gradient file and its decoder's folder, read no more than the first so many layers; None for all.
    """

    prior: Word | None = None
    fail_above: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    layers: Annotated[int, Field(ge=1)] | None = None

    def attack_options(self) -> dict[str, Any]:
        """The attack's options, the prior included where one was given."""
        return {**super().attack_options(), **({} if self.prior is None else {"prior": self.prior})}


class PictureConfig(_ClientSettings):
    """What a client with pictures needs to compute a gradient: the settings that `image` and `share` have in common.

    Those that it shares with `ClientConfig` mean the same.

    Attributes:
        model: alias with its options, hub id or folder of an image classifier.
        num_labels: classes; None for 100, or for what a checkpoint has.
        size: height and width of a picture; None for the model's own.
        channels: 3, or 1 for gray pictures.
        images: picture files, the private batch.
        indices: or numbers of pictures in `dataset`; the first where none is given.
        dataset: "cifar100", "cifar10", "mnist" or a folder; None for the sample pictures.
    """

    model: Word = "lenet"
    num_labels: Annotated[int, Field(ge=2, le=MOST_LABELS)] | None = None
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    channels: Literal[1, 3] = 3
    images: tuple[Path, ...] = ()
    indices: tuple[int, ...] = ()
    dataset: Word | None = None

    @field_validator("labels")
    @classmethod
    def _classes(cls, value: tuple[Label, ...]) -> tuple[Label, ...]:
        if not all(isinstance(label, int) for label in value):
            raise ValueError("a picture's label is a class")
        return value

    @field_validator("images", "indices", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str | int | Path) else value


class ImageConfig(PictureConfig, _AttackSettings):
    """The settings of `textleak image`; those that it shares with `RunConfig` mean the same."""

    attack: Choice = Field(default_factory=lambda: Choice(name=DEFAULT_IMAGE_ATTACK))


def load_run_config(
    preset: str | None = None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> RunConfig:
    """Settings of a run from a preset, flags and `key=value` texts, later ones winning.

    Args:
        preset: a name under `configs/` or a path to a YAML file.
        flags: settings by name; those that are None or an empty list were not given.
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


def load_picture_config(
    preset: str | None = None, flags: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> PictureConfig:
    """Settings of `textleak share` for pictures: as `load_client_config`."""
    return _load(PictureConfig, preset, flags, assignments)


def _load(
    kind: type[Config],
    preset: str | None,
    flags: Mapping[str, Any] | None,
    assignments: Sequence[str],
) -> Config:
    default = DEFAULT_IMAGE_ATTACK if issubclass(kind, PictureConfig) else DEFAULT_ATTACK
    every = ImageConfig if issubclass(kind, PictureConfig) else RunConfig
    merged: dict[str, Any] = {}
    if preset is not None:
        from_file = read_preset(preset)
        check_keys(from_file, {**RunConfig.model_fields, **every.model_fields}, preset)
        kept = {key: value for key, value in from_file.items() if key in kind.model_fields}
        lay_over(merged, kept, default)
    given = {key: value for key, value in (flags or {}).items() if value not in (None, (), [])}
    lay_over(merged, given, default)
    for assignment in assignments:
        setting = parse_assignment(assignment)
        check_keys(setting, kind.model_fields, "--set")
        lay_over(merged, setting, default)
        of_attack = setting.get("attack")
        for key in ("restarts", "steps", "time_limit", "prior"):  # the same setting under its longer name
            if isinstance(of_attack, Mapping) and key in of_attack:
                merged.pop(key, None)
    config = validated(kind, merged)
    _check_batch(config)
    if isinstance(config, RunConfig | ImageConfig):
        _check_file(config, given)
    return config


def _check_file(config: RunConfig | ImageConfig, given: Mapping[str, Any]) -> None:
    """Raise where what a file fixes was given too, or a truth without a file."""
    if config.truth and not config.gradients:
        raise InputError(
            f"--truth {config.truth} was given without --gradients.",
            why=f"With {_samples(config)}s the truth is known already.",
            fix="Leave it out, or name the gradient file with --gradients.",
        )
    if isinstance(config, RunConfig) and config.layers is not None and not config.gradients:
        raise InputError(
            f"--layers {config.layers} was given without --gradients.",
            why="A client's gradient takes all layers.",
            fix="Leave it out, or name the gradient file with --gradients.",
        )
    if config.gradients and config.labels:
        raise InputError(
            "--label was given with --gradients.",
            why="The labels of a gradient in a file are fixed; an attack finds them.",
            fix="Leave --label out.",
        )
    for key in ("share", "client", "defenses") if config.gradients else ():
        if key in given:
            raise InputError(
                f"{flag(type(config), key)} was given with --gradients.",
                why="What the client shared, and how it defended it, is fixed in the file.",
                fix=f"Leave {flag(type(config), key)} out, or give it to `textleak share`.",
            )


def _check_batch(config: ClientConfig | PictureConfig) -> None:
    """Raise where there is no batch, or more than one."""
    of_pictures = isinstance(config, PictureConfig)
    own = ("images", "indices", "dataset") if of_pictures else ("sentences", "file")
    file = isinstance(config, _AttackSettings) and config.gradients is not None
    sources = [key for key in own if getattr(config, key)] + (["gradients"] if file else [])
    if not sources and not of_pictures:  # of pictures there are samples
        raise InputError(
            "There is nothing to attack."
            if isinstance(config, RunConfig)
            else "There is no sentence to share.",
            why="No sentence, file or gradient was given.",
            fix='Give --sentence "some text", --file PATH'
            + (" or --gradients FILE." if isinstance(config, RunConfig) else "."),
        )
    if len(sources) > 1 and (file or not of_pictures):  # pictures' own sources are judged where they are read
        raise InputError(
            f"{' and '.join(flag(type(config), key) for key in sources)} were given together.",
            why="A run has one batch.",
            fix="Choose one of them.",
        )


def _samples(config: Settings) -> str:
    return "picture" if isinstance(config, PictureConfig) else "sentence"
