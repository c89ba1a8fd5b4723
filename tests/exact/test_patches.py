"""A vision transformer's picture is read off two gradients in closed form, and is said not to be where it can't."""

import pytest
import torch
from torch.nn import functional

from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.defenses import DEFENSES
from textleak.events import Stop
from textleak.exact.patches import read_patches
from textleak.models.loading.images import load_image_model
from textleak.private.share import share
from textleak.scoring.pixels import psnr
from textleak.shared.gradient import SharedGradient


def model_of(name="vit", size=16, seed=0):
    return load_image_model(name, size=size, num_labels=5, device="cpu", weights_seed=seed)


def pictures_of(model, count=1, seed=0):
    spots = torch.rand(count, model.shape[0], 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(spots, model.shape[1:], mode="bilinear")


def psnr_of(model, pixels, picture):
    return psnr(picture, model.pictures(pixels).clamp(0, 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_picture_comes_back_from_the_gradients_of_patches_and_positions(seed):
    model = model_of(seed=seed)
    picture = torch.rand(
        1, *model.shape, generator=torch.Generator().manual_seed(seed)
    )  # noise: no prior helps
    shared, _ = share(model, picture, share="embeddings")
    assert len(shared.gradients) == 4
    assert psnr_of(model, read_patches(shared, model), picture[0]) >= 60


def test_cosine_has_nothing_left_to_match_and_says_so(tmp_path):
    model = model_of()
    shared, secret = share(model, pictures_of(model))
    shared.save(tmp_path / "gradient.safetensors")
    shared = SharedGradient.load(tmp_path / "gradient.safetensors")
    recovery = to_end(begin(ATTACKS.build("cosine", {}), shared, model, seed=0))
    assert recovery.stop is Stop.MATCHED
    assert recovery.channel == "closed form"
    assert recovery.labels == secret.labels
    assert psnr(secret.pictures_BCHW[0], torch.tensor(recovery.image[0]).permute(2, 0, 1)) >= 60


def test_noise_is_weighed_against_what_pixels_can_be_and_matching_goes_on_from_there():
    model = model_of()
    noise = DEFENSES.build("gaussian", {"sigma": 1e-4})
    shared, secret = share(model, pictures_of(model), defenses=[noise])
    picture = secret.pictures_BCHW[0]
    read = psnr_of(model, read_patches(shared, model), picture)
    plain = (
        torch.linalg.lstsq(
            shared.gradients["vit.embeddings.position_embeddings"][0, 1:].double().mT,
            shared.gradients["vit.embeddings.patch_embeddings.projection.weight"].double().flatten(1),
            driver="gelsd",
        )
        .solution.view(4, 4, 3, 4, 4)
        .permute(2, 0, 3, 1, 4)
    )
    assert read > psnr_of(model, plain.reshape(model.shape), picture)
    recovery = to_end(begin(ATTACKS.build("cosine", {"steps": 5}), shared, model, seed=0))
    assert recovery.channel == "matching"
    found = psnr(picture, torch.tensor(recovery.image[0]).permute(2, 0, 1))
    assert found > read - 1


@pytest.mark.parametrize(
    ("chosen", "count", "defense", "name"),
    [
        ("all", 2, None, "vit"),
        ("layers", 1, None, "vit"),
        ("all", 1, ("prune", {"ratio": 0.5}), "vit"),
        ("all", 1, ("sign", {}), "vit"),
        ("all", 1, None, "resnet20"),
    ],
)
def test_where_the_equations_are_not_whole_nothing_is_read(chosen, count, defense, name):
    model = model_of(name)
    shared, _ = share(
        model,
        pictures_of(model, count),
        share=chosen,
        defenses=[DEFENSES.build(*defense)] if defense else [],
    )
    assert read_patches(shared, model) is None
