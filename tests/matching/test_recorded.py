"""A replayed computation gives what the computation itself gives, and where it can't it isn't replayed."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from textleak.matching import Capture, Matcher, SquaredL2, Target
from textleak.matching.linear import linear
from textleak.matching.recorded import UNTIL_REPLAYED, Replayed, watch
from textleak.matching.replay import Recording

CALLS = UNTIL_REPLAYED + 4  # of which some are replayed


class Counted:
    """A computation that counts how often it runs."""

    def __init__(self, compute):
        self.compute = compute
        self.calls = 0

    def __call__(self, inputs):
        self.calls += 1
        return self.compute(*inputs)


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_order(x, w):
    """Views, changes in place, several results, a look-up, and derivatives of derivatives."""
    x = x.detach().requires_grad_()
    hidden = functional.layer_norm(x @ w, (4,)).view(2, 3, 4)
    top = hidden.sigmoid().topk(2, dim=-1).values
    (slope,) = torch.autograd.grad(top.square().sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(slope.square().sum() + hidden.sum(), x)
    total = torch.zeros_like(again)
    total[1:].add_(again[1:], alpha=2)
    return total, torch.stack(torch.unbind(again, 1), 0), hidden.detach()


def test_what_comes_again_is_replayed_and_right():
    replayed, counted = Replayed(), Counted(second_order)
    w = drawn(4, 4, seed=0)
    for seed in range(1, 1 + CALLS):
        inputs = (drawn(6, 4, seed=seed), w)
        for own, expected in zip(replayed("f", counted, inputs), second_order(*inputs), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
    assert counted.calls == UNTIL_REPLAYED


def test_other_shapes_types_and_functions_are_computations_of_their_own():
    replayed = Replayed()
    for seed in range(CALLS):
        for rows, dtype in ((2, torch.float64), (3, torch.float64), (2, torch.float32)):
            x = drawn(rows, 4, seed=seed).to(dtype)
            (twice,) = replayed("twice", lambda inputs: (inputs[0] * 2,), [x])
            (half,) = replayed("half", lambda inputs: (inputs[0] / 2,), [x.mT])
            assert torch.equal(twice, x * 2)
            assert torch.equal(half, x.mT / 2)


def signed(x):
    return (x * 2,) if x.sum() > 0 else (x - 1,)


def chosen(x):
    rows = (x[:, 0] > 0).nonzero().flatten()
    return (x[rows].sum(0) * len(rows),)


@pytest.mark.parametrize("decision", [signed, chosen])
def test_what_values_decide_is_decided_anew(decision):
    replayed = Replayed()
    for seed in range(2 * CALLS):
        x = drawn(3, 4, seed=seed)
        (own,) = replayed("f", Counted(decision), [x])
        torch.testing.assert_close(own, decision(x)[0])


def test_what_is_led_astray_again_and_again_is_left_alone():
    replayed, counted = Replayed(), Counted(lambda x: (x * x.sum().item(),))
    for seed in range(30):
        x = drawn(3, seed=seed)
        assert torch.equal(replayed("f", counted, [x])[0], x * x.sum().item())
    assert counted.calls == 30


def test_a_list_that_does_not_run_is_left_alone(monkeypatch):
    def refused(*_):
        raise TypeError("out")

    monkeypatch.setattr(Recording, "replay", refused)
    replayed, counted = Replayed(), Counted(lambda x: (x * 2,))
    for seed in range(8):
        x = drawn(3, seed=seed)
        assert torch.equal(replayed("f", counted, [x])[0], x * 2)
    assert counted.calls == 8


def test_random_numbers_are_drawn_anew():
    replayed = Replayed()
    x = torch.zeros(100)
    seen = {
        float(replayed("f", lambda inputs: (inputs[0] + torch.rand_like(inputs[0]),), [x])[0][0])
        for _ in range(CALLS)
    }
    assert len(seen) == CALLS


def test_what_changes_a_tensor_of_others_is_not_replayed():
    total = torch.zeros(3)

    def adding(x):
        total.add_(x)
        return (total * 1,)

    replayed = Replayed()
    for calls in range(1, 1 + CALLS):
        assert torch.equal(replayed("f", Counted(adding), [torch.ones(3)])[0], torch.full((3,), float(calls)))


def test_what_shares_memory_unseen_is_not_replayed():
    def same_storage(inputs):
        twice = inputs[0] * 2
        return (torch.empty(0, dtype=twice.dtype).set_(twice.untyped_storage(), 0, (3,), (1,)) + 1,)

    assert watch(same_storage, [drawn(3, seed=0)])[1] is None

    def through_numpy(x):
        return (torch.from_numpy((x * 2).numpy()) + 1,)

    replayed = Replayed()
    for seed in range(CALLS):
        x = drawn(3, seed=seed)
        assert torch.equal(replayed("f", Counted(through_numpy), [x])[0], x * 2 + 1)


def test_results_may_be_changed_by_whoever_gets_them():
    replayed, constant = Replayed(), torch.ones(3)

    def compute(inputs):
        return constant, inputs[0], inputs[0] + 2

    for calls in range(CALLS):
        x = torch.zeros(3)
        outputs = replayed("f", compute, [x])
        if calls >= UNTIL_REPLAYED:
            for own, value in zip(outputs, (1, 0, 2), strict=True):
                assert torch.equal(own, torch.full((3,), float(value)))
                own.add_(5)
    assert torch.equal(constant, torch.ones(3))


def test_watching_keeps_no_tensor_alive():
    seen: list[weakref.ref[Tensor]] = []

    def compute(inputs):
        middle = inputs[0] * 2
        seen.append(weakref.ref(middle))
        return (middle.sum(),)

    outputs, recording = watch(compute, [torch.ones(3)])
    assert recording is not None
    assert seen[0]() is None
    assert torch.equal(recording.replay([torch.full((3,), 2.0)])[0], outputs[0] * 2)


@pytest.mark.parametrize(
    "beside", [None, lambda leaves: leaves["inputs"].square().sum((1, 2))], ids=["alone", "prior"]
)
def test_a_matcher_replays_to_the_same_distances_and_gradients(beside):
    torch.manual_seed(0)
    ran = []
    network = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).double()

    def losses(leaves):
        ran.append(len(leaves["inputs"]))
        logits = network(leaves["inputs"].flatten(0, 1)).view(*leaves["inputs"].shape[:2], 3)
        return -(logits.log_softmax(-1) * leaves["labels"].softmax(-1)).sum((1, 2))

    client = {"inputs": drawn(1, 2, 5, seed=1), "labels": drawn(1, 2, 3, seed=2)}
    shared = torch.autograd.grad(losses(client).sum(), list(network.parameters()))
    gradients = dict(zip(dict(network.named_parameters()), shared, strict=True))
    matchers = [
        Matcher(
            Capture(network, list(gradients)), Target.from_gradients(gradients), SquaredL2(), replay=replay
        )
        for replay in (True, False)
    ]
    for seed in range(CALLS):
        leaves = {"inputs": drawn(4, 2, 5, seed=100 + seed), "labels": drawn(4, 2, 3, seed=200 + seed)}
        (values, slopes), (expected, expected_slopes) = (
            m.value_and_gradient(losses, leaves, leaves, beside=beside) for m in matchers
        )
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=0)
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, expected_slopes[name], rtol=1e-9, atol=1e-12)
        distances = expected if beside is None else expected - beside(leaves)
        torch.testing.assert_close(matchers[0].evaluate(losses, leaves), distances, rtol=1e-10, atol=0)
    by_both = 2 * UNTIL_REPLAYED + CALLS  # of the first one's two computations, and of the other's
    assert ran.count(4) == by_both
    assert [matcher.evaluations for matcher in matchers] == [8 * CALLS, 4 * CALLS]


def test_which_rows_are_zero_is_not_asked_again_where_all_were_multiplied():
    weight = drawn(3, 4, seed=5)

    def slope(inputs):
        x, g = (one.clone().requires_grad_() for one in inputs)
        (back,) = torch.autograd.grad(linear(x, weight), x, g, create_graph=True)
        return (torch.autograd.grad(back.square().sum(), g)[0],)

    few = drawn(64, 3, seed=2)
    few[8:] = 0
    for begun_with, again in ((drawn(64, 3, seed=1), few), (few, drawn(64, 3, seed=1))):
        _, recording = watch(slope, [drawn(64, 4, seed=0), begun_with])
        assert recording is not None
        found, expected = (
            recording.replay([drawn(64, 4, seed=0), again]),
            slope([drawn(64, 4, seed=0), again]),
        )
        if begun_with is few:  # rows were left out, so that another number of them is another computation
            assert found is None
        else:
            assert found is not None
            torch.testing.assert_close(found[0], expected[0])
