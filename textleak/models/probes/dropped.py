"""What a client's procedure does to the inputs of a network's first layers, told by running it: dropout, short types.

Shapes: N sentences, T positions, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from textleak.models.base import Examples
from textleak.models.batches import Batch, TextExamples
from textleak.models.probes.layers import layer_inputs
from textleak.models.text import TextModel
from textleak.seeds import seeded

# Sentences and tokens that the probe runs on; entries smaller than this part of the mean tell nothing of a factor.
_SENTENCES, _TOKENS, _TOO_SMALL = 4, 8, 1e-2
_SAME = 1e-3  # relative difference up to which factors are one (half precision aside, rounding is far below)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Treated:
    """What a client's procedure does to what a module reads.

    Attributes:
        rate: how often it drops an entry.
        dtype: the short type to which autocast rounds what is left; None where nothing rounds it.
    """

    rate: float
    dtype: torch.dtype | None


def treated(model: TextModel, module: str, running: Callable[[Examples], Examples]) -> Treated | None:
    """What a client's procedure does to what a module reads; None where it does anything else to it.

    The rate is told by the factor of the entries that are kept, 1 / (1 − rate), which has no spread.

    Args:
        model: the public model.
        module: the module's name; what it reads depends on a token and its position alone.
        running: how the client has the network run on a batch.
    """
    chosen = torch.linspace(0, len(model.content_ids) - 1, _SENTENCES * _TOKENS).long().to(model.device)
    ids_NT = model.content_ids[chosen].view(_SENTENCES, -1)[:, : model.max_length]
    clean_NTI = layer_inputs(model, ids_NT, [module])[module]
    read_NTI, dtype = _read(model, module, ids_NT, running)
    if read_NTI.shape != clean_NTI.shape:
        return None
    tells_NTI = clean_NTI.abs() > _TOO_SMALL * clean_NTI.abs().mean()
    factors = (read_NTI / clean_NTI)[tells_NTI & (read_NTI != 0)].double()
    if not len(factors):
        return None
    factor = float(factors.median())
    if factor < 1 - _SAME or bool(((factors - factor).abs() > _SAME * factor).any()):
        return None
    return Treated(rate=max(0.0, 1 - 1 / factor), dtype=dtype)


def _read(
    model: TextModel, module: str, ids_NT: Tensor, running: Callable[[Examples], Examples]
) -> tuple[Tensor, torch.dtype | None]:
    """What the module is given of some sentences as the client runs them, and the type in which autocast reads that."""
    batch = Batch(ids_BT=ids_NT, mask_BT=torch.ones_like(ids_NT))
    labels = None if model.num_labels is None else [0] * len(ids_NT)
    batch, targets = model.targets(batch, labels, torch.Generator().manual_seed(0))
    seen: list[tuple[Tensor, torch.dtype | None]] = []

    def note(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        kind = model.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        seen.append((arguments[0].detach(), dtype))

    handle = model.network.get_submodule(module).register_forward_pre_hook(note)
    try:
        with torch.no_grad(), seeded(0):
            running(TextExamples(batch=batch, targets=targets)).loss(model)
    finally:
        handle.remove()
    read, dtype = seen[0]
    return read.reshape(*ids_NT.shape, -1), dtype
