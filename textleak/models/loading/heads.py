"""The head that a checkpoint brings along: what it tells, and with which loss it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textleak.errors import InputError
from textleak.models.losses.base import LOSSES, loss_of
from textleak.models.probes.reach import sees_ahead

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from textleak.models.text import TextModel

_CLASSES = 2  # of a head that is drawn anew, as transformers has it

TWO_TEXTS = (
    "Its encoder reads one text and its decoder another; all that is read here comes of one text. What its gradient "
    "gives away is therefore open, which is no sign of safety: tokens leave in it what they leave in any other."
)
"""Why nothing is read of a network that writes one text for another."""

# Heads whose loss no file in `losses` has, by the end of their class's name in transformers, and what each one tells.
_OTHERS = {
    "ForMultipleChoice": "one of several endings",
    "ForNextSentencePrediction": "whether one sentence follows another",
}


def own_task(name: str, kinds: Sequence[str], config: PreTrainedConfig) -> str | None:
    """The task of a checkpoint's own head, where its loss is one of its own; None for all other heads.

    Args:
        name: as the model was asked for.
        kinds: names of the network's class.
        config: its configuration.

    Raises:
        InputError: the head is of a loss that no client here has.
    """
    for task in LOSSES:
        loss = loss_of(task)
        if loss is not None and loss.owns(kinds, config):
            return task
    for ending, tells in _OTHERS.items():
        if _has(kinds, ending):
            raise InputError(
                f"The head of {name!r} tells {tells}.",
                why="A client that trains it has a loss that isn't here.",
                fix="--task classification puts a fresh head for classes of sentences on it.",
            )
    if getattr(config, "is_encoder_decoder", False) and _has(kinds, "ForConditionalGeneration"):
        raise InputError(
            f"The head of {name!r} tells one text after another was read.",
            why=TWO_TEXTS,
            fix="--task classification puts a fresh head on it that tells classes of one text, where transformers has "
            "one; a gradient of its own head can't be audited with that.",
        )
    return None


def shape_head(config: PreTrainedConfig, task: str, asked: int | None) -> tuple[int | None, int | None]:
    """Have the configuration ask for a task's head.

    Args:
        config: of the network that is to be built.
        task: as it was chosen.
        asked: how many classes or outputs were asked for; None for the checkpoint's own, else a fresh head's.

    Returns:
        `TextModel.num_labels` and `TextModel.outputs`.

    Raises:
        InputError: fewer classes than a classification can have.
    """
    loss = loss_of(task)
    if asked is not None and asked < (1 if loss is not None else 2):
        raise InputError(f"num_labels={asked} can't be used.", why="A classification needs two classes.")
    if loss is None:
        if task != "classification":
            return None, None
        config.num_labels = classes_of(config) if asked is None else asked
        config.problem_type = "single_label_classification"
        return config.num_labels, None
    if loss.outputs is None:
        return None, None
    owned = loss.owns(config.architectures or (), config)  # before anything changes
    config.num_labels = asked or (config.num_labels if owned else loss.outputs)
    loss.configure(config)
    return None, config.num_labels


def outputs_of(config: PreTrainedConfig, task: str) -> tuple[int | None, int | None]:
    """`TextModel.num_labels` and `TextModel.outputs` of a network that is there already."""
    loss = loss_of(task)
    if loss is not None:
        return None, None if loss.outputs is None else int(config.num_labels)
    return (int(config.num_labels) if task == "classification" else None), None


def classifies(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint's own head is one for texts' classes."""
    return _has(config.architectures or (), "ForSequenceClassification")


def classes_of(config: PreTrainedConfig) -> int:
    """How many classes a checkpoint's own head for them has; a fresh one's where it has none."""
    own = classifies(config) and config.num_labels >= _CLASSES
    return int(config.num_labels) if own else _CLASSES


def _has(kinds: Sequence[str], ending: str) -> bool:
    return any(kind.endswith(ending) for kind in kinds)


def tells_what_it_reads(model: TextModel) -> bool:
    """Whether each token is to predict the next in a network that reads the next already, as XLNet's does."""
    return model.task == "causal-lm" and sees_ahead(model)


def check_predicts(model: TextModel) -> None:
    """Check that a causal language model is causal.

    Raises:
        InputError: it reads the tokens that it would predict.
    """
    if tells_what_it_reads(model):
        raise InputError(
            f"{model.name!r} can't do causal-lm: it reads the tokens after each one, so there is no next to predict.",
            why="What such networks are pretrained with, tokens hidden in an order that is drawn, is no loss here.",
            fix="--task classification puts a head for classes of sentences on it.",
        )
