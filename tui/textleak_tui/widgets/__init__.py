"""What a `ViewState` looks like: each widget has `show(state, blind=...)` and draws nothing but that state."""

from textleak_tui.widgets.candidates import CandidateList
from textleak_tui.widgets.curves import Curves
from textleak_tui.widgets.labels import LabelPosterior
from textleak_tui.widgets.phases import PhaseTimeline
from textleak_tui.widgets.run_view import RunView
from textleak_tui.widgets.status import StatusLine
from textleak_tui.widgets.tokens import TokenGrid

__all__ = [
    "CandidateList",
    "Curves",
    "LabelPosterior",
    "PhaseTimeline",
    "RunView",
    "StatusLine",
    "TokenGrid",
]
