"""What a folder says: the records of an evaluation, or the one run of `textleak run` in the same form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textleak.errors import InputError
from textleak.evaluation.records import Cell, Record, SentenceRecord, from_json
from textleak.evaluation.store import EvaluationFolder, read_records
from textleak.events import Label
from textleak.jobs.verdict import CUT_OFF
from textleak.reports.believed import (
    check_audit,
    check_facts,
    check_pictures,
    check_run_settings,
    check_summed,
    unbelieved,
)
from textleak.reports.course import Course, course_of
from textleak.runs import RunRecord, holds_an_evaluation, read_run
from textleak.scoring.headline import how_much, tokens_found
from textleak.view.audit import value_in_words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit came to.

    Attributes:
        verdict: in a word.
        reason: in a sentence.
        told: what the update tells by itself: the question, the answer and its evidence, in words.
        advice: what would help, or what to try next.
    """

    verdict: str
    reason: str
    told: tuple[tuple[str, str, str], ...]
    advice: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFigures:
    """One picture's figures, as `image --json` names them; None where the truth isn't known."""

    psnr: float | None
    mse: float | None
    ssim: float | None
    lpips: float | None
    label: Label | None
    recovered_label: Label | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFindings:
    """What an image run came to.

    Attributes:
        images: each picture's figures; `psnr` and `ssim` are their means.
        verified: whether the answer's own gradient is the shared one; None where that can't be told.
        cut_off: whether it ended before it was through.
    """

    images: tuple[PictureFigures, ...]
    psnr: float | None
    ssim: float | None
    verified: bool | None
    cut_off: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a viewer needs of a folder.

    Attributes:
        path: the folder.
        kind: "evaluation" or "run".
        records: in the order in which they were written, the last one of each batch.
        settings: what was asked for, as plain values.
        versions: of Python and the packages that decide a result, when it was begun.
        machine: that it was begun on.
        identity: hash of the settings; "" for a run.
        planned: how many batches there are to be; None where the folder doesn't say.
        audit: what an audit's result says beside a run's; None for any other.
        started: when it was begun, "2026-11-28T19:03:47+00:00"; "" where the folder doesn't say.
        summary: of a run, in a sentence; "" where there is no result.
        proved: of a run on text, tokens that are proved without the truth, and how many there are.
        named: of a run on text, tokens that rows name for certain beside an answer that isn't proved; None for none.
        unproved: why nothing can be proved, in a sentence; "" where something can.
        course: of a run: its curves, and its pictures.
        pictures: figures of an image run; None for text.
    """

    path: Path
    kind: str
    records: tuple[Record, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    identity: str = ""
    planned: int | None = None
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    audit: Audit | None = None
    started: str = ""
    summary: str = ""
    proved: tuple[int, int] | None = None
    named: int | None = None
    unproved: str = ""
    course: Course = dataclasses.field(default_factory=Course)
    pictures: PictureFindings | None = None

    @property
    def unfinished(self) -> int:
        """Batches that have no record yet."""
        return max(0, (self.planned or 0) - len(self.records))

    def values(self, name: str) -> tuple[Any, ...]:
        """A field of the records that are done, each of its values once: "device", "dtype", "threads", "weights"."""
        found = (getattr(record, name) for record in self.records if record.status == "done")
        return tuple(dict.fromkeys(value for value in found if value))

    @property
    def versions_used(self) -> dict[str, tuple[str, ...]]:
        """Each package's versions that records were made with; those at the beginning, where none says so."""
        done = [record.versions for record in self.records if record.status == "done"]
        found: dict[str, dict[str, None]] = {}
        for versions in done if any(done) else (self.versions,):
            for package, version in versions.items():
                found.setdefault(package, {})[version] = None
        return {package: tuple(versions) for package, versions in found.items()}


def read(path: Path) -> Findings:
    """Read the folder of an evaluation or of a run, finished or not.

    Raises:
        InputError: it is neither.
    """
    if holds_an_evaluation(path) or (path / "records.jsonl").exists():
        return _read_evaluation(path)
    if (path / "run.json").exists():
        return _of_run(read_run(path))
    raise InputError(
        f"{path} holds no evaluation and no run." if path.is_dir() else f"There is no folder {path}.",
        why="An evaluation's folder has an evaluation.json, a run's a run.json.",
        fix="Name the folder that `textleak eval --out` or `textleak run --out` wrote.",
    )


def _read_evaluation(path: Path) -> Findings:
    folder = EvaluationFolder(path=path)
    facts = folder.facts()
    check_facts(facts, folder.settings_path, run=False)
    return Findings(
        path=path,
        kind="evaluation",
        records=tuple(read_records(path)),
        settings=facts["settings"],
        versions=facts.get("versions", {}),
        identity=facts["identity"],
        planned=facts.get("batches"),
        machine=facts.get("machine") or {},
        started=facts.get("started") or "",
    )


