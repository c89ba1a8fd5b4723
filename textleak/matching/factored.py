"""Gradients of K candidates at once, as factors: no weight's gradient is formed.

Hooks on the modules that own the wanted parameters keep each call's input and output; one call of autograd
gives the gradients at the outputs for all candidates (the loss is a sum over candidates, so they don't mix);
layer rules turn both into factors; Gram matrices over the uses of a weight give the moments.

Shapes: K candidates, R = K * B rows of the network's batch, N uses of a weight (a candidate's tokens; a
weight that is used several times has them all, one after the other), O and I the sides of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from textleak.errors import InputError
from textleak.matching.hooks import hooked
from textleak.matching.kernels import CheapSecondDerivatives
from textleak.matching.rounding import tolerance_of
from textleak.matching.rules import Call, Contribution, Formed, Rule, find_rule, further_of
from textleak.matching.single import form

Leaves = Mapping[str, Tensor]
"""What the caller owns, by name, K first: embeddings, label logits, ids, pixels. Only sliced here."""

ModelFunction = Callable[[Leaves], Tensor]
"""Losses (K,) from leaves and nothing else that changes, by one call of the network on K * B rows, candidate after
candidate."""

_Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], object], Tensor]

# A rule is used where its gradient equals autograd's to this part of the gradient's norm.
RULE_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Owner:
    """A module that owns wanted parameters: its rule, and canonical names by local names."""

    module: nn.Module
    rule: Rule
    names: dict[str, str]


class _DoesNotFitError(Exception):
    """An owner's output or input isn't made of the candidates' rows."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)


