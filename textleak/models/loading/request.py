"""What a model is asked for with, and where it goes."""

from __future__ import annotations

import dataclasses
from typing import get_args

import torch
from torch import nn

from textleak.errors import InputError, unknown_name
from textleak.models.base import Weights

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A model as it is asked for; `load_model` and `load_image_model` say what each field means."""

    name: str
    weights: str = "auto"
    device: str = "auto"
    dtype: str = "float32"
    weights_seed: int = 0

    def target(self) -> tuple[torch.device, torch.dtype]:
        """Where the weights go, and their type.

        Raises:
            InputError: an unknown option, or no such device on this machine.
        """
        if self.weights not in ("auto", *get_args(Weights)):
            raise unknown_name("kind of weights", self.weights, ("auto", *get_args(Weights)))
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        return find_device(self.device, DTYPES[self.dtype]), DTYPES[self.dtype]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """A network as it was read or drawn, before it goes to its device.

    Attributes:
        network: in float32, on the CPU.
        weights: whether they are pretrained.
        source: where they are from, in words.
    """

    network: nn.Module
    weights: Weights
    source: str


def find_device(device: str, dtype: torch.dtype = torch.float32) -> torch.device:
    """The device that "auto", "cpu", "cuda", "cuda:N" or "mps" stands for here.

    Raises:
        InputError: no such device on this machine.
    """
    mps = torch.backends.mps.is_available()
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if mps and dtype != torch.float64 else "cpu")
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind == "mps" and not index:
        if not mps:
            raise InputError("There is no MPS device here.", fix="Use --device cpu or auto.")
        if dtype == torch.float64:
            raise InputError("MPS has no float64.", fix="Use --device cpu for float64.")
        return torch.device("mps")
    if kind == "cuda" and (not index or index.isdecimal()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise InputError(
                f"The device {device} isn't there.",
                why=f"torch {torch.__version__} sees {count} CUDA devices on this machine.",
                fix="Use --device cpu or auto, or install a CUDA build of torch.",
            )
        return torch.device(device)
    raise unknown_name("device", device, ("auto", "cpu", "cuda", "cuda:0", "mps"))
