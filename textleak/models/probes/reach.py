"""Which tokens what a network makes of one depends on: those after it, how many before it, padding.

Shapes: N sentences, T positions, E embedding size, I a layer's input size.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from textleak.models.probes.layers import LENGTH, changes, close, layer_inputs
from textleak.models.quiet import quiet
from textleak.models.running import run
from textleak.models.text import TextModel

_SEES_AHEAD: WeakKeyDictionary[TextModel, bool] = WeakKeyDictionary()


def sees_ahead(model: TextModel) -> bool:
    """Whether what a network makes of a token depends on the tokens after it, as in an encoder; found once a model."""
    model = model.copied_from or model
    if model not in _SEES_AHEAD:
        _SEES_AHEAD[model] = _find_whether_it_sees_ahead(model)
    return _SEES_AHEAD[model]


def _find_whether_it_sees_ahead(model: TextModel) -> bool:
    embeddings_1TE = model.embed(model.content_ids[:LENGTH][None]).requires_grad_(True)
    with torch.enable_grad():
        output_1TD = run(model, embeddings_1TE, whole=False).last_hidden_state
        # An arbitrary direction, as a plain sum over a normalized output is constant.
        direction_D = torch.arange(1, output_1TD.shape[-1] + 1, device=model.device, dtype=model.dtype).cos()
        (slope_1TE,) = torch.autograd.grad((output_1TD[0, 0] @ direction_D), embeddings_1TE)
    return bool(slope_1TE[0, 1:].any())


def tokens_before(model: TextModel, name: str) -> int | None:
    """How many tokens before one the input of a layer at it depends on; None for all of a text, or for those after it.

    It has to depend on nothing else: not on where the token stands.
    """
    ids_T, _ = changes(model)
    embeddings_1TE = model.embed(ids_T[None]).requires_grad_(True)
    with torch.enable_grad():
        input_TI = layer_inputs(model, embeddings_1TE, [name])[name][0]
        direction_I = torch.arange(1, input_TI.shape[-1] + 1, device=model.device, dtype=model.dtype).cos()
        slopes = [
            torch.autograd.grad(input_I @ direction_I, embeddings_1TE, retain_graph=True)[0][0].any(-1)
            for input_I in input_TI
        ]
    reads_TT = torch.stack(slopes)
    behind_TT = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    most = int(behind_TT.where(reads_TT.cpu(), 0).max())
    ahead = bool(reads_TT.triu(1).any())
    alone_1TI = layer_inputs(model, ids_T[None, -1 - most :], [name])[name]
    if ahead or most >= LENGTH - 1 or not close(alone_1TI[0, -1], input_TI[-1]):
        return None
    return most


def reads_padding(model: TextModel) -> bool:
    """Whether a network reads padding on the left as it reads text, whatever it is told of it."""
    embeddings_1TE = model.embed(model.content_ids[:LENGTH][None]).requires_grad_(True)
    mask_1T = torch.ones(embeddings_1TE.shape[:2], dtype=torch.long, device=model.device)
    mask_1T[:, 0] = 0
    with torch.enable_grad(), quiet():
        output_1TD = run(model, embeddings_1TE, mask=mask_1T, whole=False).last_hidden_state
        direction_D = torch.arange(1, output_1TD.shape[-1] + 1, device=model.device, dtype=model.dtype).cos()
        (slope_1TE,) = torch.autograd.grad((output_1TD[0, -1] @ direction_D), embeddings_1TE)
    return bool(slope_1TE[0, 0].any())
