"""Texts of two parts, as tokenizers make them of pairs: what stands after the separator is embedded as the second part.

A pair (a premise and a hypothesis, a question and its text) is one row of tokens to a network, which adds an embedding
of the part to each of them. Which token belongs to which part follows from the tokens themselves: whether a tokenizer
marks parts, and by what, is read off its own template for pairs, and how a network reads them is found by running it.

Shapes: N rows, T tokens, E embedding size, P parts.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked

if TYPE_CHECKING:
    from textleak.models.text import TextModel

_TYPES = "token_type_ids"  # as transformers calls them
# An output may be off by this many times rounding where the sum is taken in another order, and by this part of itself
# at most (our choices).
_ROUNDING, _OFF = 1e3, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """How a tokenizer marks the two parts of a text, and which table tells them apart.

    Attributes:
        begin: what every text begins with.
        separator: the token that ends the first part.
        padding: the token that stands behind a text, which no part has.
        table: the module with an embedding for each part.
        weight_name: its weight among the model's parameters.
    """

    begin: tuple[int, ...]
    separator: int
    padding: int
    table: str
    weight_name: str

    def of(self, ids: Tensor) -> Tensor:
        """The part, 0 or 1, of each token of rows (..., T); 0 in all that isn't a text from its beginning on."""
        after = (ids == self.separator).cumsum(-1) - (ids == self.separator).long() > 0
        begins = torch.tensor(self.begin, device=ids.device)
        if ids.shape[-1] < len(begins):
            return torch.zeros_like(ids)
        text = (ids[..., : len(begins)] == begins).all(-1, keepdim=True)
        return (after & text & (ids != self.padding)).long()

    def added(self, network: nn.Module, parts: Tensor) -> Tensor:
        """What a part's embedding is more than the first one's, (..., E), by look-ups as the network does them."""
        table = network.get_submodule(self.table)
        added: Tensor = table(parts) - table(torch.zeros_like(parts))
        return added


def parts_of(model: TextModel) -> Parts | None:
    """How texts of two parts are read; None where tokenizer or network tell no parts apart, or in another way.

    Args:
        model: the public model, of any precision.
    """
    separator = _separator(model)
    if separator is None or _TYPES not in inspect.signature(model.network.forward).parameters:
        return None
    ids_1T = model.content_ids[: 2 * 3][None]
    types_1T = torch.tensor([[0, 1, 1, 0, 1, 0]], device=model.device)[:, : ids_1T.shape[1]]
    embeddings_1TE, mask_1T = model.embed(ids_1T), torch.ones_like(ids_1T)
    found = _table(model, embeddings_1TE, types_1T)
    if found is None:
        return None
    name, table = found
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    parts = Parts(
        begin=model.prefix_ids,
        separator=separator,
        padding=model.pad_id,
        table=name,
        weight_name=names[id(table.weight)],
    )
    with torch.no_grad():
        own = _hidden(model, embeddings_1TE, mask_1T, types_1T)
        ours = _hidden(model, embeddings_1TE + parts.added(model.network, types_1T), mask_1T, None)
    rounding = max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)
    same = float((own - ours).norm()) <= min(_ROUNDING * rounding, _OFF) * float(own.norm())
    return parts if same else None


def _separator(model: TextModel) -> int | None:
    """The token between the parts of the tokenizer's own pairs, where what follows it is all that has the type 1."""
    word = model.tokenizer("a", add_special_tokens=False)["input_ids"]
    pair: Mapping[str, Any] = model.tokenizer("a", "a", return_token_type_ids=True)
    ids, types = list(pair["input_ids"]), list(pair.get(_TYPES) or ())
    first = [*model.prefix_ids, *word]
    second = [*word, *model.suffix_ids]
    between = ids[len(first) : len(ids) - len(second)]
    if not model.prefix_ids or len(between) != 1 or ids != [*first, *between, *second]:
        return None
    single = model.tokenizer("a", return_token_type_ids=True).get(_TYPES)
    marked = types == [0] * (len(first) + 1) + [1] * len(second) and not any(single)
    return int(between[0]) if marked else None


def _table(model: TextModel, embeddings_1TE: Tensor, types_1T: Tensor) -> tuple[str, nn.Embedding] | None:
    """The table that types are looked up in, as wide as that of words, with two rows at least; None for none."""
    found: list[tuple[str, nn.Embedding]] = []
    names = {module: name for name, module in model.network.named_modules()}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Embedding)
        if arguments and isinstance(arguments[0], Tensor) and torch.equal(arguments[0], types_1T):
            found.append((names[module], module))

    tables = [m for m in names if isinstance(m, nn.Embedding) and m.num_embeddings > 1]
    with hooked([table.register_forward_pre_hook(note) for table in tables]), torch.no_grad():
        try:
            _hidden(model, embeddings_1TE, torch.ones_like(types_1T), types_1T)
        except (
            IndexError,
            TypeError,
            ValueError,
            RuntimeError,
        ):  # a network says so of types that it can't read
            return None
    fitting = len(found) == 1 and found[0][1].embedding_dim == model.embedding_size
    return found[0] if fitting else None


def _hidden(model: TextModel, embeddings_1TE: Tensor, mask_1T: Tensor, types_1T: Tensor | None) -> Tensor:
    from textleak.models.running import run

    hidden: Tensor = run(model, embeddings_1TE, mask=mask_1T, types=types_1T, whole=False).last_hidden_state
    return hidden
