"""A device that isn't there: tensors that say `cuda:0`, lie in the CPU's memory, and refuse what a real device refuses.

    with pretended_device():
        model = load_model(folder, device="cuda")

Every operation is seen: what is made for the device, or from its tensors, is computed on the CPU and handed back as the
device's. Refused are
- operations on tensors of both places, but for what CUDA allows: copies, numbers without dimensions, indices;
- the CPU's generators for what is drawn on the device, whose own draws know nothing of the CPU's seed;
- `.numpy()`, and what only the CPU's linear algebra has.

What a device's tensor gives the CPU is counted, as each time waits for the device: `Crossings`.

Not pretended: streams, memory that runs out, autocast, other kernels' rounding, functions that only CUDA lacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from textleak.models.cast import CastTensor

DEVICE = torch.device("cuda:0")
_aten = torch.ops.aten

# Of operations that may have tensors of both places.
_COPIES = {_aten.copy_.default, _aten.copy.default, _aten._to_copy.default, _aten.lift_fresh.default}
# Those whose second argument may be a list of indices on the CPU.
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}


class OnDevice(Tensor):
    """A tensor of the device; torch's own code takes it for one without memory, Python's for one of CUDA."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> OnDevice:
        """The device's tensor with the memory of a CPU's."""
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device="meta",
        )
        made.elem = elem
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """True."""
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """False, whatever torch's own code takes it for."""
        return False

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The numbers, apart from what they were made of."""
        return self.detach()

    @data.setter
    def data(self, value: OnDevice) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.elem = value.elem

    def get_device(self) -> int:
        """0."""
        return 0

    def data_ptr(self) -> int:
        """Where it lies."""
        return self.elem.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """What it lies in."""
        return self.elem.untyped_storage()

    # Python's lists of numbers become tensors without memory where torch's own code turns them into the device's.

    def __getitem__(self, index: Any) -> Tensor:
        """What is at some places."""
        found: Tensor = super().__getitem__(_with_tensors(index))
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        """Put something at some places."""
        super().__setitem__(_with_tensors(index), value)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        """A tensor of numbers, as this one is."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE, **options})

    def tolist(self) -> Any:
        """The numbers, copied to the CPU."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As CUDA's: only after a copy."""
        if force:
            return self.cpu().numpy()
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A copy that is a parameter where this is one."""
        if id(self) not in memo:
            copied: Tensor = OnDevice(self.elem.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        found: Tensor = memo[id(self)]
        return found

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        """Its numbers, and where they are."""
        return f"{self.elem!r} on {DEVICE}"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise AssertionError(f"{func} outside of pretended_device()")


def _with_tensors(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    return torch.tensor(index, dtype=None if index else torch.long) if isinstance(index, list) else index


@dataclasses.dataclass(kw_only=True)
class Crossings:
    """How often something went from the device to the CPU, which waits for all that was begun.

    Attributes:
        numbers: single ones that were read: `.item()`, `float()`, `bool()`.
        tensors: copies of whole ones.
    """

    numbers: int = 0
    tensors: int = 0


@dataclasses.dataclass
class _Mode(TorchDispatchMode):
    crossings: Crossings

    def __post_init__(self) -> None:
        super().__init__()
        self.state = torch.Generator().get_state()

    def seed(self, seed: int) -> None:
        """Let the device draw from a seed."""
        self.state = torch.Generator().manual_seed(seed).get_state()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(leaf, CastTensor) for leaf in leaves):
            return NotImplemented  # what it makes of its weight comes here again
        owned = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        if owned:
            _refuse_mixed(func, args, leaves)
        wanted = kwargs.get("device")
        there = bool(owned) if wanted is None else torch.device(wanted).type in ("cuda", "meta")
        generator = kwargs.get("generator")
        if there and isinstance(generator, torch.Generator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func is _aten.linalg_lstsq.default and owned:
            if kwargs.get("driver") not in (None, "gels"):
                raise RuntimeError("torch.linalg.lstsq: parameter `driver` should be one of (gels)")
            kwargs = {**kwargs, "driver": "gels"}
        back = {id(leaf.elem): leaf for leaf in owned}
        plain_args, plain_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.elem, (args, kwargs))
        if wanted is not None:
            plain_kwargs["device"] = torch.device("cpu")
        if plain_kwargs.get("pin_memory"):
            plain_kwargs["pin_memory"] = False
        if func is _aten._local_scalar_dense.default and owned:
            self.crossings.numbers += 1
        elif (owned and not there) or (
            func is _aten.copy_.default and not isinstance(args[0], OnDevice) and owned
        ):
            self.crossings.tensors += 1
        if there and torch.Tag.nondeterministic_seeded in func.tags:
            found = self._drawn(lambda: func(*plain_args, **plain_kwargs))
        else:
            found = func(*plain_args, **plain_kwargs)
        if func is _aten.copy_.default:
            return args[0]
        if not there:
            return found
        return tree_map_only(
            Tensor, lambda tensor: back[id(tensor)] if id(tensor) in back else OnDevice(tensor), found
        )

    def _drawn(self, draw: Callable[[], Any]) -> Any:
        """What is drawn from the device's own generator."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            return draw()
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(before)


def _refuse_mixed(func: Any, args: tuple[Any, ...], leaves: list[Tensor]) -> None:
    if func in _COPIES:
        return
    others = [leaf for leaf in leaves if not isinstance(leaf, OnDevice)]
    if func in _INDEXED and isinstance(args[0], OnDevice):
        others = [leaf for leaf in others if all(leaf is not index for index in args[1])]
    in_place = func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], OnDevice)
    if in_place or any(other.dim() for other in others):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! (when "
            f"checking argument for {func})"
        )


class _Chosen(contextlib.nullcontext[None]):
    """The device that is chosen for a while: the only one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Properties:
    """What a device says of itself."""

    name: str = "pretended"
    total_memory: int = 2**34


@contextlib.contextmanager
def pretended_device() -> Iterator[Crossings]:
    """Have a machine with one CUDA device for a while."""
    crossings = Crossings()
    mode = _Mode(crossings)
    pretended = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "_lazy_init": lambda: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "device": _Chosen,
        "get_device_name": lambda device=DEVICE: "pretended",
        "get_device_properties": lambda device=DEVICE: _Properties(),
        "reset_peak_memory_stats": lambda device=DEVICE: None,
        "memory_allocated": lambda device=DEVICE: 0,
        "max_memory_allocated": lambda device=DEVICE: 0,
        "set_per_process_memory_fraction": lambda fraction, device=DEVICE: None,
        "manual_seed": mode.seed,
        "get_rng_state": lambda device=DEVICE: mode.state,
        "set_rng_state": lambda state, device=DEVICE: setattr(mode, "state", state),
    }
    with contextlib.ExitStack() as stack:
        for name, function in pretended.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        # What modules share they still share when it has moved, as on a real device.
        swapped = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        before = torch._C._only_lift_cpu_tensors()  # type: ignore[attr-defined]
        torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)  # type: ignore[attr-defined]
        stack.enter_context(mode)
        yield crossings
