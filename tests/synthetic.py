"""Records made up for tests of what is done with records: typed, seeded, without a model or an attack."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from textleak.evaluation.records import Cell, PlantedSecret, Record, SentenceRecord, to_json

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "textleak": "0.1.0"}
WORDS = tuple(
    """
    the a of to in was she he they it and patient doctor account number friday meeting sent paris river
    answer never again market price fell quietly before autumn nobody knew which train stopped there
    """.split()  # noqa: SIM905
)


def sentence(
    reference: Sequence[str],
    recovered: Sequence[str] | None = None,
    *,
    secrets: Sequence[tuple[str, bool]] = (),
) -> SentenceRecord:
    """A sentence of tokens and what was recovered of it, its figures counted by hand."""
    found = tuple(reference if recovered is None else recovered)
    right = sum(a == b for a, b in zip(reference, found, strict=False))
    rate = right / len(reference) if reference else 0.0
    everywhere = sum(token in found for token in reference) / len(reference) if reference else 0.0
    return SentenceRecord(
        reference=" ".join(reference),
        recovered=" ".join(filter(None, found)),
        reference_tokens=tuple(reference),
        recovered_tokens=found,
        token_match_rate=rate,
        token_recall=everywhere,
        exact=tuple(reference) == found,
        rouge1=everywhere,
        rouge2=rate,
        rougeL=rate,
        rouge1_words=everywhere,
        rouge2_words=rate,
        rougeL_words=rate,
        label=0,
        recovered_label=0,
        secrets=tuple(PlantedSecret(text=text, recovered=got) for text, got in secrets),
    )


def cell(**settings: object) -> Cell:
    """A cell like any other but for the settings that are named."""
    return Cell(**{"data": "cola", "batch_size": 1, "model": "minilm", **settings})


def done(of: Cell, batch: int, *sentences: SentenceRecord, identity: str = "a1b2") -> Record:
    """A batch with an answer."""

    def mean(figure: str) -> float:
        return sum(float(getattr(one, figure)) for one in sentences) / len(sentences)

    tokens = sum(len(one.reference_tokens) + 2 for one in sentences)
    figures = ("token_match_rate", "token_recall", "rouge1", "rouge2", "rougeL")
    words = ("rouge1_words", "rouge2_words", "rougeL_words")
    return Record(
        identity=identity,
        cell=of,
        batch=batch,
        status="done",
        sentences=sentences,
        tokens=tokens,
        hidden_size=384,
        tokens_per_hidden=round(tokens / 384, 4),
        exact_rate=mean("exact"),
        verified=mean("exact") == 1,
        weights="pretrained",
        seconds=2.0,
        cpu_seconds=1.5,
        versions=VERSIONS,
        **{figure: mean(figure) for figure in (*figures, *words)},
    )


def failed(of: Cell, batch: int, error: str = "AttackError: it broke") -> Record:
    """A batch without an answer."""
    return Record(identity="a1b2", cell=of, batch=batch, status="failed", error=error)


def write(
    path: Path,
    records: Iterable[Record],
    settings: dict[str, object] | None = None,
    batches: int | None = None,
) -> Path:
    """The folder of an evaluation that is to have so many batches."""
    path.mkdir(parents=True, exist_ok=True)
    facts = {"format": 1, "identity": "a1b2", "settings": settings or {}, "versions": VERSIONS}
    facts |= {} if batches is None else {"batches": batches}
    (path / "evaluation.json").write_text(json.dumps(facts), "utf-8")
    lines = [json.dumps(to_json(record), ensure_ascii=False) for record in records]
    (path / "records.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


LADDER = (
    (),
    *((f"gaussian:sigma={sigma}",) for sigma in ("1e-05", "0.0001", "0.001", "0.01", "0.1")),
    *((f"prune:ratio={ratio}",) for ratio in ("0.5", "0.75", "0.9", "0.99")),
    *((f"quantize:to={grid}",) for grid in ("bf16", "int8")),
)


def grid(
    *,
    attacks: Sequence[str] = ("auto", "match", "lamp"),
    defenses: Sequence[tuple[str, ...]] = LADDER,
    sizes: Sequence[int] = (1,),
    sentences: int = 20,
    seeds: Sequence[int] = (0,),
) -> list[Record]:
    """A whole grid: the further on in `attacks` and `defenses`, the less is recovered."""
    records = []
    texts = []
    draw = random.Random(0)
    for number in range(sentences):
        words = draw.choices(WORDS, k=draw.randint(4, 16))
        texts.append([*words, f"47{number:02}"] if number % 4 == 0 else words)
    for a, attack in enumerate(attacks):
        for d, defense in enumerate(defenses):
            for size in sizes:
                for seed in seeds:
                    of = cell(attack=attack, defense=defense, batch_size=size, seed=seed)
                    draw = random.Random(f"{a} {d} {size} {seed}")
                    chance = max(0.0, 1 - 0.22 * a - 0.6 * (d % 6) / 6 - 0.03 * (size - 1))
                    for batch in range(sentences // size):
                        chosen = texts[batch * size : (batch + 1) * size]
                        records.append(done(of, batch, *(_attacked(words, chance, draw) for words in chosen)))
    return records


def _attacked(words: Sequence[str], chance: float, draw: random.Random) -> SentenceRecord:
    found = [word if draw.random() < chance else draw.choice(("", *WORDS)) for word in words]
    secrets = [(word, word in found) for word in words if word.isdigit()]
    return sentence(words, found, secrets=secrets)
