"""Pairs: texts of two parts with a token type each, as a tokenizer makes them of two sentences."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, cast

from textleak.clients.base import CLIENTS, Client
from textleak.errors import InputError
from textleak.models.base import M, Modality
from textleak.models.text import TextModel


@CLIENTS.register("pairs")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Client):
    """What stands after the separator is embedded as a second part: premise [SEP] hypothesis, question [SEP] text.

    A text without a separator is of one part, as ever.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})

    def prepare(self, model: M) -> M:
        """The model, read with texts of two parts.

        Raises:
            InputError: it reads no text, or its tokenizer and network tell no parts apart.
        """
        if not isinstance(model, TextModel):
            raise InputError(
                f"The client pairs can't train {model.name} (pictures).",
                why="Pairs are of sentences.",
                fix="Leave it out.",
            )
        return cast("M", model.in_pairs())
