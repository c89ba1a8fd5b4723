"""A vision transformer's picture, read off its embedding's gradients in closed form (Lu et al. 2022, APRIL, sec. 3).

Positions are added to the patches' embeddings, so with one picture the gradient of the positions is Δ, the gradient
at the first layer's input, patch for patch. The gradient of the patch embedding's weight is Δᵀ X, X the patches'
pixels: linear equations for X, as many a pixel as the model is wide, with as many unknowns as there are patches.

Shapes: P patches, D hidden size, N numbers of a patch, C color channels, H and W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from textleak.models.rules.images import adds_positions_to_patches
from textleak.models.vision import ImageModel
from textleak.numerics import exact
from textleak.shared.effects import hides_entries, lost_scale
from textleak.shared.gradient import SharedGradient

# Variance of a pixel as the network reads it, for weighing what noise left against it (our choice; 0.2 to 0.5 for
# pictures brought to a mean of 0.5 and a deviation of 0.5, 1 for those brought to a variance of 1).
_PIXEL_VARIANCE = 0.5
# The bias of the embedding gets the sum of Δ: a network where it doesn't, to this part, embeds patches in another way.
_SAME_SUM = 1e-3


def read_patches(shared: SharedGradient, model: ImageModel) -> Tensor | None:
    """Pixels (C, H, W) of the only picture of a batch, as the network reads them.

    With more patches than the model is wide, of all pictures that fit the smallest. Behind noise or rounding the
    equations are regularized by what these are known to add.

    Returns:
        None where the model has no such embedding, its gradients weren't shared, entries of them are missing, or
        the batch has several pictures.
    """
    if shared.known.batch_size not in (None, 1) or _too_little_left(shared):
        return None
    found = _embedding(shared, model)
    if found is None:
        return None
    projection, names = found
    channels, height, width = model.shape
    rows, columns = projection.kernel_size
    down, across = height // rows, width // columns
    delta_PD = exact(shared.gradients[names["positions"]].cpu())[0, -down * across :]
    weight = shared.gradients[names["weight"]]
    right_DN = exact(weight.cpu()).flatten(1)
    if "bias" in names and not shared.defenses:
        bias_D = exact(shared.gradients[names["bias"]].cpu())
        if float((delta_PD.sum(0) - bias_D).norm()) > _SAME_SUM * float(bias_D.norm()):
            return None
    # Ridge regression: unknowns of variance `_PIXEL_VARIANCE`, equations with errors of variance `errors`.
    errors = _variance(shared, names["weight"])
    errors += _variance(shared, names["positions"]) * len(delta_PD) * _PIXEL_VARIANCE
    ridge = (errors / _PIXEL_VARIANCE) ** 0.5
    left = torch.cat([delta_PD.mT, ridge * torch.eye(len(delta_PD), dtype=torch.float64)])
    right = torch.cat([right_DN, right_DN.new_zeros(len(delta_PD), right_DN.shape[1])])
    patches_PN: Tensor = torch.linalg.lstsq(left, right, driver="gelsd").solution
    pixels = patches_PN.view(down, across, channels, rows, columns).permute(2, 0, 3, 1, 4)
    return pixels.reshape(channels, height, width)


def _variance(shared: SharedGradient, name: str) -> float:
    """Mean squared error of a tensor's entries: what defenses added, and its type's own rounding."""
    gradient = shared.gradients[name]
    rounding = torch.finfo(gradient.dtype).eps ** 2 * float(exact(gradient).square().mean())
    return shared.deviation(name) ** 2 + rounding


def _too_little_left(shared: SharedGradient) -> bool:
    """Whether a defense leaves less of the equations than they can be solved with."""
    unknown = any(defense.effects is None for defense in shared.defenses)
    return unknown or hides_entries(shared.effects) or lost_scale(shared.effects) == "tensor"


def _embedding(shared: SharedGradient, model: ImageModel) -> tuple[nn.Conv2d, dict[str, str]] | None:
    """The convolution that embeds patches, and the shared parameters' names; None where there is no such thing."""
    canonical = {id(parameter): name for name, parameter in model.parameters.items()}
    for module in model.network.modules():
        positions = getattr(module, "position_embeddings", None)
        if not isinstance(positions, nn.Parameter) or not adds_positions_to_patches(module):
            continue
        for inner in module.modules():
            if not isinstance(inner, nn.Conv2d) or not _cuts(inner, model.shape):
                continue
            own = {"positions": positions, "weight": inner.weight}
            if inner.bias is not None:
                own["bias"] = inner.bias
            names = {key: canonical[id(parameter)] for key, parameter in own.items()}
            shared_names = {key: name for key, name in names.items() if name in shared.gradients}
            if {"positions", "weight"} <= shared_names.keys():
                return inner, shared_names
    return None


def _cuts(layer: nn.Conv2d, shape: tuple[int, int, int]) -> bool:
    """Whether a convolution reads each pixel once: patches without gaps or overlap."""
    _, height, width = shape
    rows, columns = layer.kernel_size
    return (
        layer.stride == layer.kernel_size
        and layer.padding in ((0, 0), "valid")
        and layer.groups == 1
        and height % rows == 0
        and width % columns == 0
    )
