"""Which other texts could a gradient be of? Those most like an answer, and how near their gradients come.

A gradient vouches for a text only where texts like it would have left clearly another one. What is tried: two
neighboring tokens swapped and each token's nearest ones, always; another class; then other swaps, tokens and tails
exchanged between two sentences, and labels, those first whose inputs move least, as far as they are cheap.

A batch's gradient is the sum of its sentences' own, so only the sentences that differ are formed. Most are told apart
by what the last few shared tensors alone differ by, a lower bound of the whole distance that many sentences have from
one short backward pass.

Shapes: K sentences, T tokens, E embedding size, S entries of the last few tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from textleak.errors import InputError
from textleak.events import Label
from textleak.matching import Capture, Leaves
from textleak.matching.discrete import Guess, Row, class_changes, substitutions
from textleak.matching.rules import Contribution, candidate, in_dtype, negative
from textleak.matching.single import form
from textleak.matching.single import own as squared
from textleak.models import Targets, TextModel
from textleak.models.decoding import fixed_tokens, nearest_tokens
from textleak.models.gradient import last_used
from textleak.models.guesses import inputs_and_targets, padded
from textleak.models.mapped import let_go
from textleak.numerics import exact

# Tokens tried at each place, the nearest by embedding, and other classes tried of a sentence (our choice).
_NEAREST, _CLASSES = 2, 8
# Rivals beyond the nearest at most, and multiplications that they may take (our choice: under a second on one core;
# every swap of a sentence of 14 tokens on BERT-tiny, the 33 most alike of 55 on MiniLM).
_FURTHER, _AFFORDABLE = 256, 5e9
# The last tensors that a rival is compared at first, and entries of one at most (our choice; measured on 13 families:
# at four tensors a rival is a half to a tenth as far as at all of them, at the last two a twentieth).
LAST, _ENTRIES = 4, 2**21
# Numbers held at once while sentences are formed together, and tokens of one pass (our choice).
_HELD, TOKENS_A_PASS = 2**24, 2048

Line = tuple[Row, Label | None]
"""One sentence of a guess: its symbols, and its class where the task has classes."""
Made = dict[str, list[Contribution]]
"""What a sentence's part of a gradient is made of, by parameter; one candidate each."""


def lines_of(guess: Guess) -> tuple[Line, ...]:
    """The guess's sentences one by one."""
    classes: tuple[Label | None, ...] = guess.classes or (None,) * len(guess.rows)
    return tuple(zip(guess.rows, classes, strict=True))


# Which they are


def alike(
    model: TextModel, guess: Guess, *, classes: bool = True, excluded: frozenset[int] = frozenset()
) -> Iterator[Guess]:
    """The texts nearest to a guess: two neighbors swapped, a similar token at one place, another class.

    Args:
        model: whose embeddings tell which tokens are similar.
        guess: the text.
        classes: whether another class is one.
        excluded: tokens that no text has; special ones always are.
    """
    excluded |= model.special_ids
    nearest = _nearest(model, guess, excluded)
    for row, symbols in enumerate(guess.rows):
        places = _places(model, symbols)
        for t, after in itertools.pairwise(places):
            if symbols[t] != symbols[after]:
                yield _swapped(guess, row, t, after)
        if not places:
            continue
        for t in places:
            own = symbols[t] % model.vocab_size
            yield from substitutions(guess, row, t, [id_ + symbols[t] - own for id_ in nearest[own]])
        if guess.classes and classes:
            others = [c for c in range(model.classes) if c != guess.classes[row]][:_CLASSES]
            yield from class_changes(guess, row, others)


def _nearest(model: TextModel, guess: Guess, excluded: frozenset[int]) -> dict[int, list[int]]:
    """The tokens nearest to each of a guess's own, by embedding."""
    table_VE = model.word_embedding.weight.detach()
    own = sorted({row[t] % model.vocab_size for row in guess.rows for t in _places(model, row)})
    if not own:
        return {}
    near = nearest_tokens(
        table_VE[torch.tensor(own, device=table_VE.device)],
        table_VE,
        candidates=_NEAREST + 1,
        metric="l2",
        excluded=excluded,
    )
    if model.wide:
        let_go([table_VE])
    found = zip(own, near.ids_NC.tolist(), strict=True)
    return {token: [id_ for id_ in ids if id_ != token][:_NEAREST] for token, ids in found}


def further(model: TextModel, guess: Guess) -> list[Guess]:
    """Other texts of the same tokens, those first whose inputs move least, as many as are cheap.

    Two tokens of a sentence swapped that aren't neighbors; between two sentences, a token or all from one place on
    exchanged, or the classes.
    """
    table_VE = model.word_embedding.weight.detach()
    inputs = [table_VE[torch.tensor(row, device=table_VE.device) % model.vocab_size] for row in guess.rows]
    found: list[tuple[float, int, Guess]] = []
    for row, symbols in enumerate(guess.rows):
        apart_TT = torch.cdist(inputs[row].double(), inputs[row].double()).square().tolist()
        for t, u in itertools.combinations(_places(model, symbols), 2):
            if u > t + 1 and symbols[t] != symbols[u]:
                found.append((2 * apart_TT[t][u], len(symbols), _swapped(guess, row, t, u)))
    for a, b in itertools.combinations(range(len(guess.rows)), 2):
        found += _exchanges(model, guess, a, b, inputs)
    found.sort(key=lambda one: one[0])
    left = _AFFORDABLE / _work(model)
    chosen = []
    for _, tokens, rival in found[:_FURTHER]:
        left -= tokens
        if left < 0:
            break
        chosen.append(rival)
    return chosen


