"""What a causal model was asked to predict after each beginning of the batch's sentences (our choice).

Where all of the batch's inputs are known, so is what every layer reads, X (N, I). From the last linear layer before the
output head, whose gradient is G = ΔᵀX, the loss gradient at its output follows at every position, Δ = (G X⁺)ᵀ, and
only the labels there decide it: Δ = Σ share · Jᵀ Wᵀ (p − onehot(label)), with W the head, p the prediction, J the
Jacobian of the norm in between. So labels are read off place by place, with how often each one stands there; the last
token of a sentence, which no layer reads, is one of them.

Shapes: N beginnings, L labels of one, I and O the layer's input and output size, D the head's input size, C classes
(the vocabulary, for language models), R rows of T positions that hold all beginnings.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import matrix_calls
from textleak.numerics import exact
from textleak.shared.gradient import SharedGradient

# Layers that may come after the one that labels are read off: more than a block is slow, and less sure (our choice).
_MOST_AFTER = 6
# Labels tried at a place, by the slope there; different labels after one beginning, at most (our choice).
_TRIED, _MOST_LABELS = 64, 64
# Squared, what rounding accounts for is off by this factor at most; rounding errors of a deep layer's input, of one
# entry's eps; and the part of a layer's gradient, in eps, that may be left when all its inputs are known (our choice;
# measured on gpt2 and smollm2).
_OUTSIDE, _ROUNDINGS, _WHOLE = 100.0, 8.0, 1000.0
# Parts of what one prediction adds: a label with less than the first is none; where less than the second is left,
# nothing is (our choice; measured on smollm2 with 16 sentences: 2e-4 is left at most).
_LEAST, _HARDLY = 0.1, 0.01
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
    tail = _Tail.of(model, shared, beginnings)
    if tail is None:
        return None
    fits = [_Fit.of(tail, n) for n in range(len(beginnings))]
    if not tail.whole:
        return Predictions(shares=({},) * len(fits), open=frozenset(range(len(fits))), whole=False)
    if not tail.local:
        return _read_jointly(tail, following)
    for k in range(max(map(len, following), default=0)):
        known = {n: sorted(ids)[k] for n, ids in enumerate(following) if len(ids) > k}
        for n, atom_O in zip(known, tail.atoms(list(known), list(known.values())), strict=True):
            fits[n] = fits[n].with_label(known[n], atom_O)
    unit = _unit(fits)
    growing = {n for n, fit in enumerate(fits) if not fit.explained(unit)}
    for _ in range(_MOST_LABELS):
        if not growing:
            break
        nodes = sorted(growing)
        best: dict[int, tuple[float, int, Tensor]] = {}
        for ids in _candidates(tail, nodes, [fits[n].missing_O for n in nodes]):
            for n, id_, atom_O in zip(nodes, ids, tail.atoms(nodes, ids), strict=True):
                match = fits[n].match(id_, atom_O)
                if match > best.get(n, (0.0,))[0]:
                    best[n] = (match, id_, atom_O)
        grown = {n: fits[n].with_label(id_, atom_O) for n, (_, id_, atom_O) in best.items()}
        unit = unit or _unit(list(grown.values()))
        for n, fit in grown.items():
            # What no whole prediction accounts for is rounding, however much more than foreseen.
            if float(fit.shares_L[-1]) < _LEAST * unit:
                growing.remove(n)
            else:
                fits[n] = fit
        growing = {n for n in growing & grown.keys() if not fits[n].explained(unit)}
    norms_L = torch.cat([fit.atoms_LO for fit in fits]).norm(dim=1)
    one = unit * float(norms_L.median()) if len(norms_L) else 0.0
    needed = model.num_labels is None
    inner = {row[:t] for row in beginnings for t in range(1, len(row))}
    return Predictions(
        shares=tuple(dict(zip(fit.labels, fit.shares_L.tolist(), strict=True)) for fit in fits),
        open=frozenset(
            n
            for n, (row, fit) in enumerate(zip(beginnings, fits, strict=True))
            if (not fit.explained(unit) and float(fit.missing_O.norm()) > _LEAST * one)
            or (needed and not fit.labels and row not in inner)
        ),
        whole=True,
    )


def _read_jointly(tail: _Tail, following: Sequence[Collection[int]]) -> Predictions | None:
    """The labels of all beginnings at once, where the layer comes before the last attention.

    There a label reaches the beginnings before its own as well, so all of Δ is made of all labels together.
    """
    count, classes = len(tail.delta_NO), len(tail.head_CD)
    outputs = tail.delta_NO.shape[1]
    eps = torch.finfo(tail.hidden.dtype).eps
    variance_N = (tail.noise_N + (_ROUNDINGS * eps) ** 2 * tail.delta_NO.square().sum(1)) / outputs
    scale_N1 = variance_N.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()[:, None]
    known = [(n, label) for n, labels in enumerate(following) for label in sorted(labels)]

    def reach(node: int, label: int) -> Tensor:
        return (tail.reach(node, label) * scale_N1).flatten()

    fit = _Fit(
        labels=(),
        atoms_LO=tail.delta_NO.new_empty(0, count * outputs),
        shares_L=tail.delta_NO.new_empty(0),
        delta_O=(tail.delta_NO * scale_N1).flatten(),
        noise=float(count * outputs),
        eps=eps,
    )
    if known:
        atoms = torch.stack([reach(n, label) for n, label in known])
        fit = fit.with_labels([n * classes + label for n, label in known], atoms)
    unit = _unit([fit])
    for _ in range(_MOST_LABELS):
        if fit.explained(unit):
            break
        missing_NO = fit.missing_O.view(count, outputs) * scale_N1
        slopes = _slopes(tail, range(count), missing_NO).flatten()
        ranked = slopes.topk(min(_TRIED, len(slopes))).indices.tolist()
        atoms = torch.stack([reach(*divmod(place, classes)) for place in ranked])
        matches = [fit.match(place, atom) for place, atom in zip(ranked, atoms, strict=True)]
        best = max(range(len(ranked)), key=matches.__getitem__)
        grown = fit.with_labels([ranked[best]], atoms[best : best + 1])
        unit = unit or _unit([grown])
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


def _unit(fits: Sequence[_Fit]) -> float:
    """About one prediction's share of the loss; 0 where no label is known."""
    shares = [share for fit in fits for share in fit.shares_L.tolist() if share > 0]
    largest = max(shares, default=0.0)
    return float(torch.tensor([s for s in shares if s >= _HARDLY * largest]).median()) if shares else 0.0


