"""One line that tells how far an attack or an evaluation is, for a script or a notebook: on stderr, gone at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from textleak.events import Followed, Phase, Recovery
from textleak.events import Progress as Step
from textleak.words import loss_in_words

if TYPE_CHECKING:
    from textleak.attacks.base import Steps
    from textleak.evaluation.records import Record


def watched(steps: Steps, *, console: Console | None = None) -> Recovery:
    """Drive an attack to its end with a bar of its phase, its steps and its loss.

    Args:
        steps: the attack.
        console: where to; None for stderr, or the cell of a notebook.
    """
    followed = Followed(steps)
    with _bar(console) as bar:
        task = bar.add_task("starting", total=None, said="")
        for event in followed:
            _shown(bar, task, event)
    return followed.result


def counted(records: Iterable[Record], total: int, *, console: Console | None = None) -> Iterator[Record]:
    """Hand on an evaluation's records as they come, with a bar of how many there are.

    Args:
        records: those to come.
        total: how many they are at most.
        console: as for `watched`.
    """
    with _bar(console) as bar:
        task = bar.add_task("batches", total=total, said="")
        for record in records:
            bar.update(task, advance=1, said=f"{record.cell.model} {record.cell.attack}")
            yield record


def _bar(console: Console | None) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    return Progress(*columns, console=console or Console(file=sys.stderr), transient=True)


def _shown(bar: Progress, task: TaskID, event: Phase | Step) -> None:
    if isinstance(event, Phase):
        bar.reset(task, description=event.name, total=None, said=event.detail)
        return
    said = event.detail or ("" if event.loss is None else f"loss {loss_in_words(event.loss)}")
    bar.update(task, description=event.phase or "attack", completed=event.step, total=event.steps, said=said)
