"""How a module's tensors are laid out: most networks run texts one under the other, position beside position.

Some run all tokens as one long list, some put positions before texts (Longformer's attention), some fill texts up by
themselves. Here all become (N, T, ...).

Shapes: N texts, T positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked
from textleak.models.running import run

if TYPE_CHECKING:
    from textleak.models.text import TextModel

_LENGTH = 4  # of the text that shows it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layouts:
    """How modules' inputs are laid out where they aren't (N, T, I).

    Attributes:
        turned: modules that have positions before texts.
        filled: modules that read more positions than the network was given.
        channeled: convolutions of one position that have positions last, as (N, I, T).
        length: what texts are filled up to; 1 where they aren't.
    """

    turned: frozenset[str]
    filled: frozenset[str]
    channeled: frozenset[str]
    length: int

    def __contains__(self, name: str) -> bool:
        """Whether a module's is another one."""
        return name in self.turned or name in self.filled or name in self.channeled


_KNOWN: WeakKeyDictionary[TextModel, Layouts] = WeakKeyDictionary()


def layouts(model: TextModel) -> Layouts:
    """Of all modules that differ; each model is asked once, while no hooks of others are on it."""
    if model not in _KNOWN:
        _KNOWN[model] = _find_layouts(model)
    return _KNOWN[model]


def laid_out(model: TextModel, name: str, seen: Tensor, texts: int, positions: int) -> Tensor:
    """What a module reads or gives, or its gradient, as (N, T, I), without what the network filled texts up with.

    Args:
        model: the public model, whose `layouts` are known already.
        name: the module's path.
        seen: the tensor.
        texts: N.
        positions: T, of the texts as the network was given them.
    """
    known = layouts(model)
    if name in known.channeled:
        return seen.transpose(1, 2)[:, :positions]
    if name in known:
        return (seen.transpose(0, 1) if name in known.turned else seen)[:, :positions]
    return seen.reshape(texts, positions, -1)


def of_one_position(module: nn.Module) -> bool:
    """Whether a module is a convolution that reads each position by itself: a linear layer, or one for each group."""
    return isinstance(module, nn.Conv1d) and module.kernel_size == module.stride == (1,)


def _find_layouts(model: TextModel) -> Layouts:
    seen: dict[str, tuple[int, ...]] = {}
    looked_up = [_LENGTH]

    def look(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            shape = getattr(arguments[0], "shape", ()) if arguments else ()
            if len(shape) == 3:
                seen.setdefault(name, tuple(shape))

        return hook

    def count(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        looked_up.append(arguments[0].shape[-1])

    handles = [module.register_forward_pre_hook(look(name)) for name, module in model.network.named_modules()]
    handles.append(model.word_embedding.register_forward_pre_hook(count))
    with hooked(handles), torch.no_grad():
        run(model, model.content_ids[:_LENGTH][None], whole=False)
    length = max(looked_up)
    convolutions = {name for name in seen if of_one_position(model.network.get_submodule(name))}
    # One text, so that nothing else looks so.
    return Layouts(
        turned=frozenset(name for name, shape in seen.items() if shape[:2] == (length, 1)),
        filled=frozenset(
            name for name, shape in seen.items() if shape[:2] == (1, length) and length > _LENGTH
        ),
        channeled=frozenset(name for name in convolutions if seen[name][2] == length),
        length=length if length > _LENGTH else 1,
    )
