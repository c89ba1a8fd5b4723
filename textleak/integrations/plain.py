"""Any loop of torch: what would leave its client is recorded while it trains, by hooks; the loop stays as it is."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from textleak.clients.fedavg import MOST_STEPS
from textleak.errors import InputError, unknown_name
from textleak.integrations import networks, opacus
from textleak.integrations.networks import Trained, copied
from textleak.integrations.procedure import Loop, Sends, Step, main_group, procedure_of, rows_of
from textleak.integrations.recording import Place, Recording, record_sent
from textleak.integrations.watching import Watch
from textleak.models.base import Tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is recorded of a loop, and where.

    Attributes:
        out: folder that the files are written to.
        at: numbers of the optimizer's steps, from 1, each recorded by itself.
        every: records each n-th step as well; None for no more than `at`.
        end: whether what the whole loop changed is recorded at its end: what a client of federated averaging sends.
        sends: what leaves at a step: "update", the weights' difference, or "gradient", what the optimizer is given.
        task: "classification", "causal-lm", "masked-lm", or "auto" for what the model's class says.
        truth: whether the batch is written too, to a file of its own that only its owner reads.
        know: what the server is told, as `--know` takes it.
        public: alias, hub id or folder under which a server has the weights at the beginning; None to write a copy.
        max_grad_norm: gradients are clipped to; None to tell from their norms.
    """

    out: Path | str = "audit"
    at: Collection[int] = (1,)
    every: int | None = None
    end: bool = True
    sends: Sends = "update"
    task: str = "auto"
    truth: bool = False
    know: str | None = None
    public: str | None = None
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        """Check what can't be meant.

        Raises:
            InputError: it is said which.
        """
        if self.sends not in get_args(Sends):
            raise unknown_name("kind of message", self.sends, get_args(Sends))
        if any(number < 1 for number in (*self.at, *([] if self.every is None else [self.every]))):
            raise InputError("Steps are counted from 1.", fix="Give for example at=(1, 100), or every=500.")

    def names(self, number: int) -> bool:
        """Whether a step is recorded by itself."""
        return number in self.at or (self.every is not None and number % self.every == 0)


class Tape:
    """Records a loop between its `begin` and `end`; `record` makes one for a `with` block.

    In training that is spread over processes each of them has one, as each has the model; the first one writes.

    Args:
        model: as the loop calls it, whatever is wrapped around it.
        tokenizer: of the model.
        optimizer: whose steps are recorded; None for a loop that calls `step` after each backward pass.
        wishes: what is recorded.
        taken: steps that the training took before.
        compiled: whether torch.compile runs the model, where that doesn't show on it.

    Attributes:
        recordings: what was written, in order.

    Raises:
        InputError: a model that can't be recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,  # noqa: ANN401 - any library's
        optimizer: Any = None,  # noqa: ANN401 - wrapped ones too
        *,
        wishes: Wishes,
        taken: int = 0,
        compiled: bool = False,
    ) -> None:
        self.recordings: list[Recording] = []
        self.wishes = wishes
        self._model, self._tokenizer = model, tokenizer
        self._compiled = compiled or any(hasattr(module, "_orig_mod") for module in model.modules())
        self._trained: Trained = networks.trained(model, wishes.task)
        defenses, self._optimizer = opacus.seen_through(optimizer)
        self._loop = Loop(
            network=self._trained.network,
            task=self._trained.task,
            adapters=self._trained.adapters,
            optimizer=self._optimizer,
            fresh=self._optimizer is None or not self._optimizer.state,
            clip=wishes.max_grad_norm,
            defenses=defenses,
        )
        self._watch = Watch(network=self._trained.network, task=self._trained.task)
        self._ends: list[Callable[[], None]] = []
        self._steps: list[Step] = []
        self._number = taken
        self._fresh = True  # whether the optimizer remembered nothing before the step
        self._trains: set[str] = set()  # parameters that had a gradient
        self._first: Tensors = {}
        self._before: Tensors = {}
        self._gradients: Tensors = {}

    def begin(self) -> Self:
        """Take the weights as they are, and watch from here on."""
        self._ends = self._watch.begin(self._model, compiled=self._compiled)
        if self._optimizer is not None:
            self._ends += [
                self._optimizer.register_step_pre_hook(lambda *_: self._before_step()).remove,
                self._optimizer.register_step_post_hook(lambda *_: self._after_step()).remove,
            ]
        if self.wishes.end and self._optimizer is not None:
            self._first = self._trained.values()
        return self

    def end(self) -> None:
        """Watch no more, and record what the whole loop changed."""
        for end in self._ends:
            end()
        self._ends = []
        alone = len(self._steps) == 1 and self.wishes.names(self._number) and self.wishes.sends == "update"
        if self._first and self._steps and not alone:
            moved = self._moved(self._first)
            self._record("round", self._first, moved, self._steps, fresh=self._loop.fresh, sends="update")
        self._first = {}

    def step(self) -> None:
        """Record the gradients as they are, in a loop whose optimizer isn't known here.

        Raises:
            InputError: the optimizer is known, so its steps are recorded anyway.
        """
        if self._optimizer is not None:
            raise InputError(
                "step() was called on a tape that has the optimizer.",
                why="It records the optimizer's own steps.",
                fix="Leave the call out, or optimizer= out.",
            )
        self._number += 1
        step = Step(passes=self._passes())
        if self.wishes.names(self._number):
            gradients = {name: copied(gradient) for name, gradient in self._gradients_now().items()}
            self._record(
                f"step-{self._number}",
                self._trained.values(),
                gradients,
                [step],
                fresh=True,
                sends="gradient",
            )

    def __enter__(self) -> Self:
        """As `begin`."""
        return self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `end`; a loop that failed has no end."""
        del error, trace
        if kind is not None:
            self._first = {}
        self.end()

    # The optimizer's hooks

    def _before_step(self) -> None:
        assert self._optimizer is not None
        self._number += 1
        gradients = self._gradients_now()
        self._trains |= gradients.keys()
        self._steps.append(
            Step(
                passes=self._passes(),
                rate=float(main_group(self._optimizer)["lr"]),
                norm=_norm(gradients.values()),
            )
        )
        if len(self._steps) > MOST_STEPS + 1:  # no client takes so many: what they read isn't kept
            self._steps[-1] = dataclasses.replace(self._steps[-1], passes=())
        if not self.wishes.names(self._number):
            return
        self._fresh = not self._optimizer.state
        self._before = self._first if self._first and len(self._steps) == 1 else self._trained.values()
        if self.wishes.sends == "gradient":
            self._gradients = {name: copied(gradient) for name, gradient in gradients.items()}

    def _after_step(self) -> None:
        if not self.wishes.names(self._number):
            return
        before, self._before = self._before, {}
        gradients, self._gradients = self._gradients, {}
        sends = self.wishes.sends
        sent = gradients if sends == "gradient" else self._moved(before)
        self._record(f"step-{self._number}", before, sent, self._steps[-1:], fresh=self._fresh, sends=sends)

    def _moved(self, before: Tensors) -> Tensors:
        """The difference of the weights that had a gradient."""
        now = self._trained.values()
        return {name: now[name] - value for name, value in before.items() if name in self._trains}

    def _gradients_now(self) -> Tensors:
        """Those of what is trained, which the next step changes."""
        return {name: p.grad for name, p in self._trained.moving.items() if p.grad is not None}

    def _passes(self) -> tuple[Any, ...]:
        """What passed since the step before, on all processes."""
        passes = self._watch.take()
        if not _spread():
            return passes
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, passes)
        return tuple(one for process in found for one in process)

    def _record(
        self, name: str, before: Tensors, sent: Tensors, steps: Sequence[Step], *, fresh: bool, sends: Sends
    ) -> None:
        """Write a recording; what can't be written doesn't end the training that it is of."""
        if _spread() and torch.distributed.get_rank() > 0:
            return
        wishes = self.wishes
        try:
            procedure = procedure_of(dataclasses.replace(self._loop, fresh=fresh), steps, sends)
            notes = list(procedure.notes)
            rows = rows_of(steps, notes)
            recording = record_sent(
                name,
                Place(out=Path(wishes.out), public=wishes.public, truth=wishes.truth, know=wishes.know),
                trained=self._trained,
                tokenizer=self._tokenizer,
                before=before,
                sent=sent,
                procedure=dataclasses.replace(procedure, notes=tuple(notes)),
                rows=rows,
            )
        except InputError as error:
            warnings.warn(f"{name} was not recorded. {error}", stacklevel=2)
            return
        self.recordings.append(recording)


