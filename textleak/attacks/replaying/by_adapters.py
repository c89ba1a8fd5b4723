"""One text of a decoder by what an optimizer made of its adapters' A, from left to right (our choice).

The gradient of A is a sum over what its layer reads. What an optimizer's steps make of it, blurred and with moments of
steps before that nobody sees, still has more of these inputs in its few directions than of any others: at each layer
that reads a beginning's end. So of beginnings those go on whose ends lie there most, in layers further and further in,
and that are likely texts, as the network itself is a language model. What earlier steps read shows as well, fainter;
the client's step replayed tells which text is this one's. That is a guess, more often wrong than right: of the two
texts on smollm2 that its constants were not chosen on it read one token in eight.

Shapes: V vocabulary, C beginnings, K tokens tried, I a layer's input size.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from textleak.attacks.replaying import ALONG
from textleak.attacks.replaying.scores import Replayed
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Sentence, Stop
from textleak.exact.adapters.measured import Measured, first_layers, in_first_round
from textleak.exact.adapters.within import Within
from textleak.exact.found import OPEN
from textleak.matching.discrete import Guess, Row, Scores
from textleak.models.decoding import to_sentence, unreachable_tokens
from textleak.models.probes.layers import following_layers, layer_inputs
from textleak.models.probes.packing import packed_inputs, packs
from textleak.models.probes.reach import sees_ahead
from textleak.models.running import run

# Inputs further in that are looked at, of those of the first part of the network (our choice; measured on smollm2 after
# AdamW's fourth step: a text's own hold 0.1 to 0.6, others 0.03, in the second layer and in the last).
_LAYERS, _PART = 6, 0.5
# Tokens tried after a beginning: so many by the first layers, as many by the language model. Beginnings that are kept,
# from one at most so many, and first tokens (our choice).
_TRIED, _KEPT, _SIBLINGS, _FIRST = 100, 8, 4, 24
# What lies within counts so many times beside the language model's logarithms (our choice; measured likewise: with 10
# " four-" comes before "the meeting", with 20 nothing but "nobody", of a step before).
_COUNTS = 20.0
# Texts and ends that are replayed, as a step takes a pass through all of the network (our choice).
_REPLAYED, _ENDS = 4, 6
# Texts of the likeliest tokens that show what lies there by chance, and their length (our choice).
_USUAL, _LENGTH = 200, 8
_TOKENS_A_PASS = 4096
# How sure a token is said to be (on smollm2 behind AdamW's fourth step 2 of 16 were right, of two texts).
_CONFIDENCE = 0.125
_NOTE = (
    "Of all texts that were tried this one's inputs lie most in what the optimizer's step left of the adapters' A: "
    "a guess, more often wrong than right. Texts of steps before, which an optimizer remembers, lie there too."
)


def reads_adapters(view: View) -> bool:
    """Whether this channel can work: a causal language model of which adapters' A moved, and little else tells."""
    model = view.text_model
    causal = model.task == "causal-lm" and not sees_ahead(model)
    layers = first_layers(model, view.shared) if causal else ()
    return bool(layers) and not layers[0].depends_on_position and not in_first_round(view)


def adapted_text(view: View, length: int) -> Generator[Phase | Progress, None, Recovery]:
    """A guess at the text that a step on adapters was taken on.

    Args:
        view: what the server sees; `reads_adapters` holds.
        length: tokens of the text.
    """
    yield Phase(name="beginnings", detail="beginnings whose ends lie in what the adapters' A moved along")
    search = _Beginnings(view)
    kept = search.first()
    while len(next(iter(kept))) < length - 1 and not view.clock.over:
        kept = search.grown(kept)
        likeliest = next(iter(kept))
        yield Progress(
            phase="beginnings",
            step=len(likeliest),
            steps=length - 1,
            sentences=(_sentence(view, (*likeliest, *(OPEN,) * (length - len(likeliest)))),),
            detail=f"{len(likeliest)} tokens",
        )
    rows = list(kept)
    if view.clock.over:
        return _recovery(view, (*rows[0], *(OPEN,) * (length - len(rows[0]))))
    yield Phase(name="replay", detail="the client's procedure replayed on guesses")
    scores = Scores(Replayed(view).scores)
    ends = {row: search.ends(row) for row in rows[:_REPLAYED]}
    best = Guess(((*rows[0], ends[rows[0]][0]),))
    rivals = [Guess(((*row, ends[row][0]),)) for row in rows[1:_REPLAYED]]
    for guess in rivals:
        best = _nearer(view, scores, best, guess)
    begun = best.rows[0][:-1]
    for end in ends[begun][1:]:
        best = _nearer(view, scores, best, Guess(((*begun, end),)))
    loss = scores([best])[best] if not view.clock.over else None
    return _recovery(view, best.rows[0], loss=loss, evaluations=scores.evaluations)


def _nearer(view: View, scores: Scores, best: Guess, other: Guess) -> Guess:
    """The one whose own update is nearer; the first one where time is up."""
    if view.clock.over:
        return best
    found = scores([best, other])
    return min(found, key=found.__getitem__)


