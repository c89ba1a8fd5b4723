"""From a name to an image classifier: the papers' networks, or a Hugging Face one through the Auto classes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import textleak.models.rules.images  # noqa: F401 - tells the engine what it needs to know
from textleak import foreign
from textleak.errors import InputError, unknown_name
from textleak.models.loading import own_code
from textleak.models.loading.places import Checkpoint, find_place, not_at_hand
from textleak.models.loading.reading import checked, reading, weights_options
from textleak.models.loading.request import Built, Request
from textleak.models.networks import CifarResNet, LeNet, draw_uniformly
from textleak.models.quiet import quiet
from textleak.models.vision import ImageModel
from textleak.seeds import seeded
from textleak.words import count_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Means and deviations of the pictures that networks were trained on: CIFAR-10's training set, ImageNet's.
_CIFAR = ((0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLASSES = 100  # CIFAR-100, as in DLG's released code


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAlias:
    """A network by a short name.

    Attributes:
        summary: one line for a person.
        size: height and width that it reads unless told otherwise.
        options: what may follow the name as `name:key=value,...`, with the defaults.
        hugging_face: model type and configuration, for those that transformers builds.
        normalized: mean and deviation of each channel; None to read values as they are.
    """

    summary: str
    size: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hugging_face: tuple[str, Mapping[str, Any]] | None = None
    normalized: tuple[tuple[float, ...], tuple[float, ...]] | None = None


ALIASES: dict[str, ImageAlias] = {
    "lenet": ImageAlias(summary="LeNet of DLG's code: sigmoid, weights U(-0.5, 0.5)", size=32),
    "resnet20": ImageAlias(
        summary="ResNet-20 for CIFAR; activation=relu|sigmoid, strides",
        size=32,
        options={"activation": "relu", "strides": True},
        normalized=_CIFAR,
    ),
    "resnet18": ImageAlias(
        summary="ResNet-18 as transformers has it",
        size=64,
        hugging_face=(
            "resnet",
            {
                "embedding_size": 64,
                "hidden_sizes": [64, 128, 256, 512],
                "depths": [2, 2, 2, 2],
                "layer_type": "basic",
            },
        ),
        normalized=_IMAGENET,
    ),
    "vit": ImageAlias(
        summary="a tiny ViT: 4 layers, hidden 96, patches of 4 x 4",  # our choice, for pictures of 32 x 32
        size=32,
        hugging_face=(
            "vit",
            {
                "hidden_size": 96,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "intermediate_size": 384,
                "patch_size": 4,
            },
        ),
        normalized=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ),
}


def load_image_model(
    name: str = "lenet",
    *,
    weights: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    weights_seed: int = 0,
    num_labels: int | None = None,
    size: int | None = None,
) -> ImageModel:
    """Load the public image classifier that client and attacker share.

    Args:
        name: an alias, with options if it takes any (`resnet20:activation=sigmoid,strides=false`), a hub id,
            or a folder with a Hugging Face image classifier.
        weights: as `load_model` takes it; the aliases have random weights only.
        device: "auto", "cpu", "cuda[:N]" or "mps".
        dtype: "float32", "float64" or "bfloat16".
        weights_seed: seed of weights that are drawn.
        num_labels: classes; None for 100, or for what a checkpoint has.
        size: height and width of a picture; None for the model's own.

    Raises:
        InputError: an unknown name or option, weights that can't be had, a size that the network can't read.
    """
    return load_images(
        ImageRequest(
            name=name,
            weights=weights,
            device=device,
            dtype=dtype,
            weights_seed=weights_seed,
            num_labels=num_labels,
            size=size,
        )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequest(Request):
    """An image classifier as it is asked for: as `load_image_model` takes it, and

    Attributes:
        channels: 3, or 1 for gray pictures; a checkpoint has its own.
    """

    num_labels: int | None = None
    size: int | None = None
    channels: int = 3


def load_images(request: ImageRequest) -> ImageModel:
    """Load what was asked for; as `load_image_model`."""
    device, dtype = request.target()
    short, _, spec = request.name.partition(":")
    alias = ALIASES.get(short)
    if alias is None:
        built = _of_hugging_face(request)
    elif request.weights == "pretrained":
        raise InputError(
            f"There are no pretrained weights for {short!r}.",
            why="It is one of the papers' networks, and these have random weights.",
            fix="Use --weights random, or name a Hugging Face image classifier (hub id or folder).",
        )
    else:
        built = _of_alias(request, short, alias, _options(short, alias, spec))
    model = ImageModel(
        name=request.name,
        network=built.network.to(device=device, dtype=dtype).eval(),
        weights=built.weights,
        source=built.source,
        weights_seed=request.weights_seed,
        num_labels=built.num_labels,
        shape=built.shape,
        mean=built.mean,
        deviation=built.deviation,
    )
    _check_reads(model)
    return model


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Built(Built):
    num_labels: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def _options(name: str, alias: ImageAlias, spec: str) -> dict[str, Any]:
    """The alias's options with those of a spec `key=value,...` laid over them."""
    options = dict(alias.options)
    allowed = {
        "activation": ("relu", "sigmoid"),
        "strides": ("true", "false"),
    }
    for part in filter(None, spec.split(",")):
        key, _, value = part.partition("=")
        if key not in options:
            raise unknown_name(f"option of the model {name}", key, options or ["(it has none)"])
        if value.lower() not in allowed[key]:
            raise unknown_name(f"value of {name}:{key}", value, allowed[key])
        options[key] = value.lower() == "true" if key == "strides" else value.lower()
    return options


