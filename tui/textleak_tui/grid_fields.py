"""What an evaluation is set up with: as a run, but most fields hold several values, with blanks between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from textleak.errors import InputError, unknown_name
from textleak_tui import fields
from textleak_tui.catalog import Catalog
from textleak_tui.field import Field
from textleak_tui.fields import named
from textleak_tui.rare_fields import assignments_field, preset_field

# What stands for no defense and for the plain client among several.
NONE, ONE_STEP = "none", "one-step"


def _each(check: Callable[[str, Catalog], None]) -> Callable[[str, Catalog], None]:
    def check_all(text: str, catalog: Catalog) -> None:
        for one in text.split():
            check(one, catalog)

    return check_all


def _composed(check: Callable[[str, Catalog], None], nothing: str) -> Callable[[str, Catalog], None]:
    def check_one(text: str, catalog: Catalog) -> None:
        if text != nothing:
            check(text.replace("+", " "), catalog)

    return _each(check_one)


def _check_numbers(text: str, _: Catalog) -> None:
    for one in text.split():
        if not one.isascii() or not one.isdigit() or int(one) < 1:
            raise InputError(f"{one!r} is not a number of sentences.", fix="Write for example 1 4.")


def _check_seeds(text: str, _: Catalog) -> None:
    for one in text.split():
        if not one.isascii() or not one.isdigit():
            raise InputError(f"{one!r} is not a seed.", fix="Write for example 0 1 2.")


def check_data(names: Sequence[str]) -> None:
    """At least one data set.

    Raises:
        InputError: there is none.
    """
    if not names:
        raise unknown_name("data set", "", ("sample", "cola", "sst2", "rotten_tomatoes"))


def _settings() -> Collection[str]:
    from textleak.settings import EvaluationConfig

    return EvaluationConfig.model_fields


GRID_FIELDS = (
    named(
        "model", words="what the client trains; several with blanks between", check=_each(fields.check_model)
    ),
    named("weights"),
    named("task"),
    named("attack", words="how the server goes about it; several", check=_each(fields.check_attack)),
    named("share", words="what is shared; several", check=_each(fields.check_share)),
    named(
        "client",
        words="how the client trains: each is a cell's, kinds of one with a plus",
        check=_composed(fields.check_client, ONE_STEP),
    ),
    named(
        "defenses",
        name="defense",
        words=f"each is a cell's, several of one with a plus; {NONE} for none",
        check=_composed(fields.check_defense, NONE),
    ),
    named("know", words="what the attacker is told; several", check=_each(fields.check_know)),
    Field(
        name="batch_size",
        title="Batch",
        flag="--batch-size",
        words="sentences in a batch; several",
        default="1",
        check=_check_numbers,
    ),
    Field(
        name="limit",
        title="Sentences",
        flag="--limit",
        words="of each data set, the first ones",
        default="20",
        check=_check_numbers,
    ),
    named("seed", words="of all that is drawn; several", check=_check_seeds),
    named(
        "time_limit",
        words="for a batch, such as 90s or 10m; the best answer by then counts",
        empty="none",
    ),
    named("device"),
    named("threads"),
    preset_field("evaluations"),
    assignments_field(_settings),
)
# Those that span the grid.
SEVERAL = ("model", "attack", "share", "client", "defense", "know", "batch_size", "seed", "assignments")
