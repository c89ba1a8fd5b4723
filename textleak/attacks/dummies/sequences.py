"""Beam search for the order of recovered tokens.

Shapes: M orders compared, B sentences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

from textleak.attacks.dummies.orders import Order, inner_places, reordered
from textleak.attacks.dummies.trials import Trials
from textleak.matching import Leaves

Orders = tuple[Order, ...]
"""One of each sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sequencer:
    """Places a batch's tokens one after the other, from the left, so that their gradient comes near the shared one.

    At each place, every order in the beam is tried with each of the tokens further right in it, the two changing
    places; the nearest orders go on.

    Attributes:
        trials: compares orders.
        beams: orders that go on.
        sweeps: times that all places are gone through, at most; it ends with one in which nothing came nearer.
    """

    trials: Trials
    beams: int
    sweeps: int

    def best(self, free: Leaves) -> Generator[float, None, tuple[Orders, float]]:
        """The best orders found of one candidate's leaves (1, ...), and the distance in these.

        Yields:
            The least distance so far, after each place.
        """
        dummies = self.trials.dummies
        known: dict[Orders, float] = {}
        beam = self._nearest([tuple(tuple(range(length)) for length in dummies.lengths)], known, free)
        for _ in range(self.sweeps):
            before = beam
            for b, places in enumerate(inner_places(dummies.model, length) for length in dummies.lengths):
                for i, t in enumerate(places):
                    if self.trials.problem.view.clock.over:
                        break
                    followers = [_exchanged(orders, b, t, s) for orders in beam for s in places[i + 1 :]]
                    beam = self._nearest([*beam, *followers], known, free)
                    yield known[beam[0]]
            if beam == before:
                break
        return beam[0], known[beam[0]]

    def _nearest(self, orders: list[Orders], known: dict[Orders, float], free: Leaves) -> list[Orders]:
        """The best of some orders, best first."""
        new = [order for order in dict.fromkeys(orders) if order not in known]
        done = 0
        for size in self.trials.passes(len(new)):
            part = new[done : done + size]
            distances = self.trials.distances(reordered(self.trials.dummies, free, part)).tolist()
            known.update(zip(part, distances, strict=True))
            done += size
        return sorted(dict.fromkeys(orders), key=known.__getitem__)[: self.beams]


def _exchanged(orders: Orders, b: int, t: int, s: int) -> Orders:
    """Two tokens of a sentence in each other's places."""
    row = list(orders[b])
    row[t], row[s] = row[s], row[t]
    return (*orders[:b], tuple(row), *orders[b + 1 :])
