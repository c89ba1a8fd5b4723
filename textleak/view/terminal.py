"""A running attack in a terminal: one picture, made of nothing but the run's events.

`ViewState` is what the events so far add up to (`add` takes one more), `LiveView` draws a state into any
width and height, and the displays decide when: `LiveDisplay` on a terminal, `PlainDisplay` as lines for logs.
Drawing happens on rich's refresh thread from the newest state, so an attack never waits for a terminal.
`summary` is what a person is left with. `picture` draws a state as SVG.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import (
    Console,
    ConsoleOptions,
    ConsoleRenderable,
    Group,
    RenderableType,
    RenderHook,
    RenderResult,
)
from rich.control import Control
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from textleak.events import Event, Finished, Phase, Position, Progress, Sentence, Started, Stop, Truth
from textleak.scoring import metrics, output_ids
from textleak.words import count_of, loss_in_words, readable, seconds_in_words

REFRESHES_A_SECOND = 12
SECONDS_BETWEEN_LINES = 5.0
LONGEST_TOKEN = 18
POINTS_KEPT = 400

Part = str | tuple[str, str]
"""A few words for a line, with a style or without."""

RIGHT, ELSEWHERE, WRONG, UNKNOWN, SPECIAL, OPEN = "right", "elsewhere", "wrong", "unknown", "special", "open"
_STYLES = {
    RIGHT: "green",
    ELSEWHERE: "yellow",
    WRONG: "red",
    UNKNOWN: "cyan",
    SPECIAL: "bright_black",
    OPEN: "bright_black",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glyphs:
    """The signs that the view is drawn with, so that it can do without Unicode."""

    marks: Mapping[str, str]
    done: str
    now: str
    failed: str
    dot: str
    ellipsis: str
    bar: str
    rest: str
    steps: str
    space: str


UNICODE = Glyphs(
    marks={RIGHT: "✓", ELSEWHERE: "~", WRONG: "✗", UNKNOWN: "•", SPECIAL: "·", OPEN: "?"},
    done="✓",
    now="●",
    failed="✗",
    dot=" · ",
    ellipsis="…",
    bar="━",
    rest="╌",
    steps="▁▂▃▄▅▆▇█",
    space="␣",
)
ASCII = Glyphs(
    marks={RIGHT: "+", ELSEWHERE: "~", WRONG: "x", UNKNOWN: "*", SPECIAL: ".", OPEN: "?"},
    done="+",
    now="*",
    failed="x",
    dot=" - ",
    ellipsis="...",
    bar="=",
    rest="-",
    steps="_.-=+*#@",
    space="_",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseSpan:
    """A phase that began, and how far it got.

    Attributes:
        name: the phase.
        start: seconds after the run's start.
        end: likewise; None while it runs.
        first_step: the step of its first progress, and when (for the speed).
    """

    name: str
    start: float
    end: float | None = None
    first_step: tuple[float, int] | None = None


class Point(NamedTuple):
    """One progress of a run's course.

    Attributes:
        t: seconds after the start.
        step: steps done over all phases.
        evaluations: gradient evaluations so far.
        loss: the best candidate's; None where there is none, or it isn't a number.
        match_rate: the answer's token match rate; None where the truth isn't known.
    """

    t: float
    step: int
    evaluations: int
    loss: float | None
    match_rate: float | None

    @classmethod
    def of(cls, t: float, progress: Progress, rate: float | None) -> Self:
        """The point that a progress adds."""
        loss = progress.loss if progress.loss is not None and math.isfinite(progress.loss) else None
        return cls(t, progress.total_steps, progress.evaluations, loss, rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewState:
    """What the events of a run add up to; `t` is in seconds after its start.

    Attributes:
        settings: as in run.json.
        truth: what was in the batch, where that is known.
        originals: likewise the pictures of an image run.
        labels: their classes.
        phases: those that began, in order.
        progress: the newest, with the newest answer there is.
        points: the course so far: every `stride`-th progress and the newest.
        stride: doubled whenever there are too many points, so that a course of any length stays even.
        seen: how many progress events there were.
        finished: the last event of a run that ended.
        t: when the newest event was.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    truth: tuple[Sentence, ...] = ()
    originals: tuple[Any, ...] = ()
    labels: tuple[int, ...] = ()
    phases: tuple[PhaseSpan, ...] = ()
    progress: Progress | None = None
    points: tuple[Point, ...] = ()
    stride: int = 1
    seen: int = 0
    finished: Finished | None = None
    t: float = 0.0

    @property
    def losses(self) -> tuple[float, ...]:
        """The losses along the course, where there are any."""
        return tuple(point.loss for point in self.points if point.loss is not None)

    @property
    def rates(self) -> tuple[float, ...]:
        """The token match rates along the course; none where the truth isn't known."""
        return tuple(point.match_rate for point in self.points if point.match_rate is not None)

    def add(self, event: Event, t: float) -> Self:
        """The state after one more event."""
        match event:
            case Started():
                return dataclasses.replace(self, settings=event.settings, t=t)
            case Truth():
                return dataclasses.replace(
                    self, truth=event.sentences, originals=event.image, labels=event.labels, t=t
                )
            case Phase():
                return dataclasses.replace(self, phases=self._begun(event.name, t), t=t)
            case Progress():
                phases = self.phases
                if not phases or (phases[-1].name != event.phase and event.phase):
                    phases = self._begun(event.phase, t)
                if phases[-1].first_step is None:
                    phases = (*phases[:-1], dataclasses.replace(phases[-1], first_step=(t, event.step)))
                event = event.keeping(self.progress)
                points, stride = self._with_point(Point.of(t, event, match_rate(self.truth, event.sentences)))
                return dataclasses.replace(
                    self,
                    phases=phases,
                    progress=event,
                    points=points,
                    stride=stride,
                    seen=self.seen + 1,
                    t=t,
                )
            case Finished():
                return dataclasses.replace(self, phases=self._ended(t), finished=event, t=t)

    @classmethod
    def of(cls, events: Iterable[tuple[float, Event]]) -> Self:
        """What recorded events add up to, each with its time."""
        state = cls()
        for t, event in events:
            state = state.add(event, t)
        return state

    def _ended(self, t: float) -> tuple[PhaseSpan, ...]:
        if not self.phases or self.phases[-1].end is not None:
            return self.phases
        return (*self.phases[:-1], dataclasses.replace(self.phases[-1], end=t))

    def _begun(self, name: str, t: float) -> tuple[PhaseSpan, ...]:
        return (*self._ended(t), PhaseSpan(name=name, start=t))

    def _with_point(self, point: Point) -> tuple[tuple[Point, ...], int]:
        """The course with one more point, and its stride."""
        even = (len(self.points) - 1) * self.stride == self.seen - 1
        points = (*(self.points if even else self.points[:-1]), point)
        if len(points) <= POINTS_KEPT:
            return points, self.stride
        return (*points[:-1:2], point), self.stride * 2

    def assigned(self) -> list[Sentence | None]:
        """For each sentence shown the true one it stands for; None where the truth isn't known."""
        shown = self.progress.sentences if self.progress else ()
        if not self.truth or not shown:
            return [None] * len(shown)
        if len(shown) == len(self.truth) == 1:
            return [self.truth[0]]
        special = {p.id for sentence in self.truth for p in sentence.positions if p.special}
        references = [output_ids(sentence) for sentence in self.truth]
        found: list[Sentence | None] = [None] * len(shown)
        for reference, output in enumerate(
            metrics.assign(references, [output_ids(sentence) for sentence in shown], special)
        ):
            if output is not None:
                found[output] = self.truth[reference]
        return found

    def match_rate(self) -> float | None:
        """The token match rate of the newest answer, 0 to 1; None where the truth isn't known."""
        return match_rate(self.truth, self.progress.sentences if self.progress else ())


