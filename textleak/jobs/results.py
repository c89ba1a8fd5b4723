"""What `--json` prints, as types: a script's editor knows them, and the published schemas are made from them.

Rates are 0 to 1, times are in seconds. Where a run is redacted, what quotes its text is null or left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic can't read typing's before Python 3.12

from textleak.events import Label

Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Figure = Annotated[float, Field(ge=0)]
CLOSED = ConfigDict(extra="forbid")


class _Scores(TypedDict):
    """How much of a text came back; null where nothing tells."""

    token_match_rate: Rate | None
    token_recall: Rate | None
    rouge1: Rate | None
    rouge2: Rate | None
    rougeL: Rate | None
    rouge1_words: Rate | None
    rouge2_words: Rate | None
    rougeL_words: Rate | None


class MeanScores(_Scores):
    """Means over sentences, and the share of those that came back whole."""

    exact_rate: Rate | None


class SentenceResult(_Scores):
    """One sentence: what was in the batch, and what came back of it; figures are null without the truth.

    A redacted one has no text: those fields are null.
    """

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    reference: str | None
    recovered: str | None
    reference_tokens: list[str] | None
    recovered_tokens: list[str] | None
    tokens: Count
    exact: bool | None
    label: NotRequired[Label | None]
    recovered_label: NotRequired[Label | None]
    unknown_tokens: Count | None


class StageResult(TypedDict):
    """The figures of an answer as it stood when a stage of the attack ended."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    token_match_rate: Rate
    token_recall: Rate
    exact_rate: Rate
    rouge1: Rate
    rouge2: Rate
    rougeL: Rate


class _Result(TypedDict):
    """What runs on text and on pictures have in common."""

    schema_version: Count
    summary: str
    model: str
    weights: Literal["pretrained", "random"]
    weights_source: str
    task: str
    device: str
    dtype: str
    attack: str
    attack_options: dict[str, Any]
    share: str
    client: list[str]
    defense: list[str]
    epsilon: Figure | None
    threads: Count
    seed: Count
    time_limit: NotRequired[Figure | None]
    know: list[str]
    gradients: str | None
    batch_size: Count | None
    versions: dict[str, str]
    outcome: Literal["done", "interrupted", "stopped"]
    stop: str
    steps: Count
    evaluations: Count
    seconds: Figure
    seconds_to_load: Figure
    final_loss: float | None
    gradient_distance: Figure | None
    verified: bool | None
    verified_reason: str | None
    proof: Literal["gradient", "span"] | None
    channel: str
    notes: NotRequired[list[str]]
    run_dir: str | None


class RunResult(_Result, MeanScores):
    """What `textleak run --json` prints, and `textleak.run` returns: a dictionary with these keys.

    Example:
        >>> result = textleak.run(model="bert-tiny", weights="random", sentences="the cat sat", seed=0)
        >>> result["summary"].partition(":")[0]
        'All of the text leaked through the embedding gradient'
    """

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    hidden_size: Count
    layers: Count | None
    tokens: Count | None
    tokens_per_hidden: Figure | None
    proved_tokens: Count
    named_tokens: NotRequired[Count | None]
    named_rate: NotRequired[Rate | None]
    sentences: list[SentenceResult]
    unknown_tokens: Count | None
    surplus: NotRequired[list[str]]
    stages: dict[str, StageResult]


class Answer(TypedDict):
    """What an update tells by itself: a question, its answer (null: it can't be told) and its evidence."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    what: str
    value: Any
    evidence: str


class AuditResult(RunResult):
    """What `textleak audit --json` prints, and `textleak.audit` returns: a run's, with the verdict.

    Example:
        >>> sorted(set(textleak.AuditResult.__annotations__) - set(textleak.RunResult.__annotations__))
        ['advice', 'after', 'before', 'told', 'verdict', 'verdict_reason']
    """

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    verdict: Literal["LEAKS", "PARTLY", "NOT FOUND", "INCONCLUSIVE"]
    verdict_reason: str
    before: str | None
    after: str | None
    told: list[Answer]
    advice: list[str]


class PictureResult(TypedDict):
    """One picture: how near the recovered one is (psnr in dB, at most 100); null without the truth."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    psnr: float | None
    mse: Figure | None
    ssim: float | None
    lpips: float | None
    label: NotRequired[Label | None]
    recovered_label: NotRequired[Label | None]
    recovered: Count | None


class ImageResult(_Result):
    """What `textleak image --json` prints; figures are means over the pictures."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    picture_shape: list[Count]
    numbers: Count | None
    numbers_determined: Count | None
    pictures: NotRequired[list[str]]
    conversions: NotRequired[dict[str, list[str]]]
    images: list[PictureResult]
    psnr: float | None
    mse: Figure | None
    ssim: float | None
    lpips: float | None


class ShareResult(TypedDict):
    """What `textleak share --json` prints: the files that were written, and what is in them."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    schema_version: Count
    out: str
    truth: str
    model: str
    weights: Literal["pretrained", "random"]
    weights_source: str
    task: str
    device: str
    dtype: str
    share: str
    client: list[str]
    defense: list[str]
    threads: Count
    seed: Count
    batch_size: Count
    tokens: NotRequired[Count]
    hidden_size: NotRequired[Count]
    picture_shape: NotRequired[list[Count]]
    conversions: NotRequired[dict[str, list[str]]]
    parameters: Count
    bytes: Count
    gradient_norm: Figure
    versions: dict[str, str]
