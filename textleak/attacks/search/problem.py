"""A shared gradient and a public text model as a matching problem: what the engine needs, from text.

A guess of the batch is rows of symbols (see `textleak.matching.discrete`): a symbol is a token id, or, in masked
language modeling, a token id + V for a token that the network saw as a mask.

Shapes: K candidates, B sentences, T tokens, E embedding size, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from textleak.clients.view import View
from textleak.errors import InputError
from textleak.matching import Damage, Leaves, Matcher, Objective, Target
from textleak.matching.discrete import Guess
from textleak.matching.hooks import hooked
from textleak.matching.whitening import WhitenedMatcher, Whitening
from textleak.models import Targets, TextModel
from textleak.models.guesses import inputs_and_targets
from textleak.models.probes.statistics import arbitrary_inputs, attention_outputs
from textleak.shared.effects import hides_entries, lost_scale
from textleak.shared.gradient import SharedGradient

# Tokens of all candidates scored in one pass of the network (our choice: a few hundred MB for BERT-base's shape on a
# CPU; what else computes needs more at once to be busy, and halves it when its memory runs out).
_TOKENS_A_PASS = {"cpu": 1024}
_TOKENS_A_PASS_ELSEWHERE = 8192


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextProblem:
    """Scores guesses of a batch by the distance of their gradient from the shared one.

    Attributes:
        view: what the server sees.
        objective: the distance.
        drop_below: tensors whose norm is below this part of the largest one's are only rounding, and left out.
    """

    view: View
    objective: Objective
    drop_below: float = 1e-6  # our choice: float32 rounding of a gradient that is 0 in theory (key biases)

    @property
    def model(self) -> TextModel:
        """The public model."""
        model: TextModel = self.view.text_model
        return model

    @property
    def shared(self) -> SharedGradient:
        """The shared gradient."""
        return self.view.shared

    @property
    def vocab_size(self) -> int:
        """V, what divides plain symbols from hidden ones."""
        return self.model.vocab_size

    def _target(self, names: Sequence[str]) -> Target:
        """The shared gradient as the engine wants it; here attacks reckon with what the defenses did to it."""
        shared = self.shared
        noisy = shared.noise_sigma > 0
        damage = Damage(
            # Under noise of known strength, what the batch's tokens can't have made is noise.
            rank=self._highest_rank if noisy else None,
            noise_floor={name: shared.deviation(name) for name in names} if noisy else 0.0,
            masked=hides_entries(shared.effects),
            rescaled=lost_scale(shared.effects),
        )
        return Target.from_gradients(
            {name: shared.gradients[name] for name in names},
            damage,
            drop_below=self.drop_below,
            dtype=self.model.dtype,
            device=self.model.device,
        )

    @cached_property
    def _highest_rank(self) -> int | None:
        """The rank that a gradient has at most: uses of a weight by the batch's tokens; None for unknown lengths.

        A token uses a weight once, but for weights that several layers share.
        """
        lengths = self.shared.known.lengths
        if lengths is None:
            return None
        uses: Counter[int] = Counter()

        def count(module: nn.Module, _args: object) -> None:
            uses.update(id(parameter) for parameter in module.parameters(recurse=False))

        handles = [module.register_forward_pre_hook(count) for module in self.model.network.modules()]
        with hooked(handles):
            classes = () if self.model.num_labels is None else (0,)
            with torch.no_grad():
                self.losses(self.leaves([Guess(((self.model.pad_id,) * max(lengths),), classes)]))
        return sum(lengths) * max(uses.values())

    @cached_property
    def matcher(self) -> Matcher:
        """Matches every shared parameter, from ids."""
        return self.view.matcher(self._target(list(self.shared.gradients)), self.objective)

    @cached_property
    def soft_matcher(self) -> Matcher:
        """Matches what can be reached from embeddings: every shared parameter but the word embedding.

        Raises:
            InputError: nothing else was shared.
        """
        table = self.model.word_embedding.weight
        names = [name for name in self.shared.gradients if self.model.parameters[name] is not table]
        if not names:
            raise InputError(
                "Only the word embedding's gradient was shared.",
                why="Dummy embeddings leave no trace in it, so there is nothing to match.",
                fix="Share more (--share all), or choose an attack that reads embedding rows.",
            )
        return self.view.matcher(self._target(names), self.objective)

    @cached_property
    def whitened(self) -> Matcher | None:
        """Matches the attention outputs in whitened coordinates; None where none of them shows, or only in parts."""
        shared = self.shared.gradients
        layers = [layer for layer in attention_outputs(self.model) if layer.weight_name in shared]
        if not layers or hides_entries(self.shared.effects):
            return None
        if self.shared.noise_sigma > 0:
            try:
                target = self._target([layer.weight_name for layer in layers])
            except InputError:  # all of it is noise
                return None
            layers = [layer for layer in layers if layer.weight_name in target.tensors]
            shared = shared | {name: tensor.formed() for name, tensor in target.tensors.items()}
        inputs = arbitrary_inputs(self.model, tuple(layer.name for layer in layers))
        biases = {
            layer.weight_name: layer.bias_name
            for layer in layers
            if layer.bias_name and layer.bias_name in shared
        }
        names = [*(layer.weight_name for layer in layers), *biases.values()]
        return WhitenedMatcher(
            self.view.client.source(self.model.network, names),
            shared,
            {
                layer.weight_name: Whitening.of(
                    inputs[layer.name], centered=layer.weight_name in biases, transposed=layer.transposed
                )
                for layer in layers
            },
            biases,
            like=self.table_VE,
        )

    # From guesses

    def leaves(self, guesses: Sequence[Guess]) -> dict[str, Tensor]:
        """Guesses as tensors: inputs (K, B, T), mask, labels and weights as the loss takes them."""
        longest = max(len(row) for guess in guesses for row in guess.rows)
        pad = self.model.pad_id
        symbols_KBT = torch.tensor(
            [[[*row, *[pad] * (longest - len(row))] for row in guess.rows] for guess in guesses]
        )
        lengths_KB = torch.tensor([[len(row) for row in guess.rows] for guess in guesses])
        mask_KBT = (torch.arange(longest) < lengths_KB[..., None]).long()
        labels = torch.tensor([guess.classes for guess in guesses]) if guesses[0].classes else None
        inputs_KBT, targets = inputs_and_targets(
            self.model,
            ids=symbols_KBT % self.vocab_size,
            mask=mask_KBT,
            labels=labels,
            hidden=symbols_KBT >= self.vocab_size,
        )
        found = {
            "inputs": inputs_KBT,
            "mask": mask_KBT,
            "labels": targets.labels,
            "weights": targets.weights,
        }
        return {name: tensor.to(self.model.device) for name, tensor in found.items()}

    def losses(self, leaves: Leaves) -> Tensor:
        """Model function: inputs are ids or embeddings; labels are ids, probabilities, or given as logits."""
        labels = leaves["label_logits"].softmax(-1) if "label_logits" in leaves else leaves["labels"]
        return self.model.loss(
            leaves["inputs"], leaves["mask"], Targets(labels=labels, weights=leaves["weights"])
        )

    def candidates_a_pass(self, tokens: int) -> int:
        """How many candidates of so many tokens, padding counted, one pass of the network takes."""
        return max(1, _TOKENS_A_PASS.get(self.model.device.type, _TOKENS_A_PASS_ELSEWHERE) // tokens)

    def score(self, guesses: Sequence[Guess], matcher: Matcher | None = None) -> list[float]:
        """The distance of each guess, in passes of a bounded number of tokens; those of one size together."""
        matcher = matcher or self.matcher
        scores = [float("inf")] * len(guesses)
        sizes = [(len(guess.rows), max(map(len, guess.rows))) for guess in guesses]
        order = sorted(range(len(guesses)), key=sizes.__getitem__)
        for (sentences, longest), same in itertools.groupby(order, key=sizes.__getitem__):
            listed, size = list(same), self.candidates_a_pass(sentences * longest)
            for start in range(0, len(listed), size):
                chosen = listed[start : start + size]
                distances = matcher.evaluate(self.losses, self.leaves([guesses[i] for i in chosen]))
                for i, distance in zip(chosen, distances.tolist(), strict=True):
                    scores[i] = distance
        return scores

    # From dummies

    def embed(self, leaves: Leaves) -> dict[str, Tensor]:
        """The same leaves with embeddings (K, B, T, E) in place of ids."""
        return {**leaves, "inputs": self.model.embed(leaves["inputs"])}

    @cached_property
    def open_embedding(self) -> Tensor:
        """What stands where nothing is known, (E,): the mask token's embedding, else the mean of the table."""
        if self.model.mask_id is not None:
            return self.model.embed(torch.tensor(self.model.mask_id, device=self.model.device))
        return self.table_VE.mean(0)

    @cached_property
    def table_VE(self) -> Tensor:
        """The embedding of every token."""
        return self.model.embed(torch.arange(self.vocab_size, device=self.model.device)).detach()

    def label_slopes(self, guess: Guess) -> Tensor:
        """How fast the distance falls as probability moves to each label: (B, L, C)."""
        leaves = self.embed(self.leaves([guess]))
        leaves["labels"] = functional.one_hot(leaves["labels"], self.model.classes).to(leaves["inputs"].dtype)
        _, gradients = self.soft_matcher.value_and_gradient(self.losses, leaves, ["labels"])
        return -gradients["labels"][0]