def record(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 - any library's
    *,
    optimizer: Any = None,  # noqa: ANN401 - wrapped ones too
    out: Path | str = "audit",
    at: Collection[int] = (1,),
    every: int | None = None,
    end: bool = True,
    sends: Sends = "update",
    task: str = "auto",
    truth: bool = False,
    know: str | None = None,
    public: str | None = None,
    max_grad_norm: float | None = None,
) -> Tape:
    """Record what would leave a client while a loop trains: `with textleak.record(model, tokenizer, optimizer=...):`.

    The first step and the whole loop are recorded, unless something else is asked for. `tape.recordings` says what was
    written, and with which command it is audited.

    Args:
        model: as the loop calls it: a model of transformers, or what DistributedDataParallel, torch.compile,
            Accelerate, PEFT or Opacus made of one.
        tokenizer: of the model.
        optimizer: whose steps are recorded; None for a loop that calls `tape.step()` after each backward pass.
        out: folder that the files are written to.
        at: numbers of the optimizer's steps, from 1, each recorded by itself.
        every: records each n-th step as well.
        end: whether what the whole loop changed is recorded: what a client of federated averaging sends.
        sends: what leaves at a step: "update", the weights' difference, or "gradient", what the optimizer is given.
        task: "classification", "causal-lm" or "masked-lm"; "auto" for what the model's class says.
        truth: whether the batch is written too, to a file of its own that only its owner reads.
        know: what the server is told, as `--know` takes it.
        public: alias, hub id or folder under which a server has the weights at the beginning; None to write a copy.
        max_grad_norm: gradients are clipped to; None to tell from their norms.

    Example:
        >>> import copy, tempfile, torch
        >>> network = copy.deepcopy(model.network).requires_grad_(True)
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with textleak.record(network, model.tokenizer, optimizer=optimizer, out=folder) as tape:
        ...         batch = model.tokenizer(["the cat sat"], return_tensors="pt")
        ...         network(**batch, labels=torch.tensor([1])).loss.backward()
        ...         optimizer.step()
        >>> tape.recordings[0].line.split()[:2]
        ['textleak', 'audit']

    Raises:
        InputError: a model that can't be recorded, or wishes that can't be met.
    """
    wishes = Wishes(
        out=out,
        at=at,
        every=every,
        end=end,
        sends=sends,
        task=task,
        truth=truth,
        know=know,
        public=public,
        max_grad_norm=max_grad_norm,
    )
    return Tape(model, tokenizer, optimizer, wishes=wishes)


def _spread() -> bool:
    """Whether training is spread over processes."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _norm(gradients: Collection[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(list(gradients)))
