"""How a run stands, in words: done, stopped, failed, killed, or still being written, and by whom."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from textleak.events import Finished
from textleak.view import ViewState
from textleak.words import seconds_in_words

# Our choice: a run writes 20 times a second at first and, after hours, every few seconds; a step of a large model
# may take a minute.
SILENCE = 90.0
# The phase after an attack's own, in which nothing of its answer changes any more.
CERTIFY = "certify"

SIGNS = {
    "done": "✓",
    "running": "●",
    "silent": "◌",
    "interrupted": "■",
    "stopped": "■",
    "failed": "✗",
    "killed": "✗",
    "broken": "✗",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """How a run stands, for a person.

    Attributes:
        outcome: "done", "interrupted", "stopped", "failed", "killed", "running", or "silent" where no process here
            writes it and nothing has come for a while.
        what: that in a sentence.
        why: what is known of the cause, "" for nothing.
        fix: what to do, "" for nothing.
    """

    outcome: str
    what: str
    why: str = ""
    fix: str = ""


def without_end(state: ViewState, outcome: str) -> ViewState:
    """The state of a run that wrote no last event, and will write none: nothing of it goes on."""
    if state.finished or not state.phases:
        return state
    return dataclasses.replace(state, finished=Finished(outcome=outcome))


def standing(
    outcome: str, *, pid: str, silent: float, error: str = "", traceback: Path | None = None
) -> Standing:
    """How a run stands, in words.

    Args:
        outcome: as `RunRecord.outcome` has it, or "elsewhere" for one that grows though its process isn't here.
        pid: the process that began the run.
        silent: seconds since its events last grew.
        error: what its last event says went wrong.
        traceback: where its traceback is, if anywhere.
    """
    match outcome:
        case "done":
            return Standing(outcome="done", what="The run came to its end.")
        case "interrupted" | "stopped":
            how = "It was interrupted." if outcome == "interrupted" else "It was stopped on request."
            return Standing(
                outcome=outcome, what=how, why="What is shown is the best answer it had.", fix="Run it again."
            )
        case "failed":
            return Standing(
                outcome=outcome,
                what="The run failed.",
                why=error or "It left no word of why.",
                fix="" if traceback is None else f"The traceback is in {traceback}.",
            )
        case "running" if silent < SILENCE:
            return Standing(outcome=outcome, what="The run is still being written.")
        case "running":
            return Standing(
                outcome="silent",
                what=f"Nothing was written for {seconds_in_words(silent)}.",
                why=f"Process {pid} is there: it is paused, at a long step, or another program by now.",
                fix="What comes will be shown.",
            )
        case "elsewhere":
            return Standing(outcome="running", what="The run is still being written, by another machine.")
        case _:
            return Standing(
                outcome="killed",
                what="The run has no end.",
                why=f"There is no process {pid} here and nothing was written for {seconds_in_words(silent)}: it was "
                "killed, or another machine has stopped writing.",
                fix="What it wrote can be replayed; run it again for a result.",
            )
