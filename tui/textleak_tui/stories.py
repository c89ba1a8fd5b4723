"""Three recordings that come with the app: they play at once, while the model of a first own run is being loaded.

`python -m tests.draw_stories` makes them anew from what stands here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """A recording, and the run that it is of.

    Attributes:
        name: its folder's.
        key: plays it.
        title: what it shows.
        brief: that in a word or two.
        words: that in a sentence.
        sentence: the private one.
        values: the form's other texts, by field.
    """

    name: str
    key: str
    title: str
    brief: str
    words: str
    sentence: str
    values: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(__file__).parent / "stories" / self.name


STORIES = (
    Story(
        name="leaks-at-once",
        key="alt+1",
        title="It leaks at once",
        brief="at once",
        words="All gradients shared: the text is read off them before one has looked.",
        sentence="the meeting with our lawyer was moved to friday",
        values={"model": "minilm"},
    ),
    Story(
        name="no-embeddings",
        key="alt+2",
        title="No embeddings: watch it being optimized",
        brief="optimized",
        words="Nothing is read off; matching alone brings the words back one by one.",
        sentence="the meeting was moved to friday",
        values={"model": "minilm", "share": "no-embeddings", "attack": "match:span_proposals=false"},
    ),
    Story(
        name="dropout-adamw",
        key="alt+3",
        title="Dropout and AdamW: still there",
        brief="dropout",
        words="One step of an ordinary trainer, with its dropout and its optimizer.",
        sentence="the meeting with our lawyer was moved to friday",
        values={
            "model": "minilm",
            "client": "train-mode fedavg:optimizer=adamw,lr=5e-5,steps=1,max_grad_norm=1.0",
        },
    ),
)
