"""A public model of a network that is already in memory: of what a training script trains."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import textleak.models.rules.text  # noqa: F401 - tells the engine what it needs to know
from textleak.errors import InputError, unknown_name
from textleak.models.loading import heads
from textleak.models.losses.base import LOSSES
from textleak.models.quiet import quiet
from textleak.models.text import COMMON_TASKS, Task, TextModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# What wrappers keep the network under: DataParallel, DistributedDataParallel and FSDP, torch.compile, Opacus.
_INSIDE = ("module", "_orig_mod", "_module")
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# What accelerate puts on a module, and what it puts back.
_PATCHED = ("forward", "_original_forward", "_old_forward", "_hf_hook")
_LEFT_OUT = object()
_TYPES = (torch.float32, torch.float64, torch.bfloat16)


def wrap(
    network: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    *,
    task: str = "auto",
    name: str | None = None,
) -> TextModel:
    """A public model of a Hugging Face network in memory, as it is now: what is trained later doesn't change it.

    What wraps the network is taken away: DistributedDataParallel, torch.compile, PEFT, Opacus' GradSampleModule. The
    parameters that are frozen in it are not what a client trains.

        model = textleak.wrap(trainer.model, tokenizer)
        loss.backward()
        shared = textleak.from_gradients(model, {n: p.grad for n, p in trainer.model.named_parameters()})
        print(textleak.recover(shared, model, "auto").sentences)

    Args:
        network: a transformers model with a head for one of the tasks, or one in such wrappers.
        tokenizer: its tokenizer.
        task: "classification", "causal-lm" or "masked-lm"; "auto" is told by the network's class.
        name: to call it by; None for the name it was loaded by.

    Example:
        >>> import copy
        >>> network = copy.deepcopy(model.network).requires_grad_(True)  # yours, as it is in training
        >>> own = textleak.wrap(network, model.tokenizer, name="mine")
        >>> own.name, own.task
        ('mine', 'classification')

    Raises:
        InputError: no such network, quantized or sharded weights, or a tokenizer that isn't the network's.
    """
    found = unwrapped(network)
    chosen = task_of(found, task)
    num_labels, outputs = heads.outputs_of(found.config, chosen)
    trained = tuple(key for key, p in found.named_parameters() if p.requires_grad)
    if not trained:
        raise InputError(
            f"No parameter of the {type(found).__name__} is trained.",
            why="All are frozen (requires_grad is False), so nothing leaves a client.",
            fix="Wrap it as it is in training.",
        )
    whole = len(trained) == len(dict(found.named_parameters()))
    model = TextModel(
        name=name or str(getattr(found.config, "_name_or_path", "") or type(found).__name__),
        task=chosen,
        network=_snapshot(found),
        tokenizer=tokenizer,
        weights="pretrained",
        source=f"{type(found).__name__} in memory",
        num_labels=num_labels,
        outputs=outputs,
        trained=None if whole else trained,
    )
    check_tokenizer(model)
    heads.check_predicts(model)
    return model


def unwrapped(network: nn.Module) -> PreTrainedModel:
    """The transformers network within what wraps it.

    Raises:
        InputError: there is none.
    """
    from transformers import PreTrainedModel

    inside: Any = network
    while not isinstance(inside, PreTrainedModel):
        if hasattr(inside, "peft_config") and hasattr(inside, "get_base_model"):
            inside = inside.get_base_model()
            continue
        within = (getattr(inside, key, None) for key in _INSIDE)
        found = next((module for module in within if isinstance(module, nn.Module)), None)
        if found is None:
            raise InputError(
                f"A {type(network).__name__} can't be wrapped.",
                why="It is no transformers model, nor is what is inside it: textleak reads those alone.",
                fix="Give the transformers model that it trains: textleak.wrap(model.encoder, tokenizer).",
            )
        inside = found
    sharded = any(_is_sharded(module) for module in network.modules())
    for key, parameter in inside.named_parameters():
        if not parameter.dtype.is_floating_point:
            raise InputError(
                f"The weights of the {type(inside).__name__} are quantized ({key} is {parameter.dtype}).",
                why="No gradient of them leaves a client; what is trained are adapters.",
                fix="Load the base model in 16 or 32 bits, put the same adapters into it, and wrap that.",
            )
        whole = type(parameter.data) is torch.Tensor and not parameter.is_meta and not sharded
        if not whole or key.rpartition(".")[2] == "_flat_param":
            raise InputError(
                f"The weights of the {type(inside).__name__} are not all here ({key} is sharded or on no device).",
                why="A public model has all of them.",
                fix="Save full state dicts before and after the training, torch.distributed.checkpoint.state_dict."
                "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), and audit these: "
                "textleak audit --before A.pt --after B.pt. Or load one into a model of one process.",
            )
    return inside


def _is_sharded(module: nn.Module) -> bool:
    """Whether it is FSDP's wrapper around a part of the weights, which may look like whole ones (use_orig_params)."""
    strategy = getattr(module, "sharding_strategy", None)
    return strategy is not None and getattr(strategy, "name", "NO_SHARD") != "NO_SHARD"


