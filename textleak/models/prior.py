"""A causal language model as a prior: which of two texts is the likelier English, whatever was attacked.

The prior has a vocabulary of its own: texts go in, not ids. It is public, like the attacked model, and knows nothing of
gradients.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

from textleak.errors import InputError
from textleak.models import TextModel, load_model

# Tokens that the prior reads in one pass (our choice: 100 MB of logits over 50,000 words).
_TOKENS_A_PASS = 512
# What the texts that GPT-2's descendants learned from stand between. SmolLM2 takes "the boy ran." for likelier than
# "boy the ran." by 2.2 nats a token after it, by 1.5 after the token that its tokenizer says texts begin with (which
# begins a turn of a chat), and for less likely with nothing before.
_BETWEEN_TEXTS = "<|endoftext|>"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LanguagePrior:
    """How likely texts are.

    Attributes:
        model: a causal language model.
    """

    model: TextModel
    _known: dict[str, tuple[float, int]] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, name: str, device: torch.device) -> LanguagePrior:
        """The prior of that name, with its pretrained weights; the last one loaded stays in memory.

        Args:
            name: alias, hub id, folder or .gguf file.
            device: where it computes.

        Raises:
            InputError: no such model, no pretrained weights of it at hand, or one that isn't causal.
        """
        return cls(model=_load(name, "mps" if device.type == "mps" else str(device)))

    def losses(self, batches: Sequence[Sequence[str]]) -> list[float]:
        """The cross entropy a token of each batch of texts, in nats: the logarithm of its perplexity."""
        asked = dict.fromkeys(text for texts in batches for text in texts)
        self._known.update(self._read([text for text in asked if text not in self._known]))
        found = []
        for texts in batches:
            read = [self._known[text] for text in texts]
            found.append(sum(loss for loss, _ in read) / max(1, sum(tokens for _, tokens in read)))
        return found

    @functools.cached_property
    def _before(self) -> list[int]:
        """What stands before a text, so that its first token is predicted too."""
        tokenizer = self.model.tokenizer
        if self.model.prefix_ids:
            return list(self.model.prefix_ids)
        if _BETWEEN_TEXTS in tokenizer.get_vocab():
            return [tokenizer.convert_tokens_to_ids(_BETWEEN_TEXTS)]
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    @property
    def _unscored(self) -> int:
        """Tokens at the beginning that nothing predicts, or that aren't the text's own."""
        return max(1, len(self._before))

    def _read(self, texts: Sequence[str]) -> Iterator[tuple[str, tuple[float, int]]]:
        """Each text with the sum of its tokens' cross entropies and their number; those of similar length together."""
        rows = []
        for text in texts:
            ids = self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            row = [*self._before, *ids][: self.model.max_length]
            if len(row) > self._unscored:
                rows.append((text, row))
            else:
                yield text, (0.0, 0)
        rows.sort(key=lambda pair: len(pair[1]))
        while rows:
            size = max(1, _TOKENS_A_PASS // len(rows[-1][1]))
            rows, part = rows[:-size], rows[-size:]
            losses = self._cross_entropies([row for _, row in part])
            for (text, row), loss in zip(part, losses, strict=True):
                yield text, (loss, len(row) - self._unscored)

    def _cross_entropies(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The sum of each row's."""
        longest, device, first = max(map(len, rows)), self.model.device, self._unscored
        padded = [[*row, *[self.model.pad_id] * (longest - len(row))] for row in rows]
        ids_NT = torch.tensor(padded, device=device)
        lengths_N = torch.tensor([len(row) for row in rows], device=device)
        mask_NT = (torch.arange(longest, device=device) < lengths_N[:, None]).long()
        with torch.no_grad():
            logits_NTV = self.model.network(input_ids=ids_NT, attention_mask=mask_NT).logits
            losses_NT = functional.cross_entropy(
                logits_NTV[:, first - 1 : -1].flatten(0, 1).to(self.model.loss_dtype),
                ids_NT[:, first:].flatten(),
                reduction="none",
            ).view(len(rows), -1)
        sums: list[float] = (losses_NT * mask_NT[:, first:]).sum(-1).tolist()
        return sums


@functools.lru_cache(maxsize=1)
def _load(name: str, device: str) -> TextModel:
    try:
        return load_model(name, weights="pretrained", task="causal-lm", device=device)
    except InputError as error:
        raise InputError(
            f"{name!r} can't be the language-model prior.",
            why=f"{error.what} {error.why}".strip(),
            fix="Give a causal language model with pretrained weights to --prior, for example smollm2 or gpt2.",
        ) from error
