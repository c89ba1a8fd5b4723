"""A run's state drawn into a terminal of any width and height, and the terminal's own modes meanwhile."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.text import Text

from textleak.events import Progress, Sentence, label_words, same_label
from textleak.view.consoles import ReadableConsole
from textleak.view.glyphs import ASCII, LEAKED, PROTECTED, STYLES, UNICODE, Glyphs
from textleak.view.state import ViewState, remaining_seconds
from textleak.view.statuses import ELSEWHERE, OPEN, RIGHT, SPECIAL, WRONG, right_of, statuses_of, surplus_of
from textleak.words import count_of, loss_in_words, readable, seconds_in_words

LONGEST_TOKEN = 18
Part = str | tuple[str, str]
"""A few words for a line, with a style or without."""


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
    return {"done": "green", "failed": "red"}.get(state.finished.outcome, "yellow")


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
        parts.append(f"{count_of(batch, 'picture')} of {height} x {wide}")
    elif batch:
        parts.append(count_of(batch, "sentence"))
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
    outcome = "done" if state.finished is None else state.finished.outcome
    pieces: list[Text] = []
    for phase in state.phases:
        running = phase.end is None
        last = phase is state.phases[-1]
        sign, style = (glyphs.now, "bold cyan") if running else (glyphs.done, "green")
        if last and outcome == "failed":
            sign, style = glyphs.failed, "red"
        elif last and outcome != "done":  # a person ended it, with its best answer so far
            sign, style = glyphs.stopped, "yellow"
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
        words.append(count_of(count, "more sentence"))
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
        parts.append((words, LEAKED if right == total and not surplus else ""))
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
        parts.append(f"label {label_words(sentence.label)}")
    if truth is not None and truth.label is not None and sentence.label is not None:
        parts.append(
            ("right label", LEAKED) if same_label(truth.label, sentence.label) else ("wrong label", PROTECTED)
        )
    return _lines(parts, width, glyphs.dot)


def _bar(share: float, width: int, glyphs: Glyphs) -> str:
    filled = round(max(0.0, min(1.0, share)) * width)
    return glyphs.bar * filled + glyphs.rest * (width - filled)


def _tokens(sentence: Sentence, truth: Sentence | None, width: int, glyphs: Glyphs) -> list[Text]:
    """Tokens with their marks, and under each its confidence as a bar; wrapped into pairs of lines."""
    lines: list[Text] = []
    words, bars = Text(no_wrap=True), Text(no_wrap=True)
    for position, status in zip(sentence.positions, statuses_of(sentence, truth), strict=True):
        style = STYLES[status]
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
    marks = [(f"{glyphs.marks[status]} {status}", STYLES[status]) for status in (RIGHT, ELSEWHERE, WRONG)]
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


def without_echo(terminal: TextIO | None) -> Callable[[], None]:
    """Switch a terminal's echo off, where it is one and ours; gives what switches it on again."""
    try:
        import termios
    except ImportError:  # where terminals are no files
        return nothing
    try:
        number = terminal.fileno() if terminal is not None else -1
        # Changing a terminal from the background would stop the process.
        if not os.isatty(number) or os.tcgetpgrp(number) != os.getpgrp():
            return nothing
        before = termios.tcgetattr(number)
        after = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(number, termios.TCSADRAIN, after)
    except (OSError, ValueError, termios.error):
        return nothing
    return lambda: termios.tcsetattr(number, termios.TCSADRAIN, before)


def nothing() -> None:
    """There was nothing to change."""


def picture(state: ViewState, *, width: int = 80, height: int = 24, title: str = "textleak run") -> str:
    """The live view of a state as an SVG document, for a page or a README."""
    console = ReadableConsole(
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
