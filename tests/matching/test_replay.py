"""Replayed results lie where earlier ones lay, and what they are doesn't depend on that."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from torch import Tensor

from textleak.matching.recorded import watch
from textleak.matching.replay import Layout, Recording


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


_WEIGHT, _ORDER = drawn(4, 4, seed=100) / 4, torch.tensor([2, 0, 1])


def changed(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z[0].add_(y[1])
    z.transpose(1, 2)[:, 1:].mul_(2)
    return z


# Each gives a tensor of the shape of its arguments, (2, 3, 4).
_STEPS = (
    lambda x, y: x + y,
    lambda x, y: x - y * 0.5,
    lambda x, y: (-x).mul_(0.5).add_(y),
    lambda x, y: (x / 3).div_(7).sub_(2) / (1 + y.square()),
    lambda x, y: x.tanh() * y.tanh(),
    lambda x, y: x.mT.contiguous().mT + y,
    lambda x, y: (x.reshape(6, 4) @ _WEIGHT).view(2, 3, 4) - y,
    lambda x, y: (x.reshape(6, 4) @ _WEIGHT).view(2, 3, 4) + y * 0.5,
    lambda x, y: (x.reshape(6, 4) @ _WEIGHT).view(2, 3, 4) + (y.reshape(6, 4) @ _WEIGHT.T).view(2, 3, 4),
    lambda x, y: x.transpose(0, 1).reshape(3, 8).T.reshape(2, 4, 3).mT + y,
    lambda x, y: (x - x.mean(-1, keepdim=True)) * y.sum(1, keepdim=True).tanh(),
    lambda x, y: x[:, _ORDER].tanh() + y[:1],
    lambda x, y: torch.bmm(torch.bmm(x, y.mT), y).tanh(),
    lambda x, y: torch.stack([x, y]).mean(0),
    lambda x, y: torch.mul(x, y, out=torch.empty_like(x)).tanh(),
    lambda x, y: torch.zeros_like(x).add_(y).add(x),
    changed,
)  # fmt: skip


def programme(seed: int):
    """Forty steps on what earlier ones gave, some of it read again much later."""
    draw = random.Random(seed)
    plan = [(draw.choice(_STEPS), draw.random(), draw.random()) for _ in range(40)]

    def compute(inputs):
        seen = list(inputs)
        for step, first, second in plan:
            seen.append(step(seen[int(first * len(seen))], seen[-1 if second < 0.6 else 0]) * 0.7)
        return seen[-1], seen[-2] + seen[3], seen[20]

    return compute


@pytest.mark.parametrize("seed", range(25))
def test_any_programme_is_replayed_to_what_it_gives(seed):
    compute = programme(seed)
    _, recording = watch(compute, [drawn(2, 3, 4, seed=1), drawn(2, 3, 4, seed=2)])
    assert recording is not None
    for number in range(3):
        inputs = [drawn(2, 3, 4, seed=10 + number), drawn(2, 3, 4, seed=20 + number)]
        found, expected = recording.replay(inputs), compute(inputs)
        for own, true in zip(found, expected, strict=True):
            torch.testing.assert_close(own, true, rtol=1e-12, atol=1e-12)
            own.fill_(7)  # the caller's own


def pieces(recording: Recording) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in recording._placed if tensor is not None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_round_as_they_did(dtype):
    def compute(inputs):
        return ((inputs[0] * 0.1 / 3 - 0.7).mul_(1.3).add_(2**0.5),)

    x, other = drawn(50, seed=1).to(dtype), drawn(50, seed=2).to(dtype)
    _, recording = watch(compute, [x])
    assert recording is not None
    (found,) = recording.replay([other])
    assert torch.equal(found, *compute([other]))


def test_results_that_nothing_reads_any_more_make_room():
    def compute(inputs):
        x = inputs[0]
        for number in range(50):
            x = (x.tanh() + number).view(4, 3).T @ inputs[0].view(4, 3)
            x = torch.cat([x.flatten(), x[0]])
        return (x * 1,)

    _, recording = watch(compute, [drawn(12, seed=0)])
    assert recording is not None
    assert len(pieces(recording)) < 5


def test_what_is_still_read_is_not_written_over_by_a_sum_in_its_place():
    def compute(inputs):
        x = inputs[0] * 2
        part = x[1:]
        total = x + 1  # not in the place of x, part of which is still read
        other = total + part.sum()
        return other.sum(), part.sum()

    _, recording = watch(compute, [drawn(4, seed=0)])
    assert recording is not None
    x = drawn(4, seed=1)
    for own, true in zip(recording.replay([x]), compute([x]), strict=True):
        torch.testing.assert_close(own, true)


def test_a_sum_is_not_written_in_the_place_of_what_it_reads_in_another_order():
    def compute(inputs):
        square = inputs[0] * 2
        both = square + square.T  # reads the same memory in two orders
        row = (both * 1).flatten()
        return ((row[1:5] + 1) * 1,)  # reads a part of it

    _, recording = watch(compute, [drawn(4, 4, seed=0)])
    assert recording is not None
    x = drawn(4, 4, seed=1)
    torch.testing.assert_close(recording.replay([x])[0], compute([x])[0])


def test_a_copy_of_what_nothing_reads_any_more_is_not_made():
    def compute(inputs):
        once = (inputs[0] * 2).view(2, 2)
        return (once.clone().add_(1).view(4) + 0,)

    _, recording = watch(compute, [drawn(4, seed=0)])
    assert recording is not None
    assert len(recording._calls) == 3
    x = drawn(4, seed=1)
    torch.testing.assert_close(recording.replay([x])[0], x * 2 + 1)


def test_inputs_that_lay_in_one_storage_may_lie_apart_later():
    both = drawn(2, 3, seed=0)

    def compute(inputs):
        return ((inputs[0] * 2 + inputs[1]) * 1,)

    for first, second in ((both[0], both[1]), (both, both[:1].expand(2, 3))):
        _, recording = watch(compute, [first, second])
        assert recording is not None
        inputs = [drawn(*first.shape, seed=1), drawn(*second.shape, seed=2)]
        torch.testing.assert_close(recording.replay(inputs)[0], compute(inputs)[0])


def test_one_thread_at_a_time_replays():
    inside, go_on = threading.Event(), threading.Event()

    def compute(inputs):
        return (inputs[0] * 2,)

    _, recording = watch(compute, [drawn(3, seed=0)])
    assert recording is not None
    own = recording._calls[0]

    def held(slots):
        inside.set()
        go_on.wait(20)
        return own[0](slots)

    recording._calls[0] = (held, *own[1:])
    found = []
    thread = threading.Thread(target=lambda: found.append(recording.replay([torch.ones(3).double()])))
    thread.start()
    assert inside.wait(20)
    assert recording.replay([torch.ones(3).double()]) is None
    go_on.set()
    thread.join()
    assert torch.equal(found[0][0], torch.full((3,), 2.0).double())
    assert recording.replay([torch.ones(3).double()]) is not None


@pytest.mark.parametrize(
    ("shape", "stride", "dense"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 3), (5, 0), False),
        ((2, 3), (4, 1), False),
        ((1, 3), (9, 1), True),
        ((0, 3), (3, 1), False),
        ((), (), True),
    ],
)
def test_a_root_is_dense_where_its_entries_fill_its_memory(shape, stride, dense):
    layout = Layout(root=0, shape=shape, stride=stride, offset=0, dtype=torch.float32)
    assert layout.dense is dense
    assert layout.within(layout) is dense
