"""How a cell's settings are told apart, named and put in order. Knows no figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from pydantic import ValidationError

from textleak.errors import InputError
from textleak.evaluation.records import Cell

# What distinguishes settings, in the order in which a reader wants to be told; seeds are pooled.
AXES = ("data", "model", "weights", "task", "share", "client", "batch_size", "defense", "know", "attack")
# Of these, who attacks: the attack and what it is told.
OPPONENT = ("know", "attack")
TITLES = {
    "data": "data",
    "model": "model",
    "weights": "weights",
    "task": "task",
    "share": "shared",
    "client": "client",
    "batch_size": "B",
    "defense": "defense",
    "know": "told",
    "attack": "attack",
}
Setting = tuple[Any, ...]
"""The values of a cell along `AXES`."""


def setting_of(cell: Cell, weights: str = "") -> Setting:
    """The cell's setting, whatever its seed; its weights as they were loaded, where that is known."""
    return tuple((axis == "weights" and weights) or getattr(cell, axis) for axis in AXES)


def value_of(setting: Setting, axis: str) -> Any:  # noqa: ANN401 - the axes' own types
    """The setting's value along an axis."""
    return setting[AXES.index(axis)]


def without(setting: Setting, *axes: str) -> Setting:
    """The setting but for some axes."""
    return tuple(value for axis, value in zip(AXES, setting, strict=True) if axis not in axes)


def varying(settings: Iterable[Setting]) -> tuple[str, ...]:
    """The axes along which settings differ."""
    listed = list(settings)
    return tuple(axis for axis in AXES if len({value_of(setting, axis) for setting in listed}) > 1)


def in_words(axis: str, value: Any) -> str:  # noqa: ANN401 - the axes' own types
    """A value as a table's cell shows it."""
    if axis in ("client", "defense"):
        return " + ".join(value) or ("none" if axis == "defense" else "one-step")
    return "by default" if value is None else str(value)


def told(setting: Setting, axis: str) -> str:
    """The setting's value along an axis as a table's cell shows it; a model says where its weights were random."""
    words = in_words(axis, value_of(setting, axis))
    return f"{words} (random)" if axis == "model" and value_of(setting, "weights") == "random" else words


def several_in_words(values: Iterable[object]) -> str:
    """What should have one value and may have had several: "2.13", "several (2.12, 2.13)", "–" for none."""
    words = list(dict.fromkeys(map(str, values)))
    return f"several ({', '.join(words)})" if len(words) > 1 else "".join(words) or "–"


def named(setting: Setting, axes: Collection[str]) -> str:
    """The setting in a few words, told by those axes; what needs no title goes without."""
    words = [
        _named(setting, axis)
        for axis in reversed(AXES)  # the attack first, as a sentence would
        if axis in axes
    ]
    return ", ".join(filter(None, words))


def _named(setting: Setting, axis: str) -> str:
    words, value = told(setting, axis), value_of(setting, axis)
    if axis == "defense":
        return words if value else "no defense"
    if axis == "know":
        return _told(value)
    if axis in ("attack", "model", "data"):
        return words
    return f"{TITLES[axis]} {'= ' if axis == 'batch_size' else ''}{words}"


def _told(know: str | None) -> str:
    """What an attack was told, "" for the usual."""
    kinds = [] if know is None else [kind.strip() for kind in know.split(",")]
    hidden = {"no-defense": "not told the defense", "no-client": "not told how the client trains"}
    told = [kind for kind in kinds if kind not in hidden]
    words = [f"told {' and '.join(told)}"] if told else []
    return ", ".join([*words, *(words for kind, words in hidden.items() if kind in kinds)])


def opponents(settings: Iterable[Setting], axes: Collection[str]) -> dict[Setting, str]:
    """Every attacker of some settings, by its values along `OPPONENT`, with its name."""
    shown = {"attack", *axes} & {*OPPONENT}
    return {opponent_of(setting): named(setting, shown) for setting in settings}


def opponent_of(setting: Setting) -> Setting:
    """Who attacks in a setting."""
    return tuple(value_of(setting, axis) for axis in OPPONENT)


def informed(opponent: Setting) -> Setting:
    """The same attacker, told of the defense."""
    know, attack = opponent
    kinds = [kind for kind in (know or "").split(",") if kind.strip() not in ("", "no-defense")]
    return (",".join(kinds) or None, attack)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strength:
    """A defense as its kind and how strong it is, so that those of one kind can be put in a row.

    Attributes:
        kind: names in order, with the options that are words: "gaussian", "clip + gaussian", "prune, random".
        levels: the options that say how strong, by a name that is unique in the kind.
    """

    kind: str
    levels: tuple[tuple[str, float | str], ...] = ()


# What `quantize` rounds to, coarser and coarser.
_GRIDS = ("fp16", "bf16", "int8")
# Options of which less is stronger.
_STRONG_WHEN_SMALL = {("clip", "max_norm"), ("dpsgd", "max_norm"), ("topk", "ratio")}
# What the defenses of `textleak.defenses` are without options: as there (a test compares), where torch is imported.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"max_norm": 1.0, "per": "all"},
    "dpsgd": {"max_norm": 1.0, "noise_multiplier": 1.0},
    "freeze": {"parameters": "embeddings"},
    "gaussian": {"sigma": 1e-3},
    "laplace": {"scale": 1e-3},
    "prune": {"ratio": 0.9, "which": "smallest"},
    "quantize": {"to": "int8", "rounding": "nearest"},
    "topk": {"ratio": 0.01},
}


def strength_of(defense: Sequence[str]) -> Strength:
    """Kind and strength of a defense from its specs, `name:key=value,...`, and from what is so by default."""
    kinds: list[str] = []
    levels: list[tuple[str, float | str]] = []
    for name, options in _parsed(defense):
        kind = name
        for key, value in sorted(options.items()):
            if _is_number(value) or value in _GRIDS:
                levels.append((f"{name} {key}" if len(defense) > 1 else key, value))
            elif value != DEFAULTS.get(name, {}).get(key):
                kind += f", {value}"
        kinds.append(kind)
    return Strength(kind=" + ".join(kinds), levels=tuple(levels))


def strength_order(defense: Sequence[str]) -> tuple[Any, ...]:
    """A key that sorts defenses: none first, then by kind, and within it from weak to strong."""
    levels = tuple(
        (key, _strength(name, key, value))
        for name, options in _parsed(defense)
        for key, value in sorted(options.items())
        if _is_number(value) or value in _GRIDS
    )
    return (bool(defense), strength_of(defense).kind, levels)


def _strength(name: str, key: str, value: Any) -> float:  # noqa: ANN401 - a number, or a grid's name
    if value in _GRIDS:
        return _GRIDS.index(value)
    return float(-value if (name, key) in _STRONG_WHEN_SMALL else value)


def same_defense(defense: Sequence[str]) -> tuple[Any, ...]:
    """What all ways of writing one defense have in common: `gaussian` is `gaussian:sigma=1e-3`, or `sigma=0.001`."""

    def written(value: object) -> str:
        return str(float(value) if _is_number(value) else value)

    return tuple(
        (name, *sorted((key, written(value)) for key, value in options.items()))
        for name, options in _parsed(defense)
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(defense: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of each spec, those of the defaults that it doesn't name among them."""
    from textleak.settings import Choice

    for spec in defense:
        try:
            choice = Choice.model_validate(spec)
        except (InputError, ValidationError):  # a package's own way of writing it
            yield spec, {}
        else:
            yield choice.name, {**DEFAULTS.get(choice.name, {}), **choice.options}
