"""Sentences of a causal model, built token by token (Petrov et al. 2024, sec. 4.2) and ended by what they predict.

The first block's span tells which tokens to try, later ones which beginnings are right (`beginnings`). The tree known,
what a language model was asked to predict after each beginning tells where sentences end (`endings`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence

from textleak.clients.view import Clock
from textleak.events import Phase, Progress, Sentence
from textleak.exact.beginnings import Tree
from textleak.exact.endings import answer, ended
from textleak.exact.followers import Followers
from textleak.exact.found import OPEN, Found
from textleak.exact.later_inputs import LaterInputs, shows
from textleak.exact.proposals import Proposals
from textleak.exact.subspace import NOISE_COVERS, InputSpan, shared_spans, why_no_span
from textleak.exact.vocabulary import Vocabulary
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.decoding import to_sentence
from textleak.models.probes.layers import LocalLayer
from textleak.shared.gradient import SharedGradient

_CUT = "The time limit was reached while sentences were built, token by token."
_NO_TREE = "No layer after the first ones tells which of the tokens that could follow each other do."
# Later layers' inputs that are tried as the one that every beginning has to be in (our choice).
_MOST_ATTEMPTS = 4


def extend_prefixes(
    model: TextModel,
    shared: SharedGradient,
    layers: Sequence[LocalLayer],
    proposals: Proposals,
    *,
    longest: int,
) -> list[Row]:
    """Beginnings of sentences of a causal model, built token by token.

    Args:
        model: the public model, a causal one.
        shared: the shared gradient.
        layers: the first block's layers that the proposals come from.
        proposals: which tokens can stand where.
        longest: tokens at most.

    Returns:
        Beginnings that can't be extended, longest first; empty where no later layer's span shows any.
    """
    checks = LaterInputs(model, shared)
    if not layers or checks[0] is None:
        return []
    tree = Tree(
        model=model,
        ordered=layers[0].depends_on_position,
        candidates=lambda rows: proposals.surest_at(len(rows[0])),
        checks=checks,
        first=0,
        longest=longest,
    )
    for _ in tree.grow():
        pass
    return tree.leaves


# Whole sentences


def causal_sentences(
    model: TextModel, shared: SharedGradient, clock: Clock | None = None
) -> Generator[Phase | Progress, None, Found]:
    """The sentences of a causal model's batch, exactly, as far as its gradients' spans tell them.

    Neither lengths nor the batch size need be known. Language models: the last token, which no layer reads, is read
    off as a label. Classifiers: classes come along where the last layers' gradients were shared.

    Args:
        model: the public model, a causal one.
        shared: the shared gradient.
        clock: when it is over, the beginnings found so far are returned; None for no limit.
    """
    yield Phase(name="prefixes", detail="beginnings of sentences whose inputs the gradients span")
    first_layers = _first_layers(model, shared)
    if isinstance(first_layers, str):
        return Found(notes=(first_layers,))
    longest = max(shared.known.lengths) if shared.known.lengths else model.max_length
    if model.task == "causal-lm":  # the last token is no input
        longest -= 1
    best = None
    for checks, first in _attempts(model, shared):
        tree = Tree(
            model=model,
            ordered=isinstance(first_layers, Followers) or first_layers.layer.depends_on_position,
            candidates=first_layers.after,
            checks=checks,
            first=first,
            longest=longest,
        )
        for length in tree.grow():
            yield Progress(
                phase="prefixes",
                step=length,
                sentences=_shown(tree, tree.leaves),
                detail=f"{len(tree.beginnings)} of {tree.span.rank} beginnings",
            )
            if clock is not None and clock.over:
                rows = [(*row, OPEN) for row in tree.leaves]
                return answer(rows, complete=False, notes=[_CUT])
        if tree.lost or not tree.beginnings:
            continue
        yield Phase(name="labels", detail="what was predicted after each beginning")
        found = ended(tree, shared)
        if model.first_layers is not None:
            found = _of_first_layers(tree, shared, found)
        if found.complete or tree.finished:
            return found
        # Some weren't found, or a few too many: another layer may show more.
        best = max(filter(None, [found, best]), key=_known)
    if best is not None:
        return best
    if isinstance(first_layers, Followers):
        return Found(notes=(_NO_TREE,))
    return _sets_alone(first_layers, longest)


def _first_layers(model: TextModel, shared: SharedGradient) -> Vocabulary | Followers | str:
    """What the first layers' gradients tell of which tokens could come next; or why they tell nothing."""
    spans = shared_spans(model, shared)
    clear = [(layers, span) for layers, span in spans if shows(span)]
    if clear:
        layers, span = max(clear, key=lambda pair: pair[1].room)
        return Vocabulary(model, layers[0], span)
    followers = None if spans else Followers.of(model, shared)
    return followers or _why_nothing(model, shared, [span for _, span in spans])


def _of_first_layers(tree: Tree, shared: SharedGradient, found: Found) -> Found:
    """What a model's first layers tell, with what they prove: nothing else can be put to a test."""
    if shared.seen_effects or not tree.certain:
        return found
    return dataclasses.replace(
        found, proved=tuple(tuple(token != OPEN for token in row) for row in found.rows)
    )


def _attempts(model: TextModel, shared: SharedGradient) -> Iterator[tuple[LaterInputs, int]]:
    """Later layers' inputs, each to be tried as the one that every beginning has to be in.

    The last time without an earlier one that rules any out, where one was asked: a beginning that hardly shows there
    may show in the others.
    """
    for sooner in (True, False):
        checks = LaterInputs(model, shared, sooner=sooner)
        for first in range(_MOST_ATTEMPTS):
            if checks[first] is None:
                break
            yield checks, first
        if not checks.screened:
            return


def _known(found: Found) -> int:
    return sum(token != OPEN for row in found.rows for token in row)


def _shown(tree: Tree, leaves: Sequence[Row]) -> tuple[Sentence, ...]:
    rows = [(*row, OPEN) if tree.predicts else row for row in leaves]
    return tuple(
        to_sentence(
            tree.model,
            row,
            confidence=[float(token != OPEN) for token in row],
            channels=["span" if token != OPEN else "" for token in row],
        )
        for row in rows
    )


def _why_nothing(model: TextModel, shared: SharedGradient, spans: Sequence[InputSpan]) -> str:
    if not spans:
        return why_no_span(model, shared)
    if shared.noise_sigma > 0:
        return NOISE_COVERS
    size = min(span.size for span in spans)
    return (
        f"The first layer's gradient fills all its {size} dimensions: the batch has about as many tokens or more "
        f"(n/D around 1 or beyond), or was rounded too coarsely to tell."
    )


def _sets_alone(vocabulary: Vocabulary, longest: int) -> Found:
    """Tokens by position, where no later block tells which follow which."""
    sets: list[tuple[int, ...]] = []
    for position in range(min(longest, vocabulary.span.rank)):
        tokens = vocabulary.tokens(position)[: vocabulary.span.rank]
        if not tokens:
            break
        sets.append(tuple(tokens))
        if not vocabulary.layer.depends_on_position:
            break
    one = bool(sets) and vocabulary.layer.depends_on_position and all(len(tokens) == 1 for tokens in sets)
    rows = [tuple(tokens[0] for tokens in sets)] if one else []
    rank, size = vocabulary.span.rank, vocabulary.span.size
    note = (
        f"The first block's gradient shows which tokens there are ({rank} inputs in {size} dimensions); no later "
        "block's tells which follow which."
    )
    if vocabulary.model.task == "causal-lm":
        rows = [(*row, OPEN) for row in rows]
    return answer(rows, complete=False, notes=[note], sets=sets if not one else [])
