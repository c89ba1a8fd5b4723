"""Dummy embeddings and soft labels that stand in for a batch of sentences while its gradient is matched.

Shapes: K candidates, B sentences, T tokens, E embedding size, L predictions a sentence, C classes, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from textleak.errors import InputError
from textleak.events import Sentence, Tokens
from textleak.matching import Kin, Leaves, Matcher
from textleak.models import Targets, TextModel
from textleak.models.decoding import fixed_tokens, nearest_tokens, to_sentence, unreachable_tokens
from textleak.shared.gradient import SharedGradient

# Tokens shown for a position beside the nearest one.
_CANDIDATES = 3


def known_lengths(shared: SharedGradient) -> tuple[int, ...]:
    """Tokens of each sentence, as the server was told.

    Raises:
        InputError: it wasn't.
    """
    if shared.known.lengths is None:
        raise InputError(
            "The sentences' lengths are not known.",
            why="This attack optimizes dummies of the batch's own shape, and can't find out that shape.",
            fix="Tell the attacker with --know lengths,batch-size, or use --attack match, which looks.",
        )
    return shared.known.lengths


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dummies:
    """Stand-ins for a batch of which only the lengths are known.

    Attributes:
        model: the public model.
        lengths: tokens of each of the B sentences.
        labels_KB: classes that are held fixed; None where soft labels are optimized.
    """

    model: TextModel
    lengths: tuple[int, ...]
    labels_KB: Tensor | None = None
    # Runs on text go on to the end: nearest tokens may change long after the distance hardly does.
    tolerance: ClassVar[None] = None
    patience: ClassVar[None] = None
    turns: ClassVar[None] = None
    parts: ClassVar[tuple[()]] = ()
    project: ClassVar[None] = None

    @cached_property
    def _mask_BT(self) -> Tensor:
        return (torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]).long()

    @cached_property
    def _fixed_BT(self) -> Tensor:
        """Ids where the tokenizer fixes them, padding's beyond the end, −1 where a token is looked for."""
        fixed_BT = torch.where(self._mask_BT == 1, -1, self.model.pad_id)
        for b, length in enumerate(self.lengths):
            for t, token in fixed_tokens(self.model, length).items():
                fixed_BT[b, t] = token
        return fixed_BT

    @cached_property
    def _table_VE(self) -> Tensor:
        with torch.no_grad():
            return self.model.embed(torch.arange(self.model.vocab_size, device=self.model.device))

    @cached_property
    def _no_text(self) -> frozenset[int]:
        return unreachable_tokens(self.model)

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves that are optimized."""
        names = ["embeddings"]
        if self.labels_KB is None:
            names.append("labels")
        if self.model.task == "masked-lm":
            names.append("places")
        return tuple(names)

    def value_and_gradient(self, matcher: Matcher, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized: the distance."""
        return matcher.value_and_gradient(self.losses, leaves, self.free, kin=self.kin)

    @property
    def kin(self) -> Kin | None:
        """Dummies of other batches that go into the same call: as many sentences, of any length, of the same model."""
        return Kin(key=(id(self.model.network), self.free), along=self._along_filled)

    def _along_filled(self, name: str) -> tuple[int, ...]:
        """The dimensions of any leaf, those given too, along which a shorter batch is filled up with padding."""
        whole = ("labels", "weights") if self.model.task == "classification" else ()
        return () if name in whole else (2,)

    def pixels(self, leaves: Leaves) -> None:
        """None: these are sentences."""
        del leaves

    def shows(self, step: int) -> bool:
        """Every progress does."""
        del step
        return True

    def shown(self, leaves: Leaves, k: int, *, coarse: bool) -> dict[str, Any]:
        """Candidate k's sentences, as fields of a progress or recovery."""
        del coarse
        return {"sentences": self.decode(leaves, k)}

    def others(self, leaves: Leaves) -> tuple[Tokens, ...]:
        """Every candidate's tokens, where there are several."""
        count = len(leaves["embeddings"])
        return tuple(
            tuple(tuple((p.id, p.text) for p in s.positions) for s in self.decode(leaves, k))
            for k in range(count if count > 1 else 0)
        )

    def draw(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Where candidates start: N(0, 1), drawn on the CPU so that every device starts alike."""
        B, T = self._mask_BT.shape
        predictions = 1 if self.model.task == "classification" else T
        shapes = {
            "embeddings": (B, T, self.model.embedding_size),
            "labels": (B, predictions, self.model.classes),
            "places": (B, T),
        }
        return {
            name: torch.randn(candidates, *shape, generator=generator).to(self._table_VE)
            for name, shape in shapes.items()
            if name in self.free
        }

    def along_tokens(self, name: str) -> tuple[int, ...]:
        """The dimensions of a leaf that go along the tokens of its sentences; candidates and sentences come first."""
        return () if name == "labels" and self.model.task == "classification" else (2,)

    def start(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """All leaves: those that are optimized, and what the model function reads beside them."""
        return {**self.given(candidates), **self.draw(candidates, generator)}

    def given(self, candidates: int) -> dict[str, Tensor]:
        """What the model function reads beside the leaves that are optimized."""
        model = self.model
        fixed_BT = self._fixed_BT.to(model.device)
        mask_BT = self._mask_BT.to(model.device)
        leaves = {
            "mask": mask_BT,
            "open": fixed_BT < 0,
            "fixed": self._table_VE[fixed_BT.clamp_min(0)],
        }
        if model.task == "classification":
            leaves["weights"] = torch.full_like(mask_BT[:, :1], 1.0, dtype=model.loss_dtype) / len(mask_BT)
        elif model.task == "causal-lm":
            leaves["weights"] = model.causal_targets(mask_BT, mask_BT).weights
        expanded = {name: leaf.expand(candidates, *leaf.shape) for name, leaf in leaves.items()}
        if self.labels_KB is not None:
            expanded["labels"] = self.labels_KB[..., None].to(model.device)
        return expanded

    def losses(self, leaves: Leaves) -> Tensor:
        """The model function."""
        embeddings = torch.where(leaves["open"][..., None], leaves["embeddings"], leaves["fixed"])
        labels = leaves["labels"] if self.labels_KB is not None else leaves["labels"].softmax(-1)
        weights = leaves["weights"] if "places" not in leaves else self._shares(leaves)
        return self.model.loss(embeddings, leaves["mask"], Targets(labels=labels, weights=weights))

    def _shares(self, leaves: Leaves) -> Tensor:
        """Each position's share of the loss of masked language modeling, (K, B, T)."""
        places = leaves["places"].masked_fill(~leaves["open"], -torch.inf)
        return places.flatten(1).softmax(-1).view_as(places)

    def rounded(self, leaves: Leaves) -> dict[str, Tensor]:
        """The same candidates with every embedding that of the token it stands for."""
        longest = max(self.lengths)
        rows = [
            [
                [self.model.mask_id if p.masked else p.id for p in sentence.positions]
                + [self.model.pad_id] * (longest - len(sentence.positions))
                for sentence in self.decode(leaves, k)
            ]
            for k in range(len(leaves["embeddings"]))
        ]
        return {**leaves, "embeddings": self._table_VE[torch.tensor(rows, device=self._table_VE.device)]}

    def decode(self, leaves: Leaves, k: int) -> tuple[Sentence, ...]:
        """The sentences that candidate k stands for, with cosine similarities as confidence."""
        posterior_BLC = self._posterior(leaves, k)
        return tuple(
            self._sentence(leaves["embeddings"][k, b, :length], posterior_BLC[b], self._fixed_BT[b, :length])
            for b, length in enumerate(self.lengths)
        )

    def _posterior(self, leaves: Leaves, k: int) -> Tensor:
        if self.labels_KB is None:
            return leaves["labels"][k].softmax(-1)
        return functional.one_hot(self.labels_KB[k], self.model.classes)[:, None].float()

    def _sentence(self, embeddings_TE: Tensor, posterior_LC: Tensor, fixed_T: Tensor) -> Sentence:
        model = self.model
        classifies = model.task == "classification"
        mask_id = model.mask_id if model.task == "masked-lm" else None
        found = nearest_tokens(
            embeddings_TE,
            self._table_VE,
            candidates=1 + _CANDIDATES,
            excluded=self._no_text - {mask_id} if mask_id is not None else self._no_text,
        )
        ranked = _pairs(found.ids_NC, found.similarity_NC.clamp(0, 1))
        hidden = [mask_id is not None and pairs[0][0] == mask_id for pairs in ranked]
        if not classifies:
            barred = torch.tensor(sorted(self._no_text), dtype=torch.long, device=posterior_LC.device)
            top = posterior_LC.index_fill(-1, barred, 0.0).topk(1 + _CANDIDATES)
            labels = _pairs(top.indices, top.values)
            for t in range(len(ranked)):
                if hidden[t]:
                    ranked[t] = labels[t]
                elif model.task == "causal-lm" and t == len(ranked) - 1 > 0:
                    ranked[t] = labels[t - 1]
        for t, token in enumerate(fixed_T.tolist()):
            if token >= 0:
                ranked[t], hidden[t] = [(token, 1.0)], False
        return to_sentence(
            model,
            [pairs[0][0] + model.vocab_size * masked for pairs, masked in zip(ranked, hidden, strict=True)],
            confidence=[pairs[0][1] for pairs in ranked],
            channels=["" if token >= 0 else "matching" for token in fixed_T.tolist()],
            candidates=[pairs[1:] for pairs in ranked],
            label=int(posterior_LC[0].argmax()) if classifies else None,
            label_posterior=posterior_LC[0].tolist() if classifies else (),
        )


def _pairs(ids_NC: Tensor, scores_NC: Tensor) -> list[list[tuple[int, float]]]:
    """(id, score) of each position's tokens, best first."""
    return [
        list(zip(ids, scores, strict=True))
        for ids, scores in zip(ids_NC.tolist(), scores_NC.tolist(), strict=True)
    ]
