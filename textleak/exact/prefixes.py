"""Sentences of a causal model, built token by token (Petrov et al. 2024, sec. 4.2) and ended by what they predict.

In a causal model a later block's input at a position depends on the tokens up to there. So a beginning of a sentence
is right when that input lies in the span of that block's gradients, and all beginnings of the batch are found as a
tree: each goes on with every token that stays inside. The first block's span tells which tokens to try.

The tree known, what a language model was asked to predict after each beginning can be read off (`labels`), with how
often it was: a beginning that is asked for more than the tree goes on with is where a sentence ends.

Shapes: F beginnings, K tokens tried after each, T positions, N rows, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor

from textleak.events import Phase, Progress, Sentence
from textleak.exact.found import OPEN, Found
from textleak.exact.predictions import read_predictions, whole_numbers
from textleak.exact.proposals import Proposals
from textleak.exact.subspace import InputSpan, layer_span, shared_spans
from textleak.exact.vocabulary import OUTSIDE, Vocabulary
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.decoding import to_sentence
from textleak.models.probes.layers import LocalLayer, following_layers, layer_inputs
from textleak.shared.gradient import SharedGradient

# Tokens of all rows that run through the first layers at once, and tokens tried after one beginning in one row: both
# bound the memory.
_TOKENS_A_PASS, _TRIED_A_ROW = 8192, 256
# Later layers' inputs that can be asked; how many are tried as the one that every beginning has to be in; and times as
# many beginnings as its span has room for that are followed before it is given up (our choice).
_DEEPEST, _MOST_ATTEMPTS, _TOO_MANY = 16, 4, 2
# A gradient this far off its batch's was scaled (our choice; measured: 1e-6 where it wasn't).
_SCALED = 1e-2
# A first token repeated at most this often: without positions, only what follows shows it (our choice).
_LONGEST_RUN = 16


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Check:
    """The span of a later layer's input.

    Attributes:
        model: the public model.
        layer: a module that reads it.
        span: where it lies in the batch's sentences.
        packs: whether beginnings can be run once for all tokens after them.
    """

    model: TextModel
    layer: str
    span: InputSpan
    packs: bool

    def misfits(self, beginnings: Sequence[Row], tokens: Sequence[int]) -> Tensor:
        """How far each beginning (all of one length) with each token after it lies outside: (F, K)."""
        if not self.packs:
            rows = [(*row, token) for row in beginnings for token in tokens]
            return torch.tensor(self.row_misfits(rows)).view(len(beginnings), len(tokens))
        found = []
        for start in range(0, len(tokens), _TRIED_A_ROW):
            some = tokens[start : start + _TRIED_A_ROW]
            size = max(1, _TOKENS_A_PASS // (len(beginnings[0]) + len(some)))
            parts = [beginnings[f : f + size] for f in range(0, len(beginnings), size)]
            inputs = [_packed_inputs(self.model, self.layer, part, some) for part in parts]
            found.append(torch.cat([self._misfit(part_FKI) for part_FKI in inputs]).cpu())
        return torch.cat(found, 1)

    def row_misfits(self, rows: Sequence[Row]) -> list[float]:
        """How far the last input of each row (all of one length) lies outside."""
        if not rows:
            return []
        ids_NT = torch.tensor(rows, device=self.model.device)
        parts = torch.split(ids_NT, max(1, _TOKENS_A_PASS // ids_NT.shape[1]))
        inputs = [layer_inputs(self.model, part, [self.layer])[self.layer][:, -1] for part in parts]
        found: list[float] = torch.cat([self._misfit(part_NI) for part_NI in inputs]).tolist()
        return found

    def _misfit(self, inputs: Tensor) -> Tensor:
        eps = torch.finfo(self.model.dtype).eps
        return self.span.misfit(inputs.flatten(0, -2), eps=eps).view(inputs.shape[:-1])


class _Checks:
    """Spans of later layers, each decomposed when it's first asked for.

    The next blocks' inputs come first; what else these blocks read decides where those don't.
    """

    def __init__(self, model: TextModel, shared: SharedGradient) -> None:
        """Nothing is computed yet."""
        self._found: list[_Check] = []
        self._more = self._search(model, shared)

    def __getitem__(self, index: int) -> _Check | None:
        """The check with this index; None where there are fewer."""
        while len(self._found) <= index:
            check = next(self._more, None)
            if check is None:
                return None
            self._found.append(check)
        return self._found[index]

    @staticmethod
    def _search(model: TextModel, shared: SharedGradient) -> Iterator[_Check]:
        packs: bool | None = None
        groups = following_layers(model, _DEEPEST)
        for layers in sorted(groups, key=lambda g: g[0].weight_name not in model.attention_names):
            read = [layer for layer in layers if layer.weight_name in shared.gradients]
            span = layer_span(shared, read) if read else None
            if span is not None and _shows(span):
                if packs is None:
                    packs = _packs(model, read[0].name)
                yield _Check(model=model, layer=read[0].name, span=span, packs=packs)


@dataclasses.dataclass(kw_only=True, eq=False)
class _Tree:
    """Beginnings of sentences, grown by one token at a time.

    Attributes:
        model: the public model.
        ordered: whether the first block's inputs tell positions apart.
        candidates: tokens that could stand at a position.
        checks: later layers' spans.
        first: which of them every beginning has to be in; the others are asked where too many are.
        longest: tokens at most.
        beginnings: those found.
        lost: whether far more fitted than there can be.
    """

    model: TextModel
    ordered: bool
    candidates: Callable[[int], Sequence[int]]
    checks: _Checks
    first: int
    longest: int
    beginnings: list[Row] = dataclasses.field(default_factory=list)
    lost: bool = False

    @property
    def span(self) -> InputSpan:
        """The first check's: its rank is how many beginnings there are."""
        return self._check(self.first).span

    @property
    def finished(self) -> bool:
        """Whether as many beginnings were found as there are."""
        return len(self.beginnings) == self.span.rank

    @property
    def predicts(self) -> bool:
        """Whether labels are the next tokens, so that a sentence's last token is no input."""
        return self.model.task == "causal-lm"

    @property
    def leaves(self) -> list[Row]:
        """Beginnings that no other one goes on from, longest first."""
        inner = {row[:t] for row in self.beginnings for t in range(1, len(row))}
        return sorted((row for row in self.beginnings if row not in inner), key=len, reverse=True)

    def place(self, row: Row) -> Row:
        """The beginning that stands for this one: without positions, repeating the first token changes nothing."""
        return row[:1] if not self.ordered and len(set(row)) == 1 else row

    def grow(self) -> Iterator[int]:
        """Find all beginnings; yields the length reached."""
        yield from self._follow([()])
        if self.ordered:
            return
        # Only what comes after a first token's repetitions shows them: tried where beginnings are missing.
        firsts = [row for row in self.beginnings if len(row) == 1]
        for length in range(2, min(_LONGEST_RUN, self.longest - 1) + 1):
            if not firsts or len(self.beginnings) >= self.span.rank:
                return
            yield from self._follow([first * length for first in firsts])

    def _follow(self, frontier: list[Row]) -> Iterator[int]:
        for position in range(len(frontier[0]), self.longest):
            frontier = self._extended(frontier, self.candidates(position))
            if not frontier:
                return
            self.beginnings += frontier
            self.lost = len(self.beginnings) > _TOO_MANY * self.span.rank
            if self.lost:
                return
            yield position + 1

    def _extended(self, frontier: list[Row], tokens: Sequence[int]) -> list[Row]:
        room = _TOO_MANY * self.span.rank  # more would be noise
        tokens = tokens[:room]
        if not tokens:
            return []
        misfits_FK = self._check(self.first).misfits(frontier, tokens).tolist()
        kept = [
            (misfit, (*row, token))
            for row, misfits_K in zip(frontier, misfits_FK, strict=True)
            for token, misfit in zip(tokens, misfits_K, strict=True)
            if misfit <= OUTSIDE and (not row or self.place((*row, token)) != self.place(row))
        ]
        # More beginnings than there are: other layers tell more.
        other = 0
        while len(self.beginnings) + len(kept) > self.span.rank and (check := self.checks[other]):
            if other != self.first:
                misfits = check.row_misfits([row for _, row in kept])
                pairs = zip(kept, misfits, strict=True)
                kept = [(max(before, after), row) for (before, row), after in pairs if after <= OUTSIDE]
            other += 1
        return [row for _, row in sorted(kept)[: room + 1]]

    def _check(self, index: int) -> _Check:
        check = self.checks[index]
        assert check is not None
        return check