def _recovery(view: View, row: Row, *, loss: float | None = None, evaluations: int = 0) -> Recovery:
    return Recovery(
        sentences=(_sentence(view, row),),
        stop=Stop.TIME if view.clock.over else Stop.CONVERGED,
        final_loss=loss,
        evaluations=evaluations,
        channel=ALONG,
        notes=(_NOTE,),
    )


def _sentence(view: View, row: Row) -> Sentence:
    sure = [_CONFIDENCE * (token != OPEN) for token in row]
    channels = [ALONG if token != OPEN else "" for token in row]
    return to_sentence(view.text_model, row, confidence=sure, channels=channels)


class _Beginnings:
    """Beginnings of a text, and how likely each is: in logarithms, by all layers and the language model."""

    def __init__(self, view: View) -> None:
        self.view, self.model = view, view.text_model
        self._barred = sorted(unreachable_tokens(self.model))
        draws = torch.Generator().manual_seed(0)  # public: any texts will do
        content = self.model.content_ids.cpu()
        alone = content[torch.randperm(len(content), generator=draws)[: _USUAL * _LENGTH]].tolist()
        first = Measured.of(view.shared, first_layers(self.model, view.shared))
        local = Within(self.model, [first], [(token,) for token in alone])
        every_V1 = torch.arange(self.model.vocab_size, device=self.model.device)[:, None]
        self._local_V = torch.cat(
            [
                _COUNTS * local.beyond(layer_inputs(self.model, part_N1, local.names)).cpu()[:, 0]
                for part_N1 in torch.split(every_V1, _TOKENS_A_PASS)
            ]
        )
        self._local_V[self._barred] = -torch.inf
        self.likely: Row = tuple(self._local_V.topk(min(2 * _TRIED, len(content))).indices.tolist())
        some = torch.tensor(self.likely)
        usual = [
            tuple(some[torch.randint(len(some), (_LENGTH,), generator=draws)].tolist()) for _ in range(_USUAL)
        ]
        self.within = Within(self.model, _further_in(view), usual)
        self.packs = bool(self.within.names) and packs(self.model, self.within.names[-1])

    def first(self) -> dict[Row, float]:
        """Beginnings of one token, or what the tokenizer begins with; the likeliest first."""
        if self.model.prefix_ids:
            return {self.model.prefix_ids: 0.0}
        ids_K1 = torch.tensor(self.likely, device=self.model.device)[:, None]
        worth_K = self._local_V[list(self.likely)]
        if self.within.names:
            worth_K = (
                worth_K + self.within.beyond(layer_inputs(self.model, ids_K1, self.within.names))[:, 0].cpu()
            )
        best = worth_K.topk(min(_FIRST, len(self.likely)))
        return {
            (self.likely[k],): worth
            for k, worth in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        }

    def grown(self, kept: dict[Row, float]) -> dict[Row, float]:
        """The likeliest beginnings with one token more."""
        found: dict[Row, float] = {}
        for row, worth in kept.items():
            expected_V = self._expected(row)
            foreseen = expected_V.topk(min(_TRIED, len(expected_V))).indices.tolist()
            tried = tuple(dict.fromkeys((*self.likely[:_TRIED], *foreseen)))
            more_K = self._ends_within(row, tried) + expected_V[list(tried)]
            best = more_K.topk(min(_SIBLINGS, len(tried)))
            for k, more in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                found[*row, tried[k]] = worth + more
            if self.view.clock.over:
                break
        surest = sorted(found, key=found.__getitem__, reverse=True)[:_KEPT]
        return {row: found[row] for row in surest}

    def ends(self, row: Row) -> list[int]:
        """What a text most likely ends with: no layer reads its last token."""
        return self._expected(row).topk(_ENDS).indices.tolist()

    def _expected(self, row: Row) -> Tensor:
        """Logarithm of each token's probability after a beginning, (V,)."""
        with torch.no_grad():
            logits_V = run(self.model, torch.tensor([row], device=self.model.device)).logits[0, -1]
        expected_V: Tensor = logits_V.float().log_softmax(-1).cpu()
        expected_V[self._barred] = -torch.inf
        return expected_V

    def _ends_within(self, row: Row, tokens: Sequence[int]) -> Tensor:
        """How much more than by chance of what each token makes layers read lies within, (K,)."""
        names = self.within.names
        if not names:
            return torch.zeros(len(tokens))
        if self.packs:
            read = {name: one[0] for name, one in packed_inputs(self.model, names, [row], tokens).items()}
        else:
            rows = torch.tensor([(*row, token) for token in tokens], device=self.model.device)
            read = {name: one[:, -1] for name, one in layer_inputs(self.model, rows, names).items()}
        return _COUNTS * self.within.beyond(read).cpu()


def _further_in(view: View) -> list[Measured]:
    """Inputs of the first part of the network that adapters measure, spread over it."""
    found = []
    for layers in following_layers(view.text_model, len(view.model.parameters)):
        read = [layer for layer in layers if layer.weight_name in view.shared.gradients]
        one = Measured.of(view.shared, read) if read else None
        if one is not None and one.gradient_MI.shape[1] >= view.text_model.hidden_size:
            found.append(one)
    some = found[: max(_LAYERS, int(_PART * len(found)))]
    return [some[i * len(some) // _LAYERS] for i in range(min(_LAYERS, len(some)))]