def _exchanges(
    model: TextModel, guess: Guess, a: int, b: int, inputs: Sequence[Tensor]
) -> Iterator[tuple[float, int, Guess]]:
    """Two sentences' tokens, tails or classes exchanged: how far inputs move, tokens to compute, and the guess."""
    one, two = guess.rows[a], guess.rows[b]
    both = sorted(set(_places(model, one)) & set(_places(model, two)))
    common = min(len(one), len(two))
    apart_T = (inputs[a][:common] - inputs[b][:common]).double().square().sum(1)
    beyond = float(sum(some[common:].double().square().sum() for some in (inputs[a], inputs[b])))
    tails_T = (apart_T.flip(0).cumsum(0).flip(0) + beyond / 2).tolist()
    for t in both:
        if one[t] != two[t]:
            yield (
                2 * float(apart_T[t]),
                len(one) + len(two),
                guess.with_symbol(a, t, two[t]).with_symbol(b, t, one[t]),
            )
        mixed = one[:t] + two[t:], two[:t] + one[t:]
        if sorted(mixed) != sorted((one, two)):
            yield (
                2 * tails_T[t],
                len(one) + len(two),
                guess.with_row(a, mixed[0]).with_row(b, mixed[1]),
            )
    if guess.classes and guess.classes[a] != guess.classes[b] and one != two:
        yield 0.0, 0, guess.with_class(a, guess.classes[b]).with_class(b, guess.classes[a])


def _places(model: TextModel, symbols: Row) -> list[int]:
    """Where a sentence has tokens of its own, not the tokenizer's."""
    fixed = fixed_tokens(model, len(symbols))
    return [t for t, symbol in enumerate(symbols) if fixed.get(t) != symbol]


def _swapped(guess: Guess, row: int, t: int, u: int) -> Guess:
    symbols = guess.rows[row]
    return guess.with_symbol(row, t, symbols[u]).with_symbol(row, u, symbols[t])


def _work(model: TextModel) -> int:
    """Multiplications of a token's way through the network, about."""
    inside = sum(p.numel() for name, p in model.parameters.items() if name not in model.embedding_names)
    return inside + (0 if model.task == "classification" else model.classes * model.hidden_size)


# How near their gradients come


