"""From embeddings back to tokens: nearest neighbor over the embedding table, with what the tokenizer fixes.

Shapes: N embeddings, E embedding size, V vocabulary, C the candidates that are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from textleak.events import Label, Position, Sentence, TokenGuess
from textleak.models import TextModel

Metric = Literal["cosine", "l2"]

# Rows of the embedding table compared at once, and numbers in them at most (our choice): both bound the memory.
_ROWS, _NUMBERS = 16384, 2**22


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """The nearest tokens of N embeddings, nearest first.

    Attributes:
        ids_NC: their ids.
        similarity_NC: cosine similarity, or minus the L2 distance.
    """

    ids_NC: Tensor
    similarity_NC: Tensor


def nearest_tokens(
    embeddings_NE: Tensor,
    table_VE: Tensor,
    *,
    candidates: int = 1,
    metric: Metric = "cosine",
    excluded: frozenset[int] = frozenset(),
) -> Neighbors:
    """The tokens whose embeddings are nearest.

    Args:
        embeddings_NE: what an attack holds.
        table_VE: the embedding of every token.
        candidates: how many to keep, at most V.
        metric: "cosine" or "l2".
        excluded: ids that can't be the answer (special tokens).
    """
    found_NC = embeddings_NE.new_empty(len(embeddings_NE), 0)
    ids_NC = torch.empty(len(embeddings_NE), 0, dtype=torch.long, device=embeddings_NE.device)
    unit_NE = torch.nn.functional.normalize(embeddings_NE, dim=-1)
    lengths_V = _row_norms(table_VE)
    barred = torch.zeros(len(table_VE), dtype=torch.bool, device=table_VE.device)
    barred[sorted(excluded)] = True
    step = max(1, min(_ROWS, _NUMBERS // table_VE.shape[1]))
    for start in range(0, len(table_VE), step):
        rows_VE, here_V = table_VE[start : start + step], lengths_V[start : start + step]
        if metric == "cosine":
            nearness_NV = (unit_NE @ rows_VE.T).div_(here_V)
        else:  # the larger, the less the squared distance
            nearness_NV = torch.addmm(here_V.square(), embeddings_NE, rows_VE.T, beta=-1, alpha=2)
        nearness_NV.masked_fill_(barred[start : start + step], -torch.inf)
        top = nearness_NV.topk(min(candidates, len(rows_VE)), dim=1)
        found_NC, ids_NC = torch.cat([found_NC, top.values], 1), torch.cat([ids_NC, top.indices + start], 1)
    top = found_NC.topk(min(candidates, len(table_VE)), dim=1)
    similarity_NC, ids_NC = top.values, ids_NC.gather(1, top.indices)
    if metric == "l2":
        squared_N1 = embeddings_NE.square().sum(1, keepdim=True)
        similarity_NC = -(squared_N1 - similarity_NC).clamp_min(0).sqrt()
    return Neighbors(ids_NC=ids_NC, similarity_NC=similarity_NC)


# Of tables that were looked through, with what torch counts changes by: an attack looks through one every few steps.
_norms = WeakTensorKeyDictionary()


def _row_norms(table_VE: Tensor) -> Tensor:
    """Lengths of a table's rows, (V,), at least a tiny one; kept until the table is changed."""
    if table_VE not in _norms or _norms[table_VE][0] != table_VE._version:
        tiny = torch.finfo(table_VE.dtype).tiny
        norms_V = torch.linalg.vector_norm(table_VE, dim=-1).clamp_min(tiny)
        _norms[table_VE] = table_VE._version, norms_V
    found: Tensor = _norms[table_VE][1]
    return found


# What `unreachable_tokens` has found: an evaluation asks again for each batch.
# By tokenizer, which belongs to one model and its copies in other precisions.
_unreachable: WeakKeyDictionary[object, frozenset[int]] = WeakKeyDictionary()


def unreachable_tokens(model: TextModel) -> frozenset[int]:
    """Tokens that no text turns into: special ones, and whole words that the tokenizer splits differently.

    A token that continues a word can't be told so, and counts as reachable.
    """
    if model.tokenizer not in _unreachable:
        _unreachable[model.tokenizer] = _found_unreachable(model)
    return _unreachable[model.tokenizer]


def _found_unreachable(model: TextModel) -> frozenset[int]:
    ids = model.content_ids.tolist()
    word = model.tokenizer("a", add_special_tokens=False)["input_ids"]
    # The tokenizer's own core: what transformers puts around it for each text takes three times as long (measured).
    core = model.tokenizer.backend_tokenizer
    alone = core.decode_batch([[i] for i in ids], skip_special_tokens=False)
    after = core.decode_batch([[*word, i] for i in ids], skip_special_tokens=False)
    again = [encoding.ids for encoding in core.encode_batch_fast(alone, add_special_tokens=False)]
    split = {
        id_
        for id_, text, found in zip(ids, after, again, strict=True)
        if id_ not in found and any(character.isspace() for character in text.strip())
    }
    return frozenset(range(model.vocab_size)) - (set(ids) - split)


def fixed_tokens(model: TextModel, length: int) -> dict[int, int]:
    """What the tokenizer itself puts around a sentence of `length` tokens: ids by position."""
    prefix, suffix = model.prefix_ids, model.suffix_ids
    fixed = dict(enumerate(prefix[:length]))
    fixed.update(
        {length - len(suffix) + i: id_ for i, id_ in enumerate(suffix) if length - len(suffix) + i >= 0}
    )
    return fixed


def to_sentence(
    model: TextModel,
    symbols: Sequence[int],
    *,
    confidence: Sequence[float] | None = None,
    channels: Sequence[str] | None = None,
    candidates: Sequence[Sequence[tuple[int, float]]] | None = None,
    label: Label | None = None,
    label_posterior: Sequence[float] = (),
) -> Sentence:
    """A sentence as events carry it.

    Args:
        model: whose tokenizer names the tokens.
        symbols: token ids, -1 where a position is left open; id + V where the network read a mask and the token was its
            label (masked language modeling).
        confidence: 0 to 1 each, 0 by default.
        channels: what gave each token away, "" by default.
        candidates: (id, score) of the next best tokens of each position.
        label: the class.
        label_posterior: probability of each class.
    """
    ids = [int(symbol) % model.vocab_size if symbol >= 0 else -1 for symbol in symbols]
    known = [i for i in ids if i >= 0]
    texts = iter(model.token_texts(known))
    fixed = fixed_tokens(model, len(ids))
    positions = tuple(
        Position(
            position=t,
            id=id_,
            text=next(texts) if id_ >= 0 else "",
            confidence=float(confidence[t]) if confidence is not None else 0.0,
            channel=channels[t] if channels is not None else "",
            special=fixed.get(t) == id_,
            masked=symbols[t] >= model.vocab_size,
            candidates=_guesses(model, candidates[t]) if candidates is not None else (),
        )
        for t, id_ in enumerate(ids)
    )
    return Sentence(
        positions=positions, text=model.decode(known), label=label, label_posterior=tuple(label_posterior)
    )


def _guesses(model: TextModel, scored: Sequence[tuple[int, float]]) -> tuple[TokenGuess, ...]:
    """(id, score) with the tokens' texts."""
    texts = model.token_texts([i for i, _ in scored])
    return tuple(
        TokenGuess(id=i, text=text, score=score) for (i, score), text in zip(scored, texts, strict=True)
    )
