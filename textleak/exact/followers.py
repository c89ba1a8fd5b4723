"""Which tokens could follow a beginning, where the first layers read each token with the few before it (RWKV).

No list of tokens by position is to be had there. But a causal model's beginnings are grown token by token, so the
tokens before the next one are known: the whole vocabulary is run after them, as far as the first layer alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

from textleak.exact.later_inputs import LaterInput, shows
from textleak.exact.subspace import OUTSIDE, layer_span
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import following_layers
from textleak.models.probes.reach import tokens_before
from textleak.shared.gradient import SharedGradient


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Followers:
    """Tokens whose first-layer input after given ones lies in the gradient's span.

    Attributes:
        check: whether a row's last input does.
        before: how many tokens before one its input depends on.
        known: what followed which tokens.
    """

    check: LaterInput
    before: int
    known: dict[Row, list[int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: TextModel, shared: SharedGradient) -> Self | None:
        """Of the first layers whose gradients were shared; None where these read all of a text, or tell nothing."""
        for layers in following_layers(model, 1):
            read = [layer for layer in layers if layer.weight_name in shared.gradients]
            before = tokens_before(model, read[0].name) if read else None
            span = layer_span(shared, read) if read else None
            if before is not None and span is not None and shows(span):
                check = LaterInput(model=model, layer=read[0].name, span=span, packs=False)
                return cls(check=check, before=before)
        return None

    def after(self, beginnings: Sequence[Row]) -> list[int]:
        """Those that could follow any of some beginnings, surest first."""
        found: dict[int, int] = {}
        for tail in dict.fromkeys(row[len(row) - min(len(row), self.before) :] for row in beginnings):
            if tail not in self.known:
                rows = [(*tail, token) for token in range(self.check.model.vocab_size)]
                misfits = self.check.row_misfits(rows)
                inside = [token for token, misfit in enumerate(misfits) if misfit <= OUTSIDE]
                self.known[tail] = sorted(inside, key=misfits.__getitem__)
            for place, token in enumerate(self.known[tail]):
                found[token] = min(place, found.get(token, place))
        return sorted(found, key=found.__getitem__)
