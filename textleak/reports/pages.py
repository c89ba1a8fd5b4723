"""A report's figures as a page to read: Markdown, one self-contained HTML page, or plain JSON values.

Recovered text is untrusted: the HTML template escapes everything, the Markdown one whatever has a meaning there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from textleak.data.sentences import SAMPLE
from textleak.reports import charts
from textleak.reports.again import command, settings_of
from textleak.reports.analysis import Report
from textleak.reports.curves import draw_curve
from textleak.reports.figures import SettingFigures, in_range, leaked, percent
from textleak.reports.settings import AXES, TITLES, several_in_words, told
from textleak.reports.statistics import FEW_IN_WORDS, Interval
from textleak.reports.verdict import ICONS
from textleak.runs.redaction import TOLD_OF_TEXT
from textleak.scoring.chips import fates
from textleak.words import count_of, printable, readable, seconds_in_words

if TYPE_CHECKING:
    from jinja2 import Environment

    from textleak.evaluation.records import SentenceRecord
    from textleak.reports.reading import Findings, PictureFigures
    from textleak.reports.utility import UtilityRow

# Raised where a field goes or means something else, not where one is added.
SCHEMA_VERSION = 1
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
        "schema_version": SCHEMA_VERSION,
        "kind": evaluation.kind,
        "identity": evaluation.identity,
        "verdict": report.verdict.value,
        "headline": list(report.headline),
        "threat_model": report.threat,
        "proved": None if report.proved is None else " ".join(report.proved),
        "recommendation": report.recommendation,
        "started": evaluation.started,
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
        "pictures": None if evaluation.pictures is None else _plain(evaluation.pictures),
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


@functools.cache  # with its templates, which are compiled once
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
        figure=lambda value, form: "–" if value is None else form % value,
        seconds=lambda seconds: "–" if seconds is None else seconds_in_words(seconds),
    )
    environment.globals.update(count_of=count_of, tokens_of=tokens_of, svg=charts.draw, curve=draw_curve)
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
        "icon": ICONS[report.verdict],
        "tone": report.verdict.name.lower().replace("_", "-"),
        "begun": evaluation.started[:10],
        "models": several_in_words(told(one.setting, "model") for one in settings),
        "pictures": () if redact else evaluation.course.pictures,
        "has_cpu_seconds": any(one.cpu_seconds for one in settings),
        "has_lpips": any(one.lpips is not None for one in _pictures(evaluation)),
        "has_verified": any(one.verifiable for one in settings),
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
        "has_named": any(one.named is not None for one in settings),
        "has_secrets": any(one.secrets_planted for one in settings),
        "planted_by_us": {record.cell.data for record in evaluation.records} == {SAMPLE},
        "has_epsilon": any(one.epsilon is not None for one in settings),
        "unfolded": len(settings) <= ROWS_UNFOLDED,
        "few": FEW_IN_WORDS if any(interval.of_few for interval in _intervals(report)) else "",
        "identical": any(_without_width(one.match) for one in settings),
    }


def _pictures(evaluation: Findings) -> tuple[PictureFigures, ...]:
    return () if evaluation.pictures is None else evaluation.pictures.images


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