def _shows(span: InputSpan) -> bool:
    """Whether a span leaves room outside for what isn't in it."""
    return span.clear and span.rank < span.size


def extend_prefixes(
    model: TextModel,
    shared: SharedGradient,
    layers: Sequence[LocalLayer],
    proposals: Proposals,
    *,
    longest: int,
) -> list[Row]:
    """Beginnings of sentences of a causal model, built token by token.

    Args:
        model: the public model, a causal one.
        shared: the shared gradient.
        layers: the first block's layers that the proposals come from.
        proposals: which tokens can stand where.
        longest: tokens at most.

    Returns:
        Beginnings that can't be extended, longest first; empty where no later layer's span shows any.
    """
    checks = _Checks(model, shared)
    if not layers or checks[0] is None:
        return []
    tree = _Tree(
        model=model,
        ordered=layers[0].depends_on_position,
        candidates=proposals.surest_at,
        checks=checks,
        first=0,
        longest=longest,
    )
    for _ in tree.grow():
        pass
    return tree.leaves


# Many tokens after few beginnings


def _packed_inputs(model: TextModel, layer: str, beginnings: Sequence[Row], tokens: Sequence[int]) -> Tensor:
    """What a layer reads at each token that follows each beginning, (F, K, I), the beginning run only once.

    All tokens stand in one row, at one position, and see the beginning and themselves.
    """
    F, T, K = len(beginnings), len(beginnings[0]), len(tokens)
    ids_FT = torch.tensor(beginnings, dtype=torch.long).view(F, T)
    ids = torch.cat([ids_FT, torch.tensor(tokens).expand(F, -1)], 1)
    positions = torch.cat([torch.arange(T), torch.full((K,), T)]).expand(F, -1)
    seen = torch.eye(T + K, dtype=torch.bool)
    seen[:, :T] |= torch.ones(T + K, T, dtype=torch.bool).tril()
    mask = torch.zeros(T + K, T + K, dtype=model.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(model.dtype).min).expand(F, 1, -1, -1)
    inputs = layer_inputs(
        model,
        ids.to(model.device),
        [layer],
        mask=mask.to(model.device),
        positions=positions.to(model.device),
    )
    return inputs[layer][:, T:]


