"""What a causal model was asked to predict after each beginning of the batch's sentences (our choice).

At the last linear layer that was shared, only the labels decide the loss gradient at its output (`last_layers`):
Δ = Σ share · Jᵀ Wᵀ (p − onehot(label)). So labels are read off place by place, with how often each one stands there;
the last token of a sentence, which no layer reads, is one of them.

Shapes: N beginnings, L labels of one, O the layer's output size, C classes (the vocabulary, for language models).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from textleak.exact.label_fit import ROUNDINGS, LabelFit, unit_of
from textleak.exact.last_layers import LastLayers
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.shared.gradient import SharedGradient

# Labels tried at a place, by the slope there; different labels after one beginning, at most (our choice).
_TRIED, _MOST_LABELS = 64, 64
# A label with less than this part of what one prediction adds is none (our choice).
_LEAST = 0.1
# A count may be off a whole number by this much; and predictions in all are at most this many times the different
# ones (our choice; measured on smollm2 with 16 sentences: 3e-5 off at most).
_UNEVEN, _MOST_OFTEN = 0.02, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a causal model was asked to predict after each of some beginnings.

    Attributes:
        shares: for each beginning its labels, each with its part of the whole loss (the parts of a batch add up
            to 1).
        open: beginnings, by index, that more was asked of than could be told.
        whole: whether these beginnings make all of the gradient that the labels were read off; if not, the rest
            means nothing.
    """

    shares: tuple[dict[int, float], ...]
    open: frozenset[int]
    whole: bool


def read_predictions(
    model: TextModel, shared: SharedGradient, beginnings: Sequence[Row], following: Sequence[Collection[int]]
) -> Predictions | None:
    """Read labels off the gradient of the last linear layer before the output head.

    Args:
        model: the public model, a causal one.
        shared: the shared gradient.
        beginnings: every beginning of the batch's sentences that the loss reaches.
        following: for each of them, tokens that are known to be labels there.

    Returns:
        None where no layer was shared from the last attention on, or its gradient doesn't tell.
    """
    last = LastLayers.of(model, shared, beginnings)
    if last is None:
        return None
    if not last.whole:
        count = len(beginnings)
        return Predictions(shares=({},) * count, open=frozenset(range(count)), whole=False)
    if not last.local:
        return _read_jointly(last, following)
    fits, unit = _read_by_place(last, following)
    return Predictions(
        shares=tuple(dict(zip(fit.labels, fit.shares_L.tolist(), strict=True)) for fit in fits),
        open=_open(beginnings, fits, unit, needed=model.num_labels is None),
        whole=True,
    )


def _open(
    beginnings: Sequence[Row], fits: Sequence[LabelFit], unit: float, *, needed: bool
) -> frozenset[int]:
    """Beginnings that more was asked of than the labels found; where a label is needed, those that end without one."""
    norms_L = torch.cat([fit.atoms_LO for fit in fits]).norm(dim=1)
    one = unit * float(norms_L.median()) if len(norms_L) else 0.0
    inner = {row[:t] for row in beginnings for t in range(1, len(row))}
    return frozenset(
        n
        for n, (row, fit) in enumerate(zip(beginnings, fits, strict=True))
        if (not fit.explained(unit) and float(fit.missing_O.norm()) > _LEAST * one)
        or (needed and not fit.labels and row not in inner)
    )


def _read_by_place(last: LastLayers, following: Sequence[Collection[int]]) -> tuple[list[LabelFit], float]:
    """The labels of each beginning by itself, one more at a time; and about one prediction's share."""
    fits = [
        LabelFit.of(delta_O, noise=float(noise), eps=last.eps)
        for delta_O, noise in zip(last.delta_NO, last.noise_N, strict=True)
    ]
    for k in range(max(map(len, following), default=0)):
        known = {n: sorted(ids)[k] for n, ids in enumerate(following) if len(ids) > k}
        for n, atom_O in zip(known, last.atoms(list(known), list(known.values())), strict=True):
            fits[n] = fits[n].with_label(known[n], atom_O)
    unit = unit_of(fits)
    growing = {n for n, fit in enumerate(fits) if not fit.explained(unit)}
    for _ in range(_MOST_LABELS):
        if not growing:
            break
        grown = _with_best_labels(last, fits, sorted(growing))
        unit = unit or unit_of(list(grown.values()))
        # What no whole prediction accounts for is rounding, however much more than foreseen.
        grown = {n: fit for n, fit in grown.items() if float(fit.shares_L[-1]) >= _LEAST * unit}
        for n, fit in grown.items():
            fits[n] = fit
        growing = {n for n, fit in grown.items() if not fit.explained(unit)}
    return fits, unit


