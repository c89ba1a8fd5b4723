"""A recording: the gradient file of what left a client, the model before it, and on request the truth apart."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from textleak import foreign, owned, typed
from textleak.clients.base import Client, composed
from textleak.defenses.base import Defense
from textleak.defenses.base import Step as DefendedStep
from textleak.errors import AttackError, InputError, unwritten
from textleak.integrations.networks import Trained
from textleak.integrations.procedure import Procedure
from textleak.integrations.watching import Row
from textleak.models.base import Tensors
from textleak.private.secrets import Secret
from textleak.settings.specs import written_of
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation

_NO_TRUTH = "What it was computed from wasn't seen, so no truth is written."
_ABOVE = 3  # exit code above --fail-above: the audit itself went well


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """What was written.

    Attributes:
        file: the gradient file.
        model: what `-m` takes to load the model as it was before.
        truth: what it was computed from; None where nobody asked for it.
        client: how the client trained, as `--client` takes it, in order.
        defenses: what was done to the gradient, as `--defense` takes it.
        notes: what client and defenses don't say, a sentence each.
    """

    file: Path
    model: str
    truth: Path | None
    client: tuple[str, ...]
    defenses: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def command(self) -> tuple[str, ...]:
        """What audits it, from the files alone."""
        return ("textleak", "audit", str(self.file), "-m", self.model)

    @property
    def line(self) -> str:
        """The same, to be pasted."""
        return shlex.join(self.command)

    def audit(self, *, time_limit: str = "5m", options: Sequence[str] = ()) -> dict[str, Any]:
        """What `textleak audit --json` prints of it, run in a process that has the files and nothing of the training.

        Args:
            time_limit: as `--time-limit` takes it.
            options: others of the command.

        Raises:
            AttackError: the audit failed; it says why.
        """
        truth = [] if self.truth is None else ["--truth", str(self.truth)]
        arguments = [*self.command[1:], *truth, "--time-limit", time_limit, "--json", *options]
        ended = subprocess.run(
            [sys.executable, "-m", "textleak.cli", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode not in (0, _ABOVE):
            raise AttackError(
                f"The audit of {self.file} ended with exit code {ended.returncode}.",
                why="\n".join(ended.stderr.strip().splitlines()[-3:]),
                fix=f"Run it by itself: {self.line}",
            )
        said: dict[str, Any] = json.loads(ended.stdout)
        return said


def recordings_in(out: Path | str) -> list[Recording]:
    """What was recorded in a folder, by any process, in the order of the files' names.

    Raises:
        InputError: what stands beside a file isn't what a recorder wrote.
    """
    found = []
    for path in sorted(Path(out).glob("*.recording.json")):
        try:
            found.append(typed.adapter(Recording).validate_json(foreign.read(path, most=foreign.MIB)))
        except (OSError, ValidationError) as error:
            raise InputError(f"{path} can't be read.", why=str(error)) from None
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a recording is written, and how much it tells.

    Attributes:
        out: a folder.
        public: name under which a server has the model; None to write the model too.
        truth: whether the batch is written, to a file of its own.
        know: what the server is told, as `--know` takes it.
    """

    out: Path
    public: str | None = None
    truth: bool = False
    know: str | None = None


def record_sent(
    name: str,
    place: Place,
    *,
    trained: Trained,
    tokenizer: Any,  # noqa: ANN401 - any library's
    before: Tensors,
    sent: Tensors,
    procedure: Procedure,
    rows: Sequence[Row] | None,
) -> Recording:
    """Write what left a client.

    Args:
        name: of the files.
        place: where they are written.
        trained: the network.
        tokenizer: of the model.
        before: weights that are trained, as they were.
        sent: what left, by parameter.
        procedure: how it was made.
        rows: the sentences it was made from; None where they weren't seen.

    Raises:
        InputError: it can't be written, or is not finite.
    """
    file, truth = place.out / f"{name}.safetensors", place.out / f"{name}.truth.json"
    client = composed(procedure.kinds).public(_Trains(trained.network))  # type: ignore[arg-type]
    size = len(rows or ())
    step = DefendedStep(generator=torch.Generator(), batch_size=max(1, size))
    defenses = tuple(defense.public(step) for defense in procedure.defenses)
    shared = SharedGradient(
        gradients=sent,
        model=trained.public(before, place.public or trained.name),
        share="all",
        known=_known(rows, place.know),
        defenses=defenses,
        client=client,
    )
    shared.check_finite(f"the recording {name}")
    recording = Recording(
        file=file,
        model=trained.save(before, tokenizer, place.out, public=place.public),
        truth=truth if place.truth and rows else None,
        client=tuple(_spec(kind) for kind in procedure.kinds),
        defenses=tuple(_spec(defense) for defense in procedure.defenses),
        notes=procedure.notes if rows or not place.truth else (*procedure.notes, _NO_TRUTH),
    )
    _write(shared, recording, _secret(rows, tokenizer, shared) if place.truth and rows else None)
    return recording


def _spec(kind: Client | Defense) -> str:
    """A kind of client or a defense as the command line takes it, what it does anyway left out."""
    own = {field.name: getattr(kind, field.name) for field in dataclasses.fields(kind)}
    return written_of(type(kind), kind.name, own)


@dataclasses.dataclass(frozen=True)
class _Trains:
    """As much of a model as a client asks of it; a whole one would freeze the network that is being trained."""

    network: Any


def _known(rows: Sequence[Row] | None, know: str | None) -> SideInformation:
    """What the server is told of the batch, as `share` tells it."""
    if not rows:
        return SideInformation()
    told = SideInformation.parse(know, batch_size=len(rows))
    labels = [label for _, label in rows if label is not None]
    return SideInformation(
        batch_size=len(rows) if "batch-size" in told else None,
        lengths=tuple(len(ids) for ids, _ in rows) if "lengths" in told else None,
        labels=tuple(labels) if "labels" in told and len(labels) == len(rows) else None,
    )


def _secret(rows: Sequence[Row], tokenizer: Any, shared: SharedGradient) -> Secret:  # noqa: ANN401 - any library's
    labels = [label for _, label in rows if label is not None]
    return Secret(
        sentences=tuple(_text(ids, tokenizer) for ids, _ in rows),
        ids=tuple(ids for ids, _ in rows),
        labels=tuple(labels) if len(labels) == len(rows) else None,
        defenses=shared.defenses,
        client=shared.client,
    )


def _text(ids: Sequence[int], tokenizer: Any) -> str:  # noqa: ANN401 - any library's
    """What stands in a row, with the separator between the parts of one that has several."""
    separator = getattr(tokenizer, "sep_token_id", None)
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    texts = [tokenizer.decode(part, skip_special_tokens=True) for part in parts]
    return f" {tokenizer.sep_token} ".join(filter(None, texts)) if len(texts) > 1 else texts[0]


def _write(shared: SharedGradient, recording: Recording, secret: Secret | None) -> None:
    """Write what is said of it, the truth where there is one, and the gradient."""
    beside = recording.file.with_suffix(".recording.json")
    with unwritten(f"Nothing can be recorded in {recording.file.parent}.", fix="Choose another out=."):
        beside.parent.mkdir(parents=True, exist_ok=True)
        owned.write(beside, typed.adapter(Recording).dump_json(recording, indent=1) + b"\n")
    if secret is not None and recording.truth is not None:
        secret.save(recording.truth)
    shared.save(recording.file)
