"""A callback of the Hugging Face Trainer: records what a training would send, and can audit it when it is over."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from textleak.errors import InputError, TextleakError
from textleak.integrations.plain import Tape, Wishes
from textleak.integrations.procedure import Sends
from textleak.integrations.recording import Recording

# A verdict as a log can hold it, which takes numbers alone: how much was found. One that was cut off has none.
_FOUND = {"LEAKS": 1.0, "PARTLY": 0.5, "NOT FOUND": 0.0}
_FIGURES = ("token_match_rate", "token_recall", "proved_tokens")


class LeakageCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Writes the update of chosen steps, and of the whole training, as files for `textleak audit`.

    `callbacks=[LeakageCallback(...)]` records; `LeakageCallback(...).attach(trainer)` also puts an audit's figures into
    the trainer's log, so that TensorBoard, W&B and MLflow show them.

    Args:
        at: numbers of the optimizer's steps, from 1, each recorded by itself.
        every: records each n-th step as well.
        end: whether what the whole training changed is recorded.
        out: folder that the files are written to; None for `audit` in the trainer's own output folder.
        audit: whether the first and the last recording are audited when training is over, each in a process of its own
            that reads the files alone.
        time_limit: of each audit, as `--time-limit` takes it.
        sends: what leaves at a step: "update", the weights' difference, or "gradient", what the optimizer is given.
        truth: whether the batch is written too, to a file of its own that only its owner reads.
        know: what the server is told, as `--know` takes it.
        public: alias, hub id or folder under which a server has the weights at the beginning; None to write a copy.
        tokenizer: of the model; None for the trainer's `processing_class`.

    Attributes:
        recordings: what was written, in order.
        audits: what the audits said, by the recording's file name: what `textleak audit --json` prints.
    """

    def __init__(
        self,
        *,
        at: Collection[int] = (1,),
        every: int | None = None,
        end: bool = True,
        out: Path | str | None = None,
        audit: bool = False,
        time_limit: str = "5m",
        sends: Sends = "update",
        truth: bool = False,
        know: str | None = None,
        public: str | None = None,
        tokenizer: Any = None,  # noqa: ANN401 - any library's
    ) -> None:
        self.recordings: list[Recording] = []
        self.audits: dict[str, dict[str, Any]] = {}
        self._wishes = {
            "at": at,
            "every": every,
            "end": end,
            "sends": sends,
            "truth": truth,
            "know": know,
            "public": public,
        }
        Wishes(**self._wishes)  # type: ignore[arg-type]  # what can't be meant is said before anything is trained
        self._out, self._audit, self._time_limit = out, audit, time_limit
        self._tokenizer = tokenizer
        self._trainer: Trainer | None = None
        self._tape: Tape | None = None

    def attach(self, trainer: Trainer) -> Self:
        """Add it to a trainer whose log it writes figures to."""
        trainer.add_callback(self)
        self._trainer = trainer
        return self

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Begin to record."""
        del control
        tokenizer = self._tokenizer or kwargs.get("processing_class")
        if tokenizer is None:
            raise InputError(
                "LeakageCallback has no tokenizer.",
                why="An audit reads tokens, and a copy of the model is written with it.",
                fix="Give the Trainer processing_class=tokenizer, or the callback tokenizer=.",
            )
        wishes = Wishes(
            **self._wishes,  # type: ignore[arg-type]
            out=Path(args.output_dir or ".") / "audit" if self._out is None else self._out,
            max_grad_norm=args.max_grad_norm or None,
        )
        self._tape = Tape(
            kwargs["model"],
            tokenizer,
            kwargs["optimizer"],
            wishes=wishes,
            taken=state.global_step,
            compiled=args.torch_compile,
        ).begin()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """End after the last step, before the trainer may load its best weights."""
        del kwargs
        if state.global_step >= state.max_steps or control.should_training_stop:
            self._end(state)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """End where training was stopped between steps."""
        del args, control, kwargs
        self._end(state)

    def _end(self, state: TrainerState) -> None:
        tape, self._tape = self._tape, None
        if tape is None:
            return
        tape.end()
        self.recordings += tape.recordings
        if not self._audit or not state.is_world_process_zero:
            return
        for recording in dict.fromkeys([*tape.recordings[:1], *tape.recordings[-1:]]):
            try:
                said = recording.audit(time_limit=self._time_limit)
            except TextleakError as error:  # an audit that fails doesn't end the training
                warnings.warn(f"{recording.file} was not audited. {error}", stacklevel=2)
                continue
            self.audits[recording.file.name] = said
            if self._trainer is not None:
                self._trainer.log(figures(recording, said))


def figures(recording: Recording, said: dict[str, Any]) -> dict[str, float]:
    """What an audit said, as numbers for a log: `leakage/step-1/found` and the like."""
    named: dict[str, Any] = {
        "found": _FOUND.get(str(said.get("verdict"))),
        **{key: said.get(key) for key in _FIGURES},
    }
    return {
        f"leakage/{recording.file.stem}/{key}": float(value)
        for key, value in named.items()
        if value is not None
    }
