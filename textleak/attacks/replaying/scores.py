"""How far what the client would have sent, had a guess been its batch, points from what it sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from textleak.clients.view import View
from textleak.events import Sentence
from textleak.matching.discrete import Guess
from textleak.models.decoding import to_sentence
from textleak.models.guesses import examples_of
from textleak.numerics import exact

# Tensors whose norm is below this part of the largest one's are only rounding, and not compared; of the others the
# first ones up to so many entries: an optimizer's step over all of them costs more than the gradient (our choice).
_DROPPED, _COMPARED = 1e-6, 4_000_000


class Replayed:
    """Scores guesses by how far what the client would have sent points from what it sent.

    Args:
        view: what the server sees.
        whole: whether all of the client's procedure is replayed, in place of a cheaper client where there is one.
    """

    def __init__(self, view: View, *, whole: bool = False) -> None:
        seen = view.shared.gradients
        norms = {name: float(exact(value).norm()) for name, value in seen.items()}
        largest, entries = max(norms.values()), 0
        self.norms: dict[str, float] = {}
        for name, norm in norms.items():
            if norm > _DROPPED * largest and (entries < _COMPARED or not self.norms):
                self.norms[name] = norm
                entries += seen[name].numel()
        compared = dataclasses.replace(view.shared, gradients={name: seen[name] for name in self.norms})
        self.view = dataclasses.replace(
            view, client=view.client if whole else view.client.proxy(), shared=compared
        )

    def scores(self, guesses: Sequence[Guess]) -> list[float]:
        """The mean over tensors of 1 − cosine, for each guess."""
        return [self._score(guess) for guess in guesses]

    def _score(self, guess: Guess) -> float:
        own = self.view.own(examples_of(self.view.text_model, guess.rows, guess.classes))
        seen = self.view.shared.gradients
        total = 0.0
        for name, norm in self.norms.items():
            mine = own[name].flatten() if name in own else torch.zeros(1)
            length = float(mine.norm())
            if length > 0:
                total += float(mine @ seen[name].flatten().to(mine)) / (length * norm)
        return 1 - total / len(self.norms)


def sentences_of(view: View, guess: Guess) -> tuple[Sentence, ...]:
    """A guess as events carry it."""
    V = view.text_model.vocab_size
    return tuple(
        to_sentence(
            view.text_model,
            [symbol % V for symbol in row],
            channels=["replay"] * len(row),
            label=guess.classes[b] if guess.classes else None,
        )
        for b, row in enumerate(guess.rows)
    )