def task_of(network: PreTrainedModel, asked: str) -> Task:
    """The task that a network's class is for.

    Raises:
        InputError: none of ours, or another one than was asked for.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    if asked not in (known := ("auto", *COMMON_TASKS, *LOSSES)):
        raise unknown_name("task", asked, known)
    kind = type(network).__name__
    own = heads.own_task(kind, [kind], network.config)
    if own is not None:
        if asked not in ("auto", own):
            raise _does_another(network, asked, own)
        return own
    kinds: dict[Task, Any] = {
        "classification": AutoModelForSequenceClassification,
        "masked-lm": AutoModelForMaskedLM,
        "causal-lm": AutoModelForCausalLM,
    }
    for task, auto in kinds.items():
        made = auto._model_mapping.get(type(network.config), None)
        if made is not None and isinstance(network, made):
            if asked not in ("auto", task):
                raise _does_another(network, asked, task)
            return task
    raise InputError(
        f"A {type(network).__name__} has no head for a task here.",
        why="A gradient is one of a loss: of classes of sentences, or of the tokens of a text.",
        fix="Wrap a model for sequence classification, causal or masked language modeling.",
    )


def _does_another(network: PreTrainedModel, asked: str, task: str) -> InputError:
    return InputError(
        f"A {type(network).__name__} doesn't do {asked}.",
        why=f"Its head is for {task}.",
        fix="Leave task out.",
    )


def _snapshot(network: PreTrainedModel) -> PreTrainedModel:
    """A copy with values of its own, in eval mode, with eager attention and experts, and without anybody's hooks."""
    # A type that torch can't work with on every device is made float32; values stay as they are.
    copies = {
        id(p): nn.Parameter(
            p.detach().to(dtype=p.dtype if p.dtype in _TYPES else torch.float32, copy=True),
            requires_grad=False,
        )
        for p in network.parameters()
    }
    types = {parameter.dtype for parameter in copies.values()}
    if len(types) > 1:  # as PEFT has it: adapters in float32 in a network of bfloat16
        for parameter in copies.values():
            parameter.data = parameter.data.float()
    memo: dict[int, Any] = {**copies}
    for module in network.modules():  # copies of what others put there would still call the network itself
        memo |= {id(vars(module)[key]): _LEFT_OUT for key in _PATCHED if key in vars(module)}
        memo |= {id(vars(module)[key]): type(vars(module)[key])() for key in _HOOKS if key in vars(module)}
    with quiet():
        copied = copy.deepcopy(network, memo)
        for module in copied.modules():
            for key in _PATCHED:
                vars(module).pop(key, None)
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
        copied.set_attn_implementation("eager")
        copied.set_experts_implementation("eager")
    return copied.eval()


def check_tokenizer(model: TextModel) -> None:
    """Make sure that a tokenizer could be the network's.

    Raises:
        InputError: it has more tokens than the network has embeddings.
    """
    highest = max(model.tokenizer.get_vocab().values(), default=-1)
    if highest >= model.vocab_size:
        raise InputError(
            f"The tokenizer has tokens up to number {highest:,}; {model.name} has {model.vocab_size:,} embeddings.",
            why="It is another model's, so no token would be read as the text's.",
            fix="Give the tokenizer that the model was trained with (--tokenizer).",
        )
