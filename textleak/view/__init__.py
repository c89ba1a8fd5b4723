"""A run's events as a person sees them: one state for every viewer, drawn in a terminal or told in words.

This room knows events and results. It knows no model, no attack and no file: who reads or writes a run folder is
`textleak.runs`.
"""

from textleak.view.terminal import (
    OPEN,
    POINTS_KEPT,
    REFRESHES_A_SECOND,
    SPECIAL,
    UNICODE,
    Display,
    LiveDisplay,
    LiveView,
    Newest,
    PhaseSpan,
    PlainDisplay,
    Point,
    ViewState,
    how_much,
    match_rate_of,
    picture,
    remaining_seconds,
    right_of,
    status_of,
    statuses_of,
    summary,
    surplus_of,
)

__all__ = [
    "OPEN",
    "POINTS_KEPT",
    "REFRESHES_A_SECOND",
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
    "how_much",
    "match_rate_of",
    "picture",
    "remaining_seconds",
    "right_of",
    "status_of",
    "statuses_of",
    "summary",
    "surplus_of",
]
