"""LAMP: Extracting Text from Gradients with Language Model Priors (Balunović et al. 2022, arXiv 2202.08827).

Continuous steps on dummy embeddings alternate with discrete moves of whole tokens, which a language model judges too
(sec. 4):

1. The best of 500 Gaussian starts by gradient distance, then the best of 500 permutations of it.
2. Adam on distance + α_reg · (mean norm of the dummies − mean norm of the vocabulary's embeddings)².
3. Every 75 steps, of 200 orders of each sentence the one of least distance + α_lm · language-model loss.
4. The dummies of least loss (that of 2) are decoded, each to the token of the nearest embedding by cosine.

"Released code" is eth-sri/lamp. Where it and this file differ:
- it has the norm 1.4, BERT-base's mean, for every model; the paper and this file take the attacked model's;
- its prior is a GPT-2 trained on the attacked model's own vocabulary, and reads the special tokens too; here any prior
  reads the decoded text in its own vocabulary, and its loss is likewise a mean over the batch's tokens;
- it keeps the dummies one step after those of least loss; here these themselves;
- it moves padding about with a batch's shorter sentences, and judges each sentence of a batch beside the others' order
  of before; here padding stays, and the language model reads what it would get;
- it compares every tensor; here those whose gradient is only rounding (key biases) are left out, as in all attacks.

Labels and lengths are known to the published attack. Labels that aren't are optimized, as DLG's and TAG's are; so are
those of language modeling, which move with their tokens (our reading, the paper has classification only).

Shapes: K candidates, M orders or starts compared, B sentences, T tokens, E embedding size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from textleak.attacks.base import ATTACKS, Steps
from textleak.attacks.dummies.matched import (
    EVERY,
    OTHERS_EVERY,
    STOPS,
    in_words,
    progress_of,
)
from textleak.attacks.dummies.text import Dummies, known_lengths
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Tokens
from textleak.matching import (
    TAG,
    Adam,
    CosinePerTensor,
    Leaves,
    Objective,
    StepDecay,
    minimise,
)
from textleak.models.base import Modality
from textleak.models.decoding import fixed_tokens
from textleak.models.prior import LanguagePrior
from textleak.shared.traits import Trait

Order = tuple[int, ...]
"""Which of a row's tokens stands at each place after a move."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What the two variants differ in."""

    objective: Objective
    alpha_lm: float
    alpha_reg: float


_RECIPES: Mapping[str, _Recipe] = {
    # Released code, lamp_cos.sh.
    "cos": _Recipe(objective=CosinePerTensor(), alpha_lm=0.2, alpha_reg=1.0),
    # Released code, lamp_l1l2.sh; the L1 distance's weight is 0.01.
    "l1l2": _Recipe(objective=TAG(alpha=0.01), alpha_lm=60.0, alpha_reg=25.0),
}


