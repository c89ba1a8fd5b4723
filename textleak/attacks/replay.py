"""Replay (our choice): ranked tokens, then descent with the client's own procedure replayed on each guess.

What several local steps or an optimizer make of a gradient still has the tokens' inputs in its row spaces, blurred:
they rank the vocabulary at each position. Which of the first ones it was is told by what the client would have sent.

1. The vocabulary is ranked by the leading directions of the first layer's updates, as many as there are tokens.
2. From the first token of each list and every label, one position after the other takes the token whose replayed
   update points nearest to the one seen; a cheaper client stands in where there is one (`Client.proxy`).
3. The answer is certified by the whole procedure.

Shapes: T positions, R directions, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from textleak.attacks.base import ATTACKS, Steps, certified
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Phase, Progress, Recovery, Sentence, Stop
from textleak.exact.subspace import as_rows, rank_vocabulary, span_of
from textleak.matching.discrete import Guess, Scores, substitutions
from textleak.models.base import Modality
from textleak.models.decoding import fixed_tokens, to_sentence, unreachable_tokens
from textleak.models.guesses import examples_of
from textleak.models.probes.layers import local_layers
from textleak.numerics import exact
from textleak.proof.certificate import Certificate, certify
from textleak.shared.traits import Trait

# Tensors whose norm is below this part of the largest one's are only rounding, and not compared; of the others the
# first ones up to so many entries: an optimizer's step over all of them costs more than the gradient (our choice).
_DROPPED, _COMPARED = 1e-6, 4_000_000


@ATTACKS.register("replay")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """Tokens ranked by what an update spans, then the client's own steps replayed on each guess; one sentence.

    Attributes:
        proposals: tokens tried at each position.
        sweeps: rounds over all positions, at most.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.REPEATABLE})
    when: ClassVar[str] = "several local steps, one sentence"
    paper: ClassVar[str] = "ours"

    # Measured on minilm: after one clipped AdamW step, or ten, true tokens are among the first 12 of their lists.
    proposals: Annotated[int, Field(ge=1)] = 24
    sweeps: Annotated[int, Field(ge=1)] = 4
    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Raises:
            InputError: more than one sentence, an unknown length, or no first layer's gradient.
        """
        del generator  # nothing is drawn
        model, lengths = view.text_model, view.shared.known.lengths
        if lengths is None or len(lengths) != 1:
            raise InputError(
                "replay reads one sentence whose length is known.",
                why="Its lists say what stands at each position, not in which sentence of a batch.",
                fix="Tell the length with --know lengths,batch-size, or use --attack auto.",
            )
        yield Phase(name="proposals", detail="tokens ranked by the directions of the first layer's update")
        lists = ranked_tokens(view, lengths[0], self.proposals)
        scores = Scores(_Replayed(view).scores)
        labels = () if model.num_labels is None else view.shared.known.labels or (0,)
        best = Guess((tuple(tokens[0] for tokens in lists),), labels)
        turns = [turn for turn, tokens in enumerate(lists) if len(tokens) > 1]
        if model.num_labels is not None and view.shared.known.labels is None:
            turns.insert(0, -1)
        yield Phase(name="replay", detail="the client's procedure replayed on guesses")
        certificate = Certificate(gradient_distance=None, verified=False)
        for sweep in range(1, self.sweeps + 1):
            before = best
            for turn in turns:
                found = scores([best, *_followers(best, lists, turn, model.num_labels or 0)])
                best = min(found, key=found.__getitem__)
                yield Progress(
                    phase="replay",
                    step=sweep,
                    steps=self.sweeps,
                    loss=found[best],
                    evaluations=scores.evaluations,
                    sentences=_sentences(view, best),
                )
                if turn < 0 and sweep == 1:  # the first tokens of all lists may be it
                    certificate = certify(view, _sentences(view, best))
                if view.clock.over or certificate.verified:
                    break
            if best == before or view.clock.over or certificate.verified:
                break
        if not certificate.verified:
            yield Phase(name="verify", detail="the answer's own update")
            certificate = certify(view, _sentences(view, best))
        recovery = Recovery(
            sentences=_sentences(view, best),
            stop=Stop.TIME if view.clock.over else Stop.CONVERGED,
            final_loss=scores([best])[best],
            evaluations=scores.evaluations,
            channel="replay",
            notes=certificate.notes,
        )
        return certified(recovery, certificate)


def ranked_tokens(view: View, length: int, keep: int) -> list[list[int]]:
    """For each position of a sentence the tokens whose input the update spans best; those that are fixed alone.

    Raises:
        InputError: no first layer's gradient was shared.
    """
    model, seen = view.text_model, view.shared.gradients
    layers = [layer for layer in local_layers(model) if layer.weight_name in seen and layer.used_once]
    layers = [layer for layer in layers if layer.input_group == layers[0].input_group]
    if not layers or not layers[0].depends_on_position:
        raise InputError(
            "No first layer's gradient that tells positions apart was shared.",
            why="Tokens are ranked by the directions of its update.",
            fix="Share more (--share no-embeddings, or all), or use another attack.",
        )
    stacked_OI = torch.cat([_unit(as_rows(seen[layer.weight_name], layer)) for layer in layers])
    _, s_R, basis_RI = torch.linalg.svd(stacked_OI, full_matrices=False)
    rank = min(length, len(s_R) - 1)
    span = span_of(
        [layer.name for layer in layers],
        s_R[:rank],
        basis_RI[:rank],
        shape=(len(stacked_OI), stacked_OI.shape[1]),
        noise=float(s_R[rank]),
        clear=True,
    )
    fixed, barred = fixed_tokens(model, length), unreachable_tokens(model)
    lists = []
    for position, ranked in rank_vocabulary(
        model, layers[0], span, positions=length, keep=keep + len(barred)
    ):
        tokens = [token for token, _ in ranked if token not in barred][:keep]
        lists.append([fixed[position]] if position in fixed else tokens)
    return lists


def _unit(gradient_OI: Tensor) -> Tensor:
    """A layer's gradient at norm 1, so that layers count alike."""
    precise_OI = exact(gradient_OI)
    scaled_OI: Tensor = precise_OI / precise_OI.norm().clamp_min(torch.finfo(precise_OI.dtype).tiny)
    return scaled_OI


