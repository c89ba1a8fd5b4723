"""L-BFGS that is moved where it stalls, and its memory with it."""

import math

import torch

from textleak.matching import LBFGS, Limits, Move, Moving, Patient, minimize
from textleak.matching.lbfgs import Descent
from textleak.matching.moving import _nearest

TIGHT = LBFGS(gradient_tolerance=0.0, change_tolerance=0.0)


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


def test_a_descent_that_is_left_goes_on_as_if_it_had_not_been():
    objective, start = valley(), torch.zeros(12, dtype=torch.float64)
    _, all_at_once = told(objective, Descent(TIGHT, start).steps(30))
    descent, in_parts = Descent(TIGHT, start), []
    while len(in_parts) < len(all_at_once):
        in_parts += told(objective, descent.steps(4))[1]
    assert all(map(torch.equal, all_at_once, in_parts))


def test_a_moved_descent_takes_the_moved_steps_where_the_loss_moves_along():
    generator = torch.Generator().manual_seed(1)
    S = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    back = S.T
    objective = valley()

    def moved_objective(x):
        value, gradient = objective(back @ x)
        return value, back.T @ gradient

    move = Move(of="all", point=lambda x: x @ S.T, steps=lambda x: x @ S.T, changes=lambda x: x @ back)
    stays = Descent(TIGHT, torch.zeros(12, dtype=torch.float64))
    told(objective, stays.steps(8))
    goes = move.of_descent(stays)
    begun = stays.value
    told(objective, stays.steps(6))
    told(moved_objective, goes.steps(7))
    assert stays.value < begun
    torch.testing.assert_close(goes.value, stays.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(goes.point_D, S @ stays.point_D, rtol=1e-6, atol=1e-8)


def two_wells(leaves):
    """Wells around −2 and 2 in the first number, the right one lower by 1; a valley in the others."""
    x = leaves["x"].detach().requires_grad_()
    well = (x[:, 0] ** 2 - 4) ** 2 / 4 + (1 - torch.tanh(x[:, 0])) / 2
    rest = (torch.logspace(0, -4, x.shape[1] - 1, dtype=x.dtype) * (x[:, 1:] - 1) ** 2).sum(1)
    losses = well + rest
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), {"x": gradient}


def flip(number, of):
    def flipped(rows):
        rows = rows.clone()
        rows[:, number] *= -1
        return rows

    return Move(of=of, point=flipped, steps=flipped, changes=flipped)


def lowest(optimizer, start, steps=400):
    *_, last = minimize(two_wells, {"x": start}, optimizer, limits=Limits(steps=steps))
    return last


def test_a_candidate_in_the_wrong_well_is_moved_to_the_right_one_and_the_others_stay():
    start = torch.zeros(3, 6, dtype=torch.float64)
    start[:, 0] = torch.tensor([-1.5, 1.5, -2.5])
    stuck = lowest(TIGHT, start)
    assert stuck.best_losses_K.tolist()[1] < 0.03
    assert min(stuck.best_losses_K.tolist()[::2]) > 0.9
    moves = (flip(1, "rest"), flip(0, "well"), flip(2, "rest"))
    found = lowest(Moving(optimizer=TIGHT, moves=moves, patience=20, trials=(2, 5, 10)), start)
    assert found.best_losses_K.max() < 0.03
    assert (found.best["x"][:, 0] > 1.9).all()


def test_moves_of_different_things_that_lead_lower_are_made_together():
    def wells(x):
        """Two first numbers with wells, each by itself better at 2."""
        x = x.detach().requires_grad_()
        loss = ((x[:2] ** 2 - 4) ** 2 / 4 + (1 - torch.tanh(x[:2])) / 2).sum() + (x[2:] ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        return float(loss.detach()), gradient

    moving = Moving(
        optimizer=LBFGS(),
        moves=(flip(0, "a"), flip(1, "b"), flip(2, "c")),
        patience=15,
        trials=(8,),
        rounds=1,
    )
    state = moving.start(torch.tensor([[-1.0, -1.0, 0.5]], dtype=torch.float64))
    values = []
    for _ in range(200):
        if not state.active_K.any():
            break
        point = state.ask()[0]
        value, gradient = wells(point)
        values.append(value)
        state.tell(torch.tensor([value]), gradient[None])
    assert min(values) < 0.05
    # In place together after one round of trials: the descent's eight evaluations, each move's, and theirs together.
    first = next(number for number, value in enumerate(values) if value < 0.05)
    assert first < 15 + TIGHT.line_search_evaluations + 5 * (8 + 2)


def test_each_thing_s_nearest_third_of_moves_is_tried_further():
    moves = [flip(number, of) for of, numbers in (("a", range(4)), ("b", range(3))) for number in numbers]
    values = dict(zip(moves, (4.0, 1.0, 3.0, 2.0, 30.0, math.inf, 10.0), strict=True))
    nearest = [(move.of, values[move]) for move in _nearest(moves, values)]
    assert nearest == [("a", 1.0), ("a", 2.0), ("b", 10.0)]


def test_moves_in_vain_end_a_candidate_which_then_begins_anew():
    def flat(leaves):
        """A slope that hardly goes down, whatever is tried."""
        x = leaves["x"]
        return 1 + (-1e-3 * x).exp().sum(1), {"x": -1e-3 * (-1e-3 * x).exp()}

    begun = []

    def again(k):
        begun.append(k)
        return {"x": torch.zeros(2, dtype=torch.float64)}

    moving = Moving(
        optimizer=LBFGS(learning_rate=1e-3), moves=(flip(0, "a"),), patience=5, trials=(2, 4), rounds=2
    )
    patient = Patient(optimizer=moving, patience=float("inf"))
    steps = minimize(
        flat,
        {"x": torch.zeros(1, 2, dtype=torch.float64)},
        patient,
        limits=Limits(steps=300),
        reinitialize=again,
    )
    *_, last = steps
    assert begun
    assert last.step == 300
