"""Several starts of a batch whose best pictures are put together, by trials of one picture beside the others."""

import dataclasses

import pytest
import torch

import textleak.attacks.dummies.crossed as module
from textleak.attacks.base import Totals
from textleak.attacks.dummies.crossed import Crossed, can_be_crossed, match_crossed
from textleak.attacks.dummies.onward import Onward
from textleak.attacks.dummies.pictures import DummyPictures, PictureSettings
from textleak.attacks.dummies.problem import DummyProblem
from textleak.clients.batch_norm_train import BatchNormTrain
from textleak.clients.view import Clock, view_of
from textleak.defenses import DEFENSES
from textleak.events import Followed, Progress
from textleak.matching import LBFGS, SquaredL2
from textleak.models.loading.images import load_image_model
from textleak.models.networks import CifarResNet, draw_uniformly
from textleak.private.share import share

LABELS = [2, 1]
TIGHT = LBFGS(gradient_tolerance=0.0, change_tolerance=0.0)
SETTINGS = PictureSettings(spread=0.3, smooth=2.0, precise=True)


def shallow():
    """ResNet-20's stages with one block each: what is shown doesn't depend on how deep a network is."""
    model = load_image_model("resnet20", size=8, num_labels=5, device="cpu", weights_seed=0)
    network = CifarResNet(3, model.num_labels, blocks=1, activation="sigmoid", strides=True)
    draw_uniformly(network, torch.Generator().manual_seed(0))
    return dataclasses.replace(model, network=network.eval()).double()


def shared_of(know="batch-norm,batch-size,labels", defenses=()):
    model = shallow()
    pictures = torch.rand(len(LABELS), *model.shape, generator=torch.Generator().manual_seed(3))
    shared, secret = share(model, pictures, LABELS, client=BatchNormTrain(), know=know, defenses=defenses)
    return view_of(shared, model), model.normalized(secret.pictures_BCHW.double())


def followed(steps):
    run = Followed(steps)
    return [event for event in run if isinstance(event, Progress)], run.result


def test_right_pictures_of_other_starts_are_taken_and_a_right_one_of_the_best_start_stays(monkeypatch):
    monkeypatch.setattr(module, "_TRIAL", 15)
    view, right_BCHW = shared_of()
    dummies = DummyPictures(
        view=view, objective=SquaredL2(), settings=SETTINGS, labels_KB=torch.tensor([LABELS])
    )
    generator = torch.Generator().manual_seed(5)

    def off(spread):
        return spread * torch.randn(right_BCHW.shape[1:], generator=generator, dtype=torch.float64)

    wrong = [[off(1.5) for _ in LABELS] for _ in range(3)]
    starts = [
        [right_BCHW[0] + off(0.05), wrong[0][1]],
        [wrong[1][0], right_BCHW[1] + off(0.05)],
        [right_BCHW[0] + off(0.2), wrong[2][1]],
    ]
    pixels_KBCHW = torch.stack([torch.stack(start) for start in starts])
    crossed = Crossed(dummies=dummies, optimizer=TIGHT, clock=Clock.of(None), pixels_KBCHW=pixels_KBCHW)
    progress, chosen_BCHW = followed(crossed.run())
    assert [event.detail for event in progress][1] == "picture 1 from start 1"
    assert "start 1" not in progress[0].detail
    before_B, after_B = (
        (some - right_BCHW).flatten(1).norm(dim=1)
        for some in (torch.stack([wrong[1][0], wrong[0][1]]), chosen_BCHW)
    )
    assert bool((after_B < 0.6 * before_B).all())
    assert progress[-1].evaluations <= 2 * (2 + 2) * (15 + 25) / 2  # of one picture each, half of the batch


def test_what_was_crossed_goes_on_together_and_all_is_counted(monkeypatch):
    monkeypatch.setattr(module, "_TRIAL", 5)
    view, _ = shared_of()
    onward = Onward(
        view=view, objective=SquaredL2(), generator=torch.Generator().manual_seed(0), totals=Totals()
    )
    steps = match_crossed(onward, TIGHT, SETTINGS, candidates=3, labels_KB=None, begin=4, steps=12)
    progress, found = followed(steps)
    assert list(dict.fromkeys(event.phase for event in progress)) == ["continuous", "crossing"]
    assert len(found.losses_K) == 1
    begun = next(event for event in progress if event.step == 4 and event.phase == "continuous")
    assert found.losses_K[0] < begun.loss
    assert progress[-1].evaluations == onward.totals.evaluations > 3 * 4 + 8


@pytest.mark.parametrize(
    ("know", "candidates", "defenses", "can"),
    [
        ("batch-size,labels", 3, (), True),
        ("batch-size,labels", 2, (), False),
        ("batch-size", 3, (), False),
        ("batch-size,labels", 3, (DEFENSES["prune"](ratio=0.1),), False),
    ],
)
def test_only_known_labels_three_starts_and_a_gradient_as_it_was_can_be_crossed(
    know, candidates, defenses, can
):
    view, _ = shared_of(know, defenses)
    assert can_be_crossed(DummyProblem.of(view, SquaredL2(), candidates=candidates)) is can
