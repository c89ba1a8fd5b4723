"""What happens in a run, as immutable values: the one language of attacks, run folders and viewers.

An attack is a generator that yields `Progress` and returns a `Recovery`. Both hold plain Python only: no tensor,
no reference to a model, so that they can be written to `events.jsonl` and read back as they were.
"""

from __future__ import annotations

import dataclasses
import enum
import html
from collections import Counter
from collections.abc import Generator, Iterable
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter

from textleak.chips import AMBER, HOT, PALE, chip, row
from textleak.words import count_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenGuess:
    """A token that could stand at a position, with the attack's own score for it (0 to 1)."""

    id: int
    text: str
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """What an attack holds of one position of one sentence.

    Attributes:
        position: index in the sentence, special tokens counted.
        id: current token, -1 where the attack leaves it open.
        text: the token as the tokenizer writes it, "" where it is open.
        confidence: 0 to 1, the attack's own.
        channel: what gave the token away ("embedding", "span", "matching", ...), "" while it is a guess.
        special: whether the token is one that the tokenizer adds itself.
        masked: masked language modeling only: the network read a mask here, the token was its label.
        proved: whether the token is proved by itself, whatever the whole answer's gradient is.
        candidates: the next best tokens, best first.
    """

    position: int
    id: int
    text: str
    confidence: float = 0.0
    channel: str = ""
    special: bool = False
    masked: bool = False
    proved: bool = False
    candidates: tuple[TokenGuess, ...] = ()


Label = int | float | tuple[int, ...] | tuple[float, ...]
"""What a sentence was labeled with: a class, a number, or one for each of several classes, of its tokens, ..."""


# Numbers that were solved for are those that a client trained on but for rounding (our choice; measured: 3e-7).
_SAME = 1e-3


def same_label(one: Label | None, other: Label | None) -> bool:
    """Whether two labels are one and the same, numbers but for rounding."""
    if one is None or other is None:
        return one is other
    ones, others = (label if isinstance(label, tuple) else (label,) for label in (one, other))
    near = (abs(a - b) <= _SAME * max(1.0, abs(a)) for a, b in zip(ones, others, strict=False))
    return len(ones) == len(others) and all(near)


