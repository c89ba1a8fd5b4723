"""What an update tells by itself, before any attack, as an audit lists it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from textleak.words import count_of

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.models import TextModel

Kind = Literal["gradient", "update"]
MOVED, VOCABULARY = "moved", "vocabulary"
# An embedding's rows name tokens where fewer than this part of them moved: a tied head, or weight decay, moves all.
_FEW = 0.25
_NAMED = 40  # tokens that are listed (our choice)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Telling:
    """What an update tells.

    Attributes:
        kind: "gradient" or "update"; None where that can't be told.
        moved: whether anything in it is not zero.
        told: answers, each {what, value, evidence}; a value of None is one that can't be told.
        client: the procedure as `--client` says it; None where it can't be told.
        vocabulary: how many tokens the update names; None where it names none.
    """

    kind: Kind | None
    moved: bool
    told: tuple[Mapping[str, Any], ...]
    client: tuple[str, ...] | None
    vocabulary: int | None


def telling_of(sent: Mapping[str, Tensor], model: TextModel, *, kind: Kind | None) -> Telling:
    """Ask an update what it tells.

    Args:
        sent: gradients, or by how much weights moved, by the model's own names.
        model: the public model.
        kind: which of both, where it is known.
    """
    moved = [name for name, tensor in sent.items() if tensor.any()]
    entries = sum(tensor.numel() for tensor in sent.values())
    there = sum(int(tensor.count_nonzero()) for tensor in sent.values())
    told: list[Mapping[str, Any]] = [
        {
            "what": "sent",
            "value": kind,
            "evidence": "As it was said to be."
            if kind
            else "Nothing says whether it is a gradient or a difference.",
        },
        {
            "what": MOVED,
            "value": len(moved),
            "evidence": f"Of {count_of(len(sent), 'parameter')}; {there / max(1, entries):.1%} of {entries:,} numbers "
            "aren't zero.",
        },
    ]
    rows = _rows(sent, model)
    if rows is not None:
        words = " ".join(model.token_texts(rows[:_NAMED]))
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        told.append(
            {
                "what": VOCABULARY,
                "value": len(rows),
                "evidence": f"Rows of the word embedding that moved: {words}{more}.",
            }
        )
    return Telling(
        kind=kind,
        moved=bool(moved),
        told=tuple(told),
        client=None,
        vocabulary=None if rows is None else len(rows),
    )


def _rows(sent: Mapping[str, Tensor], model: TextModel) -> list[int] | None:
    """Tokens whose embedding moved; None where that names none."""
    table = model.word_embedding.weight
    name = next((name for name, parameter in model.parameters.items() if parameter is table), None)
    if name is None or name not in sent:
        return None
    rows = sent[name].any(1).nonzero().flatten().tolist()
    return rows if 0 < len(rows) < _FEW * len(table) else None
