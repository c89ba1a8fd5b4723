"""What passes through a network while it trains: each batch, and how the network was run on it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from textleak.models.losses.base import loss_of

_IGNORED = -100  # torch's cross entropy leaves such labels out, and data collators write it


Row = tuple[tuple[int, ...], int | None]
"""A sentence's tokens, padding left out, and its class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass that a gradient was to be taken of.

    Attributes:
        rows: its sentences; None where the network was given no ids.
        training: whether the network was in train mode.
        autocast: the type that torch.autocast ran it in; None without.
        partial: whether some tokens' labels were left out of a language model's loss.
    """

    rows: tuple[Row, ...] | None
    training: bool
    autocast: torch.dtype | None
    partial: bool

    @property
    def size(self) -> int:
        """Sentences."""
        return len(self.rows or ())


@dataclasses.dataclass(kw_only=True, eq=False)
class Watch:
    """Keeps what passes through a network until it is taken.

    Attributes:
        network: the Hugging Face model.
        task: of the model.
        passes: since they were last taken.
    """

    network: nn.Module
    task: str
    passes: list[Pass] = dataclasses.field(default_factory=list)
    _given: dict[str, Any] = dataclasses.field(default_factory=dict)

    def begin(self, called: nn.Module, *, compiled: bool = False) -> list[Callable[[], None]]:
        """Watch the network.

        Args:
            called: what the loop has: the network, or what is wrapped around it.
            compiled: whether torch.compile runs it; a hook within it would cut its graph in two.

        Returns:
            What ends it.
        """
        if compiled:
            return [called.register_forward_pre_hook(_untraced(self._only_called), with_kwargs=True).remove]
        # Accelerate turns autocast on inside the network's forward: it shows where the embeddings are looked up, not
        # where the network is called.
        embeddings = self.network.get_input_embeddings()  # type: ignore[operator]
        modules = [called] if called is self.network else [called, self.network]
        return [
            embeddings.register_forward_pre_hook(_untraced(self._looked_up)).remove,
            *(
                module.register_forward_pre_hook(_untraced(self._called), with_kwargs=True).remove
                for module in modules
            ),
        ]

    def take(self) -> tuple[Pass, ...]:
        """What has passed since it was last taken."""
        taken = tuple(self.passes)
        self.passes.clear()
        return taken

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        del module
        if args and isinstance(args[0], Mapping):  # a batch as it is
            kwargs = {**args[0], **kwargs}
        elif args and isinstance(args[0], Tensor):
            kwargs = {"input_ids": args[0], **kwargs}
        self._given = {key: value.detach() for key, value in kwargs.items() if isinstance(value, Tensor)}

    def _looked_up(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        del module
        given, self._given = self._given, {}
        self._passed(
            args[0].detach() if args and isinstance(args[0], Tensor) else given.get("input_ids"), given
        )

    def _only_called(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._called(module, args, kwargs)
        given, self._given = self._given, {}
        self._passed(given.get("input_ids"), given)

    def _passed(self, ids_BT: Tensor | None, given: Mapping[str, Tensor]) -> None:
        if not torch.is_grad_enabled():
            return
        device = "cpu" if ids_BT is None else ids_BT.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self.passes.append(_read(ids_BT, given, self.task, training=self.network.training, dtype=dtype))


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that torch.compile runs as it is."""
    disabled: Callable[..., None] = torch.compiler.disable(functools.partial(hook))  # type: ignore[no-untyped-call]
    return disabled


def _read(
    ids_BT: Tensor | None,
    given: Mapping[str, Tensor],
    task: str,
    *,
    training: bool,
    dtype: torch.dtype | None,
) -> Pass:
    """What one forward pass read."""
    if ids_BT is None or ids_BT.dim() != 2:
        return Pass(rows=None, training=training, autocast=dtype, partial=False)
    mask_BT = given.get("attention_mask")
    if mask_BT is None or mask_BT.shape != ids_BT.shape:
        mask_BT = torch.ones_like(ids_BT)
    classes: list[int | None] = [None] * len(ids_BT)
    labels, partial = given.get("labels"), False
    if labels is not None and task == "classification" and labels.numel() == len(ids_BT):
        classes = [int(label) for label in labels.flatten().tolist()]
    elif labels is not None and loss_of(task) is None and labels.shape == ids_BT.shape:
        counted = labels != _IGNORED
        if task == "masked-lm":
            ids_BT = torch.where(counted, labels, ids_BT)
        else:
            partial = bool((~counted & mask_BT.bool())[:, 1:].any())
    ids = [
        tuple(token for token, seen in zip(*row, strict=True) if seen)
        for row in zip(ids_BT.tolist(), mask_BT.tolist(), strict=True)
    ]
    return Pass(
        rows=tuple(zip(ids, classes, strict=True)), training=training, autocast=dtype, partial=partial
    )
