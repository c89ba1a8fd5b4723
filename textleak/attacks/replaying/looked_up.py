"""Batches of steps that differ each time, where the word embedding is trained: by the rows that moved.

Which tokens stood in which step is read off (`moved`), which sentence and place each had is what agrees best with the
signs of their rows (`by_rows`). The client's procedure isn't replayed here, so nothing is proved: such an answer is
likely, until `replay` has put it to the proof where the client's steps can be repeated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence

from textleak.attacks.replaying import MOVED_ROWS
from textleak.attacks.replaying.by_rows import ByRows, State
from textleak.attacks.replaying.moved import MovedRows, moved_rows
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Sentence, Stop
from textleak.matching.discrete import Row
from textleak.models.decoding import to_sentence
from textleak.words import count_of

# How much likelier than none a sentence is at least in the mean over its tokens (our choice; measured on minilm after a
# Trainer's four steps: 25 to 90 of the true sentences, and much the same of false orders of their tokens; on a toy with
# rows of random signs 1.2 to 2.6 after searching).
_STANDS_OUT = 6.0
# In how many units of a likelihood's logarithm a token grows by 1 - 1/e surer (our choice; see `SURE`).
_SURER = 10.0


def looked_up_batch(view: View) -> Generator[Phase | Progress, None, Recovery | str]:
    """The batch as far as the word embedding's rows tell it; else a sentence why they don't."""
    model = view.text_model
    if model.num_labels is None or model.own_loss is not None:
        return "Sentences are read off the word embedding's rows of a model that classifies."
    yield Phase(name="rows", detail="tokens and their steps in the rows of the word embedding that moved")
    moved = moved_rows(view)
    if isinstance(moved, str):
        return moved
    sizes = _sizes(view, moved)
    if sizes is None:
        return "How many sentences a step took isn't known."
    by_rows = ByRows(model, moved, view.clock, longest=_longest(view, moved, sizes))
    found: list[State] = []
    draws = random.Random(0)  # any order will do
    for step, (own, size) in enumerate(zip(moved.steps, sizes, strict=True), 1):
        yield Phase(
            name="sentences", detail=f"of {count_of(len(own), 'token')} of step {step} of {len(sizes)}"
        )
        best: State = ()
        for number, best in enumerate(by_rows.put_together(own, size, draws), 1):
            yield Progress(
                phase="sentences",
                step=number,
                evaluations=by_rows.evaluations,
                sentences=_sentences(view, by_rows, moved.steps, [*found, best]),
            )
        found.append(best)
        if view.clock.over:
            break
    clear = [by_rows.clearness(state, own) for own, state in zip(moved.steps, found, strict=False)]
    sentences = _sentences(view, by_rows, moved.steps, found, clear)
    return Recovery(
        sentences=sentences,
        stop=Stop.TIME if view.clock.over else Stop.CONVERGED,
        final_loss=None,
        evaluations=by_rows.evaluations,
        channel=MOVED_ROWS,
        notes=_notes(moved),
    )


def _sizes(view: View, moved: MovedRows) -> list[int] | None:
    """Sentences of each step."""
    whole = view.shared.known.batch_size
    steps = len(moved.steps)
    options = {key: value for _, kind in view.shared.client.kinds for key, value in kind.items()}
    each = options.get("batch_size")
    if steps > 1 and isinstance(each, int) and (whole is None or each < whole):
        last = each if whole is None else min(each, max(1, whole - (steps - 1) * each))
        return [each] * (steps - 1) + [last]
    return None if whole is None else [max(1, -(-whole // steps))] * steps


def _longest(view: View, moved: MovedRows, sizes: Sequence[int]) -> int:
    """Tokens of the longest sentence, as far as that shows; room for all tokens in any case."""
    model, lengths = view.text_model, view.shared.known.lengths
    around = len(model.prefix_ids) + len(model.suffix_ids)
    least = around + max(-(-len(own) // size) for own, size in zip(moved.steps, sizes, strict=True))
    if lengths is not None:
        return max(*lengths, least)
    if moved.places_PE is not None:
        return max(len(moved.places_PE), least)
    most = max(map(len, moved.steps))
    return max(least, min(model.max_length, around + most + len(moved.several)))


def _sentences(
    view: View,
    by_rows: ByRows,
    steps: Sequence[Sequence[int]],
    found: Sequence[State],
    clear: Sequence[Sequence[Sequence[float]]] = (),
) -> tuple[Sentence, ...]:
    """Sentences as events carry them; those that don't stand out of chance are left open.

    Tokens are as sure as nothing else would do at their places, `clear` of each step; before that is known, as their
    rows agree.
    """
    sentences = []
    for number, (own, state) in enumerate(zip(steps, found, strict=False)):
        for b, row in enumerate(state):
            stands_out = by_rows.mean_worth(row, own) >= _STANDS_OUT
            if clear:
                sure = [1 - math.exp(-apart / _SURER) for apart in clear[number][b]]
            else:
                each = zip(row, by_rows.agreement(row, own), strict=True)
                sure = [max(0.0, agreement) if token in own else 0.0 for token, agreement in each]
            sentences.append(_sentence(view, row, sure, by_rows.label(row, own), stands_out=stands_out))
    return tuple(sentences)


def _sentence(view: View, row: Row, sure: Sequence[float], label: int, *, stands_out: bool) -> Sentence:
    model = view.text_model
    return to_sentence(
        model,
        row if stands_out else [-1] * len(row),
        confidence=sure if stands_out else None,
        channels=[MOVED_ROWS if stands_out else ""] * len(row),
        label=label if stands_out else None,
    )


def _notes(moved: MovedRows) -> tuple[str, ...]:
    tokens = count_of(sum(map(len, moved.steps)) + len(moved.several), "token")
    apart = len(moved.steps) > 1
    which = f", and which of {len(moved.steps)} steps each stood in where it stood in one" if apart else ""
    return (
        f"The word embedding's rows that moved name {tokens} of the batch{which}. Which sentence and place each had is "
        "what agrees best with the signs of these rows: likely, not proved. Of tokens that stood in several steps some "
        "places are missing.",
    )
