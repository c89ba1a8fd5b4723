"""What a script may give as settings, as types: an editor completes them, a type checker tells a mistyped one.

Values are taken as the command line takes them, text or typed. What each means stands with the settings themselves
(`textleak.settings.RunConfig` and the others) and with the attacks (`textleak attacks NAME`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

Weights = Literal["auto", "pretrained", "random"]
Spec = str | Mapping[str, Any]
"""A name with its options: "gaussian:sigma=1e-3", or {"name": "gaussian", "sigma": 1e-3}."""


class ShareOptions(TypedDict, total=False):
    """What `textleak.share` takes beside the batch."""

    share: str
    know: str | None
    seed: int


class AttackOptions(TypedDict, total=False):
    """The options of all attacks here; each has some of them. Others' attacks take theirs as "name:key=value"."""

    alpha: float
    alpha_lm: float | None
    alpha_reg: float | None
    beam: int
    beams: int
    boxed: bool
    budget: int
    burn_in: float
    closed_form: bool
    crossing: int
    embedding_norm: float | None
    expansions: int
    kinks: float
    learning_rate: float | None
    masks: bool
    moves: int
    moves_every: int
    one_at_a_time: int
    optimizer: Literal["lbfgs", "adam"]
    prior: str | None
    proposals: int
    refinement: float
    restarts: int | None
    roughness: float | None
    rounds: int
    signed: bool
    smooth: float | None
    solved_at: float
    span_proposals: bool
    spread: float | None
    starts: int
    steps: int
    sweeps: int
    time_limit: float | None
    total_variation: float
    variant: Literal["cos", "l1l2"]
    weight_decay: float


class RunSettings(TypedDict, total=False):
    """What `textleak.run` takes: the settings of `textleak run`."""

    model: str
    weights: Weights
    task: str
    num_labels: int | None
    sentences: str | Sequence[str]
    file: str | Path | None
    labels: float | str | Sequence[float | str | Sequence[float]]
    share: str
    client: Spec | Sequence[Spec]
    defenses: Spec | Sequence[Spec]
    know: str | None
    seed: int
    of_batch: int | None
    dtype: str
    device: str
    threads: int | None
    out: str | Path | None
    attack: Spec
    restarts: int | None
    steps: int | None
    time_limit: float | str | None
    prior: str | None
    gradients: str | Path | None
    truth: str | Path | None
    save_gradients: bool
    redact: bool
    fail_above: float | None
    layers: int | None


class AuditSettings(RunSettings, total=False):
    """What `textleak.audit` takes: the settings of `textleak audit`."""

    before: str | Path | None
    after: str | Path | None
    tokenizer: str | None
    report: str | Path | None


class EvaluationSettings(TypedDict, total=False):
    """What `textleak.evaluate` takes: the settings of `textleak eval`; several values span the grid."""

    data: str | Sequence[str]
    column: str | None
    label_column: str | None
    limit: int
    max_words: int | None
    batch_size: int | str | Sequence[int]
    model: str | Sequence[str]
    weights: Weights
    task: str
    num_labels: int | None
    attack: Spec | Sequence[Spec]
    share: str | Sequence[str]
    client: Any
    defense: Any
    know: str | Sequence[str | None] | None
    seed: int | str | Sequence[int]
    time_limit: float | str | None
    dtype: str
    device: str
    threads: int | None
    out: str | Path | None
