"""A decoder's text from what LoRA's B reads of its inputs (`narrow`), token by token (our choice).

In the first layers a token's numbers lie in the span or don't, so that a few tokens are left: those after the first
one, which has no part in queries' gradients. Further in they depend on all that stands before, so that every beginning
shows what comes next, as in Petrov et al. 2024, and the second token which one is the first.

Shapes: V vocabulary, K tokens left, C beginnings, I a layer's input size.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.events import Phase, Progress
from textleak.exact.adapters.endings import read_endings
from textleak.exact.adapters.narrow import Narrow, narrow_spans, reads_narrow
from textleak.exact.found import OPEN, Found
from textleak.exact.subspace import OUTSIDE, InputSpan
from textleak.matching.discrete import Row
from textleak.models.base import Tensors
from textleak.models.decoding import to_sentence
from textleak.models.probes.layers import layer_inputs

# Tokens that are left at most, and those that run through the network at once (our choice).
_MOST, _TOKENS_A_PASS = 256, 4096
# A misfit below which one is as good as another (our choice).
_NOTHING = 1e-2
# Of a tensor's mean size: what is told more closely counts no more (our choice).
_FLOOR = 1e-3


def narrow_text(view: View) -> Generator[Phase | Progress, None, Found]:
    """The only text of a batch, as far as what narrow layers read tells it; nothing where this channel can't work.

    Args:
        view: what the server sees.
    """
    if not reads_narrow(view):
        return Found()
    model = view.text_model
    yield Phase(name="tokens", detail="tokens of which the adapters' B reads what their gradients span")
    narrow = narrow_spans(view)
    if not narrow.clear or not narrow.later:
        return Found(notes=(_full(narrow),))
    search = _Search(view, narrow)
    yield Progress(phase="tokens", step=1, detail=f"{len(search.tokens)} tokens")
    if not search.tokens:
        return Found(notes=("No token's inputs lie in what the adapters' B read.",))
    yield Phase(name="prefixes", detail="the beginning of the text that the later adapters read")
    row: Row = ()
    for row in search.grown():
        sentence = to_sentence(model, (*row, OPEN), confidence=_sure((*row, OPEN)))
        yield Progress(phase="prefixes", step=len(row), sentences=(sentence,), detail=f"{len(row)} tokens")
    if not row:
        return _unordered(view, search.tokens)
    length = view.shared.known.lengths
    complete = length is None or len(row) == length[0] - 1
    if not complete:
        row = (*row, *(OPEN,) * (length[0] - 1 - len(row))) if length else row
        return Found(rows=((*row, OPEN),), confidence=(_sure((*row, OPEN)),))
    yield Phase(name="labels", detail="what the text ends with")
    gradients, weights = _told(view)
    ended = (*row, OPEN)
    for step, (ends, off) in enumerate(read_endings(model, gradients, [row], view.clock, weights=weights), 1):
        ended = (*row, *ends)
        sentence = to_sentence(model, ended, confidence=_sure(ended))
        yield Progress(phase="labels", step=step, loss=off, sentences=(sentence,))
    return Found(rows=(ended,), complete=True)


class _Search:
    """Beginnings of one text.

    Attributes:
        tokens: what can stand after the first token, surest first.
    """

    def __init__(self, view: View, narrow: Narrow) -> None:
        self.view, self.model, self.later = view, view.text_model, narrow.later
        self.eps = torch.finfo(self.model.dtype).eps
        every_V1 = torch.arange(self.model.vocab_size, device=self.model.device)[:, None]
        misfits = self._misfits(every_V1, (*narrow.clear, *narrow.rough))
        clear_V = _mean(misfits[: len(narrow.clear)])
        inside = int((clear_V <= OUTSIDE).sum())
        self.tokens: Row = tuple(clear_V.argsort()[: min(inside, _MOST)].tolist())
        self._starts: Tensor = torch.stack(misfits).amin(0).argsort()

    def grown(self) -> Generator[Row, None, None]:
        """Beginnings, each a token longer than the one before."""
        row = self._begun()
        longest = self.view.shared.known.lengths
        most = (longest[0] if longest else self.model.max_length) - 1
        while row:
            yield row
            if len(row) >= most or self.view.clock.over:
                return
            row = next(iter(self._inside([(*row, token) for token in self.tokens])), ())

    def _begun(self) -> Row:
        """The first two tokens; nothing where none fit."""
        starts = [self.model.prefix_ids] if self.model.prefix_ids else [(s,) for s in self._starts.tolist()]
        some = max(1, _TOKENS_A_PASS // (len(starts[0]) + 1) // len(self.tokens))
        for place in range(0, len(starts), some):
            rows = [(*start, token) for start in starts[place : place + some] for token in self.tokens]
            found = self._inside(self._inside(rows, self.later[:1]))
            if found:
                return found[0]
            if self.view.clock.over:
                break
        return ()

    def _inside(self, rows: Sequence[Row], spans: Sequence[InputSpan] = ()) -> list[Row]:
        """The beginnings whose last inputs lie in spans, all later ones where none are named; surest first."""
        if not rows:
            return []
        ids_CT = torch.tensor(rows, device=self.model.device)
        mean_C = _mean(self._misfits(ids_CT, spans or self.later))
        return [rows[c] for c in mean_C.argsort().tolist() if float(mean_C[c]) <= OUTSIDE]

    def _misfits(self, ids_CT: Tensor, spans: Sequence[InputSpan]) -> list[Tensor]:
        """How far the inputs at the end of texts lie outside each of some spans, as `InputSpan.misfit` has it."""
        names = [span.layers[0] for span in spans]
        found: list[list[Tensor]] = [[] for _ in spans]
        for part_CT in torch.split(ids_CT, max(1, _TOKENS_A_PASS // ids_CT.shape[1])):
            read = layer_inputs(self.model, part_CT, names)
            for one, span, name in zip(found, spans, names, strict=True):
                one.append(span.misfit(read[name][:, -1], eps=self.eps).cpu())
        return [torch.cat(one) for one in found]


def _mean(misfits: Sequence[Tensor]) -> Tensor:
    """Layers count alike: what isn't there is far outside most of them, and what is may lie outside one."""
    return torch.stack(list(misfits)).clamp_min(_NOTHING).log().mean(0).exp()


def _told(view: View) -> tuple[Tensors, Tensors | None]:
    """The gradient as far as it is told, and how much each entry counts; None where all do alike."""
    seen = view.shared.gradients
    bounds = view.client.bounds(seen, view.model)
    if bounds is None:
        return seen, None
    gradients, weights = {}, {}
    for name, (low, high) in bounds.items():
        told = (high - low).isfinite()
        middle, half = (low + high) / 2, (high - low) / 2
        size = middle[told].square().mean().sqrt() if bool(told.any()) else middle.new_ones(())
        counts = size / (half + _FLOOR * size)
        gradients[name] = torch.where(told, middle, 0.0).to(seen[name])
        weights[name] = torch.where(told, counts, 0.0).to(seen[name])
    return gradients, weights


def _full(narrow: Narrow) -> str:
    return (
        f"An adapter's B reads {narrow.size} numbers of each input, and its gradient tells which tokens these are of "
        "while there are fewer tokens. This text's fill them, or what the step left of the gradient is too little."
    )


def _unordered(view: View, tokens: Row) -> Found:
    lengths = view.shared.known.lengths
    note = f"{len(tokens)} tokens can stand after the first one; in which order they do was not found."
    return Found(sets=(tokens,) * (lengths[0] if lengths else 1), notes=(note,))


def _sure(row: Row) -> tuple[float, ...]:
    return tuple(float(token != OPEN) for token in row)
