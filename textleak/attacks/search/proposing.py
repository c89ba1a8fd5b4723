"""Which tokens could stand where, and the search among them: what of `match` needs no dummies."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator

from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.run import Run
from textleak.attacks.search.shapes import Shape
from textleak.events import Phase, Progress
from textleak.exact.prefixes import extend_prefixes
from textleak.exact.proposals import Proposals, span_proposals
from textleak.matching.discrete import Row

# Part of the batch's tokens whose directions must stand out of the noise for the span's lists to be searched (our
# choice; measured on minilm: at sigma = 3e-4 5 to 7 of 10 do, at 1e-3 2 or 3, where the lists lead astray).
_TRUSTED = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposed:
    """What the span of the first layers' inputs shows.

    Attributes:
        proposals: tokens for each position; None where the span isn't looked at or closed.
        prefixes: beginnings of a causal model's sentences.
    """

    proposals: Proposals | None = None
    prefixes: list[Row] = dataclasses.field(default_factory=list)

    @property
    def guesses_lengths(self) -> bool:
        """Whether lengths are only ranked."""
        return self.proposals is not None and bool(self.proposals.ends)

    def trusted(self, shape: Shape, *, noisy: bool) -> Proposals | None:
        """The proposals where they tell of the text, not of noise."""
        if self.proposals is None or (noisy and self.proposals.above_noise < _TRUSTED * sum(shape)):
            return None
        return self.proposals


def propose(problem: TextProblem, keep: int) -> Generator[Phase, None, Proposed]:
    """Look at the span.

    Args:
        problem: what the server sees.
        keep: tokens proposed for each position.
    """
    model, shared = problem.model, problem.shared
    yield Phase(name="proposals", detail="tokens whose layer inputs the gradient spans")
    longest = max(shared.known.lengths) if shared.known.lengths else None
    found = span_proposals(model, shared, longest=longest, keep=keep, clock=problem.view.clock)
    if found is None:
        return Proposed()
    layers, proposals = found
    if model.task != "causal-lm":
        return Proposed(proposals=proposals)
    most = (longest or model.max_length) - 1
    prefixes = extend_prefixes(model, shared, layers, proposals, longest=most)
    return Proposed(proposals=proposals, prefixes=prefixes)


def search_among(
    run: Run, proposals: Proposals, prefixes: list[Row], shapes: list[Shape]
) -> Iterator[Phase | Progress]:
    """Find out which proposed token stands where, in which sentence and with which label."""
    problem = run.problem
    # Behind noise the distance over all tensors leads a greedy search astray; that of the whitened ones alone doesn't
    # (measured on minilm at sigma = 1e-4: a mean match of 0.81 by all tensors, of 0.91 by these).
    matcher = (problem.whitened if problem.shared.noise_sigma > 0 else None) or problem.matcher
    search = run.begin_search(matcher, proposals=proposals, shapes=shapes)
    yield Phase(name="discrete", detail="ordering the candidate tokens")
    for some in _turns(shapes, proposals):
        if not search.beam or not run.finished():
            search.shapes = some if proposals.ends else shapes
            yield from run.searched(search, list(search.starts(some, prefixes)))


def _turns(shapes: list[Shape], proposals: Proposals) -> list[list[Shape]]:
    """Shapes that are searched together, group after group.

    Fewest sentences first: a batch in which every sentence stands twice has the same gradient. Lengths of one
    sentence that are only ranked come one by one, as a search that may change them gets lost (measured on minilm).
    """
    if proposals.ends and len(shapes[0]) == 1:
        return [[shape] for shape in shapes]
    return [list(some) for _, some in itertools.groupby(shapes, key=len)]
