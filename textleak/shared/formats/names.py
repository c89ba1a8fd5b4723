"""One parameter, many names: what wrappers put around them, taken away, and prefixes of a base model, told.

DistributedDataParallel and DataParallel write `module.`, torch.compile `_orig_mod.`, Opacus `_module.`, FSDP
`_fsdp_wrapped_module.`, activation checkpointing `_checkpoint_wrapped_module.`, PEFT `base_model.model.`, the adapter's
name and `base_layer.` around what it wraps; a base model saved without its head lacks `bert.` or the like.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from textleak.errors import InputError

# At the beginning of a name, in any order and number; and anywhere in it.
_AROUND = ("module.", "_module.", "base_model.model.")
_WITHIN = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What PEFT writes anywhere in it, and what it writes the adapter's name after.
_PEFT = frozenset({"base_layer", "modules_to_save"})
_NAMED = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"})
_ADAPTER = "default"
NAMED = (
    "Save them by name: torch.save({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, "
    '"gradients.pt").'
)
"""How gradients are saved so that they can be read."""


def inner_name(name: str) -> str:
    """A parameter's name without what wrappers of modules within a network write into it."""
    return ".".join(part for part in name.split(".") if part not in _WITHIN)


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers write around it, and PEFT within it."""
    before, name = "", inner_name(name)
    while name != before:
        before = name
        for prefix in _AROUND:
            name = name.removeprefix(prefix)
    name = name.removesuffix(".grad")  # as loops call what they save of each parameter
    parts = name.split(".")
    after = ("", *parts)
    return ".".join(
        part
        for part, previous in zip(parts, after, strict=False)
        if part not in _PEFT and not (part == _ADAPTER and previous in _NAMED)
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Tensors by the model's own names.

    Attributes:
        tensors: those that are of a parameter.
        unknown: those that are of none, by the name they came with.
    """

    tensors: dict[str, Tensor]
    unknown: dict[str, Tensor]


