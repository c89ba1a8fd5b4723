"""What a report believes of a folder that it didn't write: types and bounds of what stands beside the records.

Whatever isn't named here is passed on as it is and only ever shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textleak.errors import InputError
from textleak.events import Label

# Our choice: settings are lists of choices with options.
DEEPEST = 20
_Text = str | None
_Texts = list[str] | None
_Count = Annotated[int, Field(ge=0, le=1 << 63)]
_Rate = Annotated[float, Field(ge=0, le=1)]
_Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Open(BaseModel):
    """Fields that have to be of their type where they are there, among any others."""

    model_config = ConfigDict(extra="allow", strict=True)


class _RunSettings(_Open):
    model: _Text = None
    weights: _Text = None
    task: _Text = None
    gradients: _Text = None
    sentences: _Texts = None
    labels: list[Label | None] | None = None
    share: _Text = None
    client: _Texts = None
    defense: _Texts = None
    know: _Texts = None
    attack: _Text = None
    attack_options: dict[str, Any] | None = None
    seed: _Count | None = None
    device: _Text = None
    threads: _Count | None = None
    batch_size: _Count | None = None


class _EvaluationSettings(_Open):
    attack: list[str] = []
    limits: list[int | None] | None = None


class _Machine(_Open):
    platform: str
    cores: _Count


class _Facts(_Open):
    started: _Text = None
    versions: dict[str, str] = {}
    machine: _Machine | None = None
    batches: _Count | None = None


def check_facts(facts: Mapping[str, Any], path: Path, *, run: bool) -> None:
    """Check what a `run.json` or an `evaluation.json` says.

    Args:
        facts: as they were read.
        path: the file, for the error.
        run: of a run, else of an evaluation.

    Raises:
        InputError: something in it is not of its type.
    """
    try:
        if not _shallow(facts, DEEPEST):
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        _Facts.model_validate(facts)
        if run:
            check_run_settings(facts.get("settings", {}))
        else:
            asked = _EvaluationSettings.model_validate(facts["settings"])
            if asked.limits is not None and len(asked.limits) != len(asked.attack):
                raise ValueError("there is not one limit for each attack")
    except ValueError as error:
        raise unbelieved(path, error) from None


def check_run_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a run.

    Raises:
        ValidationError: one is not of its type.
    """
    _RunSettings.model_validate(settings)


class _Sample(_Open):
    tokens: _Count | None = None
    token_match_rate: _Rate | None = None
    token_recall: _Rate | None = None


class _Summed(_Open):
    """What the summary of a run is made of."""

    weights: _Text = None
    channel: _Text = None
    stop: _Text = None
    proof: _Text = None
    verified: bool | None = None
    verified_reason: _Text = None
    token_match_rate: _Rate | None = None
    unknown_tokens: _Count | None = None
    proved_tokens: _Count | None = None
    named_tokens: _Count | None = None
    sentences: list[_Sample] = []


def check_summed(result: Mapping[str, Any]) -> None:
    """Check what a run's summary is made of.

    Raises:
        ValidationError: something in it is not of its type.
    """
    _Summed.model_validate({**result, "sentences": result.get("sentences", [])})


class _Picture(_Open):
    psnr: _Figure | None = None
    mse: _Figure | None = None
    ssim: _Figure | None = None
    lpips: _Figure | None = None
    label: Label | None = None
    recovered_label: Label | None = None


class _Pictures(_Open):
    psnr: _Figure | None = None
    ssim: _Figure | None = None
    images: list[_Picture]


def check_pictures(result: Mapping[str, Any]) -> None:
    """Check the figures of an image run's result.

    Raises:
        ValidationError: something in it is not of its type.
    """
    _Pictures.model_validate(result)


class _Told(_Open):
    what: str
    value: Any = None
    evidence: str


class _Audit(_Open):
    verdict: Literal["LEAKS", "PARTLY", "NOT FOUND", "INCONCLUSIVE"]
    verdict_reason: str
    told: list[_Told] = []
    advice: list[str] = []


def check_audit(result: Mapping[str, Any]) -> None:
    """Check what an audit's result says beside a run's.

    Raises:
        ValueError: something in it is not of its type; ValidationError is one.
    """
    if not _shallow({"told": result.get("told")}, DEEPEST):
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    _Audit.model_validate(result)


def unbelieved(path: Path, error: Exception) -> InputError:
    """An error for a file that holds what it can't."""
    why = f"{error}." if isinstance(error, ValueError) else "A part of it is missing, or of another kind."
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where or 'It'}: {first['msg']}."
    return InputError(
        f"{path} can't be reported on.",
        why=why,
        fix="It was changed, or another version of textleak wrote it; leave the folder out.",
    )


def _shallow(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(one, levels - 1) for one in inside)
