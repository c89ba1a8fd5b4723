"""A client's steps with an option that nothing said but a found text, and what that proves."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from textleak.events import Recovery, Sentence, Stop
from textleak.exact.second_parts import view_as_seen

if TYPE_CHECKING:
    from textleak.clients.view import AnyModel, View
    from textleak.proof.certificate import Certificate
    from textleak.shared.gradient import SharedGradient

STEPS = "fedavg"
"""The kind of client that takes steps."""


def view_at(shared: SharedGradient, model: AnyModel, **options: Any) -> View:  # noqa: ANN401 - each has its own type
    """What a server makes of what was shared, had the client's steps these options."""
    kinds = tuple((name, {**own, **options} if name == STEPS else own) for name, own in shared.client.kinds)
    client = dataclasses.replace(shared.client, kinds=kinds)
    return view_as_seen(dataclasses.replace(shared, client=client), model)


def proved(recovery: Recovery, sentences: tuple[Sentence, ...], certificate: Certificate) -> Recovery:
    """The recovery with sentences that a certificate has verified."""
    distance = certificate.gradient_distance
    return dataclasses.replace(
        recovery,
        sentences=sentences,
        stop=Stop.VERIFIED,
        gradient_distance=distance,
        final_loss=distance,
        notes=(),
    )
