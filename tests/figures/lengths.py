"""Whether adapters' updates behind dropout tell a text from one with a token more or less: a row an update.

python -m tests.figures.lengths 1000 8 1004 1007 1008 1018 3013

Each is one step of one sentence on adapters of PEFT, B = 0, made with the settings drawn from a seed
(`tests/inference/recorded.py`: 1000 times the seed of `tests.figures.inference` and the draw). Texts are scored as an
attack can that doesn't know what was dropped: by the cosine between the gradient of what they would have without
dropout and what was sent, in the mean over the adapters' B.

Shapes: N masks, P the entries of all B.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import torch
from torch import Tensor, nn

import textleak
from tests.inference.recorded import Settings, prepared, record
from textleak.inference.base import Seen
from textleak.inference.estimates import estimate_of
from textleak.models import TextModel

_LEAST_ID = 1000  # of BERT's vocabulary: what is below isn't words


def main() -> None:
    """Parse, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seeds", nargs="+", type=int, help="of drawn settings")
    parser.add_argument("--others", type=int, default=50, help="words and insertions that are tried")
    parser.add_argument("--masks", type=int, default=60, help="updates that either of two texts is given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = textleak.load_model("minilm")
    for seed in options.seeds:
        began = time.process_time()
        update = Update(model, Settings.drawn(seed))
        right = {share: update.above(share, options.others) for share in (0.0, 0.5, 1.0)}
        more, less = update.others(options.others)
        other = max((*more, *less), key=update.score)
        sys.stdout.write(
            f"{seed}: dropout {update.settings.dropout}, rank {update.settings.rank}, {len(update.ids)} tokens; "
            f"of {options.others} other words above the right one where all others are right {right[0.0]}, half "
            f"{right[0.5]}, none {right[1.0]}; cosine of the text {update.score(update.ids):.3f}, of the best with one "
            f"more {max(map(update.score, more)):.3f}, one less {max(map(update.score, less)):.3f}; told from the best "
            f"of these {update.told(other, options.masks):.2f}; {time.process_time() - began:.0f} CPU-s\n"
        )
        sys.stdout.flush()


class Update:
    """One update with the text that made it."""

    def __init__(self, model: TextModel, settings: Settings) -> None:
        """Record it.

        Args:
            model: the public model.
            settings: of one step, one sentence, with dropout and adapters.
        """
        assert (settings.steps, settings.batch_size) == (1, 1)
        assert settings.rank
        assert settings.dropout
        self.settings, self.vocab_size = settings, model.vocab_size
        recorded = record(model, settings)
        (text,) = recorded.texts
        self.ids = tuple(model.tokenizer(text)["input_ids"])
        torch.manual_seed(settings.seed)
        self.network = prepared(model, settings)  # its adapters are drawn as they were
        self.matrices: list[nn.Parameter] = []
        kind = "update" if settings.optimizer else "gradient"
        seen = Seen(sent=recorded.sent, model=model, before=recorded.before, given=kind)
        sent: list[Tensor] = []
        for name, parameter in self.network.named_parameters():
            if ".lora_B." in name:
                plain = name.removeprefix("base_model.model.").replace(".default", "")
                estimate = estimate_of(seen, plain)
                assert estimate is not None
                sent.append(estimate.value.float())
                self.matrices.append(parameter)
        self.sent_P = _units(sent)
        self.draws = random.Random(0)
        self.network.eval()
        self.label = max((0, 1), key=lambda label: float(self._gradient(self.ids, label) @ self.sent_P))

    def score(self, ids: tuple[int, ...]) -> float:
        """The cosine of a text's own gradient without dropout with what was sent, in the mean over matrices."""
        return float(self._gradient(ids, self.label) @ self.sent_P) / len(self.matrices)

    def above(self, wrong: float, count: int) -> list[int]:
        """At up to four places, how many of so many other words score above the right one.

        Args:
            wrong: the share of the other places that have a word drawn at random.
            count: of other words.
        """
        inner = range(1, len(self.ids) - 1)
        found = []
        for place in self.draws.sample(inner, min(4, len(inner))):
            text = list(self.ids)
            rest = [at for at in inner if at != place]
            for at in self.draws.sample(rest, round(wrong * len(rest))):
                text[at] = self._word()
            right = self.score(tuple(text))
            others = [(*text[:place], self._word(), *text[place + 1 :]) for _ in range(count)]
            found.append(sum(self.score(other) >= right for other in others))
        return found

    def others(self, count: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The text with so many words put in, one at a time, and with each of its own left out."""
        ids, inner = self.ids, range(1, len(self.ids) - 1)
        at = self.draws.choices(range(1, len(ids)), k=count)
        return [(*ids[:t], self._word(), *ids[t:]) for t in at], [(*ids[:t], *ids[t + 1 :]) for t in inner]

    def told(self, other: tuple[int, ...], masks: int) -> float:
        """How often what either of two texts gives, behind masks of its own, is nearer to its own clean gradient."""
        own_P, other_P = (self._gradient(ids, self.label) for ids in (self.ids, other))
        self.network.train()
        right = 0.0
        for ids, nearer_P, farther_P in ((self.ids, own_P, other_P), (other, other_P, own_P)):
            dropped_NP = torch.stack([self._gradient(ids, self.label) for _ in range(masks)])
            right += float((dropped_NP @ nearer_P > dropped_NP @ farther_P).float().mean()) / 2
        self.network.eval()
        return right

    def _word(self) -> int:
        return self.draws.randrange(_LEAST_ID, self.vocab_size)

    def _gradient(self, ids: tuple[int, ...], label: int) -> Tensor:
        """Of all B, each scaled to a norm of 1, (P,)."""
        self.network.zero_grad()
        ids_1T = torch.tensor(ids)[None]
        mask_1T = torch.ones_like(ids_1T)
        self.network(input_ids=ids_1T, attention_mask=mask_1T, labels=torch.tensor([label])).loss.backward()
        return _units([parameter.grad for parameter in self.matrices if parameter.grad is not None])


def _units(matrices: list[Tensor]) -> Tensor:
    return torch.cat([(m / m.norm().clamp_min(torch.finfo(m.dtype).tiny)).reshape(-1) for m in matrices])


if __name__ == "__main__":
    main()
