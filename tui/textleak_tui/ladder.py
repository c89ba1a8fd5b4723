"""One defense in growing strength: which option grows, its rungs, and the run that each rung is.

No process and no screen in here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from textleak.errors import InputError
from textleak_tui.catalog import Catalog
from textleak_tui.field import Option
from textleak_tui.setups import command_line

NONE = "none"
MOST_RUNGS = 12
# Where a strength of 0 is no defense at all, and the defense itself refuses it or changes nothing.
_ZERO_IS_NONE = (("gaussian", "sigma"), ("laplace", "scale"), ("prune", "ratio"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knob:
    """A defense and the option of it that makes the ladder.

    Attributes:
        defense: its name.
        option: the option's name; "" for a defense that is on or off.
        numeric: whether the option is a number.
        choices: what it may be where it isn't.
        default: the defense's own.
        words: what the option is.
    """

    defense: str
    option: str = ""
    numeric: bool = False
    choices: tuple[str, ...] = ()
    default: float | None = None
    words: str = ""

    @property
    def name(self) -> str:
        """As a person chooses it."""
        return f"{self.defense} {self.option}".strip()

    def suggested(self) -> tuple[str, ...]:
        """Rungs to begin with, the undefended run first."""
        if not self.option:
            return (NONE, "on")
        if not self.numeric:
            return (NONE, *self.choices)
        default = self.default or 1.0
        # Our choice: a power of ten to each side of the defense's own; for a share near 1, of what is left of it.
        steps: tuple[float, ...] = (default / 10, default, default * 10)
        if 0.5 <= default < 1:
            left = 1 - default
            steps = (1 - 5 * left, default, 1 - left / 10)
        elif self.option == "ratio":
            steps = (default * 10, default, default / 10)
        return (NONE, *(f"{step:.6g}" for step in steps))

    def spec(self, strength: str) -> str | None:
        """What `--defense` takes for a rung; None for the undefended run."""
        if strength == NONE:
            return None
        if not self.option:
            return self.defense
        zero = self.numeric and float(strength) == 0 and (self.defense, self.option) in _ZERO_IS_NONE
        return None if zero else f"{self.defense}:{self.option}={strength}"


def knobs(catalog: Catalog) -> list[Knob]:
    """Every option that can make a ladder: numbers, and names to choose from; and defenses without options."""
    found = []
    for defense in catalog.defenses:
        of_this = [knob for option in defense["options"] if (knob := _knob(str(defense["name"]), option))]
        if not defense["options"]:
            words = str(defense.get("summary", ""))
            of_this = [Knob(defense=str(defense["name"]), words=words)]
        found += of_this
    return found


def _knob(defense: str, option: Mapping[str, Any]) -> Knob | None:
    kinds = [kind.strip() for kind in str(option.get("type", "")).split("|")]
    choices = re.findall(r"'([^']+)'", str(option.get("type", "")))
    default = option.get("default")
    words = str(option.get("doc") or "")
    if {"float", "int"} & set(kinds):
        number = (
            float(default) if isinstance(default, int | float) and not isinstance(default, bool) else None
        )
        if number is None:  # it is for another purpose, such as accounting
            return None
        return Knob(defense=defense, option=str(option["name"]), numeric=True, default=number, words=words)
    if choices:
        return Knob(defense=defense, option=str(option["name"]), choices=tuple(choices), words=words)
    return None


def knob_named(catalog: Catalog, name: str) -> Knob:
    """The knob that a person chose.

    Raises:
        InputError: there is none of that name.
    """
    known = knobs(catalog)
    wanted = name.split()
    for knob in known:
        if knob.name.split() == wanted or (len(wanted) == 1 and knob.defense == wanted[0]):
            return knob
    if not known:
        raise InputError("What defenses there are is still being asked.", fix="Wait a moment.")
    names = [knob.name for knob in known]
    raise InputError(f"Unknown defense {name!r}.", fix=f"Choose one of {', '.join(names)}.")


def knob_options(catalog: Catalog) -> list[Option]:
    """The knobs as names to choose from."""
    return [Option(name=knob.name, words=knob.words) for knob in knobs(catalog)]


def strengths(knob: Knob, text: str) -> list[str]:
    """The rungs that a person wrote, with commas between.

    Raises:
        InputError: none, too many, or one that isn't a number or a choice.
    """
    found = list(dict.fromkeys(part.strip() for part in re.split(r"[,\s]+", text) if part.strip()))
    if not found:
        raise InputError("The ladder has no rung.", fix=f"Write for example {', '.join(knob.suggested())}.")
    if len(found) > MOST_RUNGS:
        raise InputError(f"{len(found)} rungs are too many.", fix=f"Write at most {MOST_RUNGS}.")
    for strength in found:
        if strength == NONE:
            continue
        if knob.numeric:
            try:
                float(strength)
            except ValueError:
                raise InputError(
                    f"{strength!r} is not a number.", fix="Write for example 0.001, or none."
                ) from None
        elif strength not in (knob.choices or ("on",)):
            raise InputError(
                f"{strength!r} is not one of {', '.join(knob.choices or ('on',))}.",
                fix="none is without the defense.",
            )
    return found


def with_rung(values: Mapping[str, str], knob: Knob, strength: str) -> dict[str, str]:
    """A form's texts for a rung; other defenses that were set up stay, before this one."""
    defenses = [values.get("defenses", "").strip(), knob.spec(strength) or ""]
    return {**values, "defenses": " ".join(filter(None, defenses))}


def command_lines(
    sentences: Sequence[str], values: Mapping[str, str], knob: Knob, rungs: Sequence[str]
) -> list[str]:
    """The ladder as command lines, one a rung."""
    return [command_line(sentences, with_rung(values, knob, rung)) for rung in rungs]


def verdict(knob: Knob, rates: Sequence[tuple[str, float]], unrun: Sequence[str] = ()) -> str:
    """What the ladder says, in a sentence; of strengths that did not run it says no more than that.

    Args:
        knob: what grows.
        rates: the match rate at each strength that has one, in the ladder's order.
        unrun: strengths without one.
    """
    if not rates:
        return "No run of the ladder has a match rate."
    told = _verdict(
        knob, rates, "every strength that ran" if unrun else "every strength", open_end=bool(unrun)
    )
    return f"{told} Nothing is known of {', '.join(unrun)}." if unrun else told


def _verdict(knob: Knob, rates: Sequence[tuple[str, float]], every: str, *, open_end: bool) -> str:
    halved = next((strength for strength, rate in rates if rate < 0.5 and strength != NONE), None)
    whole = [strength for strength, rate in rates if rate == 1.0]
    if len(whole) == len(rates):
        return f"{knob.name} kept nothing back: all of the text leaked at {every}."
    if halved is None:
        least, rate = min(rates, key=lambda pair: pair[1])
        return f"At {every} at least half of the text leaked; least at {least}, {rate:.0%}."
    onward = not open_end and all(rate < 0.5 for rate in _after(rates, halved))
    words = f"From {halved} on" if onward else f"At {halved}"
    rate = dict(rates)[halved]
    return f"{words} less than half of the text leaked: {rate:.0%} at {halved}."


def _after(rates: Sequence[tuple[str, float]], strength: str) -> list[float]:
    names = [name for name, _ in rates]
    return [rate for _, rate in rates[names.index(strength) :]]