def _packs(model: TextModel, layer: str) -> bool:
    """Whether the network takes rows as `_packed_inputs` makes them: some read masks or positions their own way."""
    if "position_ids" not in inspect.signature(model.network.forward).parameters:
        return False
    first, second, third, *tried = model.content_ids[:6].tolist()
    beginnings: list[Row] = [(first, second), (third, first)]
    try:
        packed = _packed_inputs(model, layer, beginnings, tried)
    except (TypeError, ValueError, RuntimeError):  # whatever a network says to a mask that it can't read
        return False
    rows = torch.tensor([(*row, token) for row in beginnings for token in tried], device=model.device)
    plain = layer_inputs(model, rows, [layer])[layer][:, -1].view_as(packed)
    return bool((packed - plain).norm() <= 1e-2 * plain.norm())  # a wrong mask changes far more than rounding


# Whole sentences


def causal_sentences(model: TextModel, shared: SharedGradient) -> Generator[Phase | Progress, None, Found]:
    """The sentences of a causal model's batch, exactly, as far as its gradients' spans tell them.

    Neither lengths nor the batch size need be known. Language models: the last token, which no layer reads, is read
    off as a label. Classifiers: classes come along where the last layers' gradients were shared.

    Args:
        model: the public model, a causal one.
        shared: the shared gradient.
    """
    yield Phase(name="prefixes", detail="beginnings of sentences whose inputs the gradients span")
    spans = shared_spans(model, shared)
    clear = [(layers, span) for layers, span in spans if _shows(span)]
    if not clear:
        return Found(rows=(), notes=(_why_nothing(shared, [span for _, span in spans]),))
    layers, span = max(clear, key=lambda pair: pair[1].room)
    vocabulary = Vocabulary(model, layers[0], span)
    longest = max(shared.known.lengths) if shared.known.lengths else model.max_length
    if model.task == "causal-lm":  # the last token is no input
        longest -= 1
    checks, best = _Checks(model, shared), None
    for first in itertools.takewhile(lambda first: checks[first] is not None, range(_MOST_ATTEMPTS)):
        tree = _Tree(
            model=model,
            ordered=layers[0].depends_on_position,
            candidates=vocabulary.tokens,
            checks=checks,
            first=first,
            longest=longest,
        )
        for length in tree.grow():
            yield Progress(
                phase="prefixes",
                step=length,
                sentences=_shown(tree, tree.leaves),
                detail=f"{len(tree.beginnings)} of {tree.span.rank} beginnings",
            )
        if tree.lost or not tree.beginnings:
            continue
        yield Phase(name="labels", detail="what was predicted after each beginning")
        found = _ended(tree, shared)
        if found.complete or tree.finished:
            return found
        # Some weren't found, or a few too many: another layer may show more.
        best = max(filter(None, [found, best]), key=_known)
    return best or _sets_alone(vocabulary, longest)


