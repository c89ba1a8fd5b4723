"""The search among guesses of several shapes: what follows a guess is never applied to one of other lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

import textleak
from tests.conftest import ToyModel
from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.search import Search
from textleak.clients.view import view_of
from textleak.exact.proposals import Proposals, span_proposals
from textleak.matching import CosinePerTensor
from textleak.matching.discrete import Guess, Scores
from textleak.private.share import share
from textleak.shared.known import SideInformation

TWO = ("he sat on the mat", "we ran")


def search_of(model: textleak.TextModel, *, proposals: bool) -> tuple[Search, Guess]:
    """A search of two sentences whose lengths aren't known, and the batch as a guess."""
    shared, secret = share(model, TWO, seed=1, know="batch-size")
    problem = TextProblem(view=view_of(shared, model), objective=CosinePerTensor())
    found: Proposals | None = None
    if proposals:
        spanned = span_proposals(model, shared, longest=None, keep=8)
        assert spanned is not None
        found = spanned[1]
    lengths = tuple(map(len, secret.ids))
    search = Search(
        problem=problem,
        matcher=problem.matcher if proposals else problem.soft_matcher,
        proposals=found,
        shapes=[lengths, (lengths[0] - 1, lengths[1] + 1)],
        generator=torch.Generator().manual_seed(0),
        listed=4,
    )
    search.scores = Scores(
        lambda guesses: [float(sum(map(sum, guess.rows))) for guess in guesses]
    )  # any will do
    return search, Guess(secret.ids, secret.labels or ())


def others(guess: Guess) -> Iterator[Guess]:
    """Better guesses that another expansion may have found: shorter, longer, with fewer sentences or more."""
    rows = guess.rows
    yield dataclasses.replace(guess, rows=(rows[0][:-2], rows[1]))
    yield dataclasses.replace(guess, rows=(rows[1], rows[0]))
    yield Guess(rows[:1], guess.classes[:1])
    yield Guess((*rows, rows[0]), (*guess.classes, *guess.classes[:1]))


@pytest.mark.parametrize(
    ("family", "task", "proposals"),
    [
        ("gpt2", "causal-lm", True),
        ("bert", "classification", True),
        ("bert", "masked-lm", True),
        ("gpt2", "causal-lm", False),
        ("bert", "classification", False),
    ],
)
def test_what_follows_a_guess_stands_at_its_own_places_whatever_else_leads(
    family: str, task: str, proposals: bool, toy_model: ToyModel
) -> None:
    model = toy_model(family, task=task)
    search, truth = search_of(model, proposals=proposals)
    guess = truth.with_symbol(0, 3, int(model.content_ids[50]))
    for leader in others(guess) if proposals else list(others(guess))[1:3]:
        expansion = search._by_proposals(guess) if proposals else search._by_pulls(guess)
        batch = next(expansion)
        for _ in range(15):
            batch = list(batch)
            search.scores(batch)
            sizes = {len(after.rows) for after in batch} | {len(guess.rows)}
            assert sizes <= {len(guess.rows), len(leader.rows)}
            try:
                batch = expansion.send(leader)
            except StopIteration:
                break


@pytest.mark.parametrize("attack", ["match", "auto"])
@pytest.mark.parametrize("known", [(2,), (2, 2)])
def test_sentences_that_the_tokenizer_fixes_whole_need_no_search(
    attack: str, known: tuple[int, ...], toy_model: ToyModel
) -> None:
    """A client can send sentences without any text, which `share` refuses."""
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO[: len(known)], seed=1)
    shared = dataclasses.replace(shared, known=SideInformation(lengths=known))
    recovery = textleak.recover(shared, model, attack, time_limit=2.0)
    fixed = (*model.prefix_ids, *model.suffix_ids)
    found = [tuple(p.id for p in sentence.positions) for sentence in recovery.sentences]
    assert len(found) == len(known)
    assert attack != "match" or found == [fixed] * len(known)