def _candidates(tail: _Tail, nodes: Sequence[int], missing: Sequence[Tensor]) -> Iterator[list[int]]:
    """Labels worth trying at each of `nodes`, one for each at a time: those that point the missing part's way."""
    if len(tail.head_CD) <= _TRIED:
        yield from ([label] * len(nodes) for label in range(len(tail.head_CD)))
        return
    yield from _slopes(tail, nodes, torch.stack(list(missing))).topk(_TRIED, dim=1).indices.T.tolist()


def _slopes(tail: _Tail, nodes: Sequence[int], missing_NO: Tensor) -> Tensor:
    """About how well each label at each of `nodes` points the missing part's way, (N, C)."""
    head_CD, expected_ND = tail.head_CD, tail.expected_ND[list(nodes)]
    # The inner product with a label's part, over the norm that it would have if J were a multiple of the identity.
    slopes_ND = tail.push(nodes, missing_NO)
    along_NC = (slopes_ND * expected_ND).sum(1, keepdim=True) - slopes_ND @ head_CD.T
    squared_NC = expected_ND.square().sum(1, keepdim=True) - 2 * expected_ND @ head_CD.T + tail.squared_C
    return along_NC * squared_NC.clamp_min(1e-12).rsqrt()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """Labels after one beginning, and how well they make its Δ.

    Attributes:
        labels: those found, L of them.
        atoms_LO: what each adds to Δ for a share of 1.
        shares_L: least-squares shares.
        delta_O: Δ at the beginning.
        noise: squared norm that Δ may be off by.
        eps: relative rounding error of an entry of the atoms.
    """

    labels: tuple[int, ...]
    atoms_LO: Tensor
    shares_L: Tensor
    delta_O: Tensor
    noise: float
    eps: float

    @classmethod
    def of(cls, tail: _Tail, node: int) -> _Fit:
        """Without labels yet."""
        delta_O = tail.delta_NO[node]
        return cls(
            labels=(),
            atoms_LO=delta_O.new_empty(0, len(delta_O)),
            shares_L=delta_O.new_empty(0),
            delta_O=delta_O,
            noise=float(tail.noise_N[node]),
            eps=torch.finfo(tail.hidden.dtype).eps,
        )

    @cached_property
    def _basis_OL(self) -> Tensor:
        basis_OL: Tensor = torch.linalg.qr(self.atoms_LO.T).Q
        return basis_OL

    @cached_property
    def missing_O(self) -> Tensor:
        """What the labels leave of Δ."""
        return self.delta_O - self.shares_L @ self.atoms_LO

    def explained(self, unit: float) -> bool:
        """Whether they leave only rounding, or hardly anything of what one prediction more would add."""
        squared_L = self.atoms_LO.square().sum(1)
        rounded = float((self.shares_L.square() * squared_L).sum())
        allowed = _OUTSIDE * (self.noise + (_ROUNDINGS * self.eps) ** 2 * rounded)
        if self.labels:
            allowed = max(allowed, (_HARDLY * unit) ** 2 * float(squared_L.max()))
        return float(self.missing_O.square().sum()) <= allowed

    def match(self, label: int, atom_O: Tensor) -> float:
        """How much of the missing part one more label would take away, as a norm; 0 for one that's there."""
        if label in self.labels:
            return 0.0
        missing_O = self.missing_O
        if self.labels:
            atom_O = atom_O - self._basis_OL @ (self._basis_OL.T @ atom_O)
        return float(atom_O @ missing_O / atom_O.norm().clamp_min(torch.finfo(atom_O.dtype).tiny))

    def with_label(self, label: int, atom_O: Tensor) -> _Fit:
        """With one more label."""
        return self.with_labels([label], atom_O[None])

    def with_labels(self, labels: Sequence[int], more_LO: Tensor) -> _Fit:
        """With some more."""
        atoms_LO = torch.cat([self.atoms_LO, more_LO])
        shares_L = torch.linalg.lstsq(atoms_LO.T, self.delta_O[:, None]).solution[:, 0]
        return dataclasses.replace(self, labels=(*self.labels, *labels), atoms_LO=atoms_LO, shares_L=shares_L)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Tail:
    """What lies between the last linear layer that was shared and the head, at each of N beginnings.

    Attributes:
        places: row and position of each beginning.
        nodes_RT: the beginning that stands at each row and position, N behind its end.
        local: whether a label's gradient reaches its own position alone.
        shape: rows, and positions in each.
        output: the layer's output, where the graph begins.
        hidden: the head's input, where it ends.
        delta_NO: loss gradient at the layer's output, float64.
        noise_N: squared norm that it may be off by.
        whole: whether the beginnings' inputs make all of the layer's gradient.
        expected_ND: the head's rows, weighted by the prediction.
        head_CD: the head's rows.
        squared_C: their squared norms.
    """

    places: tuple[Tensor, Tensor]
    nodes_RT: Tensor
    local: bool
    shape: tuple[int, int]
    output: Tensor
    hidden: Tensor
    delta_NO: Tensor
    noise_N: Tensor
    whole: bool
    expected_ND: Tensor
    head_CD: Tensor
    squared_C: Tensor

    @classmethod
    def of(cls, model: TextModel, shared: SharedGradient, beginnings: Sequence[Row]) -> _Tail | None:
        """A forward pass of the beginnings; None where no such layer's gradient was shared."""
        head, last = model.head, _last_linear(model, shared)
        if head is None or last is None:
            return None
        weight_name, layer = last
        inner = {row[:t] for row in beginnings for t in range(1, len(row))}
        rows = [row for row in beginnings if row not in inner]
        ids = torch.full((len(rows), max(map(len, rows))), model.pad_id)
        mask = torch.zeros_like(ids)
        where: dict[Row, tuple[int, int]] = {}
        nodes_RT = torch.full_like(ids, len(beginnings))
        index = {row: n for n, row in enumerate(beginnings)}
        for r, row in enumerate(rows):
            ids[r, : len(row)] = torch.tensor(row)
            mask[r, : len(row)] = 1
            for t in range(len(row)):
                where[row[: t + 1]] = (r, t)
                # Repetitions of a first token stand for the same beginning.
                nodes_RT[r, t] = index.get(row[: t + 1], index.get(row[:1], len(beginnings)))
        input_RTI, output, hidden = _run(model, layer, head, ids.to(model.device), mask.to(model.device))
        hidden_RTD = hidden.view(*ids.shape, -1)
        rows_N, columns_N = torch.tensor([where[row] for row in beginnings], device=model.device).T
        X_NI = exact(input_RTI.view(*ids.shape, -1)[rows_N, columns_N])
        gradient_OI = exact(shared.gradients[weight_name]).to(X_NI.device)
        if not hasattr(layer, "in_features"):  # GPT-2 keeps its weights as (inputs, outputs)
            gradient_OI = gradient_OI.T
        solved = torch.linalg.lstsq(X_NI.T, gradient_OI.T).solution
        rest = gradient_OI - solved.T @ X_NI
        outputs, inputs = gradient_OI.shape
        variance = float(rest.square().sum()) / (outputs * max(1, inputs - len(X_NI)))
        inverse_N = torch.linalg.pinv(X_NI).square().sum(0)
        eps = torch.finfo(shared.gradients[weight_name].dtype).eps
        with torch.no_grad():
            logits_NC: Tensor = head(hidden_RTD[rows_N, columns_N])
            weight_CD = _weight(head).detach()
            expected_ND = logits_NC.to(model.loss_dtype).softmax(-1).to(weight_CD.dtype) @ weight_CD
        return cls(
            places=(rows_N, columns_N),
            nodes_RT=nodes_RT.to(model.device),
            local=_is_local(output, hidden_RTD),
            shape=(ids.shape[0], ids.shape[1]),
            output=output,
            hidden=hidden,
            delta_NO=solved,
            noise_N=outputs * variance * inverse_N,
            whole=float(rest.norm()) <= _WHOLE * eps * float(gradient_OI.norm()),
            expected_ND=expected_ND,
            head_CD=weight_CD,
            squared_C=weight_CD.square().sum(1),
        )

    def atoms(self, nodes: Sequence[int], labels: Sequence[int]) -> Tensor:
        """What a share of 1 for a label at each of `nodes` adds to Δ there: (N, O)."""
        rows_ND = self.expected_ND[list(nodes)] - self.head_CD[list(labels)]
        (slope,) = torch.autograd.grad(
            self.hidden, self.output, self._spread(nodes, rows_ND), retain_graph=True
        )
        return exact(self._gathered(nodes, slope))

    def reach(self, node: int, label: int) -> Tensor:
        """What a share of 1 for a label at a beginning adds to Δ at all of them: (N, O)."""
        row_1D = self.expected_ND[node : node + 1] - self.head_CD[label : label + 1]
        (slope,) = torch.autograd.grad(
            self.hidden, self.output, self._spread([node], row_1D), retain_graph=True
        )
        slope_PO = exact(self._by_place(slope)).flatten(0, 1)
        found_NO = slope_PO.new_zeros(len(self.delta_NO) + 1, slope_PO.shape[1])
        return found_NO.index_add(0, self.nodes_RT.flatten(), slope_PO)[:-1]

    def push(self, nodes: Sequence[int], changes_NO: Tensor) -> Tensor:
        """How the head's input at each of `nodes` changes with the layer's output: (N, D)."""
        direction = torch.zeros_like(self.hidden, requires_grad=True)
        (slope,) = torch.autograd.grad(
            self.hidden, self.output, direction, create_graph=True, retain_graph=True
        )
        if self.local:
            spread = self._spread(nodes, changes_NO.to(slope), like=self.output)
        else:
            padded = torch.cat([changes_NO, torch.zeros_like(changes_NO[:1])]).to(slope)
            spread = padded[self.nodes_RT].view_as(self.output)
        (change,) = torch.autograd.grad(slope, direction, spread, retain_graph=True)
        return self._gathered(nodes, change).detach()

    def _spread(self, nodes: Sequence[int], values_ND: Tensor, *, like: Tensor | None = None) -> Tensor:
        like = self.hidden if like is None else like
        rows, columns = (place[list(nodes)] for place in self.places)
        spread = torch.zeros_like(self._by_place(like))
        spread[rows, columns] = values_ND.to(spread)
        return spread.view_as(like)

    def _gathered(self, nodes: Sequence[int], values: Tensor) -> Tensor:
        rows, columns = (place[list(nodes)] for place in self.places)
        return self._by_place(values)[rows, columns]

    def _by_place(self, values: Tensor) -> Tensor:
        """Some networks run all sentences' tokens through a layer as one long list."""
        return values.reshape(*self.shape, -1)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _last_linear(model: TextModel, shared: SharedGradient) -> tuple[str, nn.Module] | None:
    """The last layer before the head whose gradient was shared, if its weight is used once; with its name."""
    order = [model.network.get_submodule(name) for name in matrix_calls(model)]
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    uses = Counter(names[id(module.weight)] for module in order)
    for module in order[: -_MOST_AFTER - 2 : -1]:
        name = names[id(module.weight)]
        if name in shared.gradients:
            return (name, module) if uses[name] == 1 else None
    return None