class Parts:
    """What single sentences add to a batch's gradient, at the last few tensors before the loss.

    Args:
        model: in the precision wanted.
        names: the tensors to choose from: shared, and reached by the loss.
        guess: the batch.
        most: tensors at most; None for all that aren't large and have a rule.

    Attributes:
        names: the tensors chosen, none where all are too large.
    """

    def __init__(
        self, model: TextModel, names: Iterable[str], guess: Guess, *, most: int | None = LAST
    ) -> None:
        self.model = model
        summed = model.language.reduction == "sum"
        self._total = 1.0 if summed else sum(self._weight(line) for line in lines_of(guess))
        line = min(lines_of(guess), key=lambda line: len(line[0]))
        chosen = self._last(small_ones(model, names), line)[:most]
        self.names: tuple[str, ...] = ()
        while chosen:
            self._capture = Capture(model.network, chosen)
            try:
                self._capture.check(self._losses, self._leaves([line]))
            except InputError:  # some of its uses are out of the loss's reach
                return
            ruled = [name for name in chosen if name not in self._capture.formed_names]
            if most is not None or ruled == chosen:
                break
            chosen = ruled
        self.names = tuple(chosen)

    @property
    def at_once(self) -> int:
        """How many sentences' parts are best held together."""
        return max(1, _HELD // sum(self.model.parameters[name].numel() for name in self.names))

    def made_at_once(self, longest: int) -> int:
        """Likewise of what sentences of at most so many tokens are made of."""
        return max(1, _HELD // sum(longest * sum(self.model.parameters[name].shape) for name in self.names))

    def of(self, lines: Iterable[Line]) -> dict[Line, dict[str, Tensor]]:
        """Each sentence's part of the gradient."""
        shapes = {name: tuple(self.model.parameters[name].shape) for name in self.names}
        return {
            line: {name: form(parts, shapes[name])[0] for name, parts in made.items()}
            for line, made in self.made_of(lines).items()
        }

    def made_of(self, lines: Iterable[Line]) -> dict[Line, Made]:
        """What each sentence's part of the gradient is made of."""
        found: dict[Line, Made] = {}
        waiting = sorted(dict.fromkeys(lines), key=lambda line: len(line[0]))
        while waiting:
            longest = len(waiting[-1][0])
            logits = longest * (1 if self.model.task == "classification" else self.model.classes)
            most = max(1, min(_HELD // logits, TOKENS_A_PASS // longest, self.made_at_once(longest)))
            some, waiting = waiting[-most:], waiting[:-most]
            _, made_of = self._capture.contributions(self._losses, self._leaves(some), create_graph=False)
            for k, line in enumerate(some):
                found[line] = {
                    name: [candidate(part, k) for part in made_of[name]]
                    for name in self.names
                    if name in made_of
                }
        return found

    def _leaves(self, lines: Sequence[Line]) -> dict[str, Tensor]:
        """Sentences as the loss takes them, each weighed as it is in the batch: K candidates of one sentence."""
        model = self.model
        symbols_K1T, mask_K1T = (some_KT[:, None] for some_KT in padded(model, [row for row, _ in lines]))
        classes = torch.tensor([[label or 0] for _, label in lines]).to(model.device)
        inputs_K1T, targets = inputs_and_targets(
            model,
            ids=symbols_K1T % model.vocab_size,
            mask=mask_K1T,
            labels=classes,
            hidden=symbols_K1T >= model.vocab_size,
        )
        parts_K = torch.tensor([self._weight(line) / self._total for line in lines])
        weights_K1L = targets.weights * parts_K.to(targets.weights)[:, None, None]
        return {
            "inputs": inputs_K1T,
            "mask": mask_K1T,
            "labels": targets.labels,
            "weights": weights_K1L,
        }

    def _losses(self, leaves: Leaves) -> Tensor:
        targets = Targets(labels=leaves["labels"], weights=leaves["weights"])
        return self.model.loss(leaves["inputs"], leaves["mask"], targets)

    def _weight(self, line: Line) -> int:
        """How much of the batch's loss is a sentence's, up to a factor: how many predictions it asks for, in most."""
        symbols, _ = line
        language = self.model.language
        if self.model.task == "classification" or language.reduction != "mean":
            return 1
        if self.model.task == "causal-lm":
            return len(symbols) - max((1, *language.prompt))
        return sum(symbol >= self.model.vocab_size for symbol in symbols)

    def _last(self, names: Sequence[str], line: Line) -> list[str]:
        """Parameters of the modules that run last, the last first."""
        return last_used(self.model, names, lambda: self._losses(self._leaves([line])))


def small_ones(model: TextModel, names: Iterable[str]) -> list[str]:
    """Those of some tensors that rivals are compared at, if these run last: all but the large ones."""
    return [name for name in names if model.parameters[name].numel() <= _ENTRIES]


def moved(parts: Parts, guess: Guess, rivals: Sequence[Guess]) -> Iterator[float]:
    """How far each rival's gradient is from the answer's at the tensors of `parts`: by what they are made of alone."""
    before = lines_of(guess)
    changes = [_changes(before, rival) for rival in rivals]
    step = parts.made_at_once(max((len(new[0]) for some in changes for _, new in some), default=1))
    for start in range(0, len(rivals), step):
        here = changes[start : start + step]
        made = parts.made_of(line for some in here for pair in some for line in pair)
        for some in here:
            squares = (
                _squared(parts, name, [(made[old], made[new]) for old, new in some]) for name in parts.names
            )
            yield max(0.0, sum(squares)) ** 0.5


def _squared(parts: Parts, name: str, changes: Sequence[tuple[Made, Made]]) -> float:
    """The squared norm of what new sentences add to one tensor and old ones don't any more."""
    made = [
        in_dtype(part, torch.float64)
        for old, new in changes
        for part in (*map(negative, old.get(name, ())), *new.get(name, ()))
    ]
    return float(squared(made, tuple(parts.model.parameters[name].shape))) if made else 0.0


def _changes(before: Sequence[Line], rival: Guess) -> list[tuple[Line, Line]]:
    """Which sentences a rival has others in the place of."""
    return [(old, new) for old, new in zip(before, lines_of(rival), strict=True) if old != new]


def distances(
    parts: Parts,
    guess: Guess,
    rivals: Sequence[Guess],
    own: Mapping[str, Tensor],
    distance: Callable[[Mapping[str, Tensor]], float],
) -> list[float]:
    """How far each rival's gradient is at the tensors of `parts`, which the whole distance can't be below.

    Args:
        parts: forms them.
        guess: the answer.
        rivals: others of as many sentences, some of which differ.
        own: the answer's gradient, float64.
        distance: of a gradient at `parts.names`.
    """
    if not rivals:
        return []
    before, mine = lines_of(guess), {name: own[name] for name in parts.names}
    every = [_changes(before, rival) for rival in rivals]
    olds = parts.of(old for changed in every for old, _ in changed)
    found: list[float] = []
    for start in range(0, len(rivals), parts.at_once):
        changes = every[start : start + parts.at_once]
        news = parts.of(new for changed in changes for _, new in changed)
        for changed in changes:
            here = {name: gradient.clone() for name, gradient in mine.items()}
            for old, new in changed:
                for part, sign in ((olds[old], -1), (news[new], 1)):
                    for name, gradient in part.items():
                        here[name].add_(exact(gradient).to(here[name].device), alpha=sign)
            found.append(distance(here))
    return found
