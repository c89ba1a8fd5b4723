"""Candidates for one picture beside dummies of the others are worth what the whole batch with them is."""

import dataclasses

import pytest
import torch

from textleak.attacks.dummies.beside import HeldBatch
from textleak.attacks.dummies.pictures import PictureSettings
from textleak.attacks.dummies.problem import DummyProblem
from textleak.clients.batch_norm_train import BatchNormTrain
from textleak.clients.view import view_of
from textleak.matching import SquaredL2
from textleak.matching.recorded import UNTIL_REPLAYED
from textleak.matching.replay import Recording
from textleak.models.loading.images import load_image_model
from textleak.models.networks import CifarResNet, draw_uniformly
from textleak.private.share import share

LABELS = [2, 1, 3]


def shallow():
    """ResNet-20's stages with one block each: what is shown doesn't depend on how deep a network is."""
    model = load_image_model("resnet20", size=8, num_labels=5, device="cpu", weights_seed=0)
    network = CifarResNet(3, model.num_labels, blocks=1, activation="sigmoid", strides=True)
    draw_uniformly(network, torch.Generator().manual_seed(0))
    return dataclasses.replace(model, network=network.eval()).double()


def problem_of(roughness, know="batch-norm,batch-size,labels", client=BatchNormTrain()):  # noqa: B008
    model = shallow()
    generator = torch.Generator().manual_seed(3)
    pictures = torch.rand(len(LABELS), *model.shape, generator=generator, dtype=torch.float64)
    shared, _ = share(model, pictures, LABELS, client=client, know=know)
    settings = PictureSettings(spread=0.3, smooth=2.0, precise=True, roughness=roughness)
    return DummyProblem.of(view_of(shared, model), SquaredL2(), candidates=1, pictures=settings)


def trial(problem, leaves, b):
    dummies = problem.stand_ins
    return HeldBatch.at(dummies, dummies.pixels(leaves)[0]).beside(b)


@pytest.mark.parametrize(
    ("know", "client"),
    [
        ("batch-norm,batch-size,labels", BatchNormTrain()),
        ("batch-size,labels", BatchNormTrain()),
        (
            "batch-size,labels",
            None,
        ),  # batch norms by running statistics: pictures are in each other's gradient alone
    ],
)
def test_a_picture_in_its_place_is_worth_what_the_batch_is(know, client):
    problem = problem_of(4.0, know, client)
    leaves = problem.stand_ins.start(1, torch.Generator().manual_seed(0))
    value_1, gradients = problem.value_and_gradient(leaves)
    for b in range(len(LABELS)):
        found_1, slopes = trial(problem, leaves, b).value_and_gradient({f"pixels {b}": leaves[f"pixels {b}"]})
        torch.testing.assert_close(found_1, value_1, rtol=1e-6, atol=0)
        if client is None:
            torch.testing.assert_close(slopes[f"pixels {b}"], gradients[f"pixels {b}"], rtol=1e-6, atol=1e-12)


def test_the_slope_is_that_of_the_value():
    problem = problem_of(4.0)
    beside = trial(problem, problem.stand_ins.start(1, torch.Generator().manual_seed(0)), 1)
    generator = torch.Generator().manual_seed(1)
    own_KCHW = 0.3 * torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    step_KCHW = torch.randn(own_KCHW.shape, generator=generator, dtype=torch.float64)
    _, slopes = beside.value_and_gradient({"pixels 1": own_KCHW})
    ahead_K, behind_K = (
        beside.value_and_gradient({"pixels 1": own_KCHW + by * step_KCHW})[0] for by in (1e-6, -1e-6)
    )
    along_K = (slopes["pixels 1"] * step_KCHW).flatten(1).sum(1)
    torch.testing.assert_close((ahead_K - behind_K) / 2e-6, along_K, rtol=1e-5, atol=1e-9)


def test_a_trial_that_is_replayed_is_worth_what_a_new_one_is(monkeypatch):
    problem = problem_of(4.0)
    leaves = problem.stand_ins.start(1, torch.Generator().manual_seed(0))
    beside, generator = trial(problem, leaves, 1), torch.Generator().manual_seed(1)
    replays = []
    own = Recording.replay
    monkeypatch.setattr(Recording, "replay", lambda *given: replays.append(own(*given)) or replays[-1])
    for _ in range(UNTIL_REPLAYED + 3):
        some = {"pixels 1": 0.3 * torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)}
        found_K, slopes = beside.value_and_gradient(some)
        expected_K, expected = trial(problem, leaves, 1).value_and_gradient(some)
        torch.testing.assert_close(found_K, expected_K, rtol=1e-9, atol=0)
        torch.testing.assert_close(slopes["pixels 1"], expected["pixels 1"], rtol=1e-9, atol=1e-12)
    assert len(replays) == 4
    assert all(replay is not None for replay in replays)
