"""What an exact channel (embedding rows, spans, grouping) has found: the one shape that `span` and `auto` join."""

from __future__ import annotations

import dataclasses

from textleak.events import Label
from textleak.matching.discrete import Row
from textleak.models.losses.language import Language

OPEN = -1
"""Stands in a row where the token is left unknown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Sentences of the batch, as far as a channel could tell them.

    Attributes:
        rows: token ids of each sentence, special tokens counted, `OPEN` where one is left unknown; a sentence that
            the batch holds twice is there twice.
        confidence: for each row and position 0 to 1; empty where all of it is certain.
        classes: class of each sentence, or what else its label is; empty where they aren't known, or are tokens
            themselves.
        batch_size: how many sentences the batch has, as far as the found ones' parts in the gradient tell.
        complete: whether the channel's own evidence leaves nothing over: every distinct input it shows is explained.
        proved: for each row and position whether the channel itself proves the token, whatever the answer's own
            gradient is; empty where it proves none.
        grouped: for each row whether it is proved which tokens stand in it; empty where all of them are.
        settled: whether it proves all of the batch's tokens, and which sentence each stands in.
        channel: what gave the tokens away, "embedding" or "span".
        sets: tokens that could stand at each position where no sentence could be told; empty otherwise.
        language: how the batch's loss is made of its tokens', where these sentences ask for another way than was told.
        notes: sentences for a person: limits met, what stayed open and why.
    """

    rows: tuple[Row, ...] = ()
    confidence: tuple[tuple[float, ...], ...] = ()
    classes: tuple[Label, ...] = ()
    batch_size: int | None = None
    complete: bool = False
    proved: tuple[tuple[bool, ...], ...] = ()
    grouped: tuple[bool, ...] = ()
    settled: bool = False
    channel: str = "span"
    sets: tuple[tuple[int, ...], ...] = ()
    language: Language | None = None
    notes: tuple[str, ...] = ()
