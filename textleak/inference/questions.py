"""All questions in their order, and the one call that asks them."""

from __future__ import annotations

from torch import Tensor

from textleak.errors import InputError
from textleak.inference import (
    adapters,
    clipped,
    decay,
    defended,
    dropout,
    kind,
    labels,
    moved,
    optimizer,
    precision,
    rate,
    sentences,
    steps,
    tokens,
    vocabulary,
)
from textleak.inference.base import Findings, Kind, Question, Seen, Told
from textleak.inference.kind import sent_as
from textleak.inference.procedure import client_of
from textleak.models import TextModel

QUESTIONS: tuple[Question, ...] = (
    moved.ask,
    kind.ask,
    optimizer.ask,
    rate.ask,
    decay.ask,
    steps.ask,
    dropout.ask,
    precision.ask,
    clipped.ask,
    defended.pruned,
    defended.quantized,
    defended.noised,
    tokens.ask,
    sentences.ask,
    labels.ask,
    vocabulary.ask,
    adapters.ask,
)
"""One a file; a new one is a file with `ask`, and a line here."""
# Those that go by ranks, zeros and sizes as training leaves them; of a gradient no optimizer was at work.
_OF_STEPS = {one.ask: one.WHAT for one in (optimizer, rate, decay, steps)}
_OF_BATCH = {one.ask: one.WHAT for one in (dropout, tokens, sentences, labels)}


def told(
    sent: dict[str, Tensor],
    model: TextModel,
    *,
    before: dict[str, Tensor] | None = None,
    after: dict[str, Tensor] | None = None,
    kind: Kind | None = None,
) -> Findings:
    """What an update tells before any attack.

    Args:
        sent: gradients, or what moved of the weights (after − before), by the model's own parameter names; adapters by
            PEFT's.
        model: the public model, without adapters.
        before: weights before; the model's own stand for those that aren't given.
        after: weights after; where they are given, it is an update.
        kind: what was sent, where that is known.

    Raises:
        InputError: nothing was sent, or a value that isn't finite.
    """
    if not sent:
        raise InputError("The update is empty.", why="There is nothing to look at.")
    for name, value in sent.items():
        if not bool(value.isfinite().all()):
            raise InputError(
                f"What was sent of {name} is not finite.",
                why="Nothing can be told from NaN or infinity.",
                fix="Look for an overflow on the client (bf16, an unstable loss) and record it again.",
            )
    known = kind or ("update" if after is not None else None)
    seen = Seen(
        sent={name: value.detach() for name, value in sent.items()}, model=model, before=before, given=known
    )
    hidden = defended.changed(seen)
    names = _OF_BATCH | (_OF_STEPS if sent_as(seen).kind != "gradient" else {})
    answers = (
        Told(what=names[ask], value=None, evidence=hidden) if hidden and ask in names else ask(seen)
        for ask in QUESTIONS
    )
    return Findings(told=tuple(one for one in answers if one is not None), client=client_of(seen))