def match_rate(truth: Sequence[Sentence], shown: Sequence[Sentence]) -> float | None:
    """The token match rate of an answer, as in a result; None without a truth or an answer."""
    if not truth or not shown:
        return None
    special = {p.id for sentence in (*truth, *shown) for p in sentence.positions if p.special}
    return match_rate_of(
        [output_ids(sentence) for sentence in truth], [output_ids(sentence) for sentence in shown], special
    )


def match_rate_of(
    references: Sequence[metrics.Tokens], outputs: Sequence[metrics.Tokens], special: Collection[int]
) -> float:
    """`metrics.token_match_rate`, without the assignment where there is nothing to assign."""
    if len(references) == len(outputs) == 1:
        return metrics.sentence_match_rate(references[0], outputs[0], special)
    return metrics.token_match_rate(references, outputs, special)


def statuses_of(sentence: Sentence, truth: Sentence | None) -> list[str]:
    """For each position whether its token is right, elsewhere, wrong, open, special or unknown.

    "elsewhere": in the true sentence, but not here. "unknown": there is no truth to compare with.
    """
    true = {} if truth is None else {one.position: one for one in truth.positions}
    ids = {one.id for one in true.values()}
    return [_status(position, truth, true.get(position.position), ids) for position in sentence.positions]


def _status(position: Position, truth: Sentence | None, true: Position | None, ids: set[int]) -> str:
    if truth is None:
        return SPECIAL if position.special else OPEN if position.id < 0 else UNKNOWN
    if position.special and (true is None or true.special):
        return SPECIAL
    if position.id < 0:
        return OPEN
    if true is not None and true.id == position.id:
        return RIGHT
    return ELSEWHERE if position.id in ids else WRONG


