"""From dummies at the open places of guesses back to guesses, and to sentences for those who watch.

Shapes: K candidates, B sentences, T tokens, E embedding size.
"""

from __future__ import annotations

import dataclasses

from textleak.attacks.search.opened import Opening
from textleak.attacks.search.problem import TextProblem
from textleak.events import Sentence
from textleak.matching import Iterate
from textleak.matching.discrete import Guess
from textleak.models.decoding import fixed_tokens, nearest_tokens, to_sentence

# Tokens shown for a position beside the nearest one.
_CANDIDATES = 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """Decodes by nearest neighbor.

    Attributes:
        problem: whose embedding table is searched.
        barred: tokens that can't be part of a text.
    """

    problem: TextProblem
    barred: frozenset[int]

    def nearest(self, opening: Opening, here: Iterate, k: int, candidates: int) -> list[list[int]]:
        """The nearest tokens of each of candidate k's open places, nearest first."""
        rows, columns = zip(*opening.places[k], strict=True)
        inputs_NE = here.best["inputs"][k, list(rows), list(columns)]
        found = nearest_tokens(inputs_NE, self.problem.table_VE, candidates=candidates, excluded=self.barred)
        ids: list[list[int]] = found.ids_NC.tolist()
        return ids

    def guess(self, opening: Opening, here: Iterate, k: int) -> Guess:
        """What candidate k's dummies decode to."""
        return filled(opening, k, self.nearest(opening, here, k, 1))

    def sentences(self, opening: Opening, here: Iterate) -> tuple[Sentence, ...]:
        """What the best candidate's dummies decode to; a token's confidence is its cosine similarity."""
        model, k = self.problem.model, int(here.best_losses_K.argmin())
        base = opening.bases[k]
        found = []
        for row, symbols in enumerate(base.rows):
            nearest = nearest_tokens(
                here.best["inputs"][k, row, : len(symbols)],
                self.problem.table_VE,
                candidates=1 + _CANDIDATES,
                excluded=self.barred,
            )
            fixed = fixed_tokens(model, len(symbols))
            free = {position for r, position in opening.places[k] if r == row}
            listed = [
                list(zip(ids, similarities, strict=True))
                for ids, similarities in zip(
                    nearest.ids_NC.tolist(), nearest.similarity_NC.clamp(0, 1).tolist(), strict=True
                )
            ]
            found.append(
                to_sentence(
                    model,
                    [listed[t][0][0] if t in free else s % model.vocab_size for t, s in enumerate(symbols)],
                    confidence=[1.0 if t in fixed else listed[t][0][1] for t in range(len(symbols))],
                    candidates=[listed[t][1:] if t in free else [] for t in range(len(symbols))],
                    label=base.classes[row] if base.classes else None,
                )
            )
        return tuple(found)


def filled(opening: Opening, k: int, nearest: list[list[int]]) -> Guess:
    """Candidate k's base with the nearest token at each of its open places."""
    guess = opening.bases[k]
    for place, ids in zip(opening.places[k], nearest, strict=True):
        guess = guess.with_symbol(*place, ids[0])
    return guess
