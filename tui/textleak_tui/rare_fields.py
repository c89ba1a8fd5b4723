"""Fields that stand below the others: true labels, a preset, any setting by its name, records without texts."""

from __future__ import annotations

from collections.abc import Callable, Collection

from textleak.errors import InputError
from textleak_tui.catalog import Catalog
from textleak_tui.field import Field, Option, fixed, known


def _check_labels(text: str, _: Catalog) -> None:
    for one in text.split():
        if not (one.isascii() and one.isdigit()):
            raise InputError(f"{one!r} is not a class.", fix="Write a number a sentence, for example 1 0.")


def preset_field(folder: str = "") -> Field:
    """The field of a preset.

    Args:
        folder: of `configs/` that they lie in; "" for those of a run.
    """

    def names(_: Catalog) -> list[Option]:
        from textleak.settings import preset_names

        return [Option(name=name.rpartition("/")[2]) for name in preset_names(folder)]

    def check(text: str, _: Catalog) -> None:
        from textleak.settings import read_preset

        if text:
            read_preset(text, folder)

    return Field(
        name="preset",
        title="Preset",
        flag="--config",
        words="settings from a file, for fields that are as they were at first",
        options=names,
        check=check,
        empty="none",
        rare=True,
    )


def assignments_field(settings: Callable[[], Collection[str]]) -> Field:
    """The field of any other settings.

    Args:
        settings: names of those that there are.
    """

    def check(text: str, _: Catalog) -> None:
        from textleak.settings.presets import check_keys, parse_assignment

        for one in text.split():
            check_keys(parse_assignment(one), settings(), "--set")

    return Field(
        name="assignments",
        title="Set",
        flag="--set",
        words="any setting by its name: attack.lr=0.1 num_labels=3",
        check=check,
        empty="nothing more",
        rare=True,
    )


def of_runs() -> Collection[str]:
    """The settings of a run on text, by name."""
    from textleak.settings import RunConfig

    return RunConfig.model_fields


def of_pictures() -> Collection[str]:
    """The settings of a run on pictures, by name."""
    from textleak.settings import ImageConfig

    return ImageConfig.model_fields


YES, NO = "yes", "no"
REDACT = Field(
    name="redact",
    title="Redact",
    flag="--redact",
    words="no text, no token and no truth in any record",
    default=NO,
    options=fixed(no="records hold what was found", yes="no text, no token and no truth in any record"),
    check=known("answer", (YES, NO)),
    rare=True,
)
LABELS = Field(
    name="labels",
    title="Labels",
    flag="--label",
    words="the true classes, one a sentence, with blanks between",
    check=_check_labels,
    empty="from the seed",
    rare=True,
    private=True,
)
