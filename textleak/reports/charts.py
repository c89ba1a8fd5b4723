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
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 12, 46
_SIZE = 4.5  # half a marker
_SPREAD = 7.0  # series stand so far apart at one category, so that their whiskers don't cover each other
_LONGEST_NAME = 44
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "1 4")


def draw(chart: Chart) -> Markup:
    """The chart as an SVG element."""
    legend = 18 * len(chart.series) if len(chart.series) > 1 else 0
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT + (legend and legend + 8), f"{chart.title}: token match rate by {chart.axis}"
        ),
        *_axes(chart),
    ]
    for number, series in enumerate(chart.series):
        shift = _SPREAD * (number - (len(chart.series) - 1) / 2)
        parts += _series(series, number, shift, len(chart.categories))
    if legend:
        for number, series in enumerate(chart.series):
            parts += _legend(series.name, number, HEIGHT + 18 * number + 14)
    return Markup("").join([*parts, Markup("</svg>")])


def _x(category: int, categories: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (category + 0.5) / categories


def _y(rate: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - rate)


def _axes(chart: Chart) -> Iterator[Markup]:
    for rate in (0, 0.25, 0.5, 0.75, 1):
        y = _y(rate)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LEFT, WIDTH - _RIGHT, y, y
        )
        yield _text(_LEFT - 6, y + 4, f"{100 * rate:.0f} %" if rate == 1 else f"{100 * rate:.0f}", "end")
    count = len(chart.categories)
    # Labels that would run into each other go on two rows, one lower than the other.
    staggered = any(len(label) * 7 > (WIDTH - _LEFT - _RIGHT) / count for label in chart.categories)
    for at, label in enumerate(chart.categories):
        lower = 12 * (at % 2) if staggered else 0
        yield _text(_x(at, count), HEIGHT - _BOTTOM + 16 + lower, label, "middle")
    yield _text((_LEFT + WIDTH) / 2, HEIGHT - 4, chart.axis, "middle", "axis")


def _series(series: Series, number: int, shift: float, categories: int) -> Iterator[Markup]:
    points = [
        (_x(at, categories) + shift, point) for at, point in enumerate(series.points) if point is not None
    ]
    yield Markup('<g class="series-{}"><title>{}</title>').format(number + 1, series.name)
    path = " ".join(f"{x:.1f},{_y(point.mean):.1f}" for x, point in points)
    yield Markup('<polyline class="line" stroke-dasharray="{}" points="{}"/>').format(_DASHES[number], path)
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


def _legend(name: str, number: int, y: float) -> Iterator[Markup]:
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    yield Markup('<g class="series-{}">').format(number + 1)
    yield Markup('<line class="line" stroke-dasharray="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
        _DASHES[number], _LEFT, _LEFT + 28, y, y
    )
    yield _marker(_LEFT + 14, y, number)
    yield Markup("</g>")
    yield _text(_LEFT + 36, y + 4, shown, "start")


def _text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(words)
    )