def _with_best_labels(
    last: LastLayers, fits: Sequence[LabelFit], nodes: Sequence[int]
) -> dict[int, LabelFit]:
    """Those of `nodes` that any label helps, each with the one that takes away most of its missing part."""
    best: dict[int, tuple[float, int, Tensor]] = {}
    for ids in _candidates(last, nodes, [fits[n].missing_O for n in nodes]):
        for n, id_, atom_O in zip(nodes, ids, last.atoms(nodes, ids), strict=True):
            match = fits[n].match(id_, atom_O)
            if match > best.get(n, (0.0,))[0]:
                best[n] = (match, id_, atom_O)
    return {n: fits[n].with_label(id_, atom_O) for n, (_, id_, atom_O) in best.items()}


def _read_jointly(last: LastLayers, following: Sequence[Collection[int]]) -> Predictions | None:
    """The labels of all beginnings at once, where the layer comes before the last attention.

    There a label reaches the beginnings before its own as well, so all of Δ is made of all labels together.
    """
    count, classes = len(last.delta_NO), len(last.head_CD)
    outputs = last.delta_NO.shape[1]
    variance_N = (last.noise_N + (ROUNDINGS * last.eps) ** 2 * last.delta_NO.square().sum(1)) / outputs
    scale_N1 = variance_N.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()[:, None]
    known = [(n, label) for n, labels in enumerate(following) for label in sorted(labels)]

    def reach(node: int, label: int) -> Tensor:
        return (last.reach(node, label) * scale_N1).flatten()

    fit = LabelFit.of((last.delta_NO * scale_N1).flatten(), noise=float(count * outputs), eps=last.eps)
    if known:
        atoms = torch.stack([reach(n, label) for n, label in known])
        fit = fit.with_labels([n * classes + label for n, label in known], atoms)
    unit = unit_of([fit])
    for _ in range(_MOST_LABELS):
        if fit.explained(unit):
            break
        missing_NO = fit.missing_O.view(count, outputs) * scale_N1
        slopes = last.slopes(range(count), missing_NO).flatten()
        ranked = slopes.topk(min(_TRIED, len(slopes))).indices.tolist()
        atoms = torch.stack([reach(*divmod(place, classes)) for place in ranked])
        matches = [fit.match(place, atom) for place, atom in zip(ranked, atoms, strict=True)]
        best = max(range(len(ranked)), key=matches.__getitem__)
        grown = fit.with_labels([ranked[best]], atoms[best : best + 1])
        unit = unit or unit_of([grown])
        if float(grown.shares_L[-1]) < _LEAST * unit:
            break
        fit = grown
    if not fit.explained(unit):
        return None
    shares: list[dict[int, float]] = [{} for _ in range(count)]
    for place, share in zip(fit.labels, fit.shares_L.tolist(), strict=True):
        n, label = divmod(place, classes)
        shares[n][label] = share
    return Predictions(shares=tuple(shares), open=frozenset(), whole=True)


def _candidates(last: LastLayers, nodes: Sequence[int], missing: Sequence[Tensor]) -> Iterator[list[int]]:
    """Labels worth trying at each of `nodes`, one for each at a time: those that point the missing part's way."""
    if len(last.head_CD) <= _TRIED:
        yield from ([label] * len(nodes) for label in range(len(last.head_CD)))
        return
    yield from last.slopes(nodes, torch.stack(list(missing))).topk(_TRIED, dim=1).indices.T.tolist()


def whole_numbers(
    shares: Sequence[dict[int, float]], total: int | None = None
) -> tuple[dict[int, int], ...] | None:
    """How often each label stands where it does: the fewest predictions whose mean has these shares.

    They need not add up to 1, as the client may have scaled its gradient.

    Args:
        shares: from `Predictions`.
        total: predictions in all, where that is known.

    Returns:
        None where no number of predictions makes all of them whole.
    """
    shares_L = torch.tensor([share for labels in shares for share in labels.values()], dtype=torch.float64)
    if not float(shares_L.sum()) > 0:
        return None
    shares_L = shares_L / shares_L.sum()
    totals_N = (
        torch.tensor([total]) if total else torch.arange(len(shares_L), _MOST_OFTEN * len(shares_L) + 1)
    )
    counts_NL = totals_N[:, None] * shares_L
    off_N = (counts_NL - counts_NL.round()).abs().amax(1)
    fits_N = (off_N <= _UNEVEN) & (counts_NL.round() >= 1).all(1)
    if not fits_N.any():
        return None
    first = int(totals_N[fits_N][0])
    near_N = fits_N & (totals_N <= first * (1 + 2 * _UNEVEN))
    best = int(off_N.where(near_N, torch.inf).argmin())
    counts = iter(counts_NL[best].round().long().tolist())
    found = tuple({label: next(counts) for label in labels} for labels in shares)
    return found if sum(sum(labels.values()) for labels in found) == int(totals_N[best]) else None
