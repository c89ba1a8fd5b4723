"""What one takes away from the app: a picture of the screen, a run's JSON, a short summary in Markdown, a report.

Files go into a folder of the run's own name under `textleak-exports` in the working directory, or into the run's
folder where that can't be written. Nothing is written over.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from textleak import owned
from textleak.errors import InputError, TextleakError
from textleak.events import Finished, to_json
from textleak.runs import read_run, redacted_settings, without_truth
from textleak.view import ViewState, how_much
from textleak.words import count_of, loss_in_words, printable, seconds_in_words
from textleak_tui import bounds
from textleak_tui.climb import Climb

EXPORTS = "textleak-exports"


def export_folder(run: Path, base: Path | None = None) -> Path:
    """Where a run's exports go; makes the folder, readable by its owner alone, as a run's text is private.

    Args:
        run: the run folder, or any path whose last part is a good name.
        base: the folder to write under; None for the working directory.

    Raises:
        TextleakError: neither there nor in the run's folder can anything be written.
    """
    places = ((base or Path.cwd()) / EXPORTS / run.name, run / "exports")
    for place in places:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = place / ".probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = error
        else:
            return place
    raise TextleakError(
        f"Nothing can be written to {places[0]}.",
        why=f"{problem.strerror or problem}.",
        fix="Start the app in a folder that you may write to.",
    )


def write(folder: Path, name: str, text: str) -> Path:
    """Write a file under a name that isn't taken: `screen.svg`, then `screen-2.svg`.

    Raises:
        TextleakError: it can't be written.
    """
    stem, dot, ending = name.rpartition(".")
    number = 1
    while True:
        path = folder / (name if number == 1 else f"{stem}-{number}{dot}{ending}")
        try:
            owned.create(path, text.encode("utf-8", "replace"))
        except FileExistsError:
            number += 1
        except OSError as error:
            raise TextleakError(f"{path} can't be written.", why=f"{error.strerror or error}.") from None
        else:
            return path


def write_run(
    run: Path, state: ViewState, kind: str, *, picture: Callable[[], str], blind: bool
) -> list[Path]:
    """Write a run as a picture, as JSON, in words, as a report, or as all of them; the files.

    All of them leave the report out where there can't be one: while blind, or of a run without a result.

    Args:
        run: the run folder.
        state: what is on the screen.
        kind: "svg", "json", "markdown", "html" or "all".
        picture: gives the screen as SVG.
        blind: leave out what an attacker doesn't know.

    Raises:
        TextleakError: something can't be written.
    """
    folder, written = export_folder(run), []
    if kind in ("svg", "all"):
        written.append(write(folder, "screen.svg", picture()))
    if kind in ("json", "all"):
        content = run_json(run, state, blind=blind)
        text = json.dumps(content, ensure_ascii=False, indent=1, default=str)
        written.append(write(folder, "run.json", text + "\n"))
    if kind in ("markdown", "all"):
        written.append(write(folder, "summary.md", summary(run, state, blind=blind)))
    if kind == "html":
        written.append(write_report(run, blind=blind))
    elif kind == "all":
        with contextlib.suppress(InputError):
            written.append(write_report(run, blind=blind))
    return written


def write_report(folder: Path, *, blind: bool) -> Path:
    """Write what a run or an evaluation found as a page to read; the file.

    Args:
        folder: of the run or the evaluation.
        blind: whether only what an attacker knows may be told, which no report keeps to.

    Raises:
        TextleakError: there can be none, or it can't be written.
    """
    from textleak.reports.analysis import analyze
    from textleak.reports.pages import to_html
    from textleak.reports.reading import read

    if blind:
        raise InputError("A report compares with the truth.", fix="b shows all again; then export it.")
    return write(export_folder(folder), "report.html", to_html(analyze(read(folder)), redact=False))


def write_ladder(climb: Climb, root: Path, *, picture: Callable[[], str], blind: bool) -> list[Path]:
    """Write a ladder as a picture, a table and JSON; the files.

    Args:
        climb: the ladder.
        root: where run folders are.
        picture: gives the screen as SVG.
        blind: leave out what an attacker doesn't know.

    Raises:
        TextleakError: something can't be written.
    """
    folder = export_folder(root / climb.name)
    return [
        write(folder, "screen.svg", picture()),
        write(folder, "ladder.md", _ladder_summary(climb, blind=blind)),
        write(folder, "ladder.json", json.dumps(_ladder_json(climb, blind=blind), indent=1) + "\n"),
    ]


def _ladder_summary(climb: Climb, *, blind: bool) -> str:
    lines = [f"# textleak: {climb.knob.name}", ""]
    if not blind:
        lines += [f"**{climb.verdict()}**", ""]
    lines += ["| strength | state | match rate | verified | seconds |", "|---|---|---|---|---|"]
    for rung in climb.rungs:
        result = rung.result or {}
        rate = "" if rung.rate is None or blind else f"{rung.rate:.2f}"
        verified = {True: "yes", False: "no", None: ""}[result.get("verified")]
        took = "" if result.get("seconds") is None else f"{result['seconds']:.1f}"
        lines.append(f"| {rung.strength} | {rung.status} | {rate} | {verified} | {took} |")
    return "\n".join([*lines, "", "```sh", *climb.command_lines, "```", ""])


def _ladder_json(climb: Climb, *, blind: bool) -> dict[str, Any]:
    found = []
    for rung in climb.rungs:
        result = None if rung.result is None else without_truth(rung.result) if blind else dict(rung.result)
        found.append({"strength": rung.strength, "status": rung.status, "result": result})
    return {"defense": climb.knob.defense, "option": climb.knob.option, "rungs": found}


def run_json(run: Path, state: ViewState, *, blind: bool = False) -> dict[str, Any]:
    """A run as one JSON object: what `textleak run --json` printed, or where the run stands without a result.

    Args:
        run: the run folder.
        state: what is on the screen.
        blind: leave out what an attacker doesn't know.
    """
    result, settings, outcome = _records(run, state)
    if result is not None:
        return without_truth(result) if blind else dict(result)
    shown = redacted_settings(settings) if blind else settings
    found: dict[str, Any] = {**shown, "outcome": outcome, "seconds": state.t}
    if not blind and (rate := state.match_rate()) is not None:
        found["token_match_rate"] = rate
    if state.finished is not None and state.finished.error:
        found["error"] = state.finished.error
    if state.progress is not None:
        found["progress"] = to_json(state.progress)
        # JSON knows no infinity: a diverged candidate's loss is written as null.
        found["progress"] = json.loads(json.dumps(found["progress"]), parse_constant=lambda _: None)
    return found


def summary(run: Path, state: ViewState, *, blind: bool = False) -> str:
    """A run in a page of Markdown: how much leaked, the figures, the texts, how to run it again.

    Args:
        run: the run folder.
        state: what is on the screen.
        blind: leave out what an attacker doesn't know.
    """
    result, settings, outcome = _records(run, state)
    title = f"{settings.get('attack', 'attack')} on {settings.get('model', 'a model')}"
    lines = [f"# textleak: {title}", ""]
    if result is not None:
        seen = without_truth(result) if blind else result
        lines += [f"**{_headline(seen)}**", ""]
        if outcome != "done":
            lines += [f"The run was {outcome}: this is the best answer it had.", ""]
    else:
        lines += [f"**The run is {outcome}; there is no result.**", ""]
        if state.finished is not None and state.finished.error:
            lines += [f"`{_plain(state.finished.error)}`", ""]
    lines += ["| | |", "|---|---|"]
    lines += [
        f"| {name} | {_plain(value)} |" for name, value in _figures(result, settings, state, blind=blind)
    ]
    texts = _texts(result, state, blind=blind)
    if texts:
        lines += ["", "| | text |", "|---|---|", *(f"| {name} | {_plain(text)} |" for name, text in texts)]
    notes = (result or {}).get("notes") or ()
    lines += ["", *(f"- {_plain(note)}" for note in notes)] if notes else []
    return printable("\n".join([*lines, "", f"Run folder: `{run}`", ""]), kept="\n")


def _headline(result: Mapping[str, Any]) -> str:
    """How much leaked, in a sentence."""
    if "images" not in result:
        return how_much(result)
    if result.get("psnr") is None:
        return "Pictures were recovered; without the true ones nobody can say how much of them is right."
    return f"The pictures were recovered with a PSNR of {result['psnr']:.1f} dB."


def _records(run: Path, state: ViewState) -> tuple[Mapping[str, Any] | None, Mapping[str, Any], str]:
    """Result, settings and outcome: the state's own, then the folder's."""
    finished = state.finished
    result = finished.result if isinstance(finished, Finished) else None
    settings: Mapping[str, Any] = state.settings
    outcome = finished.outcome if finished is not None else "not finished"
    try:
        record = read_run(run)
        settings = settings or bounds.settings_of(record.settings)
        found = bounds.result_of(record.result) if record.result is not None else None
    except InputError:
        return result, settings, outcome
    if finished is None and state.seen == 0:
        result, outcome = found, bounds.name_of(record.outcome)
    return result, settings, outcome


def _figures(
    result: Mapping[str, Any] | None, settings: Mapping[str, Any], state: ViewState, *, blind: bool
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    weights = {"random": "random weights", "pretrained": "pretrained weights"}.get(
        str(settings.get("weights")), ""
    )
    parts = [settings.get("model"), settings.get("task"), weights, settings.get("device")]
    found.append(("model", ", ".join(str(part) for part in parts if part)))
    found.append(("shared", str(settings.get("share", ""))))
    defenses = settings.get("defense") or ()
    found.append(("defense", ", ".join(map(str, defenses)) or "none"))
    if settings.get("tokens"):
        ratio = settings.get("tokens_per_hidden")
        size = f"{settings.get('batch_size')} in the batch, n = {count_of(settings['tokens'], 'token')}"
        found.append(("size", size + (f", n/D = {ratio:.2g}" if ratio else "")))
    if "seed" in settings:
        found.append(("seed", str(settings["seed"])))
    if result is None:
        rate = state.match_rate()
        if rate is not None and not blind:
            found.append(("token match rate so far", f"{rate:.2f}"))
        if state.progress is not None:
            found.append(("loss", loss_in_words(state.progress.loss)))
        found.append(("elapsed", seconds_in_words(state.t)))
        return found
    rate = result.get("token_match_rate")
    if rate is not None and not blind:
        found.append(("token match rate", f"{rate:.2f}"))
        rouge = "/".join(
            f"{result[key]:.2f}" for key in ("rouge1", "rouge2", "rougeL") if result.get(key) is not None
        )
        found.append(("recall; ROUGE-1/2/L", f"{result.get('token_recall') or 0:.2f}; {rouge}"))
    verified = result.get("verified")
    words = {
        True: "yes",
        False: "no",
        None: "can't be told" if result.get("verified_reason") else "can't be said",
    }[verified if isinstance(verified, bool) else None]
    distance = result.get("gradient_distance")
    found.append(
        ("verified", words + (f" (relative distance {distance:.1e})" if distance is not None else ""))
    )
    if result.get("seconds") is not None:
        evaluations = int(result.get("evaluations") or 0)
        found.append(
            ("took", f"{seconds_in_words(result['seconds'])}, {count_of(evaluations, 'gradient evaluation')}")
        )
    return found


def _texts(result: Mapping[str, Any] | None, state: ViewState, *, blind: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if result is not None:
        for sentence in result.get("sentences", ()):
            if sentence.get("reference") is not None and not blind:
                found.append(("reference", str(sentence["reference"])))
            if sentence.get("recovered") is not None:
                found.append(("recovered", str(sentence["recovered"])))
        return found
    if state.progress is None:
        return []
    for sentence, truth in zip(state.progress.sentences, state.assigned(), strict=True):
        if truth is not None and not blind:
            found.append(("reference", truth.text))
        found.append(("so far", sentence.text))
    return found


def _plain(text: object) -> str:
    """A text that can stand in a table's cell."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|")
