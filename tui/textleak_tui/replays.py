"""The run folders of an evaluation's batches that were attacked again: an evaluation itself keeps no recordings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from textleak_tui.settings import Memory

if TYPE_CHECKING:
    from textleak.evaluation.records import Record

_KEPT = "replays"
# Our choice: of so many batches, the last ones, folders are remembered.
MOST = 500


def name_of(record: Record) -> str:
    """What a batch's run is remembered as: nothing of its sentences can be read from that."""
    told = f"{record.identity} {record.cell} {record.batch}"
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def folder_of(memory: Memory, record: Record) -> Path | None:
    """The run folder of a batch that was attacked again; None for none that is still there."""
    found = memory.texts(_KEPT).get(name_of(record))
    return Path(found) if found is not None and (Path(found) / "run.json").exists() else None


def keep(memory: Memory, name: str, folder: Path) -> None:
    """Remember the run folder of a batch."""
    kept = memory.texts(_KEPT)
    kept.pop(name, None)
    latest = list({**kept, name: str(folder.resolve())}.items())[-MOST:]
    memory.keep(_KEPT, dict(latest))
