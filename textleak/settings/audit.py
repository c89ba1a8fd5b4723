"""The settings of `textleak audit`: an update that was found, what is known of it, and how long an attack may take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from textleak.errors import InputError
from textleak.settings.base import Seconds, Word, validated
from textleak.settings.choices import Choice
from textleak.settings.run import RunConfig

TIME_LIMIT = (
    600.0  # seconds (our choice: long enough for what `auto` reads off outright on models of this size)
)
_PAGES = (".html", ".htm", ".md")


class AuditConfig(RunConfig):
    """The settings of `textleak audit`; those that it shares with `RunConfig` mean the same.

    Attributes:
        gradients: the update: a gradient file, or a state dict of gradients or differences.
        before: or the weights before: a checkpoint's or an adapter's folder, a file, an alias or a hub id,
        after: and those after: a folder or a file.
        tokenizer: alias, hub id or folder of the tokenizer, where the model's folder has none.
        report: a page that is written of it.
    """

    flags: ClassVar[Mapping[str, str]] = {**RunConfig.flags, "gradients": "UPDATE"}

    attack: Choice = Field(default_factory=lambda: Choice(name="auto"))
    before: Word | None = None
    after: Path | None = None
    tokenizer: Word | None = None
    time_limit: Seconds | None = TIME_LIMIT
    report: Path | None = None


def load_audit_config(flags: Mapping[str, Any]) -> AuditConfig:
    """Settings of an audit from the command's flags.

    Args:
        flags: settings by name; those that are None or an empty list were not given.

    Raises:
        InputError: a value that can't be used, no update, or more than one.
    """
    given = {key: value for key, value in flags.items() if value not in (None, (), [])}
    config = validated(AuditConfig, given)
    if (config.before is None) != (config.after is None):
        there, missing = ("--before", "--after") if config.after is None else ("--after", "--before")
        raise InputError(
            f"{there} was given without {missing}.",
            why="An update is what moved between two checkpoints.",
            fix="Give both, or an update by itself: textleak audit UPDATE.",
        )
    if (config.gradients is None) == (config.before is None):
        raise InputError(
            "There is nothing to audit."
            if config.before is None
            else "An update was given, and two checkpoints.",
            why="An audit is of one update.",
            fix="Give the file of one, textleak audit UPDATE, or two checkpoints: --before A --after B.",
        )
    if config.layers is not None and config.before is not None:
        raise InputError(
            f"--layers {config.layers} was given with two checkpoints.",
            why="It is for the file of one update, which may have the first layers alone.",
            fix="Leave it out, or give the update: textleak audit UPDATE --model FOLDER --layers N.",
        )
    if config.report is not None and config.report.suffix.lower() not in _PAGES:
        raise InputError(
            f"--report {config.report} is neither a page nor Markdown.",
            why="Its ending says what is written.",
            fix="Name a file that ends in .html or .md.",
        )
    return config
