"""A run's events as a person sees them: one state for every viewer, drawn in a terminal or told in words.

`state` is what the events add up to, `statuses` which tokens are right, `glyphs` the signs for it, `terminal` draws,
`displays` decides when, `waterfall` lays a run's answers below one another, `summary` is what a person is left with.
`moving` makes a moving picture of a run, `svg` one that looks the same everywhere.
`pictures` and `films` (imported only where there are pictures, as they need NumPy) draw an image run, and write it.

This room knows events and results. It knows no model, no attack and no run folder.
"""

from textleak.scoring.headline import how_much
from textleak.view.displays import REFRESHES_A_SECOND, Display, LiveDisplay, PlainDisplay, display_on
from textleak.view.glyphs import UNICODE
from textleak.view.state import (
    POINTS_KEPT,
    Newest,
    PhaseSpan,
    Point,
    ViewState,
    match_rate_of,
    remaining_seconds,
)
from textleak.view.statuses import OPEN, SPECIAL, right_of, statuses_of, surplus_of
from textleak.view.terminal import LiveView, picture
from textleak.view.waterfall import ROWS_KEPT, WaterRow, lines_of, numbers_kept, row_of, rows_of

__all__ = [
    "OPEN",
    "POINTS_KEPT",
    "REFRESHES_A_SECOND",
    "ROWS_KEPT",
    "SPECIAL",
    "UNICODE",
    "Display",
    "LiveDisplay",
    "LiveView",
    "Newest",
    "PhaseSpan",
    "PlainDisplay",
    "Point",
    "ViewState",
    "WaterRow",
    "display_on",
    "how_much",
    "lines_of",
    "match_rate_of",
    "numbers_kept",
    "picture",
    "remaining_seconds",
    "right_of",
    "row_of",
    "rows_of",
    "statuses_of",
    "surplus_of",
]