def label_words(label: Label) -> str:
    """A label as `--label` takes it."""
    return ",".join(map(str, label)) if isinstance(label, tuple | list) else str(label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentence:
    """What an attack holds of one sentence of the batch.

    Attributes:
        positions: one a token, padding left out.
        text: the decoded text, special tokens left out.
        label: the class, or whatever else the loss asks for, that the attack believes in; None for tasks whose labels
            are the tokens, and where it stays open.
        label_posterior: probability of each class, empty for such tasks.
    """

    positions: tuple[Position, ...]
    text: str
    label: Label | None = None
    label_posterior: tuple[float, ...] = ()


Tokens = tuple[tuple[tuple[int, str], ...], ...]
"""The tokens (id, text) of a batch, a tuple a sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of an attack begins."""

    name: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where an attack stands: its best answer so far, and how it is getting on.

    Attributes:
        phase: name of the phase, for example "labels", "proposals", "continuous", "discrete", "verify".
        step: steps done in this phase.
        steps: steps this phase may take at most; None where it isn't known.
        loss: the objective at the best candidate, None before the first evaluation.
        losses: the objective of each of the K candidates (restarts), in their own order.
        candidate: which of the K candidates `sentences` shows.
        evaluations: gradient evaluations so far, one a candidate.
        total_steps: steps done over all phases.
        sentences: the best answer so far; empty where the progress is of an image.
        others: each candidate's tokens as they were last decoded; empty where they never were.
        image: for image runs, the best pictures so far as nested lists (B, height, width, channels), 0 to 1;
            empty where they are as in the progress before.
        labels: for image runs, the class of each picture.
        detail: one line of words for a person.
    """

    phase: str
    step: int
    steps: int | None = None
    loss: float | None = None
    losses: tuple[float, ...] = ()
    candidate: int = 0
    evaluations: int = 0
    total_steps: int = 0
    sentences: tuple[Sentence, ...] = ()
    others: tuple[Tokens, ...] = ()
    image: tuple[Any, ...] = ()
    labels: tuple[int, ...] = ()
    detail: str = ""

    def keeping(self, before: Progress | None) -> Progress:
        """The same with the answer of an earlier progress where it has none of its own."""
        if before is None or self.sentences or self.image:
            return self
        return dataclasses.replace(self, sentences=before.sentences, image=before.image, labels=before.labels)


class Stop(enum.Enum):
    """Why an attack ended; the value is the sentence a person reads."""

    VERIFIED = "The recovered tokens' own gradient equals the shared one."
    PROVED = "Every token is proved by the span of the first layers' inputs."
    UNTOLD = "The recovered tokens' own gradient equals the shared one, but so do those of other texts."
    LIKELIEST = "The recovered text explains the gradient up to the known noise; similar texts don't."
    MATCHED = "The recovered pictures' own gradient equals the shared one."
    CONVERGED = "The search found nothing better."
    READ = "All that this channel tells was read off; nothing was searched for."
    STEPS = "All steps were used."
    TIME = "The time limit was reached."
    INTERRUPTED = "Interrupted; this is the best answer so far."
    STOPPED = "Stopped on request; this is the best answer so far."

    @property
    def settled(self) -> bool:
        """Whether nothing that is searched for can be better."""
        return self in (Stop.VERIFIED, Stop.PROVED, Stop.UNTOLD)


EARLY = frozenset(stop.value for stop in (Stop.TIME, Stop.INTERRUPTED, Stop.STOPPED))
"""What a result says of an attack that was ended before it was through, by time or by hand: more may find more."""

E = TypeVar("E")
R = TypeVar("R")


class Followed(Generic[E, R]):
    """A generator to be gone through with `for`, which keeps what it returned.

    Attributes:
        result: that, once there is no more to come.
    """

    result: R

    def __init__(self, steps: Generator[E, None, R]) -> None:
        self._steps = steps

    def __iter__(self) -> Generator[E, None, None]:
        """What it yields."""
        self.result = yield from self._steps


def main_channel(sentences: Iterable[Sentence], default: str = "matching") -> str:
    """What gave most of the tokens away, the first to be found of equals."""
    channels = Counter(p.channel for s in sentences for p in s.positions if p.channel)
    return max(channels, key=channels.__getitem__) if channels else default


def _chip(position: Position, *, all_proved: bool) -> str:
    """A token of an answer that nothing is compared with."""
    if position.id < 0:
        return chip("∅", position.text, "left open", PALE)
    if position.proved or all_proved:
        return chip("✓", position.text, f"proved; {position.channel}", HOT)
    sure = f"{position.channel or 'guess'}, confidence {position.confidence:.2f}"
    return chip("?", position.text, sure, AMBER if position.confidence >= 0.5 else PALE)  # our choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """What an attack ends with.

    Attributes:
        sentences: the answer; empty where it is pictures.
        stop: why it ended.
        final_loss: the objective at the answer.
        steps: optimization steps in all.
        evaluations: gradient evaluations in all, one a candidate.
        channel: what gave most of the tokens away; "" where that is what the sentences' tokens say.
        grouped: where tokens are proved by themselves, for each sentence whether it is proved too that they stand in
            one; empty where it is of all.
        stages: figures a stage wants to report, for example {"continuous": Sentence tuple}: the answer as it
            stood when that stage ended, for scoring what each stage is worth.
        notes: sentences for a person: limits met, fall-backs taken.
        gradient_distance: relative distance of the answer's own gradient, where the attack has certified it itself, or
            was about to when time was up.
        image: for image runs, the pictures as nested lists (B, height, width, channels), 0 to 1.
        labels: for image runs, the class of each picture.

    Example:
        >>> recovery = textleak.recover(shared, model, seed=0)
        >>> recovery.sentences[0].text, recovery.proof, recovery.verified
        ('the cat sat', 'gradient', True)
    """

    sentences: tuple[Sentence, ...]
    stop: Stop
    final_loss: float | None
    steps: int = 0
    evaluations: int = 0
    channel: str = ""
    grouped: tuple[bool, ...] = ()
    stages: dict[str, tuple[Sentence, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    gradient_distance: float | None = None
    image: tuple[Any, ...] = ()
    labels: tuple[int, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether nothing that is searched for can be better, though time for the proof may have been up."""
        return self.stop.settled or self.proof_cut_off

    @property
    def proof_cut_off(self) -> bool:
        """Whether time was up while the attack proved these sentences, whose gradient is the shared one."""
        return self.stop is Stop.TIME and bool(self.sentences) and self.gradient_distance is not None

    @property
    def proved_tokens(self) -> int:
        """Tokens that are proved by themselves, without those that the tokenizer adds."""
        return sum(p.proved and not p.special for s in self.sentences for p in s.positions)

    @property
    def proof(self) -> Literal["gradient", "span"] | None:
        """What the attack itself proved its answer by, without knowing the truth.

        Its own "gradient", which equals the shared one and no similar text's does; or the "span" of the layers'
        inputs, which proves `proved_tokens` tokens, each by itself. None where it proved nothing: `textleak.run` asks
        of any answer.
        """
        if self.stop in (Stop.VERIFIED, Stop.MATCHED):
            return "gradient"
        return "span" if self.proved_tokens else None

    @property
    def verified(self) -> bool:
        """Whether all of the answer is proved."""
        return self.proof == "gradient" or self.stop is Stop.PROVED

    def _repr_html_(self) -> str:
        """The answer's tokens, for a notebook: proved ones hot, others by how sure the attack is."""
        proved = "" if self.proof is None else f" Proved by the {self.proof}."
        head = f"<p>{html.escape(self.stop.value)}{proved}</p>"
        if self.image:
            return f"{head}<p>{count_of(len(self.image), 'picture')}</p>"
        tokens = ([p for p in sentence.positions if not p.special] for sentence in self.sentences)
        return head + "".join(
            row(_chip(p, all_proved=self.proof == "gradient") for p in line) for line in tokens
        )

    @classmethod
    def from_progress(cls, progress: Progress, stop: Stop) -> Recovery:
        """The answer that an attack had when it was interrupted."""
        return cls(
            sentences=progress.sentences,
            stop=stop,
            final_loss=progress.loss,
            steps=progress.total_steps,
            evaluations=progress.evaluations,
            channel=main_channel(progress.sentences),
            image=progress.image,
            labels=progress.labels,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """What was really in the batch: written by `runs`, never by an attack, and only where it is known.

    Attributes:
        sentences: of a text run.
        image: pictures of an image run, as in `Progress`.
        labels: the class of each picture.
    """

    sentences: tuple[Sentence, ...] = ()
    image: tuple[Any, ...] = ()
    labels: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """First event of a run: its settings, as in run.json."""

    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """Last event of a run that came to an end.

    Attributes:
        outcome: "done", "interrupted", "stopped" or "failed".
        result: as in result.json; None for a failed run.
        error: what went wrong, for a failed run.
    """

    outcome: str
    result: dict[str, Any] | None = None
    error: str = ""


Event = Started | Truth | Phase | Progress | Finished
_KINDS: dict[str, type[Any]] = {
    cls.__name__.lower(): cls for cls in (Started, Truth, Phase, Progress, Finished)
}
_ADAPTERS = {kind: TypeAdapter(cls) for kind, cls in _KINDS.items()}


def to_json(event: Event) -> dict[str, Any]:
    """The event as plain JSON values, with its kind under "event"."""
    kind = type(event).__name__.lower()
    fields: dict[str, Any] = _ADAPTERS[kind].dump_python(event, mode="json")
    return {"event": kind, **fields}


def from_json(record: dict[str, Any]) -> Event:
    """The event that `to_json` wrote; other keys (such as the time stamp) are ignored."""
    kind = record["event"]
    names = {field.name for field in dataclasses.fields(_KINDS[kind])}
    event: Event = _ADAPTERS[kind].validate_python({k: v for k, v in record.items() if k in names})
    return event
