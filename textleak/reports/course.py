"""How a run came along, from its events: its loss, how near the answer was, and the pictures at its end."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from textleak.events import Progress, Truth
from textleak.runs import TimedEvent
from textleak.view.pictures import compared, mean_psnr
from textleak.view.state import ViewState
from textleak.view.waterfall import WaterRow, evenly, lines_of

# Our choice: enough for a drawing of 440 units.
MOST_POINTS = 200
FEWEST_POINTS = 3  # that make a curve
# Our choice: of a waterfall a page has room for so many lines, sentences and positions.
MOST_ROWS, MOST_SENTENCES, MOST_POSITIONS = 16, 8, 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure along a run.

    Attributes:
        title: what it is.
        points: seconds after the start, and its value.
        rate: whether it is a share, 0 to 1; drawn on a logarithmic scale otherwise.
        unit: behind a value.
    """

    title: str
    points: tuple[tuple[float, float], ...]
    rate: bool = False
    unit: str = ""
    logarithmic: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture of the batch beside what was recovered of it, as data URLs; None where there is none."""

    original: str | None
    recovered: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drop:
    """A position at one time.

    Attributes:
        text: its token where that is another one than before, else "".
        kind: "open", "candidate", "settled" or "special".
        percent: the attack's confidence.
    """

    text: str
    kind: str
    percent: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waterfall:
    """How one sentence came out: time downward, a column a position.

    Attributes:
        rows: seconds after the start, the phase where it is another one than before, and the positions.
    """

    rows: tuple[tuple[float, str, tuple[Drop, ...]], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """What a run's events say of it.

    Attributes:
        curves: those with points enough to be drawn.
        pictures: of an image run, unless it was redacted.
        waterfalls: of a run on text, one a sentence.
    """

    curves: tuple[Curve, ...] = ()
    waterfalls: tuple[Waterfall, ...] = ()
    pictures: tuple[Shown, ...] = ()


def course_of(events: Iterable[TimedEvent]) -> Course:
    """The course of a run, finished or not."""
    state, psnr = ViewState(), []
    originals: Sequence[Any] = ()
    for timed in events:
        state = state.add(timed.event, timed.t)
        if isinstance(timed.event, Truth):
            originals = timed.event.image
        elif isinstance(timed.event, Progress) and timed.event.image and originals:
            near = mean_psnr(timed.event.image, originals)
            psnr += [] if near is None else [(timed.t, near)]
    losses = [(point.t, point.loss) for point in state.points if point.loss is not None]
    rates = [(point.t, point.match_rate) for point in state.points if point.match_rate is not None]
    curves = (
        Curve(
            title="Loss",
            points=tuple(evenly(losses, MOST_POINTS)),
            logarithmic=all(math.isfinite(loss) and loss > 0 for _, loss in losses),
        ),
        Curve(title="Token match rate", points=tuple(evenly(rates, MOST_POINTS)), rate=True),
        Curve(title="PSNR", points=tuple(evenly(psnr, MOST_POINTS)), unit=" dB"),
    )
    return Course(
        curves=tuple(curve for curve in curves if len(curve.points) >= FEWEST_POINTS),
        waterfalls=_waterfalls(state),
        pictures=_pictures(state.progress.image if state.progress else (), originals),
    )


def _waterfalls(state: ViewState) -> tuple[Waterfall, ...]:
    """One of each sentence that there is in the end, as far as a page has room for it."""
    lines = [line for line in lines_of(state.rows, state.phases, MOST_ROWS) if line.sentences]
    count = len(lines[-1].sentences) if lines else 0
    return tuple(_waterfall(lines, number) for number in range(min(count, MOST_SENTENCES)))


def _waterfall(lines: Sequence[WaterRow], number: int) -> Waterfall:
    rows, before, phase = [], [-1] * MOST_POSITIONS, ""
    for line in lines:
        cells = line.sentences[number][:MOST_POSITIONS] if number < len(line.sentences) else ()
        drops = tuple(
            Drop(
                text=cell.text if cell.id != before[at] and cell.id >= 0 else "",
                kind=cell.kind,
                percent=round(100 * cell.confidence),
            )
            for at, cell in enumerate(cells)
        )
        rows.append((line.t, line.phase if line.phase != phase else "", drops))
        before[: len(cells)], phase = [cell.id for cell in cells], line.phase
    return Waterfall(rows=tuple(rows))


def _pictures(image: Sequence[Any], originals: Sequence[Any]) -> tuple[Shown, ...]:
    """Each original beside the picture that stands for it; pictures alone where no original is known."""
    if not originals:
        return tuple(Shown(original=None, recovered=_as_url(picture)) for picture in image)
    return tuple(
        Shown(original=_as_url(original), recovered=_as_url(image[found[0]]) if found else None)
        for original, found in zip(originals, compared(image, originals), strict=True)
    )


def _as_url(picture: Any) -> str:  # noqa: ANN401 - nested lists (H, W, C)
    """A picture as a PNG in a data URL: a page with it needs nothing from outside."""
    from PIL import Image

    from textleak.view.films import as_bytes

    pixels_HWC = as_bytes(picture)
    plain = pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC
    drawn = io.BytesIO()
    Image.fromarray(plain).save(drawn, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode('ascii')}"