ONE_BATCH = "one batch"  # what stands for the data of a run
# What a redacted run leaves out is null there; so is what isn't known without the truth.
_NO_TEXT: Mapping[str, Any] = {
    "reference": "",
    "recovered": "",
    "reference_tokens": (),
    "recovered_tokens": (),
}


def _of_run(run: RunRecord) -> Findings:
    """A run as an evaluation of one batch.

    Without the truth there are no figures and no sentences; what was found is the record's surplus then.
    """
    check_facts(run.facts, run.folder.run_path, run=True)
    result = run.result or {}
    facts = {**run.settings, **result}
    try:
        check_run_settings({name: facts[name] for name in facts if name not in ("sentences", "labels")})
        check_summed(result)
        pictures = _pictures_of(result) if "images" in result else None
        records = (_record_of_run(run, facts),)
        audit = _audit_of(result)
        summary = how_much(result) if result else ""
        proved = _proved(result) if "proved_tokens" in result else None
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # ValidationError among the last
        raise unbelieved(run.folder.result_path, error) from None
    return Findings(
        path=run.folder.path,
        kind="run",
        records=records,
        settings=run.settings,
        versions=run.facts.get("versions", {}),
        machine=run.facts.get("machine") or {},
        audit=audit,
        started=run.facts.get("started") or "",
        summary=summary,
        proved=proved,
        named=result.get("named_tokens"),
        unproved=(result.get("verified_reason") or "") if proved and not proved[0] else "",
        course=_course_of(run),
        pictures=pictures,
    )


def _course_of(run: RunRecord) -> Course:
    try:
        return course_of(run.events())
    except (IndexError, TypeError, ValueError) as error:  # pictures that are none
        raise unbelieved(run.folder.events_path, error) from None


def _proved(result: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens that are proved, of those there are: the truth's, else the answer's."""
    return result.get("proved_tokens") or 0, tokens_found(result).all


def _pictures_of(result: Mapping[str, Any]) -> PictureFindings:
    check_pictures(result)
    names = [field.name for field in dataclasses.fields(PictureFigures)]
    return PictureFindings(
        images=tuple(PictureFigures(**{name: one.get(name) for name in names}) for one in result["images"]),
        psnr=result.get("psnr"),
        ssim=result.get("ssim"),
        verified=result.get("verified"),
        cut_off=result.get("stop") in CUT_OFF,
    )


def _audit_of(result: Mapping[str, Any]) -> Audit | None:
    if "verdict" not in result:
        return None
    check_audit(result)
    return Audit(
        verdict=result["verdict"],
        reason=result["verdict_reason"],
        told=tuple(
            (one["what"], value_in_words(one.get("value")), one["evidence"]) for one in result.get("told", ())
        ),
        advice=tuple(result.get("advice", ())),
    )


def _record_of_run(run: RunRecord, facts: Mapping[str, Any]) -> Record:
    """The one record of a run: its result, or that there is none."""
    cell = Cell(
        data=ONE_BATCH,
        batch_size=facts.get("batch_size") or 0,
        model=str(facts.get("model", "")),
        weights=facts.get("weights") or "auto",
        task=facts.get("task") or "auto",
        attack=str(facts.get("attack", "")),
        share=facts.get("share") or "all",
        client=tuple(facts.get("client") or ()),
        defense=tuple(facts.get("defense") or ()),
        know=_know(facts.get("know") or ()),
        seed=facts.get("seed") or 0,
    )
    if run.result is None:
        words = f"The run is {run.outcome}: no result."
        return Record(identity="", cell=cell, batch=0, status="failed", error=words)
    return _record_of(run.result, cell)


def _know(kinds: Sequence[str]) -> str:
    """What a run's attack was told as a `--know` text, in which what hides something would stand for the default."""
    return ",".join(kinds if {*kinds} - {"no-defense", "no-client"} else ("nothing", *kinds))


def _record_of(result: Mapping[str, Any], cell: Cell) -> Record:
    """A run's result as a record; both use the same names."""
    names = {field.name for field in dataclasses.fields(Record)} - {"sentences", "surplus", "status", "notes"}
    figures = {name: result[name] for name in names if name in result}
    scored = result.get("token_match_rate") is not None
    listed = () if "images" in result else result["sentences"]
    sentences = tuple(map(_sentence_of, listed)) if scored else ()
    found = [] if scored else [sentence["recovered"] for sentence in listed]
    return from_json(
        {
            **{name: value for name, value in figures.items() if value is not None},
            "identity": "",
            "cell": dataclasses.asdict(cell),
            "batch": 0,
            "status": "done",
            "sentences": sentences,
            "surplus": [text for text in (*found, *result.get("surplus", ())) if text],
            "notes": result.get("notes", ()),
        }
    )


def _sentence_of(sentence: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(SentenceRecord)} - {"secrets"}
    known = {name: value for name, value in sentence.items() if name in names}
    texts = {name: known[name] if known.get(name) is not None else empty for name, empty in _NO_TEXT.items()}
    return {**known, **texts}
