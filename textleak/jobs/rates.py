"""The rate of a step whose size nothing says: the one at which a found text's own update equals the one that was sent.

SGD's update shows the product of rate and gradient alone. A text's own gradient has its size, and one number fitted to
millions leaves as much proof as none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from textleak.events import Recovery, Sentence
from textleak.jobs.fitted import STEPS, proved, view_at
from textleak.models.text import TextModel
from textleak.proof.certificate import certify, own_gradient
from textleak.proof.texts import Text

if TYPE_CHECKING:
    from textleak.clients.view import AnyModel, View
    from textleak.shared.gradient import SharedGradient

_CLASSES = 8  # that are tried, at most (our choice: each takes as long as the certificate)


def with_rate(
    recovery: Recovery, shared: SharedGradient, model: AnyModel, view: View
) -> tuple[Recovery, float | None]:
    """The recovery, proved where it is at the rate that fits it best; and that rate, None where it isn't.

    Args:
        recovery: an attack's answer at an assumed rate.
        shared: what the server has.
        model: the public model.
        view: what the server made of both, at that rate.
    """
    assert isinstance(model, TextModel)
    steps = dict(shared.client.kinds).get(STEPS)
    if steps is None or recovery.settled or not Text(recovery.sentences).complete(model):
        return recovery, None
    for sentences in _labeled(recovery.sentences, model.num_labels):
        rate = steps["lr"] * _factor(view, sentences)
        if rate <= 0:
            continue
        certificate = certify(view_at(shared, model, **_at(steps, rate)), sentences)
        if certificate.verified:
            return proved(recovery, sentences, certificate), rate
    return recovery, None


def _labeled(sentences: tuple[Sentence, ...], classes: int | None) -> Iterator[tuple[Sentence, ...]]:
    """The answer, and where it is one sentence the same with each other class: of which size it is tells that too.

    A sentence that stands in it several times is tried once first: with several labels its gradients point the same
    way, at another rate.
    """
    once = {tuple(p.id for p in sentence.positions): sentence for sentence in sentences}
    if len(once) < len(sentences):
        yield from _labeled(tuple(once.values()), classes)
    if classes is None or all(sentence.label is not None for sentence in sentences):
        yield sentences
    if classes is not None and len(sentences) == 1:
        for label in range(min(classes, _CLASSES)):
            if label != sentences[0].label:
                yield (dataclasses.replace(sentences[0], label=label),)


def _at(options: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """What of a step's options is another one at another rate, at which weights shrink as they did."""
    decay = options.get("weight_decay", 0.0) * options["lr"] / rate
    return {"lr": rate} | ({"weight_decay": decay} if decay else {})


def _factor(view: View, sentences: tuple[Sentence, ...]) -> float:
    """How many times a text's own gradient fits best into the one that was seen."""
    own = own_gradient(view.double(), sentences)
    seen = {name: tensor.to(own[name]) for name, tensor in view.shared.gradients.items() if name in own}
    norm = sum(float(own[name].square().sum()) for name in seen)
    inner = sum(float((own[name] * tensor).sum()) for name, tensor in seen.items())
    return inner / norm if norm > 0 else 0.0