@ATTACKS.register("lamp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMP:
    """Dummy embeddings, Adam, and moves of tokens that a language model judges with the gradient.

    Attributes:
        variant: the distance: "cos", the mean over tensors of 1 − cosine, or "l1l2", squared L2 plus 0.01 · L1.
        restarts: candidates K, each with starts of its own; the best by its own loss is the answer.
        steps: optimizer steps.
        learning_rate: of Adam, times 0.89 every 50 steps.
        prior: causal language model that judges texts, as --model names one; null for none, and alpha_lm is 0.
        alpha_lm: weight of the language model's loss; null for the variant's.
        alpha_reg: weight of the difference of mean norms; null for the variant's.
        embedding_norm: norm that the dummies are kept near; null for the mean of the model's embeddings.
        starts: Gaussian starts, and then permutations of the best one, that a candidate begins with the best of.
        moves: orders of each sentence tried in a round, the one that it has among them.
        moves_every: steps from one round to the next.
        burn_in: part of the steps before the first round.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.REPEATABLE})

    variant: Literal["cos", "l1l2"] = "cos"
    restarts: Annotated[int, Field(ge=1)] = 1  # released code: one candidate
    steps: Annotated[int, Field(ge=1)] = 2000  # released code, n_steps
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01  # released code, lr
    prior: str | None = None
    alpha_lm: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    alpha_reg: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    embedding_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    starts: Annotated[int, Field(ge=1)] = 500  # released code, init_candidates
    moves: Annotated[int, Field(ge=1)] = 200  # released code, swap_tokens
    moves_every: Annotated[int, Field(ge=1)] = 75  # released code, swap_every
    burn_in: Annotated[float, Field(ge=0, le=1)] = 0.1  # released code, swap_burnin
    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Raises:
            InputError: lengths that aren't known, a prior that can't be had, or nothing that dummies leave a trace in.
        """
        recipe = _RECIPES[self.variant]
        problem = TextProblem(view=view, objective=recipe.objective)
        shared, model = view.shared, problem.model
        known = shared.known.labels
        dummies = Dummies(
            model=model,
            lengths=known_lengths(shared),
            labels_KB=None if known is None else torch.tensor(known).expand(self.restarts, -1),
        )
        prior = None
        if self.prior is not None:
            yield Phase(name="prior", detail=f"loading {self.prior}")
            prior = LanguagePrior.load(self.prior, model.device)
        run = _Run(options=self, problem=problem, dummies=dummies, prior=prior, generator=generator)
        return (yield from run.steps())

    def rounds(self) -> list[int]:
        """After which steps, counted from 1, tokens are moved."""
        # Released code counts steps from 0, and moves after those that are 1 more than a multiple.
        return [
            step + 1
            for step in range(self.steps)
            if step >= self.burn_in * self.steps and step % self.moves_every == 1 % self.moves_every
        ]


@dataclasses.dataclass(kw_only=True, eq=False)
class _Run:
    """One run of the attack."""

    options: LAMP
    problem: TextProblem
    dummies: Dummies
    prior: LanguagePrior | None
    generator: torch.Generator

    def __post_init__(self) -> None:
        """What can be refused is refused before the first phase."""
        self.model = self.problem.model
        self.matcher = self.problem.soft_matcher
        recipe = _RECIPES[self.options.variant]
        given = self.options.alpha_lm, self.options.alpha_reg
        self.alpha_lm = recipe.alpha_lm if given[0] is None else given[0]
        self.alpha_reg = recipe.alpha_reg if given[1] is None else given[1]

    def steps(self) -> Steps:
        """The attack's phases, one after the other."""
        options, dummies = self.options, self.dummies
        yield Phase(name="initialize", detail=f"the best of {options.starts} starts, and of its permutations")
        begin = yield from self._begin()
        rounds = options.rounds()
        yield Phase(
            name="alternate",
            detail=f"{in_words(options.restarts, dummies)}, tokens moved in {len(rounds)} rounds",
        )
        run = minimise(
            self._value_and_gradient,
            {**dummies.given(options.restarts), **begin},
            Adam(learning_rate=options.learning_rate, schedule=StepDecay(gamma=0.89, every=50)),
            steps=options.steps,
            wrt=dummies.free,
            time_limit=self.problem.view.clock.left,
        )
        step, again = next(run), 0
        others: tuple[Tokens, ...] = ()
        while True:
            again += len(step.restarted)
            moved, detail = None, ""
            if step.step in rounds and step.stop is None:
                moved, detail = self._move(step.points)
            if step.step == 1 or step.step % OTHERS_EVERY == 0:
                others = dummies.others(step.best)
            if step.step == 1 or step.step % EVERY == 0 or step.stop is not None or moved is not None:
                last = progress_of(step, options.steps, dummies, others)
                last = dataclasses.replace(
                    last,
                    phase="alternate",
                    evaluations=self.matcher.evaluations,
                    detail=last.detail or detail,
                )
                yield last
            if step.stop is not None:
                break
            step = run.send(moved)
        return Recovery(
            sentences=last.sentences,
            stop=STOPS[step.stop],
            final_loss=last.loss,
            steps=last.step,
            evaluations=last.evaluations,
            channel="matching",
            notes=tuple(self._notes(again)),
        )

    def _notes(self, again: int) -> Iterator[str]:
        if self.prior is None:
            yield "There was no language-model prior (--prior): moves were judged by the gradient alone."
        if self.dummies.labels_KB is None and self.model.num_labels is not None:
            yield "Labels were not known, as they are to the published attack: soft labels were optimized."
        if again:
            yield f"{again} candidates that diverged began anew from their best point."

    # Where candidates begin

    def _begin(self) -> Generator[Progress, None, dict[str, Tensor]]:
        """The leaves that are optimized, at the best of the starts and of its permutations, (K, ...)."""
        chosen = []
        for k in range(self.options.restarts):
            best = yield from self._best_of(self._gaussians(), k, None)
            best = yield from self._best_of(self._permutations(best[0]), k, best)
            chosen.append(best[0])
        begin = {name: torch.cat([free[name] for free in chosen]) for name in self.dummies.free}
        norms = begin["embeddings"].norm(dim=-1, keepdim=True)
        return {**begin, "embeddings": begin["embeddings"] * (self._norm / norms)}  # released code, get_init

    def _gaussians(self) -> Iterator[dict[str, Tensor]]:
        """Starts from N(0, 1), some at a time."""
        for size in self._passes(self.options.starts):
            yield self.dummies.draw(size, self.generator)

    def _permutations(self, free: Leaves) -> Iterator[dict[str, Tensor]]:
        """The same dummies in random orders, each sentence in its own, some at a time."""
        for size in self._passes(self.options.starts):
            rows = [
                [
                    self._whole(
                        torch.randperm(len(self._inner(length)), generator=self.generator).tolist(), length
                    )
                    for length in self.dummies.lengths
                ]
                for _ in range(size)
            ]
            yield self._reordered(free, rows)

    def _best_of(
        self, batches: Iterator[dict[str, Tensor]], k: int, best: tuple[dict[str, Tensor], float] | None
    ) -> Generator[Progress, None, tuple[dict[str, Tensor], float]]:
        """The leaves of least distance, and that distance; at least the first ones even when time is up."""
        tried = 2 * k * self.options.starts + (0 if best is None else self.options.starts)
        for free in batches:
            if best is not None and self.problem.view.clock.over:
                break
            distances_M = self._distances(free)
            m = int(distances_M.argmin())
            if best is None or float(distances_M[m]) < best[1]:
                best = {name: leaf[m : m + 1] for name, leaf in free.items()}, float(distances_M[m])
            tried += len(distances_M)
            yield Progress(
                phase="initialize",
                step=tried,
                steps=2 * self.options.restarts * self.options.starts,
                loss=best[1],
                candidate=k,
                evaluations=self.matcher.evaluations,
                sentences=self.dummies.decode(best[0], 0),
            )
        assert best is not None
        return best

    def _passes(self, count: int) -> Iterator[int]:
        """How many candidates each pass of the network takes, of `count` in all."""
        lengths = self.dummies.lengths
        size = self.problem.candidates_a_pass(len(lengths) * max(lengths))
        for start in range(0, count, size):
            yield min(size, count - start)

    def _distances(self, free: Leaves) -> Tensor:
        """How far each of M candidates' gradients is from the shared one, (M,); inf where that is no number."""
        count = len(free["embeddings"])
        given = {name: leaf[:1].expand(count, *leaf.shape[1:]) for name, leaf in self._given.items()}
        distances_M = self.matcher.evaluate(self.dummies.losses, {**given, **free})
        return distances_M.nan_to_num(torch.inf, posinf=torch.inf)

    @cached_property
    def _given(self) -> dict[str, Tensor]:
        return self.dummies.given(1)

    # Continuous steps

    @cached_property
    def _norm(self) -> float:
        """The norm that the dummies are kept near."""
        given = self.options.embedding_norm
        return float(self.problem.table_VE.norm(dim=-1).mean()) if given is None else given

    def _value_and_gradient(self, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized, (K,), and its gradients by the free leaves."""
        values_K, gradients = self.dummies.value_and_gradient(self.matcher, leaves)
        penalties_K, slopes_KBTE = norm_penalty(leaves, self._norm)
        gradients["embeddings"] = gradients["embeddings"] + self.alpha_reg * slopes_KBTE
        return values_K + self.alpha_reg * penalties_K, gradients

    # Discrete moves

    def _move(self, points: Leaves) -> tuple[dict[str, Tensor], str]:
        """One round for every candidate: where the leaves go, and what happened in words."""
        moved, words = [], []
        for k in range(self.options.restarts):
            free = {name: leaf[k : k + 1] for name, leaf in points.items()}
            free, changed = self._move_candidate(free)
            moved.append(free)
            words += [f"candidate {k}, sentence {b}" for b in changed]
        detail = f"moved: {'; '.join(words)}" if words else "no order was better"
        return {name: torch.cat([free[name] for free in moved]) for name in points}, detail

    def _move_candidate(self, free: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
        """A candidate with each sentence in the best order found, and which sentences that changed."""
        rows = [[p.id for p in sentence.positions] for sentence in self.dummies.decode(free, 0)]
        changed = []
        for b, length in enumerate(self.dummies.lengths):
            inner = tried_orders(len(self._inner(length)), self.options.moves, self.generator)
            orders = [self._whole(order, length) for order in inner]
            stay: list[Order] = [tuple(range(other)) for other in self.dummies.lengths]
            batches = [[*stay[:b], order, *stay[b + 1 :]] for order in orders]
            losses = self._judge(free, rows, batches)
            best = min(range(len(losses)), key=losses.__getitem__)
            if best:
                changed.append(b)
                free = self._reordered(free, [batches[best]])
                rows[b] = [rows[b][t] for t in orders[best]]
        return free, changed

    def _judge(
        self, free: Leaves, rows: Sequence[Sequence[int]], batches: Sequence[Sequence[Order]]
    ) -> list[float]:
        """Gradient distance + α_lm · language-model loss of a batch in several orders."""
        distances: list[float] = []
        sizes = self._passes(len(batches))
        for size in sizes:
            part = batches[len(distances) : len(distances) + size]
            distances += self._distances(self._reordered(free, part)).tolist()
        if self.prior is None or self.alpha_lm == 0:
            return distances
        texts = [
            [self.model.decode([row[t] for t in order]) for row, order in zip(rows, orders, strict=True)]
            for orders in batches
        ]
        losses = self.prior.losses(texts)
        return [distance + self.alpha_lm * loss for distance, loss in zip(distances, losses, strict=True)]

    def _inner(self, length: int) -> list[int]:
        """Positions of a sentence whose token the tokenizer doesn't fix."""
        fixed = fixed_tokens(self.model, length)
        return [t for t in range(length) if t not in fixed]

    def _whole(self, inner: Sequence[int], length: int) -> Order:
        """An order of a whole sentence from one of the tokens that aren't fixed."""
        places = self._inner(length)
        order = list(range(length))
        for t, moved in zip(places, inner, strict=True):
            order[t] = places[moved]
        return tuple(order)

    def _reordered(self, free: Leaves, batches: Sequence[Sequence[Order]]) -> dict[str, Tensor]:
        """One candidate's leaves (1, ...) in M orders of its sentences: (M, ...)."""
        longest = max(self.dummies.lengths)
        padded = [[[*row, *range(len(row), longest)] for row in rows] for rows in batches]
        orders_MBT = torch.tensor(padded, device=free["embeddings"].device)
        found = {}
        for name, leaf in free.items():
            if name == "labels" and self.model.task == "classification":
                found[name] = leaf.expand(len(batches), *leaf.shape[1:])
            elif name == "labels" and self.model.task == "causal-lm":
                # A row is the token that stands after it; the last one, of no token, goes with the first token.
                found[name] = _gathered(leaf.roll(1, 2), orders_MBT).roll(-1, 2)
            else:
                found[name] = _gathered(leaf, orders_MBT)
        return found


def _gathered(leaf_1BT: Tensor, orders_MBT: Tensor) -> Tensor:
    """What stands at each place after a move; any dimensions after T go with it."""
    rest = leaf_1BT.shape[3:]
    index = orders_MBT.view(*orders_MBT.shape, *(1 for _ in rest)).expand(*orders_MBT.shape, *rest)
    return leaf_1BT.expand(len(orders_MBT), *leaf_1BT.shape[1:]).gather(2, index)


def norm_penalty(leaves: Leaves, norm: float) -> tuple[Tensor, Tensor]:
    """Squared difference of the tokens' mean norm from `norm`, and its gradient by the dummies.

    Special tokens count, as in the released code; padding doesn't (there it does).

    Returns:
        Penalties (K,) and slopes (K, B, T, E).
    """
    with torch.enable_grad():
        dummies_KBTE = leaves["embeddings"].detach().requires_grad_()
        norms_KBT = torch.where(leaves["open"][..., None], dummies_KBTE, leaves["fixed"]).norm(dim=-1)
        tokens_KBT = leaves["mask"].to(norms_KBT)
        means_K = (norms_KBT * tokens_KBT).sum((1, 2)) / tokens_KBT.sum((1, 2))
        penalties_K = (means_K - norm).square()
        (slopes_KBTE,) = torch.autograd.grad(penalties_K.sum(), dummies_KBTE)
    return penalties_K.detach(), slopes_KBTE


def tried_orders(count: int, tries: int, generator: torch.Generator) -> list[Order]:
    """The order as it is and random moves of `count` tokens, `tries` in all, those that are equal once.

    The four kinds take turns as in the released code.
    """
    if count < 2:
        return [tuple(range(count))]
    kinds = itertools.islice(itertools.cycle((move_token, move_span, prefix_to_end, swap)), tries - 1)
    return list(dict.fromkeys([tuple(range(count)), *(kind(count, generator) for kind in kinds)]))


def swap(count: int, generator: torch.Generator) -> Order:
    """Two tokens change places."""
    order = list(range(count))
    i, j = _below(count, generator), _below(count, generator)
    order[i], order[j] = order[j], order[i]
    return tuple(order)


def move_token(count: int, generator: torch.Generator) -> Order:
    """A token goes to another place."""
    start = _below(count, generator)
    return _span_moved(count, start, start + 1, generator)


def move_span(count: int, generator: torch.Generator) -> Order:
    """Tokens that stand side by side go to another place together."""
    start, end = sorted((_below(count + 1, generator), _below(count + 1, generator)))
    return _span_moved(count, start, end, generator)


def prefix_to_end(count: int, generator: torch.Generator) -> Order:
    """The first tokens go to the end."""
    length = _below(count, generator)
    return (*range(length, count), *range(length))


def _span_moved(count: int, start: int, end: int, generator: torch.Generator) -> Order:
    rest = (*range(start), *range(end, count))
    place = _below(len(rest) + 1, generator)
    return (*rest[:place], *range(start, end), *rest[place:])


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