class Names:
    """The names that a network's parameters may come under.

    Args:
        parameters: each name of a parameter, and the parameter; a tied one under several names.
        buffers: names of what a state dict holds besides.
        saved: names in the order of the state dict.
    """

    @classmethod
    def of(cls, network: nn.Module) -> Names:
        """The names in a network's state dict."""
        return cls(
            network.named_parameters(remove_duplicate=False),
            (name for name, _ in network.named_buffers(remove_duplicate=False)),
            tuple(network.state_dict()),
        )

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        buffers: Iterable[str] = (),
        saved: Sequence[str] = (),
    ) -> None:
        first: dict[int, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._known: dict[str, str] = {}  # plain name: the parameter's own
        for name, parameter in parameters:
            own = first.setdefault(id(parameter), name)
            self.shapes[own] = tuple(parameter.shape)
            self._known[plain_name(name)] = own
        self._buffers = {plain_name(name) for name in buffers}
        self._saved = tuple(saved)
        self._endings: dict[str, str] = {}  # what a plain name ends with: what stands before it
        for name in [*self._known, *self._buffers]:
            for ending, before in _endings(name):
                self._endings.setdefault(ending, before)

    def in_order(self, tensors: Mapping[int, Tensor], places: int, where: str) -> dict[str, Tensor]:
        """Give tensors names that have none, by their order.

        That of `model.parameters()`, as `torch.autograd.grad` returns gradients, or that of the state dict, as
        Flower's clients send weights.

        Args:
            tensors: by their place, from 0; one that is missing (a gradient of None) has none.
            places: how many there are, those missing counted.
            where: they are from, for errors.

        Raises:
            InputError: not as many as the model has, or one of another shape.
        """
        own, saved = tuple(self.shapes), tuple(self._known.get(plain_name(name)) for name in self._saved)
        shape = {place: tuple(tensor.shape) for place, tensor in tensors.items()}
        orders = [order for order in dict.fromkeys((own, saved)) if len(order) == places]
        if not orders:
            raise InputError(
                f"{where} holds {places:,} tensors without names, and the model has {len(own):,} parameters.",
                why="Which are whose can be told only where each has its place, in the order of model.parameters() or "
                "of the state dict.",
                fix=NAMED,
            )
        for order in orders:
            of = {place: name for place in tensors if (name := order[place]) is not None}
            if all(self.shapes[name] == shape[place] for place, name in of.items()):
                return {name: tensors[place] for place, name in reversed(of.items())}
        name, place = next(
            (name, place)
            for place in tensors
            if (name := orders[0][place]) is not None and self.shapes[name] != shape[place]
        )
        raise InputError(
            f"Tensor {place} of {where}, which has no names, has shape {shape[place]}; in that place the model has "
            f"{name} of {self.shapes[name]}.",
            why="Tensors without names are told apart by their order, that of model.parameters() or of the state dict.",
            fix=NAMED,
        )

    def fit(self, tensors: Mapping[str, Tensor], where: str) -> Fitted:
        """Give tensors the model's own names.

        Args:
            tensors: by whatever names they have.
            where: they are from, for errors.

        Raises:
            InputError: two of them are of one parameter, most are of none, or one is of another shape.
        """
        plain: dict[str, str] = {}
        for name in tensors:
            other = plain.setdefault(plain_name(name), name)
            if other != name:
                raise InputError(
                    f"{where} holds {other} and {name}.",
                    why="Without what wrappers put around them both are called alike.",
                    fix="Keep the ones that were trained: model.state_dict() of the model itself.",
                )
        stripped, added = self._replaced(plain)
        named: dict[str, str] = {}
        unknown: dict[str, Tensor] = {}
        for short, name in plain.items():
            renamed = added + short.removeprefix(stripped) if short.startswith(stripped) else short
            own = self._known.get(short) or self._known.get(renamed)
            if own is not None:
                named.setdefault(own, name)
            elif short not in self._buffers and renamed not in self._buffers:
                unknown[name] = tensors[name]
        if len(unknown) > len(named):
            raise _another_model(where, unknown, len(tensors), self.shapes)
        for own, name in named.items():
            self._check_shape(name, tensors[name], own, where)
        return Fitted(tensors={own: tensors[name] for own, name in named.items()}, unknown=unknown)

    def _replaced(self, plain: Iterable[str]) -> tuple[str, str]:
        """The prefix that most unknown names have, and what the model has in its place."""
        replaced: Counter[tuple[str, str]] = Counter()
        for name in plain:
            if name in self._known or name in self._buffers:
                continue
            for ending, before in _endings(name):
                if ending in self._endings:
                    # A number in it is a layer's, and none is another's.
                    if _numbers(self._endings[ending]) in ((), _numbers(before)):
                        replaced[before, self._endings[ending]] += 1
                    break
        return max(replaced, key=replaced.__getitem__, default=("", ""))

    def _check_shape(self, name: str, tensor: Tensor, own: str, where: str) -> None:
        if tuple(tensor.shape) != self.shapes[own]:
            raise InputError(
                f"{name} in {where} has shape {tuple(tensor.shape)}, the model's {own} {self.shapes[own]}.",
                why="It is of another model, or of another number of classes or tokens.",
                fix="Name the model that was trained (--model), or give the checkpoints of one training.",
            )


def _endings(name: str) -> Iterable[tuple[str, str]]:
    """What a name ends with, the longest first, and what stands before it."""
    at = 0
    while at >= 0:
        yield name[at:], name[:at]
        dot = name.find(".", at)
        at = dot + 1 if dot >= 0 else -1


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split(".") if part.isdecimal())


def _another_model(where: str, unknown: Mapping[str, Tensor], there: int, known: Iterable[str]) -> InputError:
    first, own = next(iter(unknown)), next(iter(known), "nothing")
    if any(name.rpartition(".")[2] == "_flat_param" for name in unknown):
        return InputError(
            f"{where} holds {first}, a shard of FSDP's.",
            why="Which parameters its values are of can't be told.",
            fix="Save a full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)).",
        )
    return InputError(
        f"Of the {there:,} tensors in {where}, {len(unknown):,} are of no parameter of the model.",
        why=f"One is called {first}; the model's are called like {own}.",
        fix="Name the model that was trained: --model.",
    )
