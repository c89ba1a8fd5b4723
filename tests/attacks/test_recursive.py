"""A picture is read back through a ReLU network's layers, exactly, and is said not to be where it can't."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from textleak.attacks import ATTACKS
from textleak.attacks.base import begin
from textleak.attacks.recursive.inputs import Equations, solve
from textleak.attacks.recursive.reading import _Recursion, read_features
from textleak.attacks.recursive.relu_network import Call, Inputs, ReluNetwork
from textleak.clients import CLIENTS
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.events import Followed, Phase, Progress, Stop
from textleak.models.loading.images import load_image_model
from textleak.models.networks import CifarResNet
from textleak.models.vision import ImageModel
from textleak.private.share import share
from textleak.scoring.pixels import psnr
from textleak.seeds import seeded
from textleak.shared.gradient import SharedGradient


class Flat(nn.Module):
    """Convolutions and ReLUs under a head that reads the last map place by place, as in R-GAP's experiments."""

    def __init__(self, hidden=0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 48, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(48, 48, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        self.hidden = nn.Sequential(nn.Linear(48 * 36, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.fc = nn.Linear(hidden or 48 * 36, 5)

    def forward(self, pixels):
        return self.fc(self.hidden(self.body(pixels).flatten(1)))


def model_around(make, size, seed=0):
    with seeded(seed):
        network = make().eval()
    return ImageModel(
        name="own",
        network=network,
        weights="random",
        source="",
        num_labels=5,
        shape=(3, size, size),
        mean=(0.5, 0.5, 0.5),
        deviation=(0.25, 0.25, 0.25),
    )


def pooled(size=16, seed=0, activation="relu", strides=True):
    return model_around(
        lambda: CifarResNet(3, 5, blocks=1, activation=activation, strides=strides), size, seed
    )


def flat():
    return model_around(Flat, 12)


def deep():
    return model_around(lambda: Flat(hidden=32), 12)


def pictures_of(model, count=1, seed=0):
    spots = torch.rand(count, model.shape[0], 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(spots, model.shape[1:], mode="bicubic").clamp(0, 1)


def from_disk(folder, model, pictures_BCHW, **options):
    shared, secret = share(model, pictures_BCHW, **options)
    shared.save(folder / "gradient.safetensors")
    return SharedGradient.load(folder / "gradient.safetensors"), secret


def read(view):
    steps = Followed(read_features(view, seed=0))
    phases = [event.name for event in steps if isinstance(event, Phase)]
    return phases, steps.result


def truly_read(model, features, picture_CHW):
    """What the network's sources are for the true picture."""
    double = model.double()
    inputs = Inputs(double, features.network)
    found = inputs.of(double.normalized(picture_CHW.double()[None]), features.values, 0.0)
    sources = features.network.sources
    return {k: v if sources[k].relu is None else v.clamp_min(0) for k, v in found.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("make", [pooled, flat, deep])
def test_what_layers_read_is_read_off_and_the_picture_comes_back(tmp_path, make, seed):
    model = make()
    shared, secret = from_disk(tmp_path, model, pictures_of(model, seed=seed))
    phases, features = read(view_of(shared, model))
    assert phases == (["layers", "factoring", "layers"] if make is pooled else ["layers"])
    true = truly_read(model, features, secret.pictures_BCHW[0])
    assert len(features.values) >= 2
    for number, values in features.values.items():
        assert torch.allclose(values, true[number], atol=1e-4 * float(true[number].max()))
    steps = Followed(begin(ATTACKS.build("cosine", {}), shared, model, seed=0))
    events = list(steps)
    names = {event.name for event in events if isinstance(event, Phase)}
    assert "continuous" not in names  # nothing was matched
    shown = [event for event in events if isinstance(event, Progress) and event.image]
    # The best so far is the answer of an attack that is interrupted.
    assert len(shown) > 2
    assert all(event.labels == secret.labels for event in shown)
    recovery = steps.result
    assert (recovery.stop, recovery.channel) == (Stop.MATCHED, "layers")
    assert recovery.labels == secret.labels
    assert psnr(secret.pictures_BCHW[0], torch.tensor(recovery.image[0]).permute(2, 0, 1)) >= 60


def test_resnet_20_gives_its_picture_away_exactly(tmp_path):
    model = load_image_model("resnet20", device="cpu")
    shared, secret = from_disk(tmp_path, model, pictures_of(model))
    steps = Followed(begin(ATTACKS.build("cosine", {}), shared, model, seed=0))
    frames = [event.image for event in steps if getattr(event, "image", ())]
    assert len(frames) > 5  # it is seen while it emerges
    assert steps.result.channel == "layers"
    picture_CHW = torch.tensor(steps.result.image[0]).permute(2, 0, 1)
    assert psnr(secret.pictures_BCHW[0], picture_CHW) >= 45


def recursion_of(shared, model):
    network = ReluNetwork(model)
    gradients = {name: gradient.double() for name, gradient in shared.gradients.items()}
    return _Recursion(network, gradients, gradients["fc.bias"], tolerance=3e-6)


def test_a_moved_picture_doesn_t_fit_as_well():
    model = pooled()
    picture_BCHW = pictures_of(model)
    shared, _ = share(model, picture_BCHW)
    recursion = recursion_of(shared, model)
    double = model.double()
    inputs = Inputs(double, recursion.network)
    *_, stand = recursion.factor(0)
    assert stand.left <= recursion.tolerance
    pixels_BCHW = double.normalized(picture_BCHW.double())
    seen = []
    handle = [m for m in inputs.model.network.modules() if isinstance(m, nn.ReLU)][-1].register_forward_hook(
        lambda *call: seen.append(call[2])
    )
    inputs.model.logits(pixels_BCHW)
    handle.remove()
    assert torch.equal(stand.on, (seen[-1] > 0).double())
    assert not torch.equal(stand.on.roll(1, 3), stand.on)


@pytest.mark.parametrize("wrong", [1, 3])
def test_units_taken_for_on_or_off_wrongly_are_found_by_what_they_leave_over(wrong):
    model = pooled()
    shared, _ = share(model, pictures_of(model))
    recursion = recursion_of(shared, model)
    list(recursion.factor(0))
    last = len(recursion.network.maps) - 1
    numbers = [k for k, source in enumerate(recursion.network.sources) if source.relu == last - 1]
    recursion.read(numbers[0])
    right = recursion.on[last - 1].clone()
    units = torch.randperm(right.numel(), generator=torch.Generator().manual_seed(0))[:wrong]
    recursion.on[last - 1].view(-1)[units] = 1 - right.view(-1)[units]
    recursion._doubtful[last - 1] = torch.ones_like(right, dtype=torch.bool)
    recursion.read(numbers[0] - 1)
    assert numbers[0] - 1 in recursion.values
    assert torch.equal(recursion.on[last - 1], right)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 24, 3, padding=1, bias=False),
        nn.Conv2d(2, 24, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(2, 24, 3, padding=2, dilation=2, bias=False),
    ],
)
def test_what_a_convolution_read_is_determined_by_its_gradient(layer):
    generator = torch.Generator().manual_seed(0)
    read_1IHW = torch.randn(1, 2, 6, 6, generator=generator, dtype=torch.float64)
    delta = torch.randn(layer.double()(read_1IHW).shape, generator=generator, dtype=torch.float64)
    gradient = conv2d_weight(
        read_1IHW, layer.weight.shape, delta, layer.stride, layer.padding, layer.dilation
    )
    call = Call(name="", layer=layer, source=0, given=delta.shape[1:], follows=0)
    equations = Equations(call=call, gradient=gradient, delta=delta)
    found = solve([equations], read_1IHW.shape[1:])
    assert torch.allclose(found.values, read_1IHW)
    assert found.left < 1e-12
    noisy = dataclasses.replace(equations, gradient=gradient * (1 + 1e-3 * torch.randn_like(gradient)))
    off = solve([noisy], read_1IHW.shape[1:])
    assert off.left > 1e-4
    assert 0.5 < float(((off.values - read_1IHW) / off.deviations).square().mean().sqrt()) < 2
    few = dataclasses.replace(equations, gradient=gradient[:2], delta=delta[:, :2])
    assert solve([few], read_1IHW.shape[1:]) is None


def test_nothing_is_read_off_where_nothing_can_be():
    relu, sigmoid = pooled(), pooled(activation="sigmoid")
    noise = DEFENSES.build("gaussian", {"sigma": 1e-6})
    one, two = pictures_of(relu), pictures_of(relu, 2)
    train = CLIENTS.build("batch-norm-train", {})
    cases = {
        "several pictures": (relu, two, {}),
        "a defense": (relu, one, {"defenses": [noise]}),
        "no ReLU": (sigmoid, one, {}),
        "no head": (relu, one, {"share": r"blocks\..*"}),
        "the batch's own statistics": (relu, one, {"client": train}),
    }
    for what, (model, pictures_BCHW, options) in cases.items():
        shared, _ = share(model, pictures_BCHW, **options)
        view = view_of(shared, model)
        assert read(view)[1] is None, what
    shared, _ = share(relu, one)
    rounded = {name: gradient.bfloat16() for name, gradient in shared.gradients.items()}
    assert read(view_of(dataclasses.replace(shared, gradients=rounded), relu))[1] is None


def test_a_gradient_of_no_picture_is_not_read_off():
    model = pooled()
    shared, _ = share(model, pictures_of(model))
    generator = torch.Generator().manual_seed(0)
    other = {name: gradient.clone() for name, gradient in shared.gradients.items()}
    for name, gradient in other.items():
        if gradient.dim() == 4:
            other[name] = gradient[torch.randperm(len(gradient), generator=generator)]
    phases, features = read(view_of(dataclasses.replace(shared, gradients=other), model))
    assert phases == ["layers", "factoring"]
    assert features is None


def test_its_time_limit_is_kept(tmp_path):
    model = load_image_model("resnet20", device="cpu")
    shared, _ = from_disk(tmp_path, model, pictures_of(model))
    steps = Followed(begin(ATTACKS.build("cosine", {"time_limit": 0.05}), shared, model, seed=0))
    for _ in steps:
        pass
    assert steps.result.stop is Stop.TIME