def status_of(position: Position, truth: Sentence | None) -> str:
    """Whether one token is right, elsewhere, wrong, open, special or unknown (see `statuses_of`)."""
    return statuses_of(Sentence(positions=(position,), text=""), truth)[0]


def right_of(sentence: Sentence, truth: Sentence) -> tuple[int, int]:
    """How many of the true sentence's tokens stand where they belong, and how many it has."""
    special = {position.id for position in truth.positions if position.special}
    reference = output_ids(truth)
    return (
        metrics.matches(reference, output_ids(sentence), special),
        len(metrics.counted(reference, special)),
    )


def surplus_of(sentence: Sentence, truth: Sentence) -> int:
    """How many tokens stand where the true sentence has none."""
    places = {position.position for position in truth.positions if not position.special}
    tokens = (one for one in sentence.positions if not one.special and one.id >= 0)
    return sum(one.position not in places for one in tokens)


class LiveView:
    """A state as a rich renderable, for any width and height.

    Args:
        state: gives the state to draw, asked at every drawing.
        now: gives the seconds since the run's start; None for the time of the last event.
    """

    def __init__(self, state: Callable[[], ViewState], now: Callable[[], float] | None = None) -> None:
        self._state = state
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the newest state."""
        glyphs = UNICODE if options.encoding.startswith("utf") else ASCII
        state = self._state()
        now = state.t if self._now is None or state.finished else self._now()
        # A panel costs two columns of border and two of padding, two rows, and the cursor's own row.
        width = max(20, options.max_width - 4)
        rows = max(8, (options.height or console.height) - 3)
        yield Panel(
            _body(state, now, width, rows, glyphs),
            title=_title(state, options.max_width - 6, glyphs),
            title_align="left",
            border_style=_border(state),
            width=options.max_width,
        )


def _border(state: ViewState) -> str:
    if state.finished is None:
        return "cyan"
    return "green" if state.finished.outcome == "done" else "yellow"


def _title(state: ViewState, width: int, glyphs: Glyphs) -> Text:
    settings = state.settings
    title = Text("textleak", style="bold")
    if "attack" in settings:
        title.append(f" {settings['attack']}", style="bold magenta")
    if "model" in settings:
        title.append(f" on {settings['model']}", style="bold")
    if settings.get("weights") == "random":
        title.append(", random weights", style="yellow")
    title.truncate(max(8, width), overflow="ellipsis")
    return title


def _body(state: ViewState, now: float, width: int, rows: int, glyphs: Glyphs) -> RenderableType:
    above: list[Text] = [
        *_facts(state, width, glyphs),
        _timeline(state, now, width, glyphs),
        *_figures(state, now, width, glyphs),
    ]
    below = [_clock(state, now, width, glyphs)]
    if state.truth:
        below.insert(0, _legend(width, glyphs))
    room = rows - len(above) - len(below) - 1
    shown = _pictures if state.progress is not None and state.progress.image else _sentences
    return Group(*above, Text(""), *shown(state, width, max(3, room), glyphs), *below)


def _pictures(state: ViewState, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    from textleak.view.pictures import picture_lines

    assert state.progress is not None
    return picture_lines(
        state.progress, state.originals, state.labels, width, rows, unicode=glyphs is UNICODE
    )


def _line(parts: Iterable[Part], width: int, separator: str) -> Text:
    """Parts in one line; those that don't fit are left out."""
    return (_lines(parts, width, separator) or [Text()])[0]


