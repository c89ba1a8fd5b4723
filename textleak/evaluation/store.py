"""The folder of an evaluation: `evaluation.json` (settings, identity, versions) and `records.jsonl`, a record a line.

Each line is flushed and synced before the next batch counts as done, and appended under a lock, so that a kill at any
moment loses at most the batch in flight and two processes on one folder write no record twice.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from textleak import foreign, owned, runs
from textleak.errors import InputError, TextleakError, unwritten
from textleak.evaluation.grid import Key, key_of
from textleak.evaluation.records import Record, from_json, to_json

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationFolder:
    """An evaluation's files."""

    path: Path

    @property
    def settings_path(self) -> Path:
        """Settings, identity, how many batches there are, versions, machine."""
        return self.path / runs.EVALUATION_FILE

    @property
    def records_path(self) -> Path:
        """One record a line."""
        return self.path / "records.jsonl"

    def facts(self) -> dict[str, Any]:
        """What `evaluation.json` says.

        Raises:
            InputError: there is none, or it can't be read.
        """
        try:
            facts = json.loads(foreign.read(self.settings_path))
            if not isinstance(facts.get("settings"), dict) or not isinstance(facts.get("identity"), str):
                raise TypeError("it has no settings")
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{self.path} is not the folder of an evaluation.",
                why=f"evaluation.json can't be read: {error}.",
                fix="`textleak eval` prints the folder that it makes.",
            ) from None
        found: dict[str, Any] = facts
        return found


def read_records(folder: Path) -> list[Record]:
    """The records in a folder, the last one of each batch, in the order of their first writing.

    Raises:
        InputError: it isn't the folder of an evaluation, or holds another one's records.
    """
    found = EvaluationFolder(path=folder)
    identity = found.facts()["identity"]
    records: dict[Key, Record] = {}
    content = b""
    if found.records_path.exists():
        try:
            content = foreign.read(found.records_path, most=foreign.MOST_ROWS)
        except OSError as error:
            raise InputError(f"{found.records_path} can't be read.", why=f"{error}.") from None
    for record in _parsed(content, identity, found.records_path):
        records[key_of(record)] = record
    return list(records.values())


class Following:
    """The records of a folder as they come, for who only looks on: each look reads what was appended since the last.

    Args:
        path: the folder.

    Raises:
        InputError: it isn't the folder of an evaluation.
    """

    def __init__(self, path: Path) -> None:
        self.folder = EvaluationFolder(path=path)
        self.facts = self.folder.facts()
        self._read = 0

    def look(self) -> list[Record]:
        """The records that are new, in the order of their writing; a later one of a batch replaces the one before.

        Raises:
            InputError: they can't be read, or are another evaluation's.
        """
        path = self.folder.records_path
        try:
            if path.stat().st_size <= self._read:
                return []
            with foreign.open_regular(path, most=foreign.MOST_ROWS) as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{path} can't be read.", why=f"{error}.") from None
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return list(_parsed(whole, self.facts["identity"], path))


