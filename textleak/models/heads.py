"""Which module makes a network's predictions of a whole sentence from its last token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from textleak.errors import InputError
from textleak.models.quiet import quiet
from textleak.models.running import run

if TYPE_CHECKING:
    from textleak.models.text import TextModel


def last_token_head(model: TextModel) -> str | None:
    """Path of a head that reads the last token (decoders), None for any other head.

    Hugging Face finds that token from the ids; with embeddings it takes the last position, even padding.
    """
    base = model.network.base_model
    inside = {id(module) for module in base.modules()}
    embeddings = model.embed(torch.arange(3, device=model.device)[None] % model.vocab_size)
    mask = torch.ones(1, 3, dtype=torch.long, device=model.device)
    with torch.no_grad(), quiet():
        logits = run(model, embeddings, mask=mask).logits
        hidden = run(model, embeddings, mask=mask, whole=False).last_hidden_state
        # Another kernel adds up in another order; no other layer's output comes anywhere near.
        tolerance = torch.finfo(model.dtype).eps ** 0.5 * float(logits.abs().max())
        if not math.isfinite(tolerance):
            raise InputError(
                f"The weights of {model.name!r} give logits that are not finite.",
                why="No loss can be taken of them, and no gradient.",
                fix="Choose another --model, or look for an overflow in its training.",
            )
        modules: dict[str, nn.Module] = dict(model.network.named_modules())
        for path, module in modules.items():
            weight = getattr(module, "weight", None)
            if id(module) in inside or not isinstance(weight, Tensor):
                continue
            if weight.shape != (logits.shape[-1], hidden.shape[-1]):
                continue
            if torch.allclose(module(hidden[:, -1]), logits, rtol=0, atol=tolerance):
                return path
    return None
