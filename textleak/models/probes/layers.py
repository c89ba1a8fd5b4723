"""What the first layers of a network read, found by running it: no names of architectures, no tables.

A layer is local when its input at a position depends on the token and the position there alone, as in all
that comes before the first attention. Then the inputs that any token would cause can be listed in advance.

Shapes: N sentences, T positions, E embedding size, I a layer's input size, O its output size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from textleak.matching.hooks import hooked
from textleak.models.mapped import let_go
from textleak.models.probes.bare import bare_matrices
from textleak.models.probes.layout import laid_out, layouts, of_one_position
from textleak.models.running import run
from textleak.models.text import TextModel

LENGTH = 4
"""Positions that the probe runs on: enough for a token before, between and after others."""
_UNRELATED = 0.1  # relative error beyond which a layer isn't a product with its weight, even in bfloat16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A linear layer.

    Attributes:
        name: the module, for `layer_inputs`.
        weight_name: its weight among the model's parameters.
        transposed: whether the weight is (I, O), as in GPT-2, instead of (O, I).
        columns: of the input alone that are meant, from and to; None for all of it.
        rows: of the outputs alone that are meant, from and to, where the weight of these has no other columns: those of
            a convolution's group; None for all of them.
    """

    name: str
    weight_name: str
    transposed: bool
    columns: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None

    def meant(self, input_: Tensor) -> Tensor:
        """An input (..., I), or a gradient by it, without the columns that aren't meant."""
        return input_ if self.columns is None else input_[..., slice(*self.columns)]

    def given(self, output: Tensor) -> Tensor:
        """An output (..., O), or a gradient at it, without what isn't meant."""
        return output if self.rows is None else output[..., slice(*self.rows)]

    def as_rows(self, gradient: Tensor) -> Tensor:
        """The weight's gradient as (outputs, inputs), however the layer stores it."""
        if self.rows is not None:
            return gradient[slice(*self.rows)].flatten(1)
        return self.meant(gradient.flatten(1).T if self.transposed else gradient.flatten(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalLayer(LinearLayer):
    """A linear layer whose input at a position is a function of the token and the position there.

    Attributes:
        input_size: I.
        output_size: O.
        used_once: whether a forward pass uses the weight once; a shared weight's gradient sums over its uses.
        depends_on_position: False where positions enter later, as rotary ones do.
        input_group: name of the first layer that reads the same input (query, key and value share one).
        bare: whether it is a matrix of a module that makes something else of it (`bare`), so that its output doesn't
            show.
    """

    input_size: int
    output_size: int
    used_once: bool
    depends_on_position: bool
    input_group: str
    bare: bool = False


_LOCAL_LAYERS: WeakKeyDictionary[TextModel, tuple[LocalLayer, ...]] = WeakKeyDictionary()
_FOLLOWING_LAYERS: WeakKeyDictionary[TextModel, tuple[tuple[LinearLayer, ...], ...]] = WeakKeyDictionary()


@dataclasses.dataclass(kw_only=True, eq=False)
class _Use:
    """The first call of a module, and how many there were."""

    input_NTI: Tensor
    output_NTO: Tensor
    calls: int


def local_layers(model: TextModel) -> tuple[LocalLayer, ...]:
    """The local layers of a network, in the order in which a forward pass meets them; each model is asked once."""
    if model not in _LOCAL_LAYERS:
        _LOCAL_LAYERS[model] = _find_local_layers(model)
    return _LOCAL_LAYERS[model]


def _find_local_layers(model: TextModel) -> tuple[LocalLayer, ...]:
    ids_T, changed_TT = changes(model)
    repeated_T = ids_T[:1].expand(LENGTH)
    # Row 0: a text. Rows 1 to T: with another token at one position. Last row: one token everywhere.
    rows_NT = torch.cat([ids_T[None], changed_TT, repeated_T[None]])
    uses = _record(model, rows_NT)

    found: list[LocalLayer] = []
    for name, module, weight_name, calls in _used_weights(model, uses):
        # The quickest first: a wide layer's weight takes long to read.
        if not _seems_local(uses[name].input_NTI) or (transposed := _transposed(module, uses[name])) is None:
            continue
        if not _is_local(model, name, ids_T):
            continue
        input_NTI = uses[name].input_NTI
        same = (f.name for f in found if torch.equal(uses[f.name].input_NTI, input_NTI))
        found.append(
            LocalLayer(
                name=name,
                weight_name=weight_name,
                transposed=transposed,
                input_size=input_NTI.shape[-1],
                output_size=uses[name].output_NTO.shape[-1],
                used_once=calls == 1,
                depends_on_position=not close(input_NTI[-1], input_NTI[-1, :1]),
                input_group=next(same, name),
            )
        )
    return tuple(found) or tuple(_bare_local_layers(model, rows_NT))


def _bare_local_layers(model: TextModel, rows_NT: Tensor) -> Iterator[LocalLayer]:
    """The local ones of the matrices that are no layer's, where layers tell nothing."""
    for name, matrices in itertools.groupby(bare_matrices(model), key=lambda matrix: matrix.name):
        input_NTI = layer_inputs(model, rows_NT, [name])[name]
        if not _seems_local(input_NTI) or not _is_local(model, name, rows_NT[0]):
            continue
        for matrix in matrices:
            yield LocalLayer(
                name=name,
                weight_name=matrix.weight_name,
                transposed=matrix.transposed,
                input_size=matrix.input_size,
                output_size=matrix.output_size,
                used_once=matrix.used_once,
                depends_on_position=not close(input_NTI[-1], input_NTI[-1, :1]),
                input_group=name,
                bare=True,
            )


def partly_local_layers(model: TextModel) -> tuple[LocalLayer, ...]:
    """Layers that are local in some columns of their input, and those that read columns by groups.

    In MobileBERT the first layer reads three words' embeddings, one beside the other; SqueezeBERT's are convolutions of
    one position in groups.
    """
    ids_T, changed_TT = changes(model)
    uses = _record(model, torch.cat([ids_T[None], changed_TT, ids_T[:1].expand(1, LENGTH)]))
    own_TT = torch.eye(LENGTH, dtype=torch.bool, device=model.device)
    found: list[LocalLayer] = []
    for name, module, weight_name, calls in _used_weights(model, uses):
        if isinstance(module, nn.Conv1d) and module.groups > 1:
            if _seems_local(uses[name].input_NTI) and _is_local(model, name, ids_T):
                found += _by_group(name, module, weight_name, uses[name], calls, found)
            continue
        transposed = _transposed(module, uses[name])
        if transposed is None:
            continue
        input_NTI = uses[name].input_NTI
        differs_TTI = input_NTI[1:-1] != input_NTI[0]
        alone_I = differs_TTI[own_TT].all(0) & ~differs_TTI[~own_TT].any(0)
        columns = alone_I.nonzero().flatten().tolist()
        # They lie side by side, and are not all of the input.
        if not 1 < len(columns) < len(alone_I) or columns[-1] - columns[0] + 1 != len(columns):
            continue
        found.append(
            LocalLayer(
                name=name,
                weight_name=weight_name,
                transposed=transposed,
                columns=(columns[0], columns[-1] + 1),
                input_size=len(columns),
                output_size=uses[name].output_NTO.shape[-1],
                used_once=calls == 1,
                depends_on_position=False,
                input_group=name,
            )
        )
    return tuple(found)


def _by_group(
    name: str, module: nn.Conv1d, weight_name: str, use: _Use, calls: int, known: Sequence[LocalLayer]
) -> Iterator[LocalLayer]:
    """A convolution's groups, each a layer of its own columns and rows."""
    inputs, outputs = (size // module.groups for size in (module.in_channels, module.out_channels))
    for group in range(module.groups):
        columns = (group * inputs, (group + 1) * inputs)
        same = (layer.input_group for layer in known if layer.columns == columns)
        yield LocalLayer(
            name=name,
            weight_name=weight_name,
            transposed=False,
            columns=columns,
            rows=(group * outputs, (group + 1) * outputs),
            input_size=inputs,
            output_size=outputs,
            used_once=calls == 1,
            depends_on_position=not close(use.input_NTI[-1], use.input_NTI[-1, :1]),
            input_group=next(same, f"{name}, {group}"),
        )


def changes(model: TextModel) -> tuple[Tensor, Tensor]:
    """A text (T,), and it with another token at one position in each row (T, T)."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(model.content_ids), generator=generator)[: LENGTH + 1].to(model.device)
    ids_T, other = model.content_ids[chosen[:LENGTH]], model.content_ids[chosen[LENGTH]]
    changed_TT = ids_T.repeat(LENGTH, 1)
    changed_TT.fill_diagonal_(int(other))
    return ids_T, changed_TT


def layer_inputs(
    model: TextModel,
    inputs: Tensor,
    layer_names: Sequence[str],
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> dict[str, Tensor]:
    """What the named modules read at their first use, running the network only as far as that takes.

    Args:
        model: the public model.
        inputs: ids (N, T), or embeddings (N, T, E), through which gradients flow where they require them.
        layer_names: paths of modules.
        mask: (N, T), 1 for tokens; all of them where None. Or (N, 1, T, T), added to the attention scores.
        positions: (N, T), where the tokens stand; one after the other where None. Few encoders take them.

    Returns:
        For each name the module's first argument, (N, T, I).
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen.setdefault(name, arguments[0])
            if len(seen) == len(set(layer_names)):
                raise _Enough

        return hook

    _ = layouts(model)  # before there are hooks
    handles = [
        model.network.get_submodule(name).register_forward_pre_hook(keep(name)) for name in set(layer_names)
    ]
    differentiable = torch.is_grad_enabled() and inputs.requires_grad
    own = inputs.shape[1]
    if own < model.way.shortest:
        # What comes after it changes nothing in the layers that single tokens are asked about.
        more = model.way.shortest - own
        inputs = functional.pad(inputs, (0, 0, 0, more) if inputs.dtype.is_floating_point else (0, more))
        mask = None
    try:
        with hooked(handles), torch.set_grad_enabled(differentiable):
            run(model, inputs, mask=mask, positions=positions, again=True)
    except _Enough:
        return {name: laid_out(model, name, seen[name], *inputs.shape[:2])[:, :own] for name in layer_names}
    unused = sorted(set(layer_names) - seen.keys())
    raise ValueError(f"a forward pass of {model.name} never uses {unused}")


class _Enough(Exception):  # noqa: N818
    """Everything wanted was seen; not an error."""


def _record(model: TextModel, ids_NT: Tensor) -> dict[str, _Use]:
    """The uses of every module with a matrix and an input (N, T, I), in the order of the first use."""
    uses: dict[str, _Use] = {}
    N, T = ids_NT.shape
    others = layouts(model)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            if name in uses:
                uses[name].calls += 1
            elif (
                isinstance(output, Tensor)  # a router of experts gives several
                and arguments
                and isinstance(arguments[0], Tensor)
                and arguments[0].dim() == output.dim() == 3
                and (arguments[0].shape[:2] == ids_NT.shape or name in others)
            ):
                read, given = (laid_out(model, name, seen, N, T) for seen in (arguments[0], output))
                uses[name] = _Use(input_NTI=read, output_NTO=given, calls=1)

        return hook

    with _hooks(model.network, watch, convolutions=True), torch.no_grad():
        run(model, ids_NT, whole=False)
    return uses


def _used_weights(model: TextModel, uses: Mapping[str, _Use]) -> Iterator[tuple[str, nn.Module, str, int]]:
    """Each module of `uses`, with its name, its weight's, and how often a forward pass uses that weight."""
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    modules = {name: model.network.get_submodule(name) for name in uses}
    weights = {name: names[id(module.weight)] for name, module in modules.items()}
    calls: Counter[str] = Counter()
    for name, use in uses.items():
        calls[weights[name]] += use.calls
    for name, module in modules.items():
        yield name, module, weights[name], calls[weights[name]]


def matrix_calls(model: TextModel) -> list[str]:
    """The modules with a matrix that a forward pass calls before the head, in order, once a call."""
    order: list[str] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            if isinstance(output, Tensor):  # a router of experts gives several
                order.append(name)

        return hook

    with _hooks(model.network, note), torch.no_grad():
        run(model, model.content_ids[:LENGTH][None], whole=False)
    return order


@contextmanager
def _hooks(network: nn.Module, make: Callable[[str], Any], *, convolutions: bool = False) -> Iterator[None]:
    modules: Mapping[str, nn.Module] = dict(network.named_modules())
    handles = [
        module.register_forward_hook(make(name))
        for name, module in modules.items()
        if not isinstance(module, nn.Embedding)
        and (weight := module._parameters.get("weight")) is not None  # its own: an adapter shows its base's
        and (weight.dim() == 2 or (convolutions and of_one_position(module)))
    ]
    with hooked(handles):
        yield


def _transposed(module: nn.Module, use: _Use) -> bool | None:
    """Whether the layer multiplies by the weight (I, O) itself or by its transpose; None where by neither."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    input_NTI = use.input_NTI.to(weight.dtype)
    product_NTO = use.output_NTO - bias if isinstance(bias, Tensor) else use.output_NTO
    weight = weight.flatten(1)
    for transposed, matrix in ((False, weight.T), (True, weight)):
        if matrix.shape != (input_NTI.shape[-1], product_NTO.shape[-1]):
            continue
        error = (input_NTI @ matrix - product_NTO).norm()
        if error <= _UNRELATED * product_NTO.norm():
            return transposed
    return None


def _seems_local(input_NTI: Tensor) -> bool:
    """Whether other positions stay about the same when one position's token changes: a quick first look."""
    original_TI, changed_TTI = input_NTI[0], input_NTI[1:-1]
    own = torch.eye(len(original_TI), dtype=torch.bool, device=input_NTI.device)
    return close(changed_TTI[~own], original_TI.expand_as(changed_TTI)[~own])


def _is_local(model: TextModel, name: str, ids_T: Tensor) -> bool:
    """Whether the derivative of the input at each position by the embeddings elsewhere is exactly zero."""
    embeddings_TTE = model.embed(ids_T.repeat(len(ids_T), 1)).requires_grad_(True)
    with torch.enable_grad():
        input_TTI = layer_inputs(model, embeddings_TTE, [name])[name]
        own = torch.eye(len(ids_T), dtype=torch.bool, device=model.device)
        # An arbitrary direction, as a plain sum over a normalized input is constant.
        direction_I = torch.arange(1, input_TTI.shape[-1] + 1, device=model.device, dtype=model.dtype).cos()
        (slope_TTE,) = torch.autograd.grad((input_TTI[own] @ direction_I).sum(), embeddings_TTE)
    return not bool(slope_TTE[~own].any())


def close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, even bfloat16's."""
    return bool((actual - expected).abs().max() <= 1e-2 * expected.abs().max())


def following_layers(model: TextModel, count: int) -> tuple[tuple[LinearLayer, ...], ...]:
    """The linear layers after the local ones, those that read the same input together, in forward order.

    In a transformer the first four inputs are the first block's attention output, its feed-forward's two, and the
    second block's input.

    Each model is asked once.

    Args:
        model: the public model.
        count: how many different inputs.
    """
    if model not in _FOLLOWING_LAYERS:
        _FOLLOWING_LAYERS[model] = _find_following_layers(model)
    return _FOLLOWING_LAYERS[model][:count]


def _find_following_layers(model: TextModel) -> tuple[tuple[LinearLayer, ...], ...]:
    ids_T = model.content_ids[:LENGTH]
    uses = _record(model, ids_T[None])
    local = {layer.name for layer in local_layers(model)}
    groups: list[list[LinearLayer]] = []
    inputs: list[Tensor] = []
    for name, module, weight_name, calls in _used_weights(model, uses):
        if name in local or calls > 1 or (transposed := _transposed(module, uses[name])) is None:
            continue
        layer = LinearLayer(name=name, weight_name=weight_name, transposed=transposed)
        read = uses[name].input_NTI
        known = next((i for i, other in enumerate(inputs) if torch.equal(other, read)), None)
        if known is not None:
            groups[known].append(layer)
        else:
            groups.append([layer])
            inputs.append(read)
    if model.wide:
        let_go(model.parameters.values())
    return tuple(tuple(group) for group in groups)
