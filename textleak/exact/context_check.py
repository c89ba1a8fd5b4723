"""How far a sentence is from being one of the batch, by what the first attention mixes: from tables, so cheap.

A descent asks for many sentences that differ from one at a place or two. What the tokens at all other places mix then
differs by what they take from these places, and is not formed anew.

Shapes: K sentences, T positions, N pairs, H heads, A a head's size, S sketch directions, P = A + S what a token passes
on, M places changed, C = 2 M what these passed on before and pass on now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from textleak.exact.pairs import Pairs
from textleak.exact.subspace import InputSpan
from textleak.models import TextModel
from textleak.models.probes.attention import FirstAttention, project

# Directions outside a span that an input is measured along, where all of them would be slower (our choice).
_SKETCH = 64
# Tokens of all sentences that are mixed at once (our choice: what is mixed of them fits a core's cache).
_TOKENS_AT_ONCE = 4096
# Where less than this part of what was passed on is left once it is taken off, rounding shows (our choice: that leaves
# 1e-8 outside, and sentences are told apart at 1e-6).
_CANCELED = 1e-3
# Float32 still has its exponential; and its smallest number.
_LARGEST, _TINY = 60.0, torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """What pairs are to the first attention: queries and keys (H, N, A), and what they pass on (H, N, P)."""

    queries: Tensor
    keys: Tensor
    passed: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Attended:
    """A sentence as the first attention has it.

    Attributes:
        row: its pairs.
        queries_HTA, keys_HTA: of its tokens.
        passed_HTP: what each passes on.
        tops_HT1: each token's largest score.
        weights_HTT: exponentials of the scores below that.
        mixed_HTP: what each token mixes by these weights, which don't add up to 1.
    """

    row: tuple[int, ...]
    queries_HTA: Tensor
    keys_HTA: Tensor
    passed_HTP: Tensor
    tops_HT1: Tensor
    weights_HTT: Tensor
    mixed_HTP: Tensor


class ContextCheck:
    """A `checks.Check` by a table of all pairs' queries, keys and what they pass on.

    What a token passes on is, in each head, its value and then the value's parts outside the span.
    """

    ahead: ClassVar[int] = 16

    def __init__(self, model: TextModel, attention: FirstAttention, pairs: Pairs, span: InputSpan) -> None:
        """Tabulate the pairs' queries, keys, values and the values' parts outside the span."""
        heads, dtype = attention.heads, torch.float32
        queries_HNA, keys_HNA, values_HNA = (
            torch.unflatten(project(model, layer, pairs.inputs_NI), -1, (heads, -1)).transpose(0, 1)
            for layer in (attention.query, attention.key, attention.value)
        )
        self.size = values_HNA.shape[-1]
        sketch_SI = span.directions_outside(_SKETCH)
        sketch_SI *= ((span.size - span.rank) / len(sketch_SI)) ** 0.5
        along_HNS = torch.einsum("hna,sha->hns", values_HNA, torch.unflatten(sketch_SI, 1, (heads, -1)))
        self.queries_HNA = (queries_HNA / queries_HNA.shape[-1] ** 0.5).to(dtype).contiguous()
        self.keys_HNA = keys_HNA.to(dtype).contiguous()
        self.passed_HNP = torch.cat([values_HNA, along_HNS], -1).to(dtype)
        self._last: _Attended | None = None

    def outside(self, rows_KT: Tensor) -> Tensor:
        """See `Check`."""
        parts = torch.split(rows_KT, max(1, _TOKENS_AT_ONCE // rows_KT.shape[1]))
        return torch.cat([self._outside(part_KT) for part_KT in parts])

    def _outside(self, rows_KT: Tensor) -> Tensor:
        read = self._at(rows_KT.flatten())
        queries, keys, passed = (
            torch.unflatten(t, 1, rows_KT.shape) for t in (read.queries, read.keys, read.passed)
        )
        return self._part_outside((queries @ keys.transpose(2, 3)).softmax(-1) @ passed)

    def changed(self, row: Sequence[int], places_KM: Tensor, pairs_KM: Tensor) -> Tensor:
        """See `Check`."""
        base, found = self._attended(row), []
        at_once = max(1, _TOKENS_AT_ONCE // len(row))
        for some_KM, new_KM in zip(
            torch.split(places_KM.to(self.keys_HNA.device), at_once),
            torch.split(pairs_KM, at_once),
            strict=True,
        ):
            now = [self._at(pairs_K) for pairs_K in new_KM.unbind(1)]
            outside_KT, unsure_K = self._elsewhere(base, some_KM, now)
            if bool(unsure_K.any()):
                rows_KT = torch.tensor(base.row, device=some_KM.device).repeat(len(some_KM), 1)
                rows_KT.scatter_(1, some_KM, new_KM.to(rows_KT))
                outside_KT[unsure_K] = self._outside(rows_KT[unsure_K])
            found.append(outside_KT.scatter_(1, some_KM, self._there(base, some_KM, now)))
        return torch.cat(found)

    def _elsewhere(self, base: _Attended, places_KM: Tensor, now: Sequence[_Read]) -> tuple[Tensor, Tensor]:
        """The part outside at all other places, (K, T), and for which sentences rounding may show in it.

        What tokens mix is less what these places passed on before, and more what they pass on now.
        """
        before = [base.passed_HTP.index_select(1, places_K) for places_K in places_KM.unbind(1)]
        old = [base.weights_HTT.index_select(2, places_K) for places_K in places_KM.unbind(1)]
        new = [
            (base.queries_HTA @ read.keys.transpose(1, 2) - base.tops_HT1).clamp(max=_LARGEST).exp()
            for read in now
        ]
        taken_HTK = torch.stack(old).sum(0)
        sums_HTK = base.weights_HTT.sum(-1, keepdim=True) - taken_HTK + torch.stack(new).sum(0)
        shares_HTK = sums_HTK.clamp_min(_TINY).reciprocal()
        weights_CHTK = [-shares_HTK * some for some in old] + [shares_HTK * some for some in new]
        values_CHKA, alone_CHKS = zip(*map(self._parts, [*before, *(r.passed for r in now)]), strict=True)
        whole_HTA, along_HTS = self._parts(base.mixed_HTP)
        along_KTS = torch.einsum("htk,hts->kts", shares_HTK, along_HTS)
        along_KTS += torch.cat([weights_HTK.permute(2, 1, 0) for weights_HTK in weights_CHTK], 2) @ torch.cat(
            [alone_HKS.transpose(0, 1) for alone_HKS in alone_CHKS], 1
        )
        squares_HTK = shares_HTK.square() * whole_HTA.square().sum(-1, keepdim=True)
        for c, (weights_HTK, value_HKA) in enumerate(zip(weights_CHTK, values_CHKA, strict=True)):
            both_HTK = 2 * shares_HTK * (whole_HTA @ value_HKA.transpose(1, 2))
            both_HTK += weights_HTK * value_HKA.square().sum(-1)[:, None]
            for d in range(c):
                both_HTK += 2 * weights_CHTK[d] * (value_HKA * values_CHKA[d]).sum(-1)[:, None]
            squares_HTK += weights_HTK * both_HTK
        outside_KT = along_KTS.norm(dim=-1).square() / squares_HTK.sum(0).T.clamp_min(_TINY)
        return outside_KT, (sums_HTK < _CANCELED * taken_HTK).any(0).any(0)

    def _there(self, base: _Attended, places_KM: Tensor, now: Sequence[_Read]) -> Tensor:
        """The part outside at the places themselves, (K, M)."""
        numbers_K, found = torch.arange(len(places_KM), device=places_KM.device), []
        for mine in now:
            scores_HKT = mine.queries @ base.keys_HTA.transpose(1, 2)
            for places_K, other in zip(places_KM.unbind(1), now, strict=True):
                scores_HKT[:, numbers_K, places_K] = (mine.queries * other.keys).sum(-1)
            weights_HKT = scores_HKT.softmax(-1)
            mixed_HKP = weights_HKT @ base.passed_HTP
            for places_K, other in zip(places_KM.unbind(1), now, strict=True):
                more_HKP = other.passed - base.passed_HTP.index_select(1, places_K)
                mixed_HKP += weights_HKT[:, numbers_K, places_K, None] * more_HKP
            found.append(self._part_outside(mixed_HKP))
        return torch.stack(found, 1)

    def _part_outside(self, mixed: Tensor) -> Tensor:
        """Of what is mixed in each head, (H, ..., P), the part outside."""
        whole, along = self._parts(mixed)
        outside: Tensor = along.sum(0).norm(dim=-1).square() / whole.norm(dim=-1).square().sum(0)
        return outside

    def _at(self, pairs_N: Tensor) -> _Read:
        """What some pairs are to the attention."""
        pairs_N = pairs_N.to(self.keys_HNA.device)
        return _Read(
            queries=self.queries_HNA.index_select(1, pairs_N),
            keys=self.keys_HNA.index_select(1, pairs_N),
            passed=self.passed_HNP.index_select(1, pairs_N),
        )

    def _parts(self, passed: Tensor) -> tuple[Tensor, Tensor]:
        """Values and their parts outside, of what is passed on."""
        return passed[..., : self.size], passed[..., self.size :]

    def _attended(self, row: Sequence[int]) -> _Attended:
        """Of a sentence; a descent asks for the same one many times."""
        row = tuple(row)
        if self._last is None or self._last.row != row:
            read = self._at(torch.tensor(row))
            scores_HTT = read.queries @ read.keys.transpose(1, 2)
            tops_HT1 = scores_HTT.amax(-1, keepdim=True)
            weights_HTT = (scores_HTT - tops_HT1).exp()
            self._last = _Attended(
                row=row,
                queries_HTA=read.queries,
                keys_HTA=read.keys,
                passed_HTP=read.passed,
                tops_HT1=tops_HT1,
                weights_HTT=weights_HTT,
                mixed_HTP=weights_HTT @ read.passed,
            )
        return self._last
