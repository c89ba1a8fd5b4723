"""A report's figures as a page to read: Markdown, one self-contained HTML page, or plain JSON values.

Recovered text is untrusted: the HTML template escapes everything, the Markdown one whatever has a meaning there.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from textleak.data.sentences import SAMPLE
from textleak.reports import charts
from textleak.reports.analysis import Report
from textleak.reports.figures import SettingFigures, in_range, leaked, percent
from textleak.reports.settings import AXES, TITLES, several_in_words, told
from textleak.reports.statistics import FEW_IN_WORDS, Interval
from textleak.runs import redacted_settings
from textleak.runs.redaction import TOLD_OF_TEXT
from textleak.scoring.chips import fates
from textleak.words import count_of, printable, readable, seconds_in_words

if TYPE_CHECKING:
    from jinja2 import Environment

    from textleak.evaluation.records import SentenceRecord
    from textleak.reports.reading import Findings
    from textleak.reports.utility import UtilityRow

# Our choice: a table of more settings than this is folded away under the one at a glance.
ROWS_UNFOLDED = 12
LONGEST_TEXT = 600  # letters of one token or error that a page shows


def to_html(report: Report, *, redact: bool = False) -> str:
    """One page without scripts that needs nothing else.

    Args:
        report: its figures.
        redact: leave out every text of a sentence, planted secrets and the words of errors too.
    """
    style = (files("textleak.reports") / "templates" / "report.css").read_text("utf-8")
    page = _environment(html=True).get_template("report.html.j2")
    return printable(page.render(**_context(report, redact), style=style), kept="\n\t")


def to_markdown(report: Report, *, redact: bool = False) -> str:
    """The same in Markdown; charts are tables there."""
    page = _environment(html=False).get_template("report.md.j2").render(**_context(report, redact))
    return printable(re.sub(r"\n{3,}", "\n\n", page).strip(), kept="\n\t") + "\n"


def to_json(report: Report, *, redact: bool = False) -> dict[str, Any]:
    """Every figure as plain JSON values; rates from 0 to 1."""
    evaluation = report.evaluation
    plain: dict[str, Any] = {
        "kind": evaluation.kind,
        "identity": evaluation.identity,
        "headline": list(report.headline),
        "common": dict(report.common),
        "axes": list(report.axes),
        "settings": [_plain_setting(one) for one in report.settings],
        "defenses": [
            {
                "defense": list(row.defense),
                "strongest": row.by,
                "failed": row.failed,
                "token_match_rate": _plain(row.strongest.match),
                "utility": None if row.utility is None else _plain_utility(row.utility),
            }
            for row in report.defenses
        ],
        "ladders": [_plain(chart) for chart in report.ladders],
        "breakdowns": [_plain(chart) for chart in report.breakdowns],
        "secrets_planted": report.secrets_planted,
        "secrets_recovered": len(report.secrets),
        "failures": [
            {**_plain(failure), "error": "" if redact else failure.error} for failure in report.failures
        ],
        "notes": [] if redact else list(report.notes),
        "command": command(evaluation, redact=redact),
        "settings_asked_for": settings_of(evaluation, redact),
        "versions": _versions(evaluation),
        "machine": dict(evaluation.machine),
        **_computed_with(evaluation),
    }
    if not redact:
        plain["examples"] = [_plain(one) for one in report.examples]
        plain["secrets"] = [_plain(one) for one in report.secrets]
        plain["found"] = list(report.found)
    return plain


def _plain(value: Any) -> Any:  # noqa: ANN401 - a dataclass or None
    return None if value is None else dataclasses.asdict(value)


def _plain_utility(row: UtilityRow) -> dict[str, Any]:
    means = ("accuracy", "accuracy_error", "mcc", "mcc_error")
    return {**dataclasses.asdict(row), **{name: getattr(row, name) for name in means}}


def _plain_setting(one: SettingFigures) -> dict[str, Any]:
    plain = dataclasses.asdict(one)
    plain["setting"] = dict(zip(AXES, one.setting, strict=True))
    return plain


# What the templates are given


def _environment(*, html: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("textleak.reports"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        interval=interval_in_words,
        in_range=in_range,
        unbroken=lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
        words=_shown,
        md=markdown_escaped,
        fenced=_fenced,
        cell=lambda one, axis: told(one.setting, axis),
        axis=lambda axis: TITLES[axis],
        seconds=lambda seconds: "–" if seconds is None else seconds_in_words(seconds),
    )
    environment.globals.update(count_of=count_of, tokens_of=tokens_of, svg=charts.draw)
    return environment


def _context(report: Report, redact: bool) -> dict[str, Any]:
    evaluation = report.evaluation
    settings = report.settings
    return {
        "report": report,
        "redact": redact,
        "private": TOLD_OF_TEXT,
        "name": evaluation.path.resolve().name,
        "run": evaluation.kind == "run",
        "batches": sum(one.batches for one in settings),
        "failed": sum(one.failed for one in settings),
        "sentences": _different_sentences(evaluation),
        "worst": max((one for one in settings if one.match), key=leaked, default=None),
        "columns": [axis for axis in report.axes if axis != "attack"],
        "command": command(evaluation, redact=redact),
        "settings_text": json.dumps(
            settings_of(evaluation, redact), ensure_ascii=False, indent=1, default=str
        ),
        "versions": _versions(evaluation),
        "computed_on": computed_on(evaluation),
        "has_secrets": any(one.secrets_planted for one in settings),
        "planted_by_us": {record.cell.data for record in evaluation.records} == {SAMPLE},
        "has_epsilon": any(one.epsilon is not None for one in settings),
        "unfolded": len(settings) <= ROWS_UNFOLDED,
        "few": FEW_IN_WORDS if any(interval.of_few for interval in _intervals(report)) else "",
        "identical": any(_without_width(one.match) for one in settings),
    }


def _intervals(report: Report) -> Iterator[Interval]:
    """All that a page shows."""
    for one in report.settings:
        yield from filter(None, (*one.figures.values(), one.secrets))
    for chart in report.ladders + report.breakdowns:
        for series in chart.series:
            yield from filter(None, series.points)


def _versions(evaluation: Findings) -> dict[str, str]:
    return {package: several_in_words(found) for package, found in evaluation.versions_used.items()}


def computed_on(evaluation: Findings) -> str:
    """The machine, device, type and threads in a sentence, as far as they are known."""
    machine = evaluation.machine
    words = [f"{machine['platform']}, {count_of(machine['cores'], 'core')}"] if machine else []
    words += [f"{name} {value}" for name, value in _computed_with(evaluation).items()]
    return f"Computed on {'; '.join(words)}." if words else ""


def _computed_with(evaluation: Findings) -> dict[str, str]:
    values = {name: evaluation.values(name) for name in ("device", "dtype", "threads")}
    return {name: several_in_words(found) for name, found in values.items() if found}


def _different_sentences(evaluation: Findings) -> int:
    """How many sentences were scored, each counted once over all settings; a run has only one, maybe without texts."""
    scored = [
        (record.cell.data, sentence.reference)
        for record in evaluation.records
        for sentence in record.sentences
    ]
    return len(scored if evaluation.kind == "run" else set(scored))


def _without_width(interval: Interval | None) -> bool:
    return interval is not None and interval.low is not None and interval.low == interval.high


def interval_in_words(interval: Interval | None) -> str:
    """A rate and its interval in percent: "93 (88 to 97)"; one without width would promise too much."""
    if interval is None:
        return "–"
    if interval.low is None or interval.high is None:
        return percent(interval.mean)
    if _without_width(interval):
        return f"{percent(interval.mean)} (all alike)"
    return f"{percent(interval.mean)} ({percent(interval.low)} to {percent(interval.high)})"


def tokens_of(sentence: SentenceRecord) -> Iterator[tuple[str, str, str]]:
    """For each position its status, the true token and what the attack said, as a person can read them."""
    for status, token, found in fates(sentence.reference_tokens, sentence.recovered_tokens):
        yield status, _shown(token), _shown(found)


def _shown(text: str) -> str:
    """A text with nothing in it that can't be seen, cut where it would flood the page."""
    text = readable(text) if text else ""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def markdown_escaped(text: object) -> str:
    """A text that Markdown shows as it is, in a table's cell too."""
    one_line = " ".join(str(text).split())
    escaped = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", one_line)
    # What would begin a heading, a list or a rule.
    escaped = re.sub(r"^(\d*)([-+=.)]|#+)(?=[-=\s]|$)", r"\1\\\2", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(text: str, language: str) -> str:
    """A block of code, its fence longer than any within."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


# How to do it again


def settings_of(evaluation: Findings, redact: bool) -> Mapping[str, Any]:
    """What was asked for; without the private batch where the report is redacted."""
    return redacted_settings(evaluation.settings) if redact else evaluation.settings


def command(evaluation: Findings, *, redact: bool = False) -> str:
    """The command that does the same again, "" where that can't be said."""
    if evaluation.audit is not None:
        return _audit_command(evaluation.settings)
    if evaluation.kind == "run":
        return _run_command(evaluation.settings, evaluation.records[0].cell.know, redact=redact)
    threads = evaluation.values("threads")
    return _evaluation_command({**evaluation.settings, "threads": threads[0] if len(threads) == 1 else None})


# What `textleak eval` takes as a flag, in the order of its help; the rest goes through --set.
_FLAGS = (
    *("data", "column", "label_column", "limit", "max_words", "batch_size", "model", "weights", "task"),
    *("attack", "share", "client", "defense", "know", "seed", "time_limit", "device", "threads"),
)
_SET = ("num_labels", "dtype")


def _evaluation_command(settings: Mapping[str, Any]) -> str:
    """`textleak eval` with every setting that decides the result, and the threads that it was computed on."""
    words = ["textleak", "eval"]
    asked = dict(settings)
    if "limits" in asked:  # an attack's own limit is written among its options
        asked["attack"] = [
            spec if limit == asked.get("limit") else f"{spec}{',' if ':' in spec else ':'}limit={limit}"
            for spec, limit in zip(asked["attack"], asked["limits"], strict=True)
        ]
    for key in _FLAGS:
        value = asked.get(key)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            if one is not None or value != [None]:
                words += [f"--{key.replace('_', '-')}", "default" if one is None else str(one)]
    words += [word for key in _SET if key in asked for word in ("--set", f"{key}={asked[key]}")]
    return shlex.join(words)


def _audit_command(settings: Mapping[str, Any]) -> str:
    """`textleak audit` with what was audited; what its flags say of the model isn't recorded."""
    words = ["textleak", "audit"]
    if settings.get("gradients"):
        words += [settings["gradients"], "--model", settings.get("model") or ""]
    else:
        words += ["--before", str(settings.get("before")), "--after", str(settings.get("after"))]
    words += ["--task", settings.get("task") or ""]
    words += [word for spec in settings.get("client") or () for word in ("--client", spec)]
    words += ["--attack", settings.get("attack") or "", "--time-limit", str(settings.get("time_limit"))]
    words += ["--device", settings.get("device") or "auto", "--threads", str(settings.get("threads", 1))]
    return shlex.join(words)


def _run_command(settings: Mapping[str, Any], know: str | None, *, redact: bool) -> str:
    """`textleak run` with every option that decides the result."""
    words = [
        "textleak",
        "run",
        "--model",
        settings.get("model") or "",
        "--weights",
        settings.get("weights") or "",
    ]
    words += ["--task", settings.get("task") or ""]
    if settings.get("gradients"):
        words += ["--gradients", settings["gradients"]]
    else:
        batch = ["…"] if redact else settings.get("sentences") or ["…"]
        words += [word for sentence in batch for word in ("--sentence", sentence)]
        labels = () if redact else settings.get("labels") or ()
        words += [word for label in labels for word in ("--label", str(label))]
        words += ["--share", settings.get("share") or "all"]
        words += [word for spec in settings.get("client") or () for word in ("--client", spec)]
        words += [word for spec in settings.get("defense") or () for word in ("--defense", spec)]
    words += ["--know", know or "nothing"]
    words += ["--attack", settings.get("attack") or ""]
    for key, value in (settings.get("attack_options") or {}).items():
        if value is not None:
            words += ["--set", f"attack.{key}={json.dumps(value) if not isinstance(value, str) else value}"]
    words += ["--seed", str(settings.get("seed", 0)), "--device", settings.get("device") or "auto"]
    words += ["--threads", str(settings.get("threads", 1))]
    return shlex.join(words)