class Capture:
    """Factors of K candidates' gradients for some of a network's parameters.

    Args:
        network: the network that model functions call; it is never changed.
        names: parameters wanted, by their name in `network.named_parameters()`.
        kinks: see `CheapSecondDerivatives`.

    Attributes:
        names: as given.
        formed_names: parameters without a rule, or whose rule `check` found wrong for this network: their
            gradients are formed by autograd, one candidate at a time (exact, slow).

    Raises:
        InputError: a name that isn't one of the network's parameters.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], *, kinks: float = 0.0) -> None:
        self.network = network
        self.kinks = kinks
        self.names = tuple(names)
        parameters = dict(network.named_parameters())
        for name in self.names:
            if name not in parameters:
                raise InputError(
                    f"The network has no parameter {name!r}.",
                    why="Gradients are matched by name.",
                    fix="Use a name of network.named_parameters() (a tied weight has one).",
                )
        self.parameters = {name: parameters[name] for name in self.names}
        canonical = {id(parameter): name for name, parameter in self.parameters.items()}
        self.formed_names: tuple[str, ...] = ()
        self._expanded: set[str] = set()
        owners: list[_Owner] = []
        without_rule: set[str] = set()
        for module in network.modules():
            owned = {
                local: canonical[id(parameter)]
                for local, parameter in module.named_parameters(recurse=False)
                if id(parameter) in canonical
            }
            rule = find_rule(module) if owned else None
            if rule is not None:
                owners.append(_Owner(module=module, rule=rule, names=owned))
            else:
                without_rule.update(owned.values())
        self._owners = owners
        self._form(without_rule)

    def _form(self, names: Iterable[str]) -> None:
        """From now on leave these to autograd."""
        formed = {*self.formed_names, *names}
        self.formed_names = tuple(name for name in self.names if name in formed)
        kept = []
        for owner in self._owners:
            by_rule = {local: name for local, name in owner.names.items() if name not in formed}
            if by_rule:
                kept.append(_Owner(module=owner.module, rule=owner.rule, names=by_rule))
        self._owners = kept

    def contributions(
        self, model_function: ModelFunction, leaves: Leaves, *, create_graph: bool
    ) -> tuple[Tensor, dict[str, list[Contribution]]]:
        """Run the network on all candidates.

        Args:
            model_function: gives losses (K,) from `leaves`.
            leaves: tensors with K first.
            create_graph: keep what is needed to differentiate the contributions with regard to the leaves.

        Returns:
            Losses (K,), and for each wanted parameter that the run reached what its gradient is made of.
        """
        candidates = candidates_of(leaves)
        found: dict[str, list[Contribution]] = {}
        views: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad():
            if self._owners:
                with self._hooked(candidates) as seen, CheapSecondDerivatives(self.kinks):
                    losses_K = model_function(leaves)
                asked = [(output, *further_of(owner.rule, output)) for owner, _, output in seen]
                gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                    losses_K.sum(), list(chain(*asked)), create_graph=create_graph, allow_unused=True
                )
                each = iter(gradients)
                with torch.set_grad_enabled(create_graph):
                    for (owner, input_R, _), own in zip(seen, asked, strict=True):
                        delta_R, *further = islice(each, len(own))
                        if delta_R is None:  # nothing of it reaches the loss
                            continue
                        call = Call(
                            module=owner.module,
                            wanted=frozenset(owner.names),
                            input_R=input_R,
                            delta_R=delta_R,
                            further=tuple(gradient for gradient in further if gradient is not None),
                            candidates=candidates,
                            views=views,
                        )
                        for local, contribution in owner.rule(call).items():
                            found.setdefault(owner.names[local], []).append(contribution)
            if self.formed_names:
                losses_K, formed = self.formed(
                    model_function, leaves, self.formed_names, create_graph=create_graph
                )
                found.update({name: [Formed(gradient_K=g)] for name, g in formed.items()})
        return losses_K, found

    def formed(
        self, model_function: ModelFunction, leaves: Leaves, names: Iterable[str], *, create_graph: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (K,) and gradients (K, *shape) as autograd forms them, one candidate at a time.

        A parameter that the model function doesn't reach is left out.
        """
        chosen = {name: self.parameters[name] for name in names}
        losses: list[Tensor] = []
        gradients: list[dict[str, Tensor]] = []
        with torch.enable_grad(), requiring_grad(chosen.values()):
            for k in range(candidates_of(leaves)):
                loss_1 = model_function({name: leaf[k : k + 1] for name, leaf in leaves.items()})
                own = torch.autograd.grad(
                    loss_1.sum(), list(chosen.values()), create_graph=create_graph, allow_unused=True
                )
                losses.append(loss_1)
                gradients.append({n: g for n, g in zip(chosen, own, strict=True) if g is not None})
        reached = [name for name in chosen if name in gradients[0]]
        stacked = {name: torch.stack([own[name] for own in gradients]) for name in reached}
        return torch.cat(losses), stacked

    def check(self, model_function: ModelFunction, leaves: Leaves) -> None:
        """Compare every rule with autograd's formed gradients on the first two candidates.

        A parameter whose rule is wrong for this network (a custom forward, an output changed in place,
        candidates that mix) is left to autograd from now on and listed in `formed_names`.

        Raises:
            InputError: a wanted parameter that the model function doesn't reach, or only by some of its uses
                (a tied word embedding when embeddings are fed).
        """
        two = [0, min(1, candidates_of(leaves) - 1)]
        few = {name: leaf[two].detach() for name, leaf in leaves.items()}
        with self._counting() as called:
            _, truth = self.formed(model_function, few, self.names, create_graph=False)
        owners: dict[int, list[nn.Module]] = {}
        for module in self.network.modules():
            for own in {id(parameter) for parameter in module.parameters(recurse=False)}:
                owners.setdefault(own, []).append(module)
        for name in self.names:
            used_by = owners.get(id(self.parameters[name]), [])
            missed = any(owner not in called for owner in used_by)
            if name not in truth or (missed and len(used_by) > 1):
                raise InputError(
                    f"The gradient of {name} is not all reached by the inputs being optimized.",
                    why="Matching it would compare with a gradient that lacks a part.",
                    fix="Leave it out of the matched names, or feed what makes it run (ids, not embeddings).",
                )
        with torch.no_grad():  # the network runs with gradients all the same; comparing needs none
            self._check_rules(model_function, few, truth)

    def _check_rules(self, model_function: ModelFunction, few: Leaves, truth: dict[str, Tensor]) -> None:
        """Form the gradients that the rules stand for and leave to autograd what differs from the truth."""
        norms = [gradient.norm() for gradient in truth.values()]
        largest = float(torch.stack(norms).max())
        while self._owners:
            try:
                _, found = self.contributions(model_function, few, create_graph=False)
            except _DoesNotFitError as error:
                self._form(error.names)
                continue
            except RuntimeError as error:
                if out_of_memory(error) or not self._expanded - set(self.formed_names):
                    raise
                self._form(self._expanded)  # this network needs the output as it was
                continue
            wrong = [name for name in self.names if not self._agrees(found, truth, name, largest)]
            if not wrong:
                return
            self._form(wrong)

    def _agrees(
        self, found: dict[str, list[Contribution]], truth: dict[str, Tensor], name: str, largest: float
    ) -> bool:
        """Whether what the rules found for a parameter is the gradient that autograd formed, to rounding.

        A gradient far smaller than the `largest` norm of all is rounding itself.
        """
        if name in self.formed_names:
            return True
        true_K = truth[name]
        if name not in found:
            return not bool(true_K.any())
        formed_K = form(found[name], tuple(true_K.shape[1:]))
        tolerance = tolerance_of(true_K.dtype, RULE_TOLERANCE)
        return float((formed_K - true_K).norm()) <= tolerance * (float(true_K.norm()) + 1e-3 * largest)

    @contextmanager
    def _hooked(self, candidates: int) -> Iterator[list[tuple[_Owner, Tensor, Tensor]]]:
        """Keep every call of the owners' modules while the network runs."""
        seen: list[tuple[_Owner, Tensor, Tensor]] = []
        batch: list[int] = []  # R: told by the first module that runs, the outermost

        def note_rows(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not batch:
                tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
                batch.extend(tensor.shape[0] for tensor in tensors[:1] if tensor.dim())

        def keep(owner: _Owner) -> _Hook:
            def hook(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: object
            ) -> Tensor:
                input_R = args[0] if args else next(iter(kwargs.values()))
                rows = batch[0] if batch else candidates
                if not (isinstance(out, Tensor) and isinstance(input_R, Tensor)):
                    raise _DoesNotFitError(owner.names.values())
                output: Tensor = out
                if output.shape[0] == 1 != rows:  # the same for all rows (position embeddings): part them
                    output = output.expand(rows, *output.shape[1:])
                    input_R = input_R.expand(rows, *input_R.shape[1:])
                    self._expanded.update(owner.names.values())
                if output.shape[0] != rows or input_R.shape[0] != rows or rows % candidates:
                    raise _DoesNotFitError(owner.names.values())
                if not output.requires_grad:
                    output = output.detach().requires_grad_()
                seen.append((owner, input_R, output))
                return output.clone() if output.is_leaf else output  # some networks add to it in place

            return hook

        first = [module for module in self.network.modules() if next(module.children(), None) is not None]
        first += [owner.module for owner in self._owners]  # a model function may call the look-up by itself
        handles = [m.register_forward_pre_hook(note_rows, with_kwargs=True) for m in first]
        handles += [
            owner.module.register_forward_hook(keep(owner), with_kwargs=True) for owner in self._owners
        ]
        with hooked(handles):
            yield seen

    @contextmanager
    def _counting(self) -> Iterator[set[nn.Module]]:
        """Which modules run."""
        called: set[nn.Module] = set()
        handles = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in self.network.modules()]
        with hooked(handles):
            yield called


def candidates_of(leaves: Leaves) -> int:
    """K: the common first dimension of the leaves."""
    sizes = {leaf.shape[0] for leaf in leaves.values()}
    if len(sizes) != 1:
        shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
        raise ValueError(f"leaves must share their first dimension, K candidates; got {shapes}")
    return sizes.pop()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: the CPU's, MPS's and cuBLAS's are plain RuntimeErrors."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these be differentiated for a while, and leave them as they were."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
