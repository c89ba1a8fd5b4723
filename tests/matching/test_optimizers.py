"""The optimizers and the one loop around them."""

import itertools
import math

import pytest
import torch

from textleak.matching import (
    LBFGS,
    Adam,
    Ending,
    Limits,
    LinearDecay,
    MilestoneDecay,
    Patient,
    Race,
    StepDecay,
    minimize,
)
from textleak.matching.lbfgs import Memory


def rosenbrock(leaves):
    """(1 − a)² + 100 (b − a²)², lowest at (1, 1)."""
    x = leaves["x"].detach().requires_grad_()
    losses = (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), {"x": gradient}


def bowl(leaves):
    """Σ (x − 3)²."""
    x = leaves["x"].detach()
    return (x - 3).square().flatten(1).sum(1), {"x": 2 * (x - 3)}


def points(*rows):
    return {"x": torch.tensor(rows, dtype=torch.float64)}


def run(objective, leaves, optimizer, *, steps, seconds=None, tolerance=None, **options):
    limits = Limits(steps=steps, seconds=seconds, tolerance=tolerance)
    return list(minimize(objective, leaves, optimizer, limits=limits, **options))


STARTS = [(-1.2, 1.0), (0.0, 0.0), (5.0, -3.0), (-2.0, 7.0)]