def _run(
    model: TextModel, layer: nn.Module, head: nn.Module, ids_RT: Tensor, mask_RT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's input and output, and the head's input, with the graph between the last two and nothing else."""
    seen: dict[str, Tensor] = {}

    def cut(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        seen["input"], seen["output"] = arguments[0].detach(), output.detach().requires_grad_(True)
        return seen["output"]

    def read(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen["hidden"] = arguments[0]
        raise _Enough

    handles = [layer.register_forward_hook(cut), head.register_forward_pre_hook(read)]
    try:
        with torch.enable_grad():
            model.network(inputs_embeds=model.embed(ids_RT), attention_mask=mask_RT)
    except _Enough:
        return seen["input"], seen["output"], seen["hidden"]
    finally:
        for handle in handles:
            handle.remove()
    raise ValueError(f"{model.name} never runs its head")


class _Enough(Exception):  # noqa: N818
    """Everything wanted was seen; not an error."""


def _is_local(output: Tensor, hidden_RTD: Tensor) -> bool:
    """Whether what the head reads at the last position depends on the layer's output there alone."""
    direction_D = torch.arange(1, hidden_RTD.shape[-1] + 1).cos().to(hidden_RTD)
    (slope,) = torch.autograd.grad((hidden_RTD[:, -1] @ direction_D).sum(), output, retain_graph=True)
    return not bool(slope.reshape(*hidden_RTD.shape[:2], -1)[:, :-1].any())


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