def _known(found: Found) -> int:
    return sum(token != OPEN for row in found.rows for token in row)


def _shown(tree: _Tree, leaves: Sequence[Row]) -> tuple[Sentence, ...]:
    rows = [(*row, OPEN) if tree.predicts else row for row in leaves]
    return tuple(
        to_sentence(
            tree.model,
            row,
            confidence=[float(token != OPEN) for token in row],
            channels=["span" if token != OPEN else "" for token in row],
        )
        for row in rows
    )


def _why_nothing(shared: SharedGradient, spans: Sequence[InputSpan]) -> str:
    if not spans:
        return "No first layer's gradient was shared that shows which tokens there are."
    if shared.noise_sigma > 0:
        return "Noise covers the span of the first layer's inputs."
    size = min(span.size for span in spans)
    return (
        f"The first layer's gradient fills all its {size} dimensions: the batch has about as many tokens or more "
        f"(n/D around 1 or beyond), or was rounded too coarsely to tell."
    )


def _sets_alone(vocabulary: Vocabulary, longest: int) -> Found:
    """Tokens by position, where no later block tells which follow which."""
    sets: list[tuple[int, ...]] = []
    for position in range(min(longest, vocabulary.span.rank)):
        tokens = vocabulary.tokens(position)[: vocabulary.span.rank]
        if not tokens:
            break
        sets.append(tuple(tokens))
        if not vocabulary.layer.depends_on_position:
            break
    one = bool(sets) and vocabulary.layer.depends_on_position and all(len(tokens) == 1 for tokens in sets)
    rows = [tuple(tokens[0] for tokens in sets)] if one else []
    rank, size = vocabulary.span.rank, vocabulary.span.size
    note = (
        f"The first block's gradient shows which tokens there are ({rank} inputs in {size} dimensions); no later "
        "block's tells which follow which."
    )
    if vocabulary.model.task == "causal-lm":
        rows = [(*row, OPEN) for row in rows]
    return _found(rows, complete=False, notes=[note], sets=sets if not one else [])


def _found(
    rows: Sequence[Row],
    *,
    complete: bool,
    notes: Sequence[str],
    classes: Sequence[int] = (),
    sets: Sequence[tuple[int, ...]] = (),
) -> Found:
    confidence = tuple(tuple(float(token != OPEN) for token in row) for row in rows)
    return Found(
        rows=tuple(rows),
        confidence=confidence if any(OPEN in row for row in rows) else (),
        classes=tuple(classes),
        complete=complete,
        notes=tuple(notes),
        sets=tuple(sets),
    )


