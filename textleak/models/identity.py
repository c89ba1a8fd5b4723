"""What tells a model, and the parts of it, from others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from torch import Tensor

from textleak.models.base import Model
from textleak.shared.public import PublicModel

_ATTENTION_ROLES = {"q", "k", "v", "kv", "qkv", "query", "key", "value", "wqkv"}


def public_model(model: Model, *, picture: tuple[int, int, int] | None = None) -> PublicModel:
    """What both sides need to know to load the same model.

    Args:
        model: the model.
        picture: channels, height and width that an image model reads.
    """
    return PublicModel(
        name=model.name,
        task=model.task,
        weights=model.weights,
        weights_seed=model.weights_seed,
        num_labels=model.num_labels or getattr(model, "outputs", None),
        dtype=str(model.dtype).removeprefix("torch."),
        fingerprint=model.fingerprint,
        picture=picture,
    )


def fingerprint_of(parameters: Mapping[str, Tensor]) -> str:
    """Hash of every parameter's name, shape and a sample of its values."""
    digest = hashlib.sha256()
    for name, parameter in parameters.items():
        values = parameter.detach().flatten()
        sample = values[:: max(1, values.numel() // 64)][:64].cpu().double().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]


def attends(component: str) -> bool:
    """Whether a module of this name makes queries, keys or values, in the families of transformers."""
    parts = re.split(r"_", component.lower())
    return component in ("c_attn", "in_proj") or bool(_ATTENTION_ROLES & set(parts))
