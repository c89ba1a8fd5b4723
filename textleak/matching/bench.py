"""How fast the engine is: factored gradients of K candidates at once, against gradients formed one at a time.

And against its limit: the time that the counted products alone would take (limit.py), measured by turns with it.

The formed method is the papers' own (Zhu et al. 2019): forward, autograd's gradient with regard to the
matched parameters, their distance from the shared gradient, and its gradient with regard to the dummies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from textleak.matching.factored import Capture, Leaves, ModelFunction, candidates_of, requiring_grad
from textleak.matching.limit import Products, Work, counted, matched_work
from textleak.matching.matcher import Matcher, matched_names
from textleak.matching.objectives import TAG, CosineGlobal, CosinePerTensor, Objective, SquaredL2
from textleak.matching.recorded import UNTIL_REPLAYED
from textleak.matching.target import Target

# Candidates whose losses and gradients are compared, at most: the formed method is slow.
_COMPARED = 4


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """What was measured.

    Attributes:
        candidates: K.
        device: what it ran on.
        dtype: of the dummies.
        threads: torch's, on a CPU.
        repeats: alternating measurements of both methods.
        factored_candidates_per_second: median, distance and gradient.
        formed_candidates_per_second: median.
        speedup: median of the ratio of a factored measurement to the formed one beside it.
        spread: half the interquartile range of these ratios.
        memory_ratio: bytes that a candidate's graph saves for its backward pass, factored over formed.
        max_relative_difference: of a candidate's loss and of its dummies' gradient, the largest.
        evaluations_per_second: candidates, distance alone; median.
        step_flops, evaluation_flops: of a candidate's distance and gradient, and of its distance alone, by formula.
        counted_step_flops, counted_evaluation_flops: the same, as torch counts them.
        product_flops_per_second: what this machine reached in the matched layers' products alone; median.
        step_share, evaluation_share: part of that speed that the engine reached; median.
    """

    candidates: int
    device: str
    dtype: str
    threads: int
    repeats: int
    factored_candidates_per_second: float
    formed_candidates_per_second: float
    speedup: float
    spread: float
    memory_ratio: float
    max_relative_difference: float
    evaluations_per_second: float
    step_flops: float
    evaluation_flops: float
    counted_step_flops: float
    counted_evaluation_flops: float
    product_flops_per_second: float
    step_share: float
    evaluation_share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """What both methods are run on.

    Attributes:
        model_function: gives losses (K,) from leaves.
        leaves: K candidates away from the optimum.
        wrt: names of the dummies among the leaves.
        beside: what a candidate takes beside the matched layers, such as attention.
    """

    model_function: ModelFunction
    leaves: Leaves
    wrt: tuple[str, ...]
    beside: Work = field(default_factory=Work)


def benchmark(
    network: nn.Module,
    candidates: Candidates,
    gradients: Mapping[str, Tensor],
    objective: Objective,
    *,
    repeats: int = 5,
) -> BenchRow:
    """Measure both methods on the same candidates, by turns, and the machine's products beside them.

    Args:
        network: the network that the model function calls.
        candidates: to be compared with the shared gradient.
        gradients: the shared gradient of the parameters to be matched, all of them reached from the leaves.
        objective: one of this room's.
        repeats: how often each is timed.
    """
    target = Target.from_gradients(gradients)
    source = Capture(network, matched_names(target, objective))
    both = _Methods(
        matcher=Matcher(source, target, objective),
        model_function=candidates.model_function,
        leaves=candidates.leaves,
        dummies=candidates.wrt,
        matched=_matched(network, target, objective),
        shared={name: gradients[name].detach() for name in target.names},
    )
    for _ in range(UNTIL_REPLAYED):  # checks its rules, warms up
        both.factored()
        both.evaluated()
    found = source.contributions(candidates.model_function, candidates.leaves, create_graph=False)[1]
    work = matched_work(found, target, absolute=objective.needs_absolute) + candidates.beside
    turns = _turns(both, Products.of(found), repeats)
    ratios = [turn.formed / turn.factored for turn in turns]
    quarters = statistics.quantiles(ratios, method="inclusive") if repeats > 1 else [ratios[0]] * 3
    constants = [*network.parameters(), *network.buffers(), *both.shared.values()]
    computed = replace(both, matcher=Matcher(source, target, objective, replay=False))
    computed.factored()
    step_flops, factored_bytes = counted(lambda: _saved_bytes(computed.factored, constants))
    evaluation_flops, _ = counted(computed.evaluated)
    with requiring_grad(both.matched.values()):
        formed_bytes = _saved_bytes(lambda: both.formed(0), constants)
        expected = [both.formed(k) for k in range(min(both.candidates, _COMPARED))]
    return BenchRow(
        candidates=both.candidates,
        device=str(both.device),
        dtype=str(both.leaves[both.dummies[0]].dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        repeats=repeats,
        factored_candidates_per_second=1 / statistics.median(turn.factored for turn in turns),
        formed_candidates_per_second=1 / statistics.median(turn.formed for turn in turns),
        speedup=statistics.median(ratios),
        spread=(quarters[2] - quarters[0]) / 2,
        memory_ratio=factored_bytes / both.candidates / formed_bytes,
        max_relative_difference=_difference(both.factored(), expected),
        evaluations_per_second=1 / statistics.median(turn.evaluation for turn in turns),
        step_flops=work.step,
        evaluation_flops=work.evaluation,
        counted_step_flops=step_flops / both.candidates,
        counted_evaluation_flops=evaluation_flops / both.candidates,
        product_flops_per_second=statistics.median(turn.rate for turn in turns),
        step_share=statistics.median(work.step / turn.factored / turn.rate for turn in turns),
        evaluation_share=statistics.median(work.evaluation / turn.evaluation / turn.rate for turn in turns),
    )


def _matched(network: nn.Module, target: Target, objective: Objective) -> dict[str, nn.Parameter]:
    """The parameters whose gradients the objective looks at."""
    parameters = dict(network.named_parameters())
    return {name: parameters[name] for name in matched_names(target, objective)}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Methods:
    """The two ways to the same candidates' distances and gradients.

    Attributes:
        matcher: the factored way.
        model_function: gives losses (K,) from leaves.
        leaves: the candidates.
        dummies: names of those that are differentiated by.
        matched: the parameters whose gradients are compared.
        shared: the shared gradient of these.
    """

    matcher: Matcher
    model_function: ModelFunction
    leaves: Leaves
    dummies: tuple[str, ...]
    matched: dict[str, nn.Parameter]
    shared: dict[str, Tensor]

    @property
    def candidates(self) -> int:
        """K."""
        return candidates_of(self.leaves)

    @property
    def device(self) -> torch.device:
        """Where the candidates are."""
        return self.leaves[self.dummies[0]].device

    def factored(self) -> tuple[Tensor, dict[str, Tensor]]:
        """All candidates at once."""
        return self.matcher.value_and_gradient(self.model_function, self.leaves, self.dummies)

    def evaluated(self) -> Tensor:
        """All candidates' distances alone, as a discrete search takes them."""
        return self.matcher.evaluate(self.model_function, self.leaves)

    def formed(self, k: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One candidate, as the papers do it; the parameters have to require gradients."""
        own = {name: leaf[k : k + 1].detach().clone() for name, leaf in self.leaves.items()}
        for name in self.dummies:
            own[name].requires_grad_()
        loss = self.model_function(own).sum()
        trial = torch.autograd.grad(loss, list(self.matched.values()), create_graph=True)
        gradients = dict(zip(self.matched, trial, strict=True))
        distance = _distance(self.matcher.objective, gradients, self.shared)
        found = torch.autograd.grad(
            distance, [own[n] for n in self.dummies], allow_unused=True, materialize_grads=True
        )
        return distance.detach().unsqueeze(0), dict(zip(self.dummies, found, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Measured one right after the other.

    Attributes:
        factored, formed, evaluation: seconds a candidate.
        rate: FLOPs a second of products alone.
    """

    factored: float
    formed: float
    evaluation: float
    rate: float


def _turns(both: _Methods, products: Products, repeats: int) -> list[_Turn]:
    """The methods by turns, the formed one about as long as the factored one."""
    with requiring_grad(both.matched.values()):
        both.formed(0)
        seconds = _seconds(lambda: both.formed(0), both.device)
    times = max(1, round(_seconds(both.factored, both.device) / seconds))
    turns = []
    for _ in range(repeats):
        with requiring_grad(both.matched.values()):
            formed = _seconds(lambda: [both.formed(k % both.candidates) for k in range(times)], both.device)
        turns.append(
            _Turn(
                formed=formed / times,
                factored=_seconds(both.factored, both.device) / both.candidates,
                evaluation=_seconds(both.evaluated, both.device) / both.candidates,
                rate=max(products.flops / _seconds(way, both.device) for way in products.ways),
            )
        )
    return turns


def _distance(objective: Objective, own: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Tensor:
    """An objective as its paper writes it, on formed gradients."""
    weights = {name: float(objective.weights.get(name, 1.0)) for name in own}
    if isinstance(objective, SquaredL2 | TAG):
        alpha = objective.alpha if isinstance(objective, TAG) else 0.0
        parts = []
        for name, weight in weights.items():
            difference = own[name] - shared[name]
            part = difference.square().sum()
            if alpha:
                part = part + alpha * difference.abs().sum()
            parts.append(weight * part)
        return torch.stack(parts).sum()
    dots, squares, goals = [], [], []
    for name in weights:
        dots.append((own[name] * shared[name]).sum())
        squares.append(own[name].square().sum())
        goals.append(shared[name].square().sum())
    dot_P, square_P, goal_P = torch.stack(dots), torch.stack(squares), torch.stack(goals)
    weight_P = dot_P.new_tensor(list(weights.values()))
    if isinstance(objective, CosinePerTensor):
        return ((1 - dot_P / (square_P.sqrt() * goal_P.sqrt())) @ weight_P) / weight_P.sum()
    if isinstance(objective, CosineGlobal):
        return 1 - dot_P @ weight_P / ((square_P @ weight_P).sqrt() * (goal_P @ weight_P).sqrt())
    raise TypeError(f"no formed counterpart of {objective!r}")


def _difference(
    found: tuple[Tensor, dict[str, Tensor]], expected: list[tuple[Tensor, dict[str, Tensor]]]
) -> float:
    """Largest relative difference of losses and of dummies' gradients."""
    losses_K, gradients = found
    largest = 0.0
    for k, (loss_1, truth) in enumerate(expected):
        # All dummies as one vector: a cosine at B = 1 with two classes has no slope in the label at all.
        mine, theirs = (
            torch.cat([g.flatten() for g in some])
            for some in ([gradients[name][k] for name in truth], list(truth.values()))
        )
        for a, b in ((losses_K[k : k + 1], loss_1), (mine, theirs)):
            largest = max(largest, float((a - b).norm() / b.norm()))
    return largest


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one thread on a CPU its own time, so that other work on the machine doesn't count."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def _saved_bytes(work: Callable[[], object], constants: Iterable[Tensor]) -> int:
    """Bytes of all different storages that graphs save while `work` runs, without `constants`."""
    known = {constant.untyped_storage().data_ptr() for constant in constants}
    saved: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is given out twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in saved.values())
