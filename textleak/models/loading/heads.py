"""The head that a checkpoint brings along: which classes it tells apart, and whether its loss is one of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textleak.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CLASSES = 2  # of a head that is drawn anew, as transformers has it

# Heads of other losses, by the end of their class's name in transformers, and what each one tells.
_OTHERS = {
    "ForTokenClassification": "a class of every token",
    "ForQuestionAnswering": "where an answer begins and ends",
    "ForMultipleChoice": "one of several endings",
    "ForNextSentencePrediction": "whether one sentence follows another",
}


def check_head(name: str, config: PreTrainedConfig) -> None:
    """Make sure that a checkpoint's own head isn't silently replaced by one of another loss.

    Raises:
        InputError: the head is of a loss that no client here has.
    """
    for ending, tells in _OTHERS.items():
        if _has(config, ending):
            raise InputError(
                f"The head of {name!r} tells {tells}.",
                why="A client that trains it has a loss that isn't here: classes of sentences and tokens of text are.",
                fix="--task classification puts a fresh head for classes of sentences on it.",
            )


def classes_for(name: str, config: PreTrainedConfig, asked: int | None) -> int:
    """How many classes a classification head has: as asked, else the checkpoint's own, else two.

    Raises:
        InputError: nothing was asked, and the checkpoint's own head has another loss than cross entropy.
    """
    if asked is not None:
        return asked
    if not _has(config, "ForSequenceClassification"):
        return _CLASSES
    if config.problem_type == "multi_label_classification":
        raise _not_cross_entropy(name, "tells several classes of one sentence (multi_label_classification)")
    if config.problem_type == "regression" or config.num_labels < 2:
        raise _not_cross_entropy(name, "gives a number (regression)")
    return int(config.num_labels)


def _has(config: PreTrainedConfig, ending: str) -> bool:
    return any(kind.endswith(ending) for kind in config.architectures or ())


def _not_cross_entropy(name: str, does: str) -> InputError:
    return InputError(
        f"The head of {name!r} {does}.",
        why="Clients here train classification with cross entropy, one class a sentence.",
        fix="--set num_labels=2 puts a fresh head with two classes on it.",
    )
