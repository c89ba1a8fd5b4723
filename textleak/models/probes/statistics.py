"""What the layers of a public model read on arbitrary text: found on the model alone, no data needed.

Shapes: N tokens, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked
from textleak.models.probes.layers import matrix_calls
from textleak.models.running import run
from textleak.models.text import TextModel

# Sentences of random tokens that the statistics are taken over, and their length (our choice: about ten tokens for
# each of minilm's 384 inputs).
_SENTENCES, _LENGTH, _BATCH = 384, 10, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOutput:
    """The linear layer that reads what a block's attention has mixed.

    Attributes:
        name: the module.
        weight_name, bias_name: its parameters among the model's; no bias in some families.
        transposed: whether the weight is stored as (inputs, outputs).
    """

    name: str
    weight_name: str
    bias_name: str | None
    transposed: bool


def attention_outputs(model: TextModel) -> tuple[AttentionOutput, ...]:
    """The first linear layer to run after a block's query, key and value, for every block."""
    order = matrix_calls(model)
    modules = {name: model.network.get_submodule(name) for name in order}
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    found: dict[str, AttentionOutput] = {}
    for before, name in itertools.pairwise(order):
        mixes = names[id(modules[before].weight)] in model.attention_names
        if not mixes or names[id(modules[name].weight)] in model.attention_names or name in found:
            continue
        bias = getattr(modules[name], "bias", None)
        found[name] = AttentionOutput(
            name=name,
            weight_name=names[id(modules[name].weight)],
            bias_name=names[id(bias)] if isinstance(bias, nn.Parameter) else None,
            transposed=not hasattr(modules[name], "in_features"),
        )
    return tuple(found.values())


def arbitrary_inputs(model: TextModel, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What the named modules read on sentences of random tokens: (N, I) each."""
    generator = torch.Generator().manual_seed(0)  # public: anyone gets the same statistics
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:  # noqa: ANN401
        return lambda _, arguments: seen[name].append(arguments[0].flatten(0, -2))

    handles = [model.network.get_submodule(n).register_forward_pre_hook(keep(n)) for n in names]
    inner = _LENGTH - len(model.prefix_ids) - len(model.suffix_ids)
    with hooked(handles):
        for _ in range(_SENTENCES // _BATCH):
            drawn = torch.randint(len(model.content_ids), (_BATCH, inner), generator=generator)
            ids = torch.cat(
                [
                    torch.tensor(model.prefix_ids, dtype=torch.long).expand(_BATCH, -1),
                    model.content_ids.cpu()[drawn],
                    torch.tensor(model.suffix_ids, dtype=torch.long).expand(_BATCH, -1),
                ],
                1,
            ).to(model.device)
            with torch.no_grad():
                run(model, ids, whole=False)
    return {name: torch.cat(parts) for name, parts in seen.items()}
