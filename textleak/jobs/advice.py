"""What would help against what an audit found: only what follows from how the text came back."""

from __future__ import annotations

import dataclasses

from textleak.jobs.verdict import Word

# From the table of "What a defense holds back, and what it costs" in tests/figures/README.md: one sentence of up to 10
# words, no embeddings shared, 20 seconds of `match` that knows the defense (2026-11-25).
_MEASURED = "Measured on minilm, one sentence, 20 s (tests/figures/README.md#defenses)"
_NOISE = (
    f"Noise on the gradient. {_MEASURED}: gaussian:sigma=1e-4 left 83 % of the tokens, 1e-3 54 %, 1e-2 0.6 %; from "
    "1e-3 on nothing was learned either. More time finds more."
)
_TOO_WEAK = (
    "Don't rely on pruning or short types. Measured likewise: prune:ratio=0.9 left 99.6 % of the tokens, 0.99 74 %, "
    "quantize:to=bf16 and int8 all."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What advice depends on.

    Attributes:
        proof: "gradient", "span" or None.
        embeddings: whether embeddings' gradients were shared.
        vocabulary: tokens that these name; None where they name none.
        tokens: of the batch, as far as it is known; None or 0 where nothing is.
        hidden_size: of the model, D.
        noise: whether the update was defended.
        told_client: whether the client's procedure is known.
        told_lengths: whether the sentences' lengths are.
        says_known: whether the update is a file that says itself what a server knows.
    """

    proof: str | None
    embeddings: bool
    vocabulary: int | None
    tokens: int | None
    hidden_size: int
    noise: bool
    told_client: bool
    told_lengths: bool
    says_known: bool = False


def advice(word: Word, facts: Facts) -> tuple[str, ...]:
    """What would help, or what to try next, in sentences."""
    if word in (Word.LEAKS, Word.PARTLY):
        return tuple(_against(facts))
    return tuple(_further(facts))


def _against(facts: Facts) -> list[str]:
    lines = []
    if facts.embeddings:
        names = "its rows name the batch's tokens" if facts.vocabulary else "its rows are one a token"
        lines.append(f"Share no embedding: {names}. What is left then: --share no-embeddings.")
    lines.append(
        "Share fewer layers: the first ones' weights hold the tokens' inputs outright. What is left then: "
        "--share EXPRESSION."
    )
    if facts.tokens and facts.tokens < facts.hidden_size:
        lines.append(
            f"More tokens a step: {facts.tokens:,} inputs in {facts.hidden_size:,} dimensions can be told apart; once "
            "they are as many, only a search is left."
        )
    if not facts.noise:
        lines.append(_NOISE)
        lines.append(
            "Clip each sample and add noise (dpsgd). How much holds on your model: textleak eval --defense none "
            "--defense dpsgd:…"
        )
        lines.append(_TOO_WEAK)
    return lines


def _further(facts: Facts) -> list[str]:
    lines = []
    if not facts.told_client:
        lines.append("Say how the client trains, if you know it: --client SPEC (`textleak clients`).")
    if not facts.told_lengths:
        lines.append(
            "Tell what a server may know: write the file with `textleak share --know lengths,batch-size`."
            if facts.says_known
            else "Tell what a server may know: --know batch-size=N,lengths=N/N."
        )
    return [
        *lines,
        "Give it more time, or another attack: --time-limit 1h, --attack NAME (`textleak attacks`).",
    ]
