"""A pool: runs on several gradients that take their steps together get what each gets alone."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch

from tests.conftest import ToyModel
from tests.interrupts import POSIX, interrupt, interruptible
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin_on, to_end
from textleak.clients.view import view_of
from textleak.events import Recovery
from textleak.matching import Pool, Target, TargetTensor
from textleak.matching import pool as pools
from textleak.matching.coroutine import Coroutine
from textleak.matching.recorded import UNTIL_REPLAYED
from textleak.matching.rules import Outer
from textleak.matching.single import absolute_distance, form
from textleak.models import TextModel
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

TEXTS = ("the cat sat", "a dog ran to the cat", "the cat")
QUICK: dict[str, dict[str, object]] = {
    "tag": {"steps": UNTIL_REPLAYED + 3},
    "dlg": {"steps": 6},
    "lamp": {"steps": 8, "starts": 4, "moves": 6, "moves_every": 3},
    "lamp with L1": {"steps": 8, "starts": 4, "moves": 6, "moves_every": 3, "variant": "l1l2"},
}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each common call serves."""
    counts: list[int] = []
    together = Pool._together

    def counted(self: Pool, requests: Sequence[pools.Request]) -> list[pools.Answer]:
        counts.append(len(requests))
        return together(self, requests)

    monkeypatch.setattr(Pool, "_together", counted)
    return counts


def gradients(model: TextModel) -> list[SharedGradient]:
    """Of batches of several lengths."""
    labeled = model.task == "classification"
    know = "labels,lengths,batch-size" if labeled else "lengths,batch-size"
    return [
        share(model, [text], [n % 2] if labeled else None, know=know, seed=n)[0]
        for n, text in enumerate(TEXTS)
    ]


def recoveries(model: TextModel, name: str, pool: Pool | None) -> list[Recovery]:
    """An attack on each gradient, alone or in a pool."""

    def attacked(shared: SharedGradient, seed: int) -> Recovery:
        view = dataclasses.replace(view_of(shared, model), pool=pool)
        attack = ATTACKS.build(name.split()[0], QUICK[name])
        return to_end(begin_on(attack, view, seed=seed))

    functions = [functools.partial(attacked, shared, n) for n, shared in enumerate(gradients(model))]
    return [function() for function in functions] if pool is None else list(pool.run(functions))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("bert", name) for name in QUICK),
        *(
            pytest.param("gpt2", name, marks=[] if name in ("tag", "lamp") else pytest.mark.slow)
            for name in QUICK
        ),
    ],
)
def test_runs_together_end_where_each_ends_alone(
    toy_model: ToyModel, kind: str, name: str, served: list[int]
) -> None:
    model = toy_model(kind)
    alone, together = recoveries(model, name, None), recoveries(model, name, Pool())
    assert served == [len(TEXTS)] * int(str(QUICK[name]["steps"]))
    for one, other in zip(together, alone, strict=True):
        assert one.final_loss == pytest.approx(other.final_loss, rel=1e-3)
        assert [s.text for s in one.sentences] == [s.text for s in other.sentences]
        assert (one.steps, one.evaluations) == (other.steps, other.evaluations)


def test_runs_whose_common_answer_is_another_are_answered_alone(
    toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model to which padding is no padding."""
    model = toy_model("bert")
    alone = recoveries(model, "tag", None)
    together = Pool._together

    def wrong(self: Pool, requests: Sequence[pools.Request]) -> list[pools.Answer]:
        return [(1.01 * losses, slopes) for losses, slopes in together(self, requests)]

    monkeypatch.setattr(Pool, "_together", wrong)
    for one, other in zip(recoveries(model, "tag", Pool()), alone, strict=True):
        assert one.final_loss == other.final_loss


def test_a_stack_compares_each_candidate_with_its_own_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, 2, size, generator=generator) for size in (70, 60))
    thin = [torch.randn(70, r, generator=generator) @ torch.randn(r, 60, generator=generator) for r in (1, 4)]
    dense = torch.randn(70, 60, generator=generator)
    for goals in ([*thin, thin[0]], [*thin, dense]):
        targets = [Target.from_gradients({"w": goal}) for goal in goals]
        stack = Target.stack(targets).tensors["w"]
        found = absolute_distance([Outer(left_KNO=left, right_KNI=right)], stack, None)
        formed = form([Outer(left_KNO=left, right_KNI=right)], (70, 60))
        assert torch.allclose(found, (formed - torch.stack(goals)).abs().sum((1, 2)), rtol=1e-4)
        assert torch.allclose(stack.formed(), torch.stack(goals), atol=1e-4)


def test_gradients_that_are_compared_otherwise_dont_stack() -> None:
    one, other = torch.ones(4), torch.ones(5)
    target = Target.from_gradients({"w": one})
    assert target.stacks_with(Target.from_gradients({"w": 2 * one}))
    assert not target.stacks_with(Target.from_gradients({"w": other}))
    assert not target.stacks_with(Target.from_gradients({"v": one}))
    assert not target.stacks_with(dataclasses.replace(target, rescaled="all"))
    masked = TargetTensor(shape=(4,), squared_norm=4.0, dense=one, mask=one)
    assert not target.stacks_with(Target(tensors={"w": masked}))


def test_what_a_run_raises_comes_out_and_stops_the_others() -> None:
    before, going = threading.active_count(), []

    def fails() -> None:
        raise ValueError("so it is")

    with pytest.raises(ValueError, match="so it is"):
        list(Pool().run([fails, lambda: going.append(1)]))
    assert not going
    assert threading.active_count() == before


def test_a_coroutine_that_nobody_answers_is_stopped_where_it_waits() -> None:
    seen: list[str] = []

    def asks(ask: Callable[[str], int]) -> int:
        try:
            seen.append(str(ask("one")))
            return ask("two")
        finally:
            seen.append("stopped")

    waits = Coroutine[str, int, int](asks)
    waits.resume()
    assert waits.question == "one"
    waits.resume(1)
    assert (waits.question, waits.ended) == ("two", False)
    waits.end()
    assert seen == ["1", "stopped"]


@POSIX
def test_ctrl_c_ends_a_run_that_never_asks_where_it_is() -> None:
    seen: list[str] = []

    def goes_on(_ask: Callable[[str], int]) -> None:
        try:
            interrupt()
            while True:
                time.sleep(0.01)
        finally:
            seen.append("stopped")

    before, endless = threading.active_count(), Coroutine[str, int, None](goes_on)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        endless.resume()
    assert not endless.ended
    endless.end()
    assert endless.ended
    assert seen == ["stopped"]
    assert threading.active_count() == before


def test_what_is_asked_on_the_way_out_is_not_answered() -> None:
    seen: list[str] = []

    def asks(ask: Callable[[str], int]) -> None:
        try:
            ask("one")
        finally:
            try:
                ask("another")
            finally:
                seen.append("stopped")

    waits = Coroutine[str, int, None](asks)
    waits.resume()
    waits.end()
    assert (seen, waits.question) == (["stopped"], None)


def test_a_run_is_told_its_own_part_of_common_work(toy_model: ToyModel) -> None:
    model, pool, spent = toy_model("bert"), Pool(), []

    def attacked(shared: SharedGradient) -> Recovery:
        view = dataclasses.replace(view_of(shared, model), pool=pool)
        recovery = to_end(begin_on(ATTACKS.build("tag", {"steps": 4}), view, seed=0))
        spent.append(pool.spent.processor)
        return recovery

    began = time.process_time()
    list(pool.run([functools.partial(attacked, shared) for shared in gradients(model)]))
    assert all(part > 0 for part in spent)
    assert sum(spent) <= time.process_time() - began
