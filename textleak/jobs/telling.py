"""What an update tells by itself, before any attack, as an audit lists it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.clients.view import View
    from textleak.models import TextModel
    from textleak.shared.public import PublicDefense

Kind = Literal["gradient", "update"]
VOCABULARY = "vocabulary"
# What several steps of SGD with dropout are taken for, whose number and rate don't show: each leaves inputs of its own.
_SEVERAL = "fedavg:optimizer=sgd,lr=0.01,steps=2"
UNKNOWN_RATE = 0.01
UNKNOWN_STEP = f"fedavg:optimizer=sgd,lr={UNKNOWN_RATE:g},steps=1"
"""What a step of unknown size is taken for, where nothing says how the weights were moved: its direction is right."""
# And as how many steps those of Adam count whose rates show together and whose number doesn't.
_FEW = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Telling:
    """What an update tells.

    Attributes:
        kind: "gradient" or "update"; None where that can't be told.
        moved: whether anything in it is not zero.
        told: answers, each {what, value, evidence}; a value of None is one that can't be told.
        client: the procedure as `--client` says it, in order; None where it can't be told.
        nearest_steps: the optimizer's steps that can be told, where not all of the procedure can.
        dropout: whether dropout was on; None where that can't be told.
        named: tokens that the update names, special ones aside.
        sentences: in its batch; None where that can't be told.
        tokens: of all sentences; likewise.
    """

    kind: Kind | None
    moved: bool
    told: tuple[Mapping[str, Any], ...]
    client: tuple[str, ...] | None
    nearest_steps: str | None = None
    dropout: bool | None = None
    named: frozenset[int] = frozenset()
    sentences: int | None = None
    tokens: int | None = None

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the update names; None where it names none."""
        return len(self.named) or None


def telling_of(sent: Mapping[str, Tensor], model: TextModel, *, kind: Kind | None) -> Telling:
    """Ask an update what it tells.

    Args:
        sent: gradients, or by how much weights moved, by the model's own names.
        model: the public model, with adapters where they were trained and what they were before is known.
        kind: which of both, where it is known.
    """
    from textleak.inference import told

    if not any(bool(tensor.any()) for tensor in sent.values()):
        nothing = {"what": "moved", "value": 0, "evidence": f"All of {len(sent):,} tensors are zero."}
        return Telling(kind=kind, moved=False, told=(nothing,), client=())
    before: dict[str, Tensor] = {name: model.parameters[name] for name in sent if name in model.parameters}
    found = told(dict(sent), model, before=before, kind=kind)
    answers: dict[str, Any] = {one.what: one.value for one in found.told}
    named, dropped = answers.get(VOCABULARY), answers.get("dropout")
    content = frozenset(named if isinstance(named, list) else ()) - model.special_ids
    return Telling(
        kind=answers.get("sent"),
        moved=True,
        told=tuple(dataclasses.asdict(one) for one in found.told),
        client=found.client,
        nearest_steps=_steps(answers),
        dropout=None if dropped is None else bool(dropped),
        named=content,
        sentences=_count(answers.get("sentences")),
        tokens=_count(answers.get("tokens")),
    )


def named_tokens(view: View, sent: Mapping[str, Tensor], defenses: Sequence[PublicDefense]) -> frozenset[int]:
    """The tokens that the word embedding's rows name for certain, special ones aside.

    Args:
        view: what a server makes of what was sent.
        sent: that, as it came.
        defenses: all that were applied; behind noise, rows that stand out of it are likely, no more.
    """
    from textleak.clients import updates
    from textleak.inference.base import Seen
    from textleak.inference.vocabulary import words_of

    model = view.text_model
    if any(d.effects is None or any(effect.noise is not None for effect in d.effects) for d in defenses):
        return frozenset()
    kind: Kind = "update" if updates.sends_weights(view.client) else "gradient"
    moved = updates.moved_by(view.client, sent, model)
    return frozenset(words_of(Seen(sent=moved, model=model, given=kind)).rows or ()) - model.special_ids


def _steps(answers: Mapping[str, Any]) -> str | None:
    """As many steps of AdamW as show, at the rate that shows; of SGD behind dropout that there are several."""
    from textleak.inference.rate import TIMES_STEPS
    from textleak.inference.steps import MORE

    optimizer, rate = answers.get("optimizer"), answers.get("learning rate")
    if optimizer == "sgd" and answers.get("steps") not in (None, 1) and answers.get("dropout"):
        return _SEVERAL
    decay = answers.get("weight decay")
    if optimizer == "sgd" and isinstance(decay, Mapping):  # of a step of unknown size
        shrunk = next(iter(decay.values())) / UNKNOWN_RATE
        return f"{UNKNOWN_STEP},weight_decay={shrunk:.9g}"
    together = rate.get(TIMES_STEPS) if isinstance(rate, Mapping) else None
    if optimizer != "adamw" or not (together or isinstance(rate, float)):
        return None
    count = _count(answers.get("steps")) or (_FEW if together and answers.get("steps") == MORE else 1)
    each = together / count if together else rate
    shrunk = f",weight_decay={decay:g}" if isinstance(decay, float) and decay else ""
    return f"fedavg:optimizer=adamw,lr={each:.4g},steps={count}{shrunk}"


def _count(value: object) -> int | None:
    """A number of things, where it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
