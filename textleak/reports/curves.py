"""A figure along a run as inline SVG: seconds from left to right, a rate, a loss by powers of ten, or decibels."""

from __future__ import annotations

import math
from collections.abc import Iterator

from markupsafe import Markup

from textleak.reports.charts import HEIGHT, WIDTH, text
from textleak.reports.course import Curve
from textleak.words import seconds_in_words

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 28, 14, 46
_TICKS = 5
# Part of a step that a value may lie below a line without another line under it: what rounding puts a loss below 0 by.
_A_HAIR = 1e-4


def draw_curve(curve: Curve) -> Markup:
    """The curve as an SVG element."""
    values = [_height(curve, value) for _, value in curve.points]
    ticks = _ticks(curve, min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    start, end = curve.points[0][0], curve.points[-1][0]

    def x(seconds: float) -> float:
        share = (seconds - start) / (end - start) if end > start else 0.5
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * share

    def y(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - share)

    points = " ".join(
        f"{x(t):.1f},{y(value):.1f}" for (t, _), value in zip(curve.points, values, strict=True)
    )
    first, last = (_words(curve, curve.points[at][1]) for at in (0, -1))
    label = f"{curve.title} along the run: from {first} to {last}"
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, label
        )
    ]
    for tick in ticks:
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                _LEFT, WIDTH - _RIGHT, y(tick), y(tick)
            )
        )
        parts.append(text(_LEFT - 6, y(tick) + 4, _words(curve, _value(curve, tick)), "end"))
    for at, anchor in ((start, "start"), (end, "end")):
        parts.append(text(x(at), HEIGHT - _BOTTOM + 18, seconds_in_words(at), anchor))
    parts.append(text((_LEFT + WIDTH) / 2, HEIGHT - 6, "time after the start", "middle", "axis"))
    parts.append(Markup('<g class="series-1"><polyline class="line" points="{}"/>').format(points))
    parts.append(
        Markup('<circle class="marker" cx="{:.1f}" cy="{:.1f}" r="4.5"/></g></svg>').format(
            x(end), y(values[-1])
        )
    )
    return Markup("").join(parts)


def _height(curve: Curve, value: float) -> float:
    return math.log10(value) if curve.logarithmic else value


def _value(curve: Curve, height: float) -> float:
    return 10.0**height if curve.logarithmic else height


def _ticks(curve: Curve, low: float, high: float) -> list[float]:
    """Where lines are drawn, from low to high: whole powers of ten, quarters of a rate, round numbers."""
    if curve.rate:
        return [0, 0.25, 0.5, 0.75, 1]
    if curve.logarithmic:
        first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
        step = max(1, math.ceil((last - first) / _TICKS))
        return [float(at) for at in range(first, last + step, step)]
    return list(_round_ticks(low, high))


def _round_ticks(low: float, high: float) -> Iterator[float]:
    """About five numbers of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-12 * max(1.0, abs(high)), 1e-300)
    power = 10.0 ** math.floor(math.log10(span / _TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= _TICKS)
    at = math.floor(low / step + _A_HAIR)
    while at * step < high + step:
        yield at * step
        at += 1


def _words(curve: Curve, value: float) -> str:
    if curve.rate:
        return f"{100 * value:.0f} %"
    return f"{value:.3g}{curve.unit}"