def _ended(tree: _Tree, shared: SharedGradient) -> Found:
    """The tree's sentences, from what was predicted after each beginning."""
    notes = []
    if len(tree.beginnings) < tree.span.rank:
        notes.append(
            f"{len(tree.beginnings)} beginnings of sentences were found; the gradient of the next block spans "
            f"{tree.span.rank} in {tree.span.size} dimensions."
        )
    following = _following(tree)
    predictions = read_predictions(tree.model, shared, tree.beginnings, following)
    if predictions is None or not predictions.whole:
        notes.append(
            "Which beginnings are whole sentences, and what ends them, shows in the last block's gradients: they were "
            "not shared, or don't tell."
            if predictions is None
            else "The beginnings found don't make all of the last layer's gradient."
        )
        rows = [(*row, OPEN) if tree.predicts else row for row in tree.leaves]
        return _found(rows, complete=False, notes=notes)
    open_rows = [tree.beginnings[n] for n in sorted(predictions.open)]
    if (
        len(tree.beginnings) > tree.span.rank
    ):  # what makes nothing of the last layer's gradient isn't in the batch
        asked = {row for row, labels in zip(tree.beginnings, predictions.shares, strict=True) if labels}
        open_rows = [row for row in open_rows if row in asked]
    if open_rows:
        notes.append(f"What {len(open_rows)} beginnings end with couldn't be told.")
    scale = sum(share for labels in predictions.shares for share in labels.values())
    if abs(scale - 1) > _SCALED:
        notes.append(
            f"The gradient is {scale:.3g} times what these sentences make, as if the client had scaled it."
        )
    counts = whole_numbers(predictions.shares, _total(tree, shared))
    certain = counts is not None and not open_rows
    if counts is None:
        notes.append("How often each sentence stands in the batch couldn't be told.")
        # Each label that nothing goes on from ends a sentence, once.
        counts = tuple(
            {label: 1 for label in shares if label not in known}
            for shares, known in zip(predictions.shares, following, strict=True)
        )
    if not tree.predicts:
        ends = [
            (row, label)
            for row, labels in zip(tree.beginnings, counts, strict=True)
            for label, count in labels.items()
            for _ in range(count)
        ]
        rows = [row for row, _ in ends] + open_rows
        classes = [label for _, label in ends] if certain else []
        return _found(rows, classes=classes, complete=certain, notes=notes)
    if certain:
        ends_by_row, consistent = _endings(tree, counts)
        rows, fits, more_notes = _batch(list(ends_by_row.elements()), shared)
        return _found(rows, complete=consistent and fits, notes=[*notes, *more_notes])
    rows = [
        (*row, label)
        for row, labels, known in zip(tree.beginnings, counts, following, strict=True)
        for label in labels
        if label not in known
    ]
    return _found(rows + [(*row, OPEN) for row in open_rows], complete=False, notes=notes)


def _following(tree: _Tree) -> list[set[int]]:
    """Tokens that go on from each beginning: labels there, in a language model."""
    following: list[set[int]] = [set() for _ in tree.beginnings]
    if tree.predicts:
        index = {row: n for n, row in enumerate(tree.beginnings)}
        for row in tree.beginnings:
            if len(row) > 1:
                following[index[tree.place(row[:-1])]].add(row[-1])
    return following


def _total(tree: _Tree, shared: SharedGradient) -> int | None:
    """How many predictions the loss is the mean of, where that is known."""
    if not tree.predicts:
        return shared.known.batch_size
    return sum(length - 1 for length in shared.known.lengths) if shared.known.lengths else None


def _endings(tree: _Tree, counts: Sequence[dict[int, int]]) -> tuple[Counter[Row], bool]:
    """Whole sentences with how often each is in the batch, and whether the counts agree with one another.

    A label that stands somewhere more often than sentences go on with it ends the others.
    """
    asked = dict(zip(tree.beginnings, counts, strict=True))
    through = {row: sum(labels.values()) for row, labels in asked.items()}
    left = {row: Counter(labels) for row, labels in asked.items()}
    for row in tree.beginnings:
        if len(row) > 1:
            place = tree.place(row[:-1])
            left[place][row[-1]] -= through[row]
            # The predictions of a first token's repetitions all stand at its own place.
            left[place][row[0]] -= through[row] * (len(row) - 1 - len(place))
    ends: Counter[Row] = Counter()
    for row, labels in left.items():
        repeated = labels.pop(row[0], 0) if tree.place(row * 2) == row else 0
        for label, count in labels.items():
            ends[(*row, label)] += max(0, count)
        if (
            repeated > 0
        ):  # any of them can be longer by that: one of the sentences that end here, or one by itself
            ended = next((label for label, count in labels.items() if count > 0), None)
            if ended is not None:
                ends[(*row, ended)] -= 1
            ends[
                (*row * (1 + repeated), row[0] if ended is None else ended)[
                    : None if ended is not None else -1
                ]
            ] += 1
    return +ends, all(count >= 0 for labels in left.values() for count in labels.values())


def _batch(rows: list[Row], shared: SharedGradient) -> tuple[list[Row], bool, list[str]]:
    """The sentences as often as the batch holds them, where its size is known; whether they fit it; notes."""
    known = shared.known
    size = known.batch_size or (len(known.lengths) if known.lengths else None)
    if size is None or size == len(rows) or not rows:
        return rows, True, []
    if size % len(rows) == 0 and not known.lengths:
        # The gradient is a mean: the same sentences, each twice, have the same one.
        return rows * (size // len(rows)), True, []
    if size > len(rows):
        note = "A sentence of one token leaves no trace in a language model's gradient."
        return rows + [(OPEN,)] * (size - len(rows)), True, [note]
    return rows, False, [f"{len(rows)} sentences were found in a batch of {size}."]