class Store:
    """Where an evaluation's records go, and which ones there are."""

    def __init__(self, folder: EvaluationFolder, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        self.records: dict[Key, Record] = {}
        self._lock = FileLock(folder.path / "records.lock")
        self._turn = FileLock(folder.path / "first.lock")
        self._loaded: dict[tuple[str, int], Record] = {}
        self._read = 0

    @classmethod
    def open(cls, path: Path, *, identity: str, settings: Mapping[str, Any], batches: int) -> Store:
        """Begin an evaluation of so many batches in a folder, or go on with the one that is there.

        Raises:
            InputError: it holds another evaluation, or can't be written to.
        """
        if (path / "run.json").exists():
            raise InputError(
                f"{path} holds a run.",
                why="An evaluation's records would lie among those of the run.",
                fix="Choose another --out.",
            )
        runs.check_writable(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds private text
        store = cls(EvaluationFolder(path=path.resolve()), identity)
        with store._lock:
            if store.folder.settings_path.exists():
                check_same(store.folder, identity, settings)
            else:
                store._begin(settings, batches)
            store._catch_up()
        return store

    def first(self) -> bool:
        """Whether this process is the first of those that work on the folder now."""
        try:
            self._turn.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def refresh(self) -> None:
        """Take in what another process has written meanwhile."""
        with self._lock:
            self._catch_up()

    def add(self, record: Record) -> bool:
        """Write a record; False where it adds nothing: another process has written this batch, or it failed alike.

        Raises:
            TextleakError: it can't be written, for example as the disk is full, or its model isn't the one of the
                records before it; what was there before is whole.
        """
        with self._lock:
            self._catch_up()
            self._check_model(record)
            there = self.records.get(key_of(record))
            if there is not None and (there.status == "done" or _same_failure(there, record)):
                return False
            line = json.dumps(to_json(record), ensure_ascii=False).encode() + b"\n"
            self._append(line)
            self._read += len(line)
            self._keep(record)
        return True

    def other_versions(self) -> list[str]:
        """A sentence for each package that is another one than when this evaluation was begun."""
        then, now = self.folder.facts().get("versions", {}), runs.versions()
        return [
            f"{package} is {now.get(package)} now and was {then.get(package)} when this evaluation was begun."
            for package in sorted({*then, *now})
            if then.get(package) != now.get(package)
        ]

    def _begin(self, settings: Mapping[str, Any], batches: int) -> None:
        if self.folder.records_path.exists():
            raise InputError(
                f"{self.folder.path} holds records without an evaluation.json.",
                why="Nobody can say which settings they belong to.",
                fix="Choose another --out.",
            )
        facts = {
            "format": FORMAT_VERSION,
            "identity": self.identity,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": dict(settings),
            "batches": batches,
            "versions": runs.versions(),
            "machine": runs.machine_facts(),
        }
        try:
            runs.write_json(self.folder.settings_path, facts)
        except OSError as error:
            raise self._unwritable(error) from None

    def _catch_up(self) -> None:
        """Read the lines that are new, and mend a torn last one; only under the lock."""
        path = self.folder.records_path
        if not path.exists():
            return
        with unwritten(f"{path} can't be gone on with.", fix="Choose another --out."):
            with foreign.open_regular(path, most=foreign.MOST_ROWS) as file:
                file.seek(self._read)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):  # its writer was killed, or we wouldn't have the lock
                owned.check(path)
                os.truncate(path, self._read + len(whole))
        for record in _parsed(whole, self.identity, path):
            self._keep(record)
        self._read += len(whole)

    def _keep(self, record: Record) -> None:
        self.records[key_of(record)] = record
        if record.fingerprint:
            self._loaded.setdefault((record.cell.model, record.cell.seed), record)

    def _check_model(self, record: Record) -> None:
        """Raise where another model has come under the name of the one before, which no setting shows."""
        there = self._loaded.get((record.cell.model, record.cell.seed))
        if there is None or record.fingerprint in ("", there.fingerprint):
            return
        raise TextleakError(
            f"{record.cell.model} is not the model that this evaluation was begun with: its weights, "
            f"{record.weights} here, {there.weights} there, have other values.",
            why="Records of both would be mixed in one table.",
            fix="Give --weights pretrained or random, bring the model back, or choose another --out.",
        )

    def _append(self, line: bytes) -> None:
        path = self.folder.records_path
        try:
            handle = owned.append_to(path)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            try:
                written = 0
                while written < len(line):
                    written += os.write(handle, line[written:])
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, self._read)
                raise self._unwritable(error) from None
        finally:
            os.close(handle)

    def _unwritable(self, error: OSError) -> TextleakError:
        return TextleakError(
            f"{self.folder.path} can't be written to: {error.strerror or error}.",
            why="The batch in flight is lost; every record before it is kept.",
            fix="Make room, then run the same command again: it goes on where it stopped.",
        )


def _parsed(content: bytes, identity: str, path: Path) -> Iterator[Record]:
    """The records in some lines; a damaged line is passed over, as its batch can be taken again."""
    for line in content.split(b"\n"):
        try:
            record = from_json(json.loads(line))
        except (ValueError, TypeError, RecursionError):  # pydantic's ValidationError is a ValueError
            continue
        if record.identity != identity:
            raise InputError(
                f"{path} holds records of another evaluation, {record.identity}.",
                why=f"This one is {identity}: their settings differ.",
                fix="Choose another --out.",
            )
        yield record


def _same_failure(there: Record, record: Record) -> bool:
    return there.status == record.status == "failed" and there.error == record.error


def check_same(folder: EvaluationFolder, identity: str, settings: Mapping[str, Any]) -> None:
    """Raise where a folder belongs to other settings, and name these."""
    facts = folder.facts()
    if facts["identity"] == identity:
        return
    there: Mapping[str, Any] = facts["settings"]
    here = json.loads(json.dumps(settings))
    differing = [
        f"{key} was {_short(there.get(key))}, now {_short(here.get(key))}"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    raise InputError(
        f"{folder.path} belongs to another evaluation.",
        why=f"What differs: {'; '.join(differing) or 'the way settings are written'}.",
        fix="Choose another --out, or give the settings that it was begun with.",
    )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
