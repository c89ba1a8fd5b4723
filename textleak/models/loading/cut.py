"""The first layers of a decoder alone, as `--layers` asks for: no others are read, nor is the head."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from textleak.errors import InputError
from textleak.models.loading.places import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check(name: str, layers: int, place: Checkpoint | None) -> None:
    """Make sure that the first layers of a model can be read by themselves.

    Raises:
        InputError: there is no folder of weights.
    """
    if place is None or place.gguf is not None:
        raise InputError(
            f"--layers {layers} was given, and {name!r} is no folder with weights that can be read one by one.",
            why="Drawn weights are none of a client's, and a .gguf file is read as a whole.",
            fix="Give the folder of a checkpoint (safetensors): --model FOLDER.",
        )


def shortened(name: str, config: PreTrainedConfig, layers: int, *, task: str) -> PreTrainedConfig:
    """The configuration of the model's first layers.

    Raises:
        InputError: it is no decoder of the next token, or has no more than these.
    """
    if task != "causal-lm":
        raise InputError(
            f"--layers {layers} was given, and {name!r} is trained for {task}.",
            why="A decoder's first layers tell its texts token by token; what others read needs all layers.",
            fix="Leave --layers out, or use --task causal-lm if that is what the client trains.",
        )
    short = copy.deepcopy(config)
    text = short.get_text_config()
    whole = int(text.num_hidden_layers)
    if layers >= whole:
        raise InputError(
            f"--layers {layers} was given, and {name!r} has {whole}.",
            why="It is for fewer than all of them; then no text's own gradient can be formed.",
            fix="Leave --layers out.",
        )
    # What is said layer by layer, as which of them attend to all that is before.
    for key, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers
    return short


def headless(network: PreTrainedModel) -> PreTrainedModel:
    """The network without its head, which reads what the last layer of all makes."""
    network.set_output_embeddings(nn.Identity())
    return network