def test_lbfgs_solves_rosenbrock_for_every_candidate():
    last = run(rosenbrock, points(*STARTS), LBFGS(), steps=300)[-1]
    torch.testing.assert_close(last.best["x"], torch.ones(4, 2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert last.ending is Ending.CONVERGED


def test_lbfgs_keeps_one_state_a_candidate():
    together = run(rosenbrock, points(*STARTS), LBFGS(), steps=25)[-1]
    for k, start in enumerate(STARTS):
        alone = run(rosenbrock, points(start), LBFGS(), steps=25)[-1]
        assert torch.equal(together.best["x"][k], alone.best["x"][0])


def test_lbfgs_asks_nothing_more_of_a_candidate_that_is_done():
    asked = []

    def count(leaves):
        asked.append(len(leaves["x"]))
        return rosenbrock(leaves)

    last = run(count, points((1.0, 1.0), (-1.2, 1.0)), LBFGS(), steps=100)[-1]
    assert asked[0] == 2
    assert set(asked[1:]) == {1}
    assert last.evaluations == sum(asked)


def test_lbfgs_steps_back_from_where_the_loss_is_not_finite():
    def walled(leaves):
        losses, gradients = bowl(leaves)
        beyond = leaves["x"].abs().amax(1) > 3.5
        return losses.masked_fill(beyond, math.nan), gradients

    last = run(walled, points((-3.0, -3.0)), LBFGS(learning_rate=50.0), steps=60)[-1]
    torch.testing.assert_close(
        last.best["x"], torch.full((1, 2), 3.0, dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (Adam(learning_rate=0.05), torch.optim.Adam, {"lr": 0.05}),
        (Adam(learning_rate=0.05, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    ],
    ids=["Adam", "AdamW"],
)
def test_adam_equals_torchs(ours, theirs, options):
    x = torch.tensor([[-1.2, 1.0]], dtype=torch.float64, requires_grad=True)
    reference = theirs([x], **options)
    trace = []
    for _ in range(30):
        reference.zero_grad()
        trace.append(x.detach().clone())
        ((1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2).sum().backward()
        reference.step()
    visited = []

    def spy(leaves):
        visited.append(leaves["x"].clone())
        return rosenbrock(leaves)

    run(spy, points((-1.2, 1.0)), ours, steps=30)
    torch.testing.assert_close(torch.cat(visited), torch.cat(trace))


def test_schedules_scale_the_learning_rate():
    assert [StepDecay(gamma=0.5, every=2)(n) for n in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert [LinearDecay(steps=4)(n) for n in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    visited = []

    def slope_of_one(leaves):
        visited.append(float(leaves["x"]))
        return leaves["x"][:, 0] + 10, {"x": torch.ones_like(leaves["x"])}

    run(
        slope_of_one, points((0.0,)), Adam(learning_rate=1.0, schedule=StepDecay(gamma=0.5, every=2)), steps=5
    )
    taken = [a - b for a, b in itertools.pairwise(visited)]
    assert taken == pytest.approx([1, 1, 0.5, 0.5])


def test_gradients_are_clipped_candidate_by_candidate():
    state = Adam(learning_rate=1.0, clip=1.0, betas=(0.0, 0.0)).start(torch.zeros(2, 2, dtype=torch.float64))
    state.tell(torch.ones(2), torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(state.first_KD, torch.tensor([[0.6, 0.8], [0.3, 0.4]], dtype=torch.float64))


@pytest.mark.parametrize("optimizer", [Adam(), LBFGS()], ids=["Adam", "LBFGS"])
def test_a_diverged_candidate_begins_anew_and_the_others_never_notice(optimizer):
    def poisoned(leaves):
        losses, gradients = bowl(leaves)
        return losses.masked_fill(leaves["x"][:, 0] < -100, math.nan), gradients

    drawn, generator = [], torch.Generator().manual_seed(0)

    def reinitialize(k):
        drawn.append(k)
        return {"x": torch.randn(2, generator=generator, dtype=torch.float64)}

    leaves = points((0.0, 0.0), (-200.0, 0.0))
    found = run(poisoned, leaves, optimizer, steps=40, reinitialize=reinitialize)
    assert drawn == [1]
    assert found[0].restarted == (1,)
    assert found[-1].best_losses_K[1] < 10
    calm = run(poisoned, points((0.0, 0.0)), optimizer, steps=40)
    assert found[-1].best_losses_K[0] == calm[-1].best_losses_K[0]


def test_a_candidate_that_explodes_goes_back_to_its_best_point():
    calls = []

    def explodes(leaves):
        calls.append(leaves["x"].clone())
        losses, gradients = bowl(leaves)
        return (losses * 1e6 if len(calls) == 4 else losses), gradients

    found = run(explodes, points((0.0,)), Adam(), steps=6)
    assert [step.restarted for step in found] == [(), (), (), (0,), (), ()]
    torch.testing.assert_close(calls[4], calls[2])


def test_the_best_so_far_is_kept_when_the_loss_rises_again():
    found = run(bowl, points((2.9,)), Adam(learning_rate=1.0), steps=10)
    losses = [float(step.losses_K) for step in found]
    assert float(found[-1].best_losses_K) == min(losses) < losses[-1]
    assert float(bowl(found[-1].best)[0]) == min(losses)


def test_a_run_ends_as_soon_as_one_candidate_is_good_enough():
    last = run(bowl, points((2.0,), (3.0,)), Adam(), steps=100, tolerance=1e-12)[-1]
    assert (last.step, last.ending) == (1, Ending.TOLERANCE)


@pytest.mark.parametrize("optimizer", [Adam(), LBFGS()], ids=["adam", "lbfgs"])
@pytest.mark.parametrize("patience", [None, 4])
def test_the_worse_candidates_rest_for_good_and_the_better_never_notice(optimizer, patience):
    asked = []

    def count(leaves):
        asked.append(leaves["x"])
        return rosenbrock(leaves)

    if patience is not None:
        optimizer = Patient(optimizer=optimizer, patience=patience)
    race = Race(optimizer=optimizer, survivors={3: 3, 5: 2})
    found = run(count, points(*STARTS, (1.0, 1.5)), race, steps=12)
    assert [len(x) for x in asked] == [5] * 3 + [3] * 2 + [2] * 7
    assert found[-1].evaluations == sum(len(x) for x in asked)
    kept = found[4].best_losses_K.argsort()[:2].tolist()
    assert int(found[-1].best_losses_K.argmin()) in kept
    assert all(set(step.restarted) <= set(kept) for step in found[5:])
    if patience is None:
        alone = run(rosenbrock, points(*STARTS, (1.0, 1.5)), optimizer, steps=12)[-1]
        assert torch.equal(alone.best["x"][kept], found[-1].best["x"][kept])


def test_a_run_ends_when_time_is_up():
    last = run(bowl, points((2.0,)), Adam(), steps=10**6, seconds=0.05)[-1]
    assert last.ending is Ending.TIME


def test_a_run_ends_after_its_steps():
    found = run(bowl, points((2.0,)), Adam(), steps=3)
    assert [step.ending for step in found] == [None, None, Ending.STEPS]


def test_leaves_that_are_not_optimized_stay_and_follow_their_candidate():
    def shifted(leaves):
        x, goal = leaves["x"].detach(), leaves["goal"]
        return (x - goal).square().sum(1), {"x": 2 * (x - goal)}

    leaves = {**points((0.0,), (0.0,)), "goal": torch.tensor([[1.0], [-2.0]], dtype=torch.float64)}
    last = run(shifted, leaves, LBFGS(), steps=50, wrt=["x"])[-1]
    torch.testing.assert_close(last.best["x"], leaves["goal"])
    assert leaves["x"].eq(0).all()


def test_signed_adam_sees_the_gradients_sign_alone():
    rule = Adam(learning_rate=0.1, signed=True)
    steep = rule.start(torch.zeros(1, 3))
    flat = rule.start(torch.zeros(1, 3))
    gradient = torch.tensor([[2.0, -0.5, 0.0]])
    for scale in (1.0, 7.0, 0.1):
        steep.tell(torch.ones(1), gradient * scale)
        flat.tell(torch.ones(1), gradient.sign())
    assert torch.equal(steep.ask(), flat.ask())
    assert steep.ask()[0, 2] == 0


def test_milestones_cut_the_learning_rate():
    decay = MilestoneDecay(milestones=(3, 5), gamma=0.1)
    assert [decay(step) for step in range(7)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_lbfgs_direction_is_the_two_loop_recursions_also_when_old_pairs_are_dropped():
    generator = torch.Generator().manual_seed(0)
    curvature_D = torch.rand(9, generator=generator, dtype=torch.float64) + 0.1
    memory, pairs = Memory(4), []
    for _ in range(7):
        step_D = torch.randn(9, generator=generator, dtype=torch.float64)
        change_D = curvature_D * step_D
        memory.remember(step_D, change_D)
        pairs = [*pairs, (step_D, change_D)][-4:]
    gradient_D = torch.randn(9, generator=generator, dtype=torch.float64)
    q_D, shares = -gradient_D, []  # Nocedal & Wright 2006, alg. 7.4
    for step_D, change_D in reversed(pairs):
        shares.append((step_D @ q_D) / (step_D @ change_D))
        q_D = q_D - shares[-1] * change_D
    q_D = q_D * (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1])
    for (step_D, change_D), share in zip(pairs, reversed(shares), strict=True):
        q_D = q_D + (share - (change_D @ q_D) / (step_D @ change_D)) * step_D
    assert torch.allclose(memory.direction(gradient_D), q_D, rtol=1e-10)


def test_leaves_that_the_caller_sends_are_evaluated_next_and_the_moments_stay():
    adam, start, elsewhere = Adam(learning_rate=0.1), points((0.0, 0.0)), points((5.0, 1.0))
    asked = []

    def noted(leaves):
        asked.append(leaves["x"].clone())
        return bowl(leaves)

    moving = minimize(noted, start, adam, limits=Limits(steps=4))
    first = next(moving)
    second = moving.send(elsewhere)
    assert torch.equal(asked[1], elsewhere["x"])
    assert second.step == 2
    last = next(moving)
    assert torch.equal(asked[2], second.points["x"])
    assert torch.equal(last.best["x"], elsewhere["x"] if last.best_losses_K[0] == 8 else asked[2])
    # Without moments the step after the move would be a whole learning rate along each axis.
    taken = (second.points["x"] - elsewhere["x"]).abs()
    assert not torch.allclose(taken, torch.full_like(taken, 0.1))
    assert not torch.equal(first.points["x"], elsewhere["x"])
