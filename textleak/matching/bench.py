"""How fast the engine is: factored gradients of K candidates at once, against gradients formed one at a time.

The formed method is the papers' own (Zhu et al. 2019): forward, autograd's gradient with regard to the
matched parameters, their distance from the shared gradient, and its gradient with regard to the dummies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from textleak.matching.factored import Leaves, ModelFunction, candidates_of, requiring_grad
from textleak.matching.matcher import Matcher
from textleak.matching.objectives import TAG, CosineGlobal, CosinePerTensor, Objective, SquaredL2
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


def benchmark(
    network: nn.Module,
    model_function: ModelFunction,
    leaves: Leaves,
    gradients: Mapping[str, Tensor],
    objective: Objective,
    *,
    wrt: Iterable[str],
    repeats: int = 5,
) -> BenchRow:
    """Measure both methods on the same candidates, by turns.

    Args:
        network: the network that `model_function` calls.
        model_function: gives losses (K,) from leaves.
        leaves: K candidates away from the optimum.
        gradients: the shared gradient of the parameters to be matched, all of them reached from the leaves.
        objective: one of this room's.
        wrt: names of the dummies among the leaves.
        repeats: how often both are timed.
    """
    dummies = tuple(wrt)
    target = Target.from_gradients(gradients)
    matcher = Matcher.of(network, target, objective)
    parameters = dict(network.named_parameters())
    matched = {name: parameters[name] for name in target.names if objective.weights.get(name, 1.0)}
    shared = {name: gradients[name].detach() for name in matched}
    candidates = candidates_of(leaves)
    device = leaves[dummies[0]].device

    def factored(some: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        return matcher.value_and_gradient(model_function, some, dummies)

    def formed(k: int) -> tuple[Tensor, dict[str, Tensor]]:
        own = {name: leaf[k : k + 1].detach().clone() for name, leaf in leaves.items()}
        for name in dummies:
            own[name].requires_grad_()
        loss = model_function(own).sum()
        trial = torch.autograd.grad(loss, list(matched.values()), create_graph=True)
        distance = _distance(objective, dict(zip(matched, trial, strict=True)), shared)
        found = torch.autograd.grad(
            distance, [own[n] for n in dummies], allow_unused=True, materialize_grads=True
        )
        return distance.detach().unsqueeze(0), dict(zip(dummies, found, strict=True))

    factored(leaves)  # checks its rules, warms up
    formed_times, factored_times = [], []
    with requiring_grad(matched.values()):
        formed(0)
        seconds = _seconds(lambda: formed(0), device)
    turns = max(1, round(_seconds(lambda: factored(leaves), device) / seconds))  # about as long as the other
    for _ in range(repeats):
        with requiring_grad(matched.values()):
            taken = _seconds(lambda: [formed(k % candidates) for k in range(turns)], device)
        formed_times.append(taken / turns)
        factored_times.append(_seconds(lambda: factored(leaves), device) / candidates)
    ratios = [a / b for a, b in zip(formed_times, factored_times, strict=True)]
    quarters = statistics.quantiles(ratios, method="inclusive") if repeats > 1 else [ratios[0]] * 3

    constants = [*network.parameters(), *network.buffers(), *shared.values()]
    factored_bytes = _saved_bytes(lambda: factored(leaves), constants) / candidates
    with requiring_grad(matched.values()):
        formed_bytes = _saved_bytes(lambda: formed(0), constants)
        expected = [formed(k) for k in range(min(candidates, _COMPARED))]
    return BenchRow(
        candidates=candidates,
        device=str(device),
        dtype=str(leaves[dummies[0]].dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        repeats=repeats,
        factored_candidates_per_second=1 / statistics.median(factored_times),
        formed_candidates_per_second=1 / statistics.median(formed_times),
        speedup=statistics.median(ratios),
        spread=(quarters[2] - quarters[0]) / 2,
        memory_ratio=factored_bytes / formed_bytes,
        max_relative_difference=_difference(factored(leaves), expected),
    )


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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


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
