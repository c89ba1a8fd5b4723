"""Which of the tokens found stand in one sentence, by how the first attention's gradient ties them (our choice).

Shapes: N occurrences, B sentences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from textleak.assignment import assignment
from textleak.exact.dropout.attention import Attended
from textleak.exact.dropout.occurrences import Occurrence

# Rounds in which each place is arranged again by all others.
_ROUNDS = 3
# A sentence is proved where no more than this of its tokens' gradients is left unexplained by its others, and where any
# wrong one would fit so with a chance below the second (our choice; measured on minilm: 5e-5 at most for true
# sentences, 0.16 and more at every token where one was exchanged).
_UNEXPLAINED, _CHANCE = 1e-3, 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Occurrences as sentences.

    Attributes:
        rows: of each sentence its occurrences by position, as indices.
        proved: whether each sentence is proved to be one.
    """

    rows: tuple[dict[int, int], ...]
    proved: tuple[bool, ...]


def arranged(
    found: Sequence[Occurrence], attended: Attended, ends: int | None, size: int | None
) -> Arrangement:
    """Sentences that the attention's gradient ties together.

    Args:
        found: the occurrences.
        attended: their queries, keys and gradients.
        ends: token that ends every sentence; None where there is none.
        size: of the batch, where it is known.
    """
    ties_NN = attended.ties()
    rows = _Rows(found, (ties_NN + ties_NN.T).cpu().numpy(), ends, size)
    for _ in range(_ROUNDS):
        before = [dict(row) for row in rows.rows]
        rows.again()
        if rows.rows == before:
            break
    kept = tuple(row for row in rows.rows if row)
    return Arrangement(rows=kept, proved=tuple(_proved(attended, list(row.values())) for row in kept))


class _Rows:
    """Sentences while they are put together.

    Args:
        found: the occurrences.
        ties_NN: how strongly each is tied to each other.
        ends: token that ends every sentence.
        size: of the batch, where it is known.
    """

    def __init__(
        self, found: Sequence[Occurrence], ties_NN: np.ndarray, ends: int | None, size: int | None
    ) -> None:
        self.ties_NN, self.ends = ties_NN, ends
        self.tokens = [o.token for o in found]
        self.by_position: dict[int, list[int]] = {}
        for index, o in enumerate(found):
            self.by_position.setdefault(o.position, []).append(index)
        count = size or max(map(len, self.by_position.values()))
        self.rows: list[dict[int, int]] = [{} for _ in range(count)]
        self.again()

    def again(self) -> None:
        """Arrange every place by all that is arranged, from the first one on."""
        for position in sorted(self.by_position):
            here = self.by_position[position]
            for row in self.rows:
                row.pop(position, None)
            alive = [row for row in self.rows if not self._ended(row, position)] or self.rows
            gain_BN = np.array([[self._gain(row, index) for index in here] for row in alive])
            for b, n in assignment(gain_BN, maximize=True):
                alive[b][position] = here[n]

    def _gain(self, row: dict[int, int], index: int) -> float:
        """How strongly an occurrence is tied to a sentence."""
        return float(self.ties_NN[index, list(row.values())].sum()) if row else 0.0

    def _ended(self, row: dict[int, int], position: int) -> bool:
        """Whether a sentence ends before a position."""
        return any(self.tokens[index] == self.ends for at, index in row.items() if at < position)


def _proved(attended: Attended, members: list[int]) -> bool:
    """Whether a sentence's own tokens explain each other's gradients, and others hardly could."""
    if attended.spare(members) * math.log(2 * _UNEXPLAINED) > math.log(_CHANCE):
        return False
    return float(attended.unexplained(members).max()) <= _UNEXPLAINED
