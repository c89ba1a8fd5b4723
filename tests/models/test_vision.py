"""Image classifiers: their gradients come apart into factors, candidates don't mix, names and options are checked."""

import pytest
import torch
from torch.nn import functional

from textleak.clients import CLIENTS
from textleak.errors import InputError
from textleak.matching import Matcher, SquaredL2, Target
from textleak.matching.factored import Capture
from textleak.matching.single import form
from textleak.models.batches import Targets
from textleak.models.loading.images import load_image_model

NETWORKS = [
    ("lenet", 12),
    ("resnet20", 8),
    ("resnet20, batches normalized", 8),
    ("resnet20:activation=sigmoid,strides=false", 8),
    ("resnet18", 32),
    ("vit", 8),
]


def small(name="lenet", size=12, seed=0, **options):
    alias, _, how = name.partition(", ")
    model = load_image_model(
        alias, size=size, num_labels=5, dtype="float64", device="cpu", weights_seed=seed, **options
    )
    return CLIENTS.build("batch-norm-train", {}).prepare(model) if how else model


def losses_of(model):
    def losses(leaves):
        targets = Targets(labels=leaves["labels"].softmax(-1), weights=leaves["weights"])
        return model.loss(leaves["pixels"], targets)

    return losses


def leaves_of(model, candidates=2, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixels": torch.randn(candidates, batch, *model.shape, generator=generator, dtype=torch.float64),
        "labels": torch.randn(
            candidates, batch, 1, model.num_labels, generator=generator, dtype=torch.float64
        ),
        "weights": torch.full((candidates, batch, 1), 1 / batch, dtype=torch.float64),
    }


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_every_layers_gradients_come_from_rules_and_equal_autograds(name, size):
    model = small(name, size)
    leaves = leaves_of(model)
    capture = Capture(model.network, model.parameters)
    capture.check(losses_of(model), leaves)
    assert capture.formed_names == ()
    _, found = capture.contributions(losses_of(model), leaves, create_graph=False)
    _, truth = capture.formed(losses_of(model), leaves, model.parameters, create_graph=False)
    scale = max(float(gradient.norm()) for gradient in truth.values())
    for key, true_K in truth.items():
        own_K = form(found[key], tuple(true_K.shape[1:]))
        assert torch.allclose(own_K, true_K, rtol=1e-7, atol=1e-9 * scale), key


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_the_distance_of_a_candidate_does_not_depend_on_the_others(name, size):
    model = small(name, size)
    leaves = leaves_of(model, candidates=3)
    own = {key: leaf[1:2] for key, leaf in leaves.items()}
    target = Target.from_gradients({key: torch.ones_like(p) for key, p in model.parameters.items()})
    matcher = Matcher.of(model.network, target, SquaredL2())
    together = matcher.evaluate(losses_of(model), leaves)
    alone = matcher.evaluate(losses_of(model), own)
    assert torch.allclose(together[1:2], alone, rtol=1e-9)


def test_a_convolution_with_few_places_is_matched_by_factors_and_equals_its_gradient():
    convolution = torch.nn.Sequential(torch.nn.Conv2d(6, 20, 3), torch.nn.Flatten()).double()
    pixels = torch.randn(2, 3, 6, 3, 3, dtype=torch.float64)

    def losses(leaves):
        return (
            convolution(leaves["pixels"].flatten(0, 1)).square().sum(1).view(len(leaves["pixels"]), -1).sum(1)
        )

    parameters = dict(convolution.named_parameters())
    goal = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    found = Matcher.of(convolution, Target.from_gradients(goal), SquaredL2()).moments(
        losses, {"pixels": pixels}
    )
    for k in range(2):
        loss = convolution(pixels[k]).square().sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for p, (name, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            assert torch.isclose(found.own_KP[k, p], gradient.square().sum())
            assert torch.isclose(found.cross_KP[k, p], (gradient * goal[name]).sum())


def test_batch_norm_in_train_mode_equals_torchs_for_each_candidate():
    trained, plain = small("resnet20, batches normalized", 8), small("resnet20", 8)
    pixels = torch.randn(2, 3, *plain.shape, dtype=torch.float64)
    plain.network.train()
    losses = trained.loss(pixels, trained.targets([0, 1, 2]).expand(2))
    for k in range(2):
        expected = functional.cross_entropy(plain.logits(pixels[k]), torch.tensor([0, 1, 2]))
        assert torch.isclose(losses[k], expected)


def test_lenet_is_dlgs():
    model = load_image_model("lenet", device="cpu")
    shapes = {name: tuple(p.shape) for name, p in model.parameters.items()}
    assert shapes["fc.weight"] == (100, 768)
    assert [s for n, s in shapes.items() if n.startswith("body") and n.endswith("weight")] == [
        (12, 3, 5, 5),
        (12, 12, 5, 5),
        (12, 12, 5, 5),
    ]
    values = torch.cat([p.flatten() for p in model.parameters.values()])
    assert float(values.min()) >= -0.5
    assert float(values.max()) <= 0.5
    assert abs(float(values.std()) - 1 / 12**0.5) < 0.01


def test_a_pictures_values_come_back_from_pixels():
    model = small("resnet20", 8)
    pictures = torch.rand(2, *model.shape, dtype=torch.float64)
    assert torch.allclose(model.pictures(model.normalized(pictures)), pictures)


def test_weights_are_drawn_from_their_seed_and_nothing_else():
    before = torch.random.get_rng_state()
    first, second, other = small(seed=1), small(seed=1), small(seed=2)
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_folder_with_an_image_classifier_is_read_with_its_own_size_and_scales(tmp_path):
    network = small("vit", 8).network.float()
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4]}'
    )
    model = load_image_model(str(tmp_path), device="cpu")
    assert model.weights == "pretrained"
    assert model.shape == (3, 8, 8)
    assert model.mean == (0.1, 0.2, 0.3)
    assert model.num_labels == 5
    again = load_image_model(str(tmp_path), weights="random", weights_seed=3, device="cpu")
    assert again.weights == "random"
    assert again.fingerprint != model.fingerprint


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lenett", {}, "lenet"),
        ("resnet20:activation=tanh", {}, "relu"),
        ("resnet20:stride=false", {}, "strides"),
        ("lenet:strides=false", {}, "none"),
        ("lenet", {"weights": "pretrained"}, "random"),
        ("vit", {"size": 9}, "9 x 9"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_words(name, options, words):
    with pytest.raises(InputError) as caught:
        load_image_model(name, device="cpu", **options)
    assert words in str(caught.value)


def test_a_network_is_looked_through_by_one_picture_whatever_batch_it_read_last():
    model = small("resnet20, batches normalized", 8)
    before = [(call.name, call.read, call.given) for call in model.layer_calls()]
    losses_of(model)(leaves_of(model))
    assert [(call.name, call.read, call.given) for call in model.layer_calls()] == before
    assert before[0] == ("conv", (1, 3, 8, 8), (1, 16, 8, 8))
