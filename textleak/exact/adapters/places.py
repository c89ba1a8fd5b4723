"""Where tokens stand, where the first layers read the sum of a token's row and a position's.

Each input is one multiple of both rows, so a position has the same part in the measurements as the tokens there
together, and a token that stands at several positions has the sum of its parts.

Shapes: K tokens, T positions, M measurements.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from textleak.exact.adapters.bag import Bag
from textleak.matching.discrete import Row

# Parts are the same that are no farther apart than this, relatively (our choice; measured on minilm in float32: 4e-8 to
# 8e-6 where they are, 0.2 and more where they aren't).
_SAME = 1e-3
# How far from 0 or 1 the share of a position in a token's part may be (our choice).
_WHOLE = 0.1
# Tokens up to which pairs of them are summed (our choice: four of as many at one position in some seconds).
_PAIRED = 64


def placed(bag: Bag) -> Row | None:
    """The sentence of a batch of one.

    Returns:
        Its tokens; None where there are no positions, several sentences, or repeated tokens whose positions
        outnumber the measurements.
    """
    places_TM = _places(bag)
    row = [-1] * len(places_TM)
    apart_TK = torch.cdist(places_TM, bag.parts_NM) / places_TM.norm(dim=1, keepdim=True)
    for t, (apart, k) in enumerate(zip(*(values.tolist() for values in apart_TK.min(1)), strict=True)):
        if apart <= _SAME:
            row[t] = k
    open_T = [t for t, k in enumerate(row) if k < 0]
    left_K = [k for k in range(len(bag.tokens)) if k not in row]
    if open_T:
        if not left_K or len(open_T) > places_TM.shape[1]:
            return None
        shares_TK = torch.linalg.pinv(places_TM[open_T].T) @ bag.parts_NM[left_K].T
        chosen_T = shares_TK.argmax(1)
        whole_TK = torch.nn.functional.one_hot(chosen_T, len(left_K)).to(shares_TK)
        if not bool((shares_TK - whole_TK).abs().max() <= _WHOLE):
            return None
        for t, k in zip(open_T, chosen_T.tolist(), strict=True):
            row[t] = left_K[k]
    if not _adds_up(bag, places_TM, row):
        return None
    return tuple(bag.tokens[k] for k in row)


def standing(bag: Bag, sentences: int) -> tuple[Row | None, ...]:
    """The tokens at each position of a batch of several sentences, up to the last position that any stands at.

    Args:
        bag: of an encoder whose first layers know positions.
        sentences: how many there are.

    Returns:
        For each position its distinct tokens, each of which stands nowhere else; None where it has others, or more
        than can be told.
    """
    places_TM = _places(bag)
    found: list[Row | None] = [None] * len(places_TM)
    free = list(range(len(bag.tokens)))
    told = True
    while told:
        told = False
        for t, place_M in enumerate(places_TM):
            some = _making(place_M, bag.parts_NM, free) if found[t] is None else None
            if some is not None and 0 < len(some) <= sentences:
                found[t], told = tuple(bag.tokens[k] for k in some), True
                free = [k for k in free if k not in some]
    return tuple(found)


def _making(place_M: Tensor, parts_KM: Tensor, free: list[int]) -> list[int] | None:
    """Which of some tokens, up to four of them, have a position's part together."""
    sets = [(), *((k,) for k in free)]
    if len(free) <= _PAIRED:
        sets += itertools.combinations(free, 2)
    sums_CM = torch.stack([parts_KM[list(some)].sum(0) for some in sets])
    apart_CC = torch.cdist(place_M - sums_CM, sums_CM)
    if not bool(apart_CC.min() <= _SAME * place_M.norm()):
        return None
    one, other = divmod(int(apart_CC.argmin()), len(sets))
    return sorted({*sets[one], *sets[other]})


def _places(bag: Bag) -> Tensor:
    """Each position's part, up to the last one that has any: (T, M).

    Tokens' rows have the first position's in them, so its part is what all tokens' have beyond all other positions'.
    """
    places_TM = bag.places_TM.clone()
    if len(places_TM):
        places_TM[0] = bag.parts_NM.sum(0) - places_TM[1:].sum(0)
    used = places_TM.any(1).nonzero()
    return places_TM[: int(used.max()) + 1] if len(used) else places_TM[:0]


def _adds_up(bag: Bag, places_TM: Tensor, row: list[int]) -> bool:
    """Whether every token has the parts of its positions."""
    if not row:
        return False
    index_T = torch.tensor(row, device=places_TM.device)
    made_KM = torch.zeros_like(bag.parts_NM).index_add(0, index_T, places_TM)
    return bool((made_KM - bag.parts_NM).norm() <= _SAME * bag.parts_NM.norm())
