"""What a network adds to a word's embedding before it reads it, found by running it.

Most encoders normalize the sum of word, position and type embedding at once and use nothing else of it. Scaling such
a sum changes nothing, so the loss's gradient there is at right angles to it: one scalar that only the right token at
the right position makes zero. Where the sum goes on beside its norm (pre-norm decoders), or the norm's epsilon counts
(RoBERTa's, with small weights), it doesn't hold; the network itself is asked.

Shapes: T positions, E embedding size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from textleak.matching.hooks import hooked
from textleak.models.batches import Batch
from textleak.models.probes.layers import layer_inputs
from textleak.models.probes.layout import layouts
from textleak.models.running import run
from textleak.models.text import TextModel

# Positions that are looked at, at most (our choice: bounds the memory).
_LONGEST = 2048
# Tokens of the text that the network is asked with.
_LENGTH = 8
# Rounding allowed in what should be zero or equal, in units of the model's precision (measured in float32: cosines of
# 0.1 where the sum is normalized at once, 1e4 and more elsewhere).
_ROUNDING = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingSum:
    """The first thing that happens to a word's embedding.

    Attributes:
        position_name: the table of position embeddings among the model's parameters; None where there is none.
        rows: the table's row for each position.
        offset_TE: what is added to a word's own embedding at each position, float64; None where the sum isn't plain.
        across: whether the loss's gradient at the sum is always at right angles to it.
    """

    position_name: str | None
    rows: tuple[int, ...]
    offset_TE: Tensor | None
    across: bool


def embedding_sum(model: TextModel) -> EmbeddingSum:
    """Ask the network where its position embeddings are and what becomes of the sum."""
    norm = _first_norm(model)
    if norm is None:
        return EmbeddingSum(position_name=None, rows=(), offset_TE=None, across=False)
    length = min(model.max_length, _LONGEST)
    ids_T = _text(model, length)
    uses: list[tuple[nn.Embedding, tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], _output: Any) -> None:  # noqa: ANN401
        assert isinstance(module, nn.Embedding)
        uses.append((module, arguments, named))

    _ = layouts(model)  # before there are hooks
    tables = [m for m in model.network.modules() if isinstance(m, nn.Embedding)]
    handles = [
        table.register_forward_hook(note, with_kwargs=True)
        for table in tables
        if table is not model.word_embedding
    ]
    with hooked(handles):
        sum_TE = layer_inputs(model, ids_T[None], [norm])[norm][0]
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    position_name, position_rows = None, ()
    offset_TE = torch.zeros(length, model.embedding_size, dtype=torch.float64, device=_exact_device(model))
    for table, arguments, named in uses:
        rows, scale = _rows(table, arguments, named)
        if rows.numel() not in (1, length) or table.embedding_dim != model.embedding_size:
            continue
        offset_TE += (table.weight[rows] * scale[:, None]).to(offset_TE)
        if length > 1 and len(set(rows.tolist())) == length:
            position_name, position_rows = names[id(table.weight)], tuple(rows.tolist())
    expected_TE = model.embed(ids_T).to(offset_TE) + offset_TE
    error = (sum_TE.to(expected_TE) - expected_TE).norm() / expected_TE.norm()
    plain = float(error) <= _ROUNDING * torch.finfo(model.dtype).eps
    return EmbeddingSum(
        position_name=position_name,
        rows=position_rows,
        offset_TE=offset_TE if plain else None,
        across=plain and model.first_layers is None and _gradient_is_across(model, offset_TE),
    )


def _text(model: TextModel, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)  # public: any text would do
    chosen = torch.randint(len(model.content_ids), (length,), generator=generator)
    return model.content_ids[chosen.to(model.device)]


def _exact_device(model: TextModel) -> torch.device:
    return torch.device("cpu") if model.device.type == "mps" else model.device


def _first_norm(model: TextModel) -> str | None:
    """The first module with a vector for a weight that reads something of an embedding's size."""
    met: list[str] = []
    ids_T = _text(model, 4)
    shape = (1, 4, model.embedding_size)

    def look(name: str) -> Any:  # noqa: ANN401
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor) and arguments[0].shape == shape:
                met.append(name)

        return hook

    handles = [
        module.register_forward_pre_hook(look(name))
        for name, module in model.network.named_modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() == 1
    ]
    with hooked(handles), torch.no_grad():
        run(model, ids_T[None], whole=False)
    return met[0] if met else None


def _rows(table: nn.Embedding, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Which rows a look-up took, and by what they were scaled: read off a table of row numbers."""
    numbers_V = torch.arange(table.num_embeddings, dtype=torch.float32, device=table.weight.device)
    table_V2 = torch.stack([numbers_V, torch.ones_like(numbers_V)], -1)
    with torch.no_grad():
        looked_up = functional_call(table, {"weight": table_V2}, arguments, named).reshape(-1, 2)
    scale = looked_up[:, 1]
    return (looked_up[:, 0] / scale).round().long(), scale


def _gradient_is_across(model: TextModel, offset_TE: Tensor) -> bool:
    """Whether the gradient at each position's sum is at right angles to the sum, on an arbitrary text."""
    length = min(_LENGTH, len(offset_TE))
    ids_1T = _text(model, length)[None]
    batch = Batch(ids_BT=ids_1T, mask_BT=torch.ones_like(ids_1T))
    batch, targets = model.targets(batch, None, torch.Generator().manual_seed(0))
    embeddings_1TE = model.embed(batch.ids_BT).detach().requires_grad_(True)
    with torch.enable_grad():
        loss = model.loss(embeddings_1TE[None], batch.mask_BT[None], targets.expand(1))
        (slope_1TE,) = torch.autograd.grad(loss.sum(), embeddings_1TE)
    slope_TE = slope_1TE[0].detach().to(offset_TE)
    sum_TE = embeddings_1TE[0].detach().to(offset_TE) + offset_TE[:length]
    along_T = (slope_TE * sum_TE).sum(-1).abs()
    allowed = _ROUNDING * torch.finfo(model.dtype).eps
    return bool(slope_TE.any()) and bool(
        (along_T <= allowed * slope_TE.norm(dim=-1) * sum_TE.norm(dim=-1)).all()
    )