def _of_alias(request: ImageRequest, name: str, alias: ImageAlias, options: Mapping[str, Any]) -> _Built:
    seed, classes = request.weights_seed, request.num_labels or _CLASSES
    size, channels = request.size or alias.size, request.channels
    shape = (channels, size, size)
    if alias.hugging_face is not None:
        model_type, settings = alias.hugging_face
        # Only a ViT's configuration takes a size: its positions are learned.
        sized = {**settings, "image_size": size} if model_type == "vit" else dict(settings)
        network = _draw(model_type, {**sized, "num_channels": channels, "num_labels": classes}, seed)
    else:
        with seeded(seed):
            if name == "lenet":
                network = LeNet(shape, classes)
            else:
                network = CifarResNet(
                    channels,
                    classes,
                    blocks=3,
                    activation=options["activation"],
                    strides=options["strides"],
                )
        if name == "lenet" or options["activation"] == "sigmoid":
            draw_uniformly(network, torch.Generator().manual_seed(seed))
    mean, deviation = alias.normalized or ((0.0,) * channels, (1.0,) * channels)
    if len(mean) != channels:  # gray: the mean of the colors
        mean, deviation = (sum(mean) / len(mean),) * channels, (sum(deviation) / len(deviation),) * channels
    return _Built(
        network=network,
        weights="random",
        source=f"random, seed {seed}",
        num_labels=classes,
        shape=shape,
        mean=mean,
        deviation=deviation,
    )


def _draw(model_type: str, settings: Mapping[str, Any], seed: int) -> nn.Module:
    from transformers import AutoConfig

    return _network(AutoConfig.for_model(model_type, **settings), seed)


def _network(config: PreTrainedConfig, seed: int) -> nn.Module:
    from transformers import AutoModelForImageClassification

    with quiet(), seeded(seed):
        network: nn.Module = AutoModelForImageClassification.from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )
    return network


