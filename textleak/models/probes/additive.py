"""What the first layers read where a norm of token plus position makes it: any token at any position, at once.

Most transformers add a token's embedding to its position's and normalize the sum; the first layers read that. Then
the inputs of all tokens at all positions follow from one row a token and one a position. Whether a network is built
so is found by running it, not by its name.

Shapes: V vocabulary, T positions, I the layers' input size, R directions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked
from textleak.models.probes.layers import LocalLayer, layer_inputs
from textleak.models.probes.layout import laid_out, layouts
from textleak.models.text import TextModel
from textleak.numerics import exact

_POSITIONS, _TOKENS = 5, 3  # that the probe runs on
_BLOCK = 16  # positions whose products with all tokens are taken at once
_SAMPLED = 256  # tokens that are asked what a network adds to them, special ones besides
_ROWS = 8192  # vocabulary rows that run through the network at once: bounds the memory
# Numbers that are worked on at once where a pass takes long that leaves a core's cache (measured).
_NUMBERS = 2**17


class Places:
    """What each position adds to a norm's input, the first one's taken off.

    The network is run only as far as positions are asked for: some could read texts of a million tokens.

    Args:
        model: the public model.
        norm: the norm's name.
    """

    def __init__(self, model: TextModel, norm: str) -> None:
        self._model, self._norm = model, norm
        self._known_TI = self._run(1)

    def first(self, count: int) -> Tensor:
        """Of the first positions, as many as there are: (count, I)."""
        count = min(count, self._model.max_length)
        if count > len(self._known_TI):
            self._known_TI = self._run(min(max(count, 2 * len(self._known_TI)), self._model.max_length))
        return self._known_TI[:count]

    def _run(self, count: int) -> Tensor:
        ids_1T = self._model.content_ids[:1, None].expand(-1, count)
        places_TI = layer_inputs(self._model, ids_1T, [self._norm])[self._norm][0]
        return places_TI - places_TI[:1]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """What tokens' inputs have squared lengths of, but for the sizes that the norm divides by.

    Attributes:
        tokens_VX: rows that positions have their products with.
        squares_V: of tokens' parts, in float64.
        biased_V: products of these with the norm's own part, likewise.
        bias: the square of that, likewise.
        places: of some positions (P, I), what they add to squares and to products with the norm's own part, (P, 1)
            and in float64, and their rows (P, X) for twice the products with the tokens'.
    """

    tokens_VX: Tensor
    squares_V: Tensor
    biased_V: Tensor
    bias: Tensor
    places: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AdditiveInputs:
    """Inputs norm(token + position) of the first layers.

    Attributes:
        norm: the normalizing module.
        table_VI: a row a token; then each one's in a second part of a text, where there are such.
        added_I: what the network adds to each of them at the first position.
        places: what each position adds, the first one's taken off.
        centered: whether the norm takes the mean off (layer norm), or not (RMS norm).
        eps: what it adds under the root.
    """

    norm: nn.Module
    table_VI: Tensor
    added_I: Tensor
    places: Places
    centered: bool
    eps: float

    @functools.cached_property
    def tokens_VI(self) -> Tensor:
        """Each token's part, the first position's added."""
        return self.table_VI + self.added_I if self.added_I.any() else self.table_VI

    def at(self, ids_N: Tensor, position: int) -> Tensor:
        """The inputs of tokens at a position, (N, I)."""
        with torch.no_grad():
            found: Tensor = self.norm(self.before_norm(ids_N, position))
        return found

    def before_norm(self, ids_N: Tensor, position: int) -> Tensor:
        """What the norm reads of tokens at a position, (N, I)."""
        return self.table_VI[ids_N] + (self.added_I + self.places.first(position + 1)[position])

    def with_second(self, second_I: Tensor) -> AdditiveInputs:
        """With as many tokens more, those of a second part, which adds the same to each of them."""
        return dataclasses.replace(self, table_VI=torch.cat([self.table_VI, self.table_VI + second_I]))

    def directions(self, positions: int) -> tuple[Tensor, Tensor]:
        """What inputs are made of: each is a multiple of the sum of its token's row and its position's.

        Returns:
            A row a token (V, I), and one for each of the first positions (positions + 1, I); the last one is what the
            norm adds to each input.
        """
        gain_I, bias_I = _affine(self.norm)
        places_TI = self._off_mean(self.places.first(positions)) * gain_I
        return self._off_mean(self.tokens_VI) * gain_I, torch.cat([places_TI, bias_I[None]])

    def scales(self, ids_N: Tensor, position: int) -> Tensor:
        """The multiple of both rows that tokens' inputs at a position are, (N,)."""
        sum_NI = self._off_mean(self.before_norm(ids_N, position))
        return (sum_NI.square().mean(-1) + self.eps).rsqrt()

    def along(self, directions_RI: Tensor) -> Callable[[int], Tensor]:
        """For a position, the products of all tokens' inputs there with directions, (V, R).

        The inputs themselves are never formed.
        """
        _, bias_I = _affine(self.norm)
        scaled_IR, sizes = self._scaled(directions_RI), self._sizes()
        tokens_VR = self._projected(scaled_IR)

        def at(position: int) -> Tensor:
            index, place = divmod(position, _BLOCK)
            place_R = self._block(index)[place] @ scaled_IR
            return (tokens_VR + place_R) / sizes(index)[place][:, None] + directions_RI @ bias_I

        return at

    def squared_along(self, directions_RI: Tensor) -> Callable[[int], Tensor]:
        """For a position, the squared length that all tokens' inputs there have along directions, (V,)."""
        return self._lengths(self._parts_along(directions_RI), self._sizes())

    def share_along(self, directions_RI: Tensor) -> Callable[[int], Tensor]:
        """For a position, what part of all tokens' inputs' squared length there is along directions, (V,)."""
        sizes = self._sizes()
        along, whole = (
            self._lengths(parts, sizes) for parts in (self._parts_along(directions_RI), self._parts())
        )
        least = torch.finfo(self.table_VI.dtype).tiny
        return lambda position: along(position) / whole(position).clamp_min(least)

    def _parts_along(self, directions_RI: Tensor) -> _Parts:
        """What inputs are made of, along directions."""
        _, bias_I = _affine(self.norm)
        scaled_IR = self._scaled(directions_RI)
        tokens_VR, bias_R = exact(self._projected(scaled_IR)), exact(directions_RI @ bias_I)

        def places(some_PI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            places_PR = exact(some_PI @ scaled_IR)
            return places_PR.square().sum(1, keepdim=True), (places_PR @ bias_R)[:, None], 2 * places_PR

        return _Parts(
            tokens_VX=tokens_VR,
            squares_V=tokens_VR.square().sum(1),
            biased_V=tokens_VR @ bias_R,
            bias=bias_R.square().sum(),
            places=places,
        )

    def _parts(self) -> _Parts:
        """The same along all directions there are."""
        gain_I, bias_I = _affine(self.norm)
        biased_I = self._off_mean(gain_I * bias_I)

        def places(some_PI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            twice_PI = 2 * self._off_mean(some_PI * gain_I.square())
            squares_P = (some_PI * gain_I).square().sum(1) + twice_PI @ self.added_I
            return exact(squares_P)[:, None], exact(some_PI @ biased_I)[:, None], twice_PI

        return _Parts(
            tokens_VX=self.table_VI,
            squares_V=exact(self._squares(gain_I)),
            biased_V=exact(self.table_VI @ biased_I + self.added_I @ biased_I),
            bias=exact(bias_I).square().sum(),
            places=places,
        )

    def _lengths(self, parts: _Parts, sizes: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """For a position, the squared lengths of all tokens' inputs there, (V,).

        Made of the products of three parts, in float64, as these can be larger than the sum.
        """

        @functools.lru_cache(maxsize=1)
        def block(index: int) -> Tensor:
            sizes_PV = sizes(index)
            squares_P1, biased_P1, twice_PX = parts.places(self._block(index))
            found_PV = torch.empty_like(sizes_PV)
            step = max(1, _NUMBERS // len(sizes_PV))
            for start in range(0, sizes_PV.shape[1], step):
                some = slice(start, start + step)
                size_PV = exact(sizes_PV[:, some])
                part_PV = exact(twice_PX @ parts.tokens_VX[some].T).add_(parts.squares_V[some])
                part_PV.add_(squares_P1).div_(size_PV).add_(2 * parts.biased_V[some]).add_(2 * biased_P1)
                found_PV[:, some] = part_PV.div_(size_PV).add_(parts.bias).clamp_min_(0)
            return found_PV

        return lambda position: block(position // _BLOCK)[position % _BLOCK]

    def _block(self, index: int) -> Tensor:
        """What some positions add, (P, I)."""
        return self._off_mean(self.places.first((index + 1) * _BLOCK)[index * _BLOCK :])

    def _sizes(self) -> Callable[[int], Tensor]:
        """For a block of positions, what the norm divides all tokens there by, (P, V)."""
        squares_V = self._squares()

        @functools.lru_cache(maxsize=1)
        def block(index: int) -> Tensor:
            some_PI = self._block(index)
            more_P1 = some_PI.square().sum(1, keepdim=True) + 2 * (some_PI @ self.added_I)[:, None]
            own_PV = 2 * some_PI @ self.table_VI.T + squares_V + more_P1
            return (own_PV / self.table_VI.shape[1] + self.eps).sqrt()

        return block

    def _scaled(self, directions_RI: Tensor) -> Tensor:
        """Directions that the parts before the norm have the products with that its output has of them, (I, R).

        Products with what has no mean have no part of the other's: no table without its mean is formed.
        """
        gain_I, _ = _affine(self.norm)
        return self._off_mean(directions_RI * gain_I).T

    def _projected(self, scaled_IR: Tensor) -> Tensor:
        """Tokens' parts along directions, (V, R)."""
        return torch.addmm(self.added_I @ scaled_IR, self.table_VI, scaled_IR)

    def _squares(self, gain_I: Tensor | None = None) -> Tensor:
        """Squared lengths of tokens' parts at the first position, (V,), as the norm takes them, times a gain."""
        rows = max(1, _NUMBERS // self.table_VI.shape[1])
        parts = (self._off_mean(part + self.added_I) for part in torch.split(self.table_VI, rows))
        return torch.cat([(part if gain_I is None else part * gain_I).square().sum(1) for part in parts])

    def _off_mean(self, values: Tensor) -> Tensor:
        return values - values.mean(-1, keepdim=True) if self.centered else values


def additive_inputs(model: TextModel, layer: LocalLayer) -> AdditiveInputs | None:
    """How a local layer's input is made of token and position; None where it is made otherwise.

    Args:
        model: the public model.
        layer: a local layer.
    """
    ids_NT = model.content_ids[:_TOKENS, None].expand(-1, min(_POSITIONS, model.max_length))
    read_NTI = layer_inputs(model, ids_NT, [layer.name])[layer.name]
    for name, norm, output_NTI in _norms(model, ids_NT, layer.name):
        if output_NTI.shape != read_NTI.shape or not torch.equal(output_NTI, read_NTI):
            continue
        parts_NTI = layer_inputs(model, ids_NT, [name])[name]
        added_TI = parts_NTI[0] - parts_NTI[0, :1]
        if not _close(parts_NTI[:, :1] + added_TI, parts_NTI):
            return None
        eps = float(getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0)))
        for centered in (True, False):
            if _close(_normalized(norm, parts_NTI, centered=centered, eps=eps), read_NTI):
                second_I = _second(model, name) if model.pairs else None
                if model.pairs and second_I is None:
                    return None
                made = _gathered(model, name, norm, centered=centered, eps=eps)
                return made if second_I is None else made.with_second(second_I)
    return None


def _gathered(model: TextModel, name: str, norm: nn.Module, *, centered: bool, eps: float) -> AdditiveInputs:
    places = Places(model, name)
    length = min(layouts(model).length, model.max_length)
    table_VI = model.word_embedding.weight.detach()
    added_I = _added(model, name, table_VI) if length == 1 else None
    if added_I is None:
        table_VI = _tokens(model, name) if length == 1 else _side_by_side(model, name, places.first(length))
        added_I = table_VI.new_zeros(table_VI.shape[1])
    return AdditiveInputs(
        norm=norm, table_VI=table_VI, added_I=added_I, places=places, centered=centered, eps=eps
    )


def _tokens(model: TextModel, norm: str) -> Tensor:
    """What a norm reads of each token at the first position, (V, I): the table itself where it is that."""
    table_VI = model.word_embedding.weight.detach()
    parts, copied = [], False
    for ids_N in torch.split(torch.arange(model.vocab_size, device=model.device), _ROWS):
        read_NI = layer_inputs(model, ids_N[:, None], [norm])[norm][:, 0]
        own_NI = table_VI[int(ids_N[0]) : int(ids_N[-1]) + 1]
        same = torch.equal(read_NI, own_NI)
        copied |= not same
        parts.append(own_NI if same else read_NI)
    return torch.cat(parts) if copied else table_VI


def _second(model: TextModel, norm: str) -> Tensor | None:
    """What a norm reads more of a token in a second part, (I,), the same for all of some; None where it isn't."""
    ids_N1 = model.content_ids[:_TOKENS, None]
    first_NI, second_NI = (
        layer_inputs(model, model.embed_marked(ids_N1 + more), [norm])[norm][:, 0]
        for more in (0, model.vocab_size)
    )
    more_NI = second_NI - first_NI
    return more_NI.mean(0) if _close(first_NI + more_NI.mean(0), second_NI) else None


def _added(model: TextModel, norm: str, table_VI: Tensor) -> Tensor | None:
    """What is added to the table's rows there, (I,), the same for all of some tokens; None where it isn't."""
    limits = torch.finfo(table_VI.dtype)
    if limits.eps > torch.finfo(torch.float32).eps:
        return None
    spread_N = torch.linspace(0, model.vocab_size - 1, min(_SAMPLED, model.vocab_size)).long()
    ids_N = torch.cat([spread_N, torch.tensor(sorted(model.special_ids), dtype=torch.long)]).to(model.device)
    read_NI = layer_inputs(model, ids_N[:, None], [norm])[norm][:, 0]
    if read_NI.shape[1] != table_VI.shape[1]:
        return None
    own_NI = table_VI[ids_N]
    added_NI = exact(read_NI) - exact(own_NI)
    added_I = added_NI.mean(0)
    rounding = 2 * limits.eps * max(float(read_NI.abs().max()), float(own_NI.abs().max()))
    same = float((added_NI - added_I).abs().max()) <= rounding
    return added_I.to(table_VI) if same else None


def _side_by_side(model: TextModel, norm: str, places_TI: Tensor) -> Tensor:
    """The same of a network that fills every text up to T positions: as many tokens a text, their places taken off."""
    T = len(places_TI)
    parts = []
    for ids_N in torch.split(torch.arange(model.vocab_size, device=model.device), max(1, _ROWS // T) * T):
        filled_N = torch.cat([ids_N, ids_N[:1].expand(-len(ids_N) % T)])
        read_NTI = layer_inputs(model, filled_N.view(-1, T), [norm])[norm] - places_TI
        parts.append(read_NTI.flatten(0, 1)[: len(ids_N)])
    return torch.cat(parts)


def _norms(model: TextModel, ids_NT: Tensor, until: str) -> list[tuple[str, nn.Module, Tensor]]:
    """Modules with a vector of weights whose output has their input's shape, with the output."""
    found: list[tuple[str, nn.Module, Tensor]] = []
    names = {module: name for name, module in model.network.named_modules()}

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        if isinstance(output, Tensor) and arguments and getattr(arguments[0], "shape", None) == output.shape:
            name = names[module]
            laid = laid_out(model, name, output, *ids_NT.shape) if name in layouts(model) else output
            found.append((name, module, laid))

    handles = [
        module.register_forward_hook(keep)
        for module in names
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() == 1
    ]
    _ = layouts(model)  # before there are hooks
    with hooked(handles):
        layer_inputs(model, ids_NT, [until])
    return found


def _normalized(norm: nn.Module, values: Tensor, *, centered: bool, eps: float) -> Tensor:
    gain_I, bias_I = _affine(norm)
    values = values - values.mean(-1, keepdim=True) if centered else values
    return values / (values.square().mean(-1, keepdim=True) + eps).sqrt() * gain_I + bias_I


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    gain, bias = norm.weight, getattr(norm, "bias", None)
    assert isinstance(gain, Tensor)
    return gain, bias if isinstance(bias, Tensor) else torch.zeros_like(gain)


def _close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 1e-4 * expected.abs().max())
