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
from textleak.view.waterfall import evenly

# Our choice: enough for a drawing of 440 units.
MOST_POINTS = 200
FEWEST_POINTS = 3  # that make a curve


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
class Course:
    """What a run's events say of it.

    Attributes:
        curves: those with points enough to be drawn.
        pictures: of an image run, unless it was redacted.
    """

    curves: tuple[Curve, ...] = ()
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
        pictures=_pictures(state.progress.image if state.progress else (), originals),
    )


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