def _of_hugging_face(request: ImageRequest) -> _Built:
    from transformers import AutoConfig, AutoModelForImageClassification

    name, weights, seed = request.name, request.weights, request.weights_seed
    if "/" not in name and not foreign.expanded(name).exists():
        raise unknown_name(
            "image model",
            name,
            ALIASES,
            fix="Use an alias, a hub id (owner/name), or a folder with an image classifier.",
        )
    place, missing = find_place(name, None, weights)
    if place is None:
        raise not_at_hand(name, None, missing)
    pretrained = weights != "random" and place.has_weights
    if weights == "pretrained" and not pretrained:
        raise not_at_hand(name, None, f"{place.words} holds a configuration without weights")
    own_code.check_parts(name, place)
    with reading(name, place, "configuration"), own_code.offline():
        config = checked(AutoConfig.from_pretrained(place.folder, **own_code.LOCAL))
    if type(config) not in AutoModelForImageClassification._model_mapping:
        if hasattr(config, "auto_map"):
            raise own_code.needs_own_code(name)
        raise InputError(
            f"{name!r} ({config.model_type}) is not an image classifier.",
            fix="`textleak run` attacks text models.",
        )
    if request.num_labels is not None:
        config.num_labels = request.num_labels
    with reading(name, place, "weights"), seeded(seed), own_code.offline():
        if pretrained:
            network: nn.Module = AutoModelForImageClassification.from_pretrained(
                place.folder,
                config=config,
                attn_implementation="eager",
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head for another number of classes is drawn anew
                **own_code.LOCAL,
                **weights_options(place.folder),
            )
        else:
            network = _network(config, seed)
    channels = int(getattr(config, "num_channels", 3))
    own_size, mean, deviation = _preprocessing(place, channels)
    side = request.size or _side(getattr(config, "image_size", None)) or own_size or 224
    return _Built(
        network=network,
        weights="pretrained" if pretrained else "random",
        source=place.words if pretrained else f"random, seed {seed}; shape of {place.words}",
        num_labels=int(config.num_labels),
        shape=(channels, side, side),
        mean=mean,
        deviation=deviation,
    )


def _side(value: Any) -> int | None:  # noqa: ANN401 - a number, a pair, or a mapping, by family
    if isinstance(value, Mapping):
        value = value.get("height") or value.get("shortest_edge")
    if isinstance(value, list | tuple):
        value = value[0]
    return int(value) if value else None


def _preprocessing(
    place: Checkpoint, channels: int
) -> tuple[int | None, tuple[float, ...], tuple[float, ...]]:
    """Size, means and deviations that a checkpoint's own preprocessing names; ImageNet's where it names none."""
    path = place.folder / "preprocessor_config.json"
    settings: dict[str, Any] = {}
    if path.is_file():
        try:
            settings = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{path} can't be read.", why=f"{error}.") from None
    mean = tuple(settings.get("image_mean") or _IMAGENET[0])
    deviation = tuple(settings.get("image_std") or _IMAGENET[1])
    if len(mean) != channels:
        mean, deviation = (sum(mean) / len(mean),) * channels, (sum(deviation) / len(deviation),) * channels
    return _side(settings.get("size")), mean, deviation


def _check_reads(model: ImageModel) -> None:
    """Raise where the network can't read a picture of the size that was asked for."""
    patch = _side(getattr(getattr(model.network, "config", None), "patch_size", None)) or 1
    if model.shape[1] % patch:
        raise InputError(
            f"{model.name} can't read pictures of {model.shape[1]} x {model.shape[2]}.",
            why=f"It cuts them into patches of {patch} x {patch}, and would drop what is left over.",
            fix=f"Choose a size that is a multiple of {patch}.",
        )
    try:
        with torch.no_grad():
            model.logits(torch.zeros(1, *model.shape, device=model.device, dtype=model.dtype))
    except (RuntimeError, ValueError) as error:
        channels, height, width = model.shape
        raise InputError(
            f"{model.name} can't read pictures of {height} x {width} with {count_of(channels, 'channel')}.",
            why=str(error).strip().splitlines()[0],
            fix="Leave size and channels out, or choose another --model.",
        ) from None