class _Replayed:
    """Scores guesses by how far what the client would have sent points from what it sent.

    Args:
        view: what the server sees.
    """

    def __init__(self, view: View) -> None:
        seen = view.shared.gradients
        norms = {name: float(exact(value).norm()) for name, value in seen.items()}
        largest, entries = max(norms.values()), 0
        self.norms: dict[str, float] = {}
        for name, norm in norms.items():
            if norm > _DROPPED * largest and (entries < _COMPARED or not self.norms):
                self.norms[name] = norm
                entries += seen[name].numel()
        compared = dataclasses.replace(view.shared, gradients={name: seen[name] for name in self.norms})
        self.view = dataclasses.replace(view, client=view.client.proxy(), shared=compared)

    def scores(self, guesses: Sequence[Guess]) -> list[float]:
        """The mean over tensors of 1 − cosine, for each guess."""
        return [self._score(guess) for guess in guesses]

    def _score(self, guess: Guess) -> float:
        own = self.view.own(examples_of(self.view.text_model, guess.rows, guess.classes))
        seen = self.view.shared.gradients
        total = 0.0
        for name, norm in self.norms.items():
            mine = own[name].flatten() if name in own else torch.zeros(1)
            length = float(mine.norm())
            if length > 0:
                total += float(mine @ seen[name].flatten().to(mine)) / (length * norm)
        return 1 - total / len(self.norms)


def _followers(guess: Guess, lists: Sequence[Sequence[int]], turn: int, classes: int) -> list[Guess]:
    """What is tried in a guess's place: at turn −1 every label, else the tokens of a position."""
    if turn < 0:
        return [guess.with_class(0, label) for label in range(classes)]
    return list(substitutions(guess, 0, turn, lists[turn]))


def _sentences(view: View, guess: Guess) -> tuple[Sentence, ...]:
    V = view.text_model.vocab_size
    return tuple(
        to_sentence(
            view.text_model,
            [symbol % V for symbol in row],
            channels=["replay"] * len(row),
            label=guess.classes[b] if guess.classes else None,
        )
        for b, row in enumerate(guess.rows)
    )
