"""LPIPS (Zhang et al. 2018), where the package `lpips` and its AlexNet's weights are at hand; nothing is fetched."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The file that torchvision's AlexNet is downloaded to; the package itself holds the weights on top of it.
_WEIGHTS = "alexnet-owt-7be5be79.pth"


def why_missing() -> str:
    """Why LPIPS can't be computed here, in words; empty where it can."""
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    path = Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS
    return "" if path.is_file() else f"the weights of AlexNet are not at {path}"


def lpips(reference_CHW: Tensor, recovered_CHW: Tensor) -> float | None:
    """Perceptual distance of two pictures of values 0 to 1, 0 for equal ones; None where `why_missing` says why."""
    if why_missing():
        return None
    # Gray pictures are shown in three equal channels; the network reads −1 to 1.
    pair = (2 * x.detach().cpu().float().expand(3, -1, -1)[None] - 1 for x in (reference_CHW, recovered_CHW))
    with torch.no_grad():
        return float(_network()(*pair))


@functools.cache
def _network() -> Any:  # noqa: ANN401 - `lpips.LPIPS`, an optional package without types
    module = importlib.import_module("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's words on its own old options
        return module.LPIPS(net="alex", verbose=False).eval()
