"""Charts as inline SVG, drawn plainly: rates from 0 to 100 % over categories, with their intervals as whiskers.

Colors come from the page's style sheet (`series-1` ...), so that a chart follows light and dark mode; each series
has a marker and a dash of its own too, so that it can do without color.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

from textleak.reports.series import Chart, Series
from textleak.reports.statistics import Interval

# In units of the drawing; a phone shows it about as wide.
WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 46
_LETTER, _LINE = 6.8, 13.0  # a label's letter is about so wide, a line of them so high
_MOST_LINES = 3
_WIDEST_BAR = 34.0
_SIZE = 4.5  # half a marker
_SPREAD = 7.0  # series stand so far apart at one category, so that their whiskers don't cover each other
_LONGEST_NAME = 44
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "1 4")


def draw(chart: Chart) -> Markup:
    """The chart as an SVG element."""
    legend = 18 * len(chart.series) if len(chart.series) > 1 else 0
    labels = _wrapped(chart.categories)
    below = _LINE * (max(map(len, labels), default=1) - 1)
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(
            WIDTH,
            HEIGHT + below + (legend and legend + 8),
            f"{chart.title}: token match rate by {chart.axis}",
        ),
        *_axes(chart, labels, below),
    ]
    # A line between two points would say that there is something between them.
    bars = len(chart.categories) <= 2
    band = (WIDTH - _LEFT - _RIGHT) / max(1, len(chart.categories))
    spread = min(_WIDEST_BAR + 6, 0.8 * band / len(chart.series)) if bars and chart.series else _SPREAD
    for number, series in enumerate(chart.series):
        shift = spread * (number - (len(chart.series) - 1) / 2)
        parts += _series(series, number, shift, len(chart.categories), spread - 6 if bars else None)
    if legend:
        for number, series in enumerate(chart.series):
            parts += _legend(series.name, number, HEIGHT + below + 18 * number + 14, bars=bars)
    return Markup("").join([*parts, Markup("</svg>")])


def _wrapped(labels: Sequence[str]) -> list[list[str]]:
    """Each label in lines that fit under its category, so that none runs into another or over the edge."""
    letters = max(3, int((WIDTH - _LEFT - _RIGHT) / max(1, len(labels)) / _LETTER))
    return [_lines(label, letters) for label in labels]


def _lines(label: str, letters: int) -> list[str]:
    lines = [""]
    for word in label.split(" "):
        rest = word
        while rest:
            line = f"{lines[-1]} {rest}" if lines[-1] else rest
            if len(line) <= letters:
                lines[-1], rest = line, ""
            elif lines[-1]:
                lines.append("")
            else:
                lines[-1], rest = rest[:letters], rest[letters:]
                lines += [""] if rest else []
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"{lines[_MOST_LINES - 1][: letters - 1]}…"]
    return lines


def _x(category: int, categories: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (category + 0.5) / categories


def _y(rate: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - rate)


def _axes(chart: Chart, labels: Sequence[Sequence[str]], below: float) -> Iterator[Markup]:
    for rate in (0, 0.25, 0.5, 0.75, 1):
        y = _y(rate)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LEFT, WIDTH - _RIGHT, y, y
        )
        yield text(_LEFT - 6, y + 4, f"{100 * rate:.0f} %" if rate == 1 else f"{100 * rate:.0f}", "end")
    for at, lines in enumerate(labels):
        yield Markup("<g><title>{}</title>").format(chart.categories[at])
        for row, line in enumerate(lines):
            yield text(_x(at, len(labels)), HEIGHT - _BOTTOM + 16 + _LINE * row, line, "middle")
        yield Markup("</g>")
    yield text((_LEFT + WIDTH) / 2, HEIGHT + below - 8, chart.axis, "middle", "axis")


def _series(
    series: Series, number: int, shift: float, categories: int, bar: float | None
) -> Iterator[Markup]:
    """A line through the points, or a bar of a width under each."""
    points = [
        (_x(at, categories) + shift, point) for at, point in enumerate(series.points) if point is not None
    ]
    yield Markup('<g class="series-{}"><title>{}</title>').format(number + 1, series.name)
    if bar is None:
        path = " ".join(f"{x:.1f},{_y(point.mean):.1f}" for x, point in points)
        yield Markup('<polyline class="line" stroke-dasharray="{}" points="{}"/>').format(
            _DASHES[number], path
        )
    else:
        width = max(bar, 4.0)
        for x, point in points:
            top = _y(point.mean)
            yield Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                x - width / 2, top, width, max(1.0, _y(0) - top)
            )
    for x, point in points:
        yield from _whisker(x, point)
        yield _marker(x, _y(point.mean), number)
    yield Markup("</g>")


def _whisker(x: float, point: Interval) -> Iterator[Markup]:
    if point.low is None or point.high is None:
        return
    yield Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
        x, x, _y(point.low), _y(point.high)
    )
    for end in (point.low, point.high):
        yield Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            x - 3, x + 3, _y(end), _y(end)
        )


def _marker(x: float, y: float, number: int) -> Markup:
    """A circle, square, triangle, diamond, downward triangle or cross."""
    r = _SIZE
    if number == 0:
        return Markup('<circle class="marker" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, y, r)
    shapes: Sequence[Sequence[tuple[float, float]]] = (
        ((-r, -r), (r, -r), (r, r), (-r, r)),
        ((0, -r), (r, r), (-r, r)),
        ((0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)),
        ((0, r), (r, -r), (-r, -r)),
        ((-r, -r), (0, -2), (r, -r), (2, 0), (r, r), (0, 2), (-r, r), (-2, 0)),
    )
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[(number - 1) % len(shapes)])
    return Markup('<polygon class="marker" points="{}"/>').format(corners)


def _legend(name: str, number: int, y: float, *, bars: bool) -> Iterator[Markup]:
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    yield Markup('<g class="series-{}">').format(number + 1)
    if bars:
        yield Markup('<rect class="bar" x="{}" y="{:.1f}" width="28" height="10"/>').format(_LEFT, y - 5)
    else:
        yield Markup(
            '<line class="line" stroke-dasharray="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        ).format(_DASHES[number], _LEFT, _LEFT + 28, y, y)
    yield _marker(_LEFT + 14, y, number)
    yield Markup("</g>")
    yield text(_LEFT + 36, y + 4, shown, "start")


def text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> Markup:
    """Words in a drawing, anchored at their "start", "middle" or "end"."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(words)
    )