def _lines(parts: Iterable[Part], width: int, separator: str) -> list[Text]:
    """Parts in as many lines as they need; a part is never broken, but cut short where it is wider."""
    lines: list[Text] = []
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        if not text:
            continue
        if lines and lines[-1].cell_len + cell_len(separator) + cell_len(text) <= width:
            lines[-1].append(separator, style="bright_black").append(text, style=style)
        else:
            lines.append(Text(no_wrap=True, overflow="ellipsis").append(text, style=style))
            lines[-1].truncate(width, overflow="ellipsis")
    return lines


def _facts(state: ViewState, width: int, glyphs: Glyphs) -> list[Text]:
    settings = state.settings
    if not settings:
        return []
    batch, tokens = settings.get("batch_size"), settings.get("tokens")
    parts: list[Part] = []
    if batch and "picture_shape" in settings:
        _, height, wide = settings["picture_shape"]
        parts.append(f"{batch} picture{'s' if batch != 1 else ''} of {height} x {wide}")
    elif batch:
        parts.append(f"{batch} sentence{'s' if batch != 1 else ''}")
    if tokens:
        # Two are told together as n/D, not the batch size, decides what can be recovered.
        ratio = settings.get("tokens_per_hidden")
        parts.append(f"n = {count_of(tokens, 'token')}" + (f", n/D = {ratio:.2g}" if ratio else ""))
    parts.append(f"share {settings['share']}" if settings.get("share") else "")
    parts.extend((str(spec), "yellow") for spec in settings.get("defense") or ())
    parts.append(str(settings.get("device", "")))
    parts.append(f"seed {settings['seed']}" if "seed" in settings else "")
    return _lines(parts, width, glyphs.dot)[:2]


def _timeline(state: ViewState, now: float, width: int, glyphs: Glyphs) -> Text:
    if not state.phases:
        return Text("starting", style="bright_black")
    ended = state.finished is not None and state.finished.outcome != "done"
    pieces: list[Text] = []
    for phase in state.phases:
        running = phase.end is None
        last = phase is state.phases[-1]
        sign, style = (glyphs.now, "bold cyan") if running else (glyphs.done, "green")
        if ended and last:
            sign, style = glyphs.failed, "yellow"
        spent = seconds_in_words((now if phase.end is None else phase.end) - phase.start)
        piece = Text(f"{sign} {phase.name}", style=style)
        piece.append(f" {spent}", style="bright_black")
        pieces.append(piece)
    # The newest phases matter most: drop the oldest until the rest fits.
    line = Text("  ").join(pieces)
    dropped = 0
    while line.cell_len > width and dropped < len(pieces) - 1:
        dropped += 1
        line = Text("  ").join([Text(glyphs.ellipsis, style="bright_black"), *pieces[dropped:]])
    line.truncate(width, overflow="ellipsis")
    return line


def _figures(state: ViewState, now: float, width: int, glyphs: Glyphs) -> list[Text]:
    progress = state.progress
    if progress is None:
        return []
    step = f"step {progress.step:,}" + (f" of {progress.steps:,}" if progress.steps else "")
    best = f"loss {loss_in_words(progress.loss)}" if progress.loss is not None else ""
    evaluations = count_of(progress.evaluations, "evaluation") if progress.evaluations else ""
    first = _line([(step, "bold"), (best, "bold"), evaluations], width, glyphs.dot)
    left = width - first.cell_len - 2
    if progress.steps and left >= 8:
        filled = round(min(1.0, progress.step / progress.steps) * min(left, 30))
        first.append("  ").append(glyphs.bar * filled, style="cyan")
        first.append(glyphs.rest * (min(left, 30) - filled), style="bright_black")
    lines = [first]
    if len(state.losses) > 1:
        curve = Text("loss ", style="bright_black", no_wrap=True)
        curve.append(_curve(state.losses, min(width - 5, 60), glyphs), style="magenta")
        lines.append(curve)
    if len(progress.losses) > 1:
        lines.append(_restarts(progress, width, glyphs))
    if progress.detail:
        lines.append(_line([(progress.detail, "italic")], width, ""))
    return lines


