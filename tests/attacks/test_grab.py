"""GRAB: its masks, its beam search, and what both bring where a client drops; the contract is in the contract test."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.conftest import ToyModel
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.attacks.dummies.dropped import DroppedDummies, dropped_by
from textleak.attacks.dummies.orders import reordered, whole_order
from textleak.attacks.dummies.sequences import Sequencer
from textleak.attacks.dummies.trials import Trials
from textleak.attacks.search.problem import TextProblem
from textleak.clients import CLIENTS
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.errors import InputError
from textleak.events import Followed, Recovery
from textleak.matching import CosinePerTensor
from textleak.models import TextModel
from textleak.models.masks import ReplacedDropout, dropouts, given_masks
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

TOLD = "labels,lengths,batch-size"
TRAIN = CLIENTS.build("train-mode", {})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trials_of(model: TextModel, shared: SharedGradient) -> Trials:
    view = view_of(shared, model)
    problem = TextProblem(view=view, objective=CosinePerTensor())
    lengths = shared.known.lengths
    dummies = DroppedDummies(
        model=model,
        lengths=lengths,
        labels_KB=torch.tensor([shared.known.labels]),
        calls=dropped_by(view, lengths),
    )
    return Trials(problem=problem, dummies=dummies, matcher=problem.soft_matcher, generator=generator())


def shared_with_masks(
    model: TextModel, sentences: list[str], **options: object
) -> tuple[SharedGradient, dict[str, Tensor]]:
    """What a client in train mode shares, and the dummies that equal its text and its masks."""
    drawn: list[Tensor] = []

    def drop(x: Tensor, rate: float) -> Tensor:
        drawn.append((functional.dropout(torch.ones_like(x), rate) > 0).to(x))
        return x * drawn[-1] / (1 - rate)

    with ReplacedDropout(drop):
        shared, secret = share(model, sentences, client=TRAIN, know=TOLD, seed=1, **options)
    longest = max(map(len, secret.ids))
    ids = torch.tensor([[*row, *[model.pad_id] * (longest - len(row))] for row in secret.ids])
    masks = {f"mask {i}": mask[None] for i, mask in enumerate(drawn)}
    return shared, {"embeddings": model.embed(ids)[None], **masks}


# Masks


def test_given_masks_stand_for_what_torch_drops(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    batch = model.encode(["the cat sat"])
    network = copy.deepcopy(model.network).train()

    def logits() -> Tensor:
        return network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits

    calls = dropouts(logits)
    assert [call.rate for call in calls] == [0.1] * len(calls)
    assert len(calls) == 1 + 3 * 2 + 1  # after the embeddings; in two layers; before the head
    kept = [torch.full(call.shape, 1 - call.rate) for call in calls]
    with given_masks(kept):
        as_without = logits()
        torch.testing.assert_close(
            as_without, model.network(batch.ids_BT, attention_mask=batch.mask_BT).logits
        )
    with given_masks(kept[:-1]), pytest.raises(InputError, match="no mask"):
        logits()
    with given_masks([torch.ones(2), *kept[1:]]), pytest.raises(InputError, match="no mask"):
        logits()


@pytest.mark.parametrize("family", ["bert", "gpt2", "distilbert"])
def test_dummies_that_equal_text_and_masks_have_no_distance(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification", dtype="float64")
    shared, truth = shared_with_masks(model, ["the cat sat on the mat", "a dog"])
    trials = trials_of(model, shared)
    assert set(truth) == set(trials.dummies.free)
    assert float(trials.distances(truth)) < 1e-12
    dropped = {name: torch.ones_like(leaf) if "mask" in name else leaf for name, leaf in truth.items()}
    assert float(trials.distances(dropped)) > 1e-3


def test_what_was_pruned_is_left_out_of_the_dummies_gradient_too(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    pruned = [DEFENSES.build("prune", {"ratio": 0.9})]
    shared, truth = shared_with_masks(model, ["the cat sat on the mat"], defenses=pruned)
    assert float(trials_of(model, shared).distances(truth)) < 1e-12


def test_the_slope_by_a_mask_is_that_of_finite_differences(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    shared, _ = shared_with_masks(model, ["the cat sat"])
    trials = trials_of(model, shared)
    dummies = trials.dummies
    leaves = dummies.start(1, generator())
    value, slopes = dummies.value_and_gradient(trials.matcher, leaves)
    for name in ("mask 0", "mask 1", "mask 3", "mask 7"):
        place = tuple(int(i) for i in (slopes[name].abs() == slopes[name].abs().max()).nonzero()[0])
        nudged = leaves[name].clone()
        nudged[place] += 1e-6
        ahead, _ = dummies.value_and_gradient(trials.matcher, {**leaves, name: nudged})
        difference = float((ahead - value)[0]) / 1e-6
        assert float(slopes[name][place]) == pytest.approx(difference, rel=1e-3)
        assert abs(difference) > 1e-6


@pytest.fixture(scope="module")
def placeless(toy_model: ToyModel) -> TextModel:
    """A model that is told no positions: it reads tokens in any order alike."""
    model = toy_model("bert", task="classification", dtype="float64")
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.get_parameter("bert.embeddings.position_embeddings.weight").zero_()
    return model.with_network(network)


def test_what_was_dropped_of_a_token_moves_with_it(placeless: TextModel) -> None:
    shared, truth = shared_with_masks(
        placeless, ["the cat sat on the mat", "a red dog"], share="no-embeddings"
    )
    trials = trials_of(placeless, shared)
    orders = [
        whole_order(placeless, (3, 1, 0, 5, 4, 2), shared.known.lengths[0]),
        whole_order(placeless, (2, 0, 1), shared.known.lengths[1]),
    ]
    moved = reordered(trials.dummies, truth, [orders])
    assert not torch.equal(moved["mask 1"], truth["mask 1"])
    assert float(trials.distances(moved)) < 1e-12
    assert float(trials.distances({**moved, "mask 1": truth["mask 1"]})) > 1e-6
    assert float(trials.distances({**moved, "mask 0": truth["mask 0"]})) > 1e-6


# The beam search


def test_tokens_with_their_masks_are_put_back_in_order(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, truth = shared_with_masks(model, ["she wrote a letter home", "two dogs"])
    trials = trials_of(model, shared)
    orders = [
        whole_order(model, order, length)
        for order, length in zip(
            ((4, 2, 0, 1, 3), (1, 0, *range(2, shared.known.lengths[1] - 2))),
            shared.known.lengths,
            strict=True,
        )
    ]
    mixed = reordered(trials.dummies, truth, [orders])
    search = Followed(Sequencer(trials=trials, beams=4, sweeps=5).best(mixed))
    told = list(search)
    found, distance = search.result
    back = reordered(trials.dummies, mixed, [found])
    torch.testing.assert_close(back["embeddings"], truth["embeddings"])
    assert told == sorted(told, reverse=True)
    assert distance == told[-1] < 1e-5
    few = Followed(Sequencer(trials=trials, beams=4, sweeps=5).best(truth))
    places = sum(length - 2 for length in shared.known.lengths)
    assert len(list(few)) <= 2 * places  # a sweep in which no order in the beam changed is the last


# The attack


def attack(shared: SharedGradient, model: TextModel, **options: object) -> Recovery:
    return to_end(begin(ATTACKS.build("grab", options), shared, model))


def test_where_nothing_is_dropped_there_are_no_masks_and_that_is_said(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    quick = {"rounds": 2, "steps": 2, "starts": 2, "sweeps": 1}
    shared, _ = share(model, ["the cat sat"], know=TOLD, seed=1)
    assert any("drop nothing" in note for note in attack(shared, model, **quick).notes)
    shared, _ = share(model, ["the cat sat"], know="lengths", client=TRAIN, seed=1)
    recovery = attack(shared, model, **quick)
    assert recovery.steps == 4  # of both rounds
    (note,) = recovery.notes
    assert "Labels were not known" in note


def test_several_steps_are_refused_and_masks_are_not(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    several = CLIENTS.build("fedavg", {"steps": 3})
    shared, _ = share(model, ["the cat sat"], know=TOLD, client=several, seed=1)
    with pytest.raises(InputError, match="taken at the public weights"):
        attack(shared, model)


@pytest.mark.parametrize(
    ("option", "value"), [("beams", 0), ("sweeps", 0), ("rounds", 0), ("starts", 0), ("weight_decay", -1)]
)
def test_an_option_out_of_range_is_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=option):
        ATTACKS.build("grab", {option: value})


def test_the_defaults_are_the_published_ones() -> None:
    published = {"rounds": 5, "steps": 2000, "learning_rate": 0.01, "starts": 2000, "beams": 4, "sweeps": 5}
    built = dataclasses.asdict(ATTACKS.build("grab", {}))  # type: ignore[call-overload]
    assert published.items() <= built.items()


@pytest.mark.slow
def test_masks_bring_the_tokens_gradient_nearer_than_matching_as_if_nothing_were_dropped(
    toy_model: ToyModel,
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["she wrote a letter home"], know=TOLD, client=TRAIN, seed=1)
    quick = {"rounds": 1, "steps": 30, "starts": 20, "learning_rate": 0.03}
    with_masks, without = (attack(shared, model, masks=masks, **quick) for masks in (True, False))
    assert with_masks.steps == without.steps
    assert with_masks.final_loss < 0.5 * without.final_loss
