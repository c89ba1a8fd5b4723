"""One backward pass of the batch's mean loss, in eval mode, at the public weights."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from textleak.clients.base import CLIENTS, Client


@CLIENTS.register("one-step")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(Client):
    """The gradient of one batch, as it is (Zhu et al. 2019)."""

    name: ClassVar[str]
