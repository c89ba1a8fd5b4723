"""L-BFGS from several starts, of which the best parts are put together."""

import pytest
import torch

from textleak.matching import LBFGS, Crossing, Limits, minimize
from textleak.matching.crossing import crossed
from textleak.matching.lbfgs import Descent

TIGHT = LBFGS(gradient_tolerance=0.0, change_tolerance=0.0)
PARTS = (slice(0, 3), slice(3, 6))


def told(objective, steps):
    """Drive a coroutine, and note the points that it asks for."""
    asked = []
    try:
        point = next(steps)
        while True:
            asked.append(point)
            point = steps.send(objective(point))
    except StopIteration as end:
        return end.value, asked


def valley(dimensions=12, seed=0):
    """A quartic bowl whose curvatures lie five decades apart."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64))[0]
    H = turned @ torch.diag(torch.logspace(0, -5, dimensions, dtype=torch.float64)) @ turned.T

    def objective(x):
        y = x - 1
        return float(y @ H @ y / 2 + 0.1 * (y**4).sum()), H @ y + 0.4 * y**3

    return objective


def wells(leaves):
    """Two parts of three numbers: wells around −2 and 2 in the first of each, the right ones lower by 1."""
    x = leaves["x"].detach().requires_grad_()
    deep = sum((x[:, f] ** 2 - 4) ** 2 / 4 + (1 - torch.tanh(x[:, f])) / 2 for f in (0, 3))
    losses = deep + ((x - 1)[:, [1, 2, 4, 5]] ** 2 * torch.tensor([1, 1e-2, 1, 1e-2])).sum(1)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), {"x": gradient}


def starts(*signs):
    start = torch.zeros(len(signs), 6, dtype=torch.float64)
    start[:, [0, 3]] = 1.5 * torch.tensor(signs, dtype=torch.float64)
    return start


def lowest(optimizer, start, steps=200):
    *_, last = minimize(wells, {"x": start}, optimizer, limits=Limits(steps=steps))
    return last


def crossing(begin=20, trial=8):
    return Crossing(optimizer=TIGHT, parts=PARTS, begin=begin, trial=trial)


def test_a_descent_that_is_left_goes_on_as_if_it_had_not_been():
    objective, start = valley(), torch.zeros(12, dtype=torch.float64)
    _, all_at_once = told(objective, Descent(TIGHT, start).steps(30))
    descent, in_parts = Descent(TIGHT, start), []
    while len(in_parts) < len(all_at_once):
        in_parts += told(objective, descent.steps(4))[1]
    assert all(map(torch.equal, all_at_once, in_parts))


def test_a_part_of_another_point_is_put_in_with_the_memory_and_neither_descent_changes():
    objective = valley()
    one, two = (Descent(TIGHT, start * torch.ones(12, dtype=torch.float64)) for start in (0.0, 3.0))
    for descent in (one, two):
        told(objective, descent.steps(8))
    before = one.point_D.clone(), len(one.memory.order), two.point_D.clone()
    child = one.with_part(slice(2, 5), two.point_D)
    expected = one.point_D.clone()
    expected[2:5] = two.point_D[2:5]
    assert torch.equal(child.point_D, expected)
    gradient = torch.ones(12, dtype=torch.float64)
    assert torch.equal(child.memory.direction(gradient), one.memory.direction(gradient))
    told(objective, child.steps(9))
    assert torch.equal(one.point_D, before[0])
    assert len(one.memory.order) == before[1] < len(child.memory.order)
    assert torch.equal(two.point_D, before[2])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_each_start_s_right_part_comes_together_where_none_has_both(order):
    signs = [((-1, 1), (1, -1), (-1, -1))[k] for k in order]
    alone = lowest(TIGHT, starts(*signs))
    assert float(alone.best_losses_K.min()) > 0.9
    found = lowest(crossing(), starts(*signs))
    assert float(found.best_losses_K.min()) < 0.05
    assert found.best["x"][0, [0, 3]].min() > 1.9  # the first candidate goes on
    assert found.evaluations < 3 * 200  # the others rest


def test_a_start_that_has_all_parts_right_keeps_them():
    descents = [Descent(TIGHT, start) for start in starts((1, 1), (-1, 1), (-1, -1))]

    def objective(x):
        value, gradient = wells({"x": x[None]})
        return float(value), gradient["x"][0]

    for descent in descents:
        told(objective, descent.steps(20))
    found, asked = told(objective, crossed(crossing(), descents))
    assert found is descents[0]
    fewest = 2 * (2 + 2) * 8  # parts; other starts, and two on another ground; evaluations
    assert fewest <= len(asked) < fewest + 2 * 4 * TIGHT.line_search_evaluations


def test_two_candidates_each_go_on_by_themselves():
    found = lowest(crossing(), starts((-1, 1), (1, -1)))
    assert torch.equal(found.best_losses_K, lowest(TIGHT, starts((-1, 1), (1, -1))).best_losses_K)


def test_a_start_that_is_not_finite_begins_anew_and_the_others_wait():
    start = starts((-1, 1), (1, -1), (-1, -1))
    start[1] = torch.nan

    def again(k):
        assert k == 1
        return {"x": starts((1, -1))[0]}

    *_, last = minimize(wells, {"x": start}, crossing(), limits=Limits(steps=200), reinitialize=again)
    assert float(last.best_losses_K.min()) < 0.05