def _restarts(progress: Progress, width: int, glyphs: Glyphs) -> Text:
    """The candidates by rank: a bar each (the shorter the better), then the best few by number."""
    finite = sorted(
        (loss, index)
        for index, loss in enumerate(progress.losses)
        if loss is not None and math.isfinite(loss)
    )
    line = Text(f"K = {len(progress.losses)} ", style="bright_black", no_wrap=True)
    if not finite:
        return line.append("all diverged", style="red")
    shown = finite[: max(4, min(32, width // 3))]
    line.append(_heights([loss for loss, _ in shown], glyphs), style="blue")
    for loss, index in finite[:5]:
        text = f"  #{index + 1} {loss_in_words(loss)}"
        if line.cell_len + cell_len(text) > width:
            break
        line.append(text, style="bold" if index == progress.candidate else "")
    return line


def _curve(losses: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """Losses over time on a log scale, the newest at the right, each column the best of its share."""
    width = max(1, min(width, len(losses)))
    columns = [
        min(
            losses[len(losses) * column // width : max(len(losses) * (column + 1) // width, 1)] or losses[-1:]
        )
        for column in range(width)
    ]
    return _heights(columns, glyphs)


def _heights(losses: Sequence[float], glyphs: Glyphs) -> str:
    logs = [math.log10(max(loss, 1e-12)) for loss in losses]
    low, high = min(logs), max(logs)
    top = len(glyphs.steps) - 1
    return "".join(glyphs.steps[round((log - low) / (high - low) * top) if high > low else 0] for log in logs)


def _sentences(state: ViewState, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """As many sentences as the rows hold, each a head line and its wrapped tokens; then what was left out."""
    if state.progress is None or not state.progress.sentences:
        return [Text("no answer yet", style="bright_black")]
    shown = state.progress.sentences
    truths = state.assigned()
    lines: list[Text] = []
    for index, (sentence, truth) in enumerate(zip(shown, truths, strict=True)):
        block = _head(index, sentence, truth, width, glyphs, alone=len(shown) == 1)
        block += _tokens(sentence, truth, width, glyphs)
        more = len(shown) - index - 1
        room = rows - len(lines) - (1 if more else 0)
        if len(block) > room:
            if not lines:  # the first sentence is always shown, cut short where it must be
                lines += [*block[: max(3, room - 1)], _more(len(shown) - 1, truths, shown, glyphs, cut=True)]
            else:
                lines.append(_more(more + 1, truths, shown, glyphs, cut=False))
            break
        lines += block
    return lines


def _more(
    count: int,
    truths: Sequence[Sentence | None],
    shown: Sequence[Sentence],
    glyphs: Glyphs,
    *,
    cut: bool,
) -> Text:
    words = []
    if cut:
        words.append("the rest of the sentence")
    if count:
        words.append(f"{count} more sentence{'s' if count != 1 else ''}")
    counts = [right_of(sentence, truth) for sentence, truth in zip(shown, truths, strict=True) if truth]
    right, total = sum(count[0] for count in counts), sum(count[1] for count in counts)
    in_all = f"{glyphs.dot}{right} of {total} tokens right in all" if counts else ""
    return Text(f"{glyphs.ellipsis} and {' and '.join(words)}{in_all}", style="bright_black", no_wrap=True)


def _head(
    index: int, sentence: Sentence, truth: Sentence | None, width: int, glyphs: Glyphs, *, alone: bool
) -> list[Text]:
    parts: list[Part] = [("text" if alone else f"text {index + 1}", "bold")]
    if truth is not None:
        right, total = right_of(sentence, truth)
        surplus = surplus_of(sentence, truth)
        words = f"{right} of {total} tokens right" + (f", {surplus} too many" if surplus else "")
        parts.append((words, "green" if right == total and not surplus else ""))
    posterior = sentence.label_posterior
    if posterior:
        best = sorted(range(len(posterior)), key=lambda label: -posterior[label])[:3]
        parts.append(
            "label "
            + "  ".join(
                f"{label} {_bar(posterior[label], 5, glyphs)} {posterior[label]:.2f}"
                for label in sorted(best)
            )
        )
    elif sentence.label is not None:
        parts.append(f"label {sentence.label}")
    if truth is not None and truth.label is not None and sentence.label is not None:
        parts.append(("right label", "green") if truth.label == sentence.label else ("wrong label", "red"))
    return _lines(parts, width, glyphs.dot)


def _bar(share: float, width: int, glyphs: Glyphs) -> str:
    filled = round(max(0.0, min(1.0, share)) * width)
    return glyphs.bar * filled + glyphs.rest * (width - filled)


def _tokens(sentence: Sentence, truth: Sentence | None, width: int, glyphs: Glyphs) -> list[Text]:
    """Tokens with their marks, and under each its confidence as a bar; wrapped into pairs of lines."""
    lines: list[Text] = []
    words, bars = Text(no_wrap=True), Text(no_wrap=True)
    for position, status in zip(sentence.positions, statuses_of(sentence, truth), strict=True):
        style = _STYLES[status]
        word = readable(position.text, glyphs.space) if position.id >= 0 else glyphs.marks[OPEN]
        size = min(max(2, cell_len(word)), LONGEST_TOKEN, width - 1)
        if cell_len(word) > size:
            word = set_cell_size(word, size - cell_len(glyphs.ellipsis)) + glyphs.ellipsis
        if words.plain and words.cell_len + 1 + size > width:
            lines += [words, bars]
            words, bars = Text(no_wrap=True), Text(no_wrap=True)
        words.append(set_cell_size(word, size), style=style if status == SPECIAL else f"bold {style}")
        words.append(" ")
        filled = round(max(0.0, min(1.0, position.confidence)) * (size - 1))
        bars.append(glyphs.marks[status], style=style)
        if status == SPECIAL:
            bars.append(" " * (size - 1))
        else:
            bars.append(glyphs.bar * filled, style=style)
            bars.append(glyphs.rest * (size - 1 - filled), style="bright_black")
        bars.append(" ")
    return [*lines, words, bars] if words.plain else lines


def _legend(width: int, glyphs: Glyphs) -> Text:
    marks = [(f"{glyphs.marks[status]} {status}", _STYLES[status]) for status in (RIGHT, ELSEWHERE, WRONG)]
    return _line([*marks, f"{glyphs.bar * 3} confidence"], width, "  ")


def _clock(state: ViewState, now: float, width: int, glyphs: Glyphs) -> Text:
    elapsed = f"{seconds_in_words(now)} elapsed"
    if state.finished is not None:
        return _line([(elapsed, "bold"), state.finished.outcome], width, glyphs.dot)
    parts: list[Part] = [(elapsed, "bold")]
    remaining = remaining_seconds(state, now)
    if remaining is not None:
        parts.append(f"at most {seconds_in_words(remaining)} left in this phase")
    parts.append(("Ctrl-C stops with the best so far", "bright_black"))
    return _line(parts, width, glyphs.dot)


def remaining_seconds(state: ViewState, now: float) -> float | None:
    """How long the running phase takes at most, judged by its speed so far; None where that isn't known."""
    progress, phases = state.progress, state.phases
    if progress is None or not progress.steps or not phases or phases[-1].first_step is None:
        return None
    since, first = phases[-1].first_step
    done = progress.step - first
    if done <= 0 or progress.step > progress.steps or state.t <= since:
        return None
    speed = done / (state.t - since)
    return max(0.0, (progress.steps - progress.step) / speed - (now - state.t))


class Display(Protocol):
    """Shows a run's events while they come: a context manager with one method."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def show(self, event: Event, /) -> None:
        """Take in one more event."""
        ...


class Newest:
    """A state that is added up only when it is looked at.

    Events come from an attack's thread many times between two looks. A progress gives way there to the next one
    of its phase, so that taking it in costs the attack next to nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, Event]] = []
        self._state = ViewState()

    def add(self, event: Event, t: float) -> None:
        """Take in one more event."""
        with self._lock:
            before = self._waiting[-1][1] if self._waiting else None
            if isinstance(event, Progress) and isinstance(before, Progress) and before.phase == event.phase:
                event = event.keeping(before)
                self._waiting.pop()
            self._waiting.append((t, event))

    @property
    def state(self) -> ViewState:
        """What the events so far add up to."""
        with self._lock:
            for t, event in self._waiting:
                self._state = self._state.add(event, t)
            self._waiting.clear()
            return self._state


class LiveDisplay(RenderHook):
    """The picture on a terminal, drawn anew up to twelve times a second by rich's own thread.

    What is typed meanwhile isn't echoed, as it would move the cursor away from under the picture.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._newest = Newest()
        self._console = console
        self._size = console.size
        self._live = Live(
            LiveView(lambda: self.state, self._elapsed),
            console=console,
            refresh_per_second=REFRESHES_A_SECOND,
            vertical_overflow="crop",
            redirect_stdout=False,
        )
        self._echo: Callable[[], None] = _nothing

    @property
    def state(self) -> ViewState:
        """What the events so far add up to."""
        return self._newest.state

    def _elapsed(self) -> float:
        return self._clock() - self._start

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._start = self._clock()
        self._echo = _without_echo(sys.stdin)
        self._size = self._console.size
        self._console.push_render_hook(self)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Draw once more and leave the picture standing."""
        try:
            self._live.stop()
            self._console.pop_render_hook()
        finally:
            self._echo()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Begin on an empty screen after a resize: nobody can tell where the lines went that were there."""
        size = self._console.size
        if size == self._size:
            return renderables
        self._size = size
        return [Control.clear(), Control.home(), *renderables]

    def show(self, event: Event) -> None:
        """Take in one more event; the drawing thread sees it at its next turn."""
        self._newest.add(event, self._elapsed())


def _without_echo(terminal: TextIO | None) -> Callable[[], None]:
    """Switch a terminal's echo off, where it is one and ours; gives what switches it on again."""
    try:
        import termios
    except ImportError:  # where terminals are no files
        return _nothing
    try:
        number = terminal.fileno() if terminal is not None else -1
        # Changing a terminal from the background would stop the process.
        if not os.isatty(number) or os.tcgetpgrp(number) != os.getpgrp():
            return _nothing
        before = termios.tcgetattr(number)
        after = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(number, termios.TCSADRAIN, after)
    except (OSError, ValueError, termios.error):
        return _nothing
    return lambda: termios.tcsetattr(number, termios.TCSADRAIN, before)


def _nothing() -> None:
    """There was nothing to change."""


class PlainDisplay:
    """Lines for a log: one a phase, and one every few seconds."""

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        seconds_between: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self._console = console
        self._clock = clock
        self._start = clock()
        self._between = seconds_between
        self._last = 0.0
        self._phase = ""
        self._newest = Newest()

    @property
    def state(self) -> ViewState:
        """What the events so far add up to."""
        return self._newest.state

    def __enter__(self) -> Self:
        """Start the clock."""
        self._start = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to put away."""

    def show(self, event: Event) -> None:
        """Take in one more event and write a line where it deserves one."""
        now = self._clock() - self._start
        self._newest.add(event, now)
        if isinstance(event, Phase):
            self._phase = event.name
            self._write(now, event.name, event.detail)
        elif isinstance(event, Progress):
            if event.phase != self._phase:
                self._phase = event.phase
                self._write(now, event.phase, event.detail)
            elif now - self._last >= self._between:
                assert self.state.progress is not None
                self._write(now, event.phase, *_words(self.state.progress, self.state))

    def _write(self, now: float, *parts: str) -> None:
        self._last = now
        words = ", ".join(part for part in parts if part)
        self._console.print(Text(f"[{now:7.1f} s] {words}"), soft_wrap=True)


def _words(progress: Progress, state: ViewState) -> Iterable[str]:
    """A line of progress in words."""
    yield f"step {progress.step}" + (f" of {progress.steps}" if progress.steps else "")
    if progress.loss is not None:
        yield f"loss {loss_in_words(progress.loss)}"
    if progress.evaluations:
        yield count_of(progress.evaluations, "evaluation")
    pairs = zip(progress.sentences, state.assigned(), strict=True) if progress.sentences else ()
    counts = [right_of(sentence, truth) for sentence, truth in pairs if truth]
    if counts:
        yield f"{sum(c[0] for c in counts)} of {sum(c[1] for c in counts)} tokens right"
    if state.originals and progress.image:
        from textleak.view.pictures import mean_psnr

        yield f"PSNR {mean_psnr(progress.image, state.originals):.1f} dB"
    if progress.sentences and progress.sentences[0].text:
        yield repr(progress.sentences[0].text)


def how_much(result: Mapping[str, Any]) -> str:
    """One sentence: how much of the text leaked."""
    rate = result.get("token_match_rate")
    channel = {"embedding": "the embedding gradient", "span": "the span of a layer's gradient"}.get(
        str(result.get("channel")), "gradient matching"
    )
    if rate is None:
        if result.get("verified"):
            return f"The text was recovered through {channel}: its own gradient equals the shared one."
        return (
            f"A text was found through {channel}; without the truth nobody can say how much of it is right."
        )
    if rate == 1:
        amount = "All of the text leaked"
    elif rate >= 0.75:
        amount = "Most of the text leaked"
    elif rate >= 0.25:
        amount = "A part of the text leaked"
    elif rate > 0:
        amount = "Little of the text leaked"
    else:
        return "No token was recovered at its place."
    right, total = tokens_right(result)
    words = f"{right} of {count_of(total, 'token')}"
    rest = "is right, at its place" if right == 1 else "are right, each at its place"
    return f"{amount} through {channel}: {words} {rest}."


def tokens_right(result: Mapping[str, Any]) -> tuple[int, int]:
    """Positions that are right in a result's sentences, and how many there are."""
    right = total = 0
    for sentence in result.get("sentences", ()):
        # The rate times the count, not the tokens, as a redacted result has no tokens.
        count = int(sentence.get("tokens") or len(sentence.get("reference_tokens") or ()))
        total += count
        right += round((sentence.get("token_match_rate") or 0.0) * count)
    return right, total


def summary(result: Mapping[str, Any]) -> RenderableType:
    """What a finished run leaves on the screen: a sentence, the figures, the texts, the run folder."""
    parts: list[RenderableType] = []
    if result.get("outcome") == "interrupted":
        parts.append(Text(Stop.INTERRUPTED.value, style="yellow"))
    rate = result.get("token_match_rate")
    style = (
        "bold"
        if rate is None
        else "bold red"
        if rate >= 0.75
        else "bold yellow"
        if rate > 0
        else "bold green"
    )
    parts.append(Text(how_much(result), style=style))
    parts.append(_figures_table(result))
    texts = Table.grid(padding=(0, 2))
    texts.add_column(style="bright_black", no_wrap=True)
    texts.add_column(overflow="fold")
    for sentence in result.get("sentences", ()):
        if sentence.get("reference") is not None:
            texts.add_row("reference", Text(str(sentence["reference"])))
        if sentence.get("recovered") is not None:
            texts.add_row("recovered", _marked(sentence))
    for text in result.get("surplus", ()):
        texts.add_row("surplus", Text(str(text), style="bright_black"))
    if texts.row_count:
        parts += [Text(""), texts]
    parts.extend(Text(f"Note: {note}", style="yellow") for note in result.get("notes", ()))
    if result.get("run_dir"):
        parts += [Text(""), Text.assemble(("run folder ", "bright_black"), str(result["run_dir"]))]
    return Group(*parts)


def _figures_table(result: Mapping[str, Any]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column()
    if result.get("token_match_rate") is not None:
        table.add_row(
            "token match rate",
            f"{result['token_match_rate']:.2f}   recall {result['token_recall']:.2f}   "
            f"ROUGE-1/2/L {result['rouge1']:.2f}/{result['rouge2']:.2f}/{result['rougeL']:.2f}",
        )
    verified, distance = result.get("verified"), result.get("gradient_distance")
    if verified is None:
        changed = "can't be said, as the gradient was changed before it was shared"
        table.add_row("verified", changed if result.get("defense") else "not checked")
    else:
        words = "yes" if verified else "no"
        if distance is not None:
            words += f", the text's own gradient is {distance:.1e} away from the shared one (relative)"
        table.add_row("verified", words)
    if result.get("stop") and not verified:
        table.add_row("ended because", Text(str(result["stop"])))
    if result.get("weights") == "random":
        table.add_row("weights", "random: take pretrained ones for a figure about a real model")
    if result.get("tokens"):
        table.add_row(
            "size",
            f"{result.get('batch_size')} in the batch, n = {count_of(result['tokens'], 'token')}, "
            f"n/D = {result.get('tokens_per_hidden', 0):.2g}",
        )
    seconds = result.get("seconds")
    if seconds is not None:
        table.add_row(
            "took", f"{seconds_in_words(seconds)}, {count_of(result.get('evaluations') or 0, 'evaluation')}"
        )
    return table


def _marked(sentence: Mapping[str, Any]) -> Text:
    """The recovered text, its words green where they are right, yellow elsewhere, red where wrong."""
    reference, recovered = sentence.get("reference"), str(sentence["recovered"])
    if reference is None:
        return Text(recovered)
    if sentence.get("exact"):
        return Text(recovered, style="green")
    true = str(reference).lower().split()
    left = Counter(true)
    text = Text()
    for index, word in enumerate(recovered.split(" ")):
        at_home = index < len(true) and true[index] == word.lower()
        style = _STYLES[RIGHT] if at_home else _STYLES[ELSEWHERE] if left[word.lower()] else _STYLES[WRONG]
        text.append(" " if index else "").append(word, style=style)
    return text


def picture(state: ViewState, *, width: int = 80, height: int = 24, title: str = "textleak run") -> str:
    """The live view of a state as an SVG document, for a page or a README."""
    console = Console(
        record=True,
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(LiveView(lambda: state))
    return console.export_svg(title=title)
