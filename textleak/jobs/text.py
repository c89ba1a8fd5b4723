"""One run on text from its settings to its result: load, share or read a gradient, attack, score, certify.

`prepare` makes a run that can go; `jobs.base.drive` takes it to its end in a run folder's recorder. A caller without
one drives `steps()` and hands the recovery to `result`. Who shows what happens is the caller's affair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textleak.events import Position, Recovery, Sentence, Truth
from textleak.jobs.base import Job
from textleak.jobs.files import asked_by_file, read_gradient, within
from textleak.jobs.parts import asked_for, build_client, build_defenses, seed_of_draws
from textleak.jobs.prepared import Batch, prepared
from textleak.settings import ClientConfig, RunConfig

if TYPE_CHECKING:
    from textleak.models import TextModel
    from textleak.models.base import Modality
    from textleak.models.loading.text import TextRequest
    from textleak.private.secrets import Secret
    from textleak.proof.certificate import Certificate
    from textleak.shared.gradient import SharedGradient

SCORES = ("token_match_rate", "token_recall", "exact_rate", "rouge1", "rouge2", "rougeL")
WORD_SCORES = ("rouge1_words", "rouge2_words", "rougeL_words")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextJob(Job):
    """A run on text."""

    config: RunConfig
    model: TextModel
    secret: Secret | None

    @staticmethod
    def modality() -> Modality:
        """Text."""
        from textleak.models.base import Modality

        return Modality.TEXT

    def facts(self) -> dict[str, Any]:
        """The batch and its size beside the model's."""
        return {
            **self._sizes(None),
            **({} if self.config.of_batch is None else {"of_batch": self.config.of_batch}),
            "hidden_size": self.model.hidden_size,
            "layers": self.model.first_layers,
            "sentences": None if self.secret is None else list(self.secret.sentences),
            "labels": None if self.secret is None or self.secret.labels is None else list(self.secret.labels),
        }

    def truth(self) -> Truth | None:
        """What viewers may compare with; None where the truth isn't known."""
        if self.secret is None:
            return None
        from textleak import scoring

        labels = self.secret.labels or (None,) * len(self.secret.ids)
        special = scoring.uncounted(self.model)  # a viewer counts none of them
        return Truth(
            sentences=tuple(
                Sentence(
                    positions=tuple(
                        Position(position=at, id=id, text=text, confidence=1.0, special=id in special)
                        for at, (id, text) in enumerate(zip(ids, self.model.token_texts(ids), strict=True))
                    ),
                    text=sentence,
                    label=label,
                )
                for sentence, ids, label in zip(self.secret.sentences, self.secret.ids, labels, strict=True)
            )
        )

    def truth_fits(self) -> bool:
        """Whether tokens, labels and their numbers are those of such a batch."""
        secret, known, model = self.secret, self.shared.known, self.model
        assert secret is not None
        return (
            0 < len(secret.ids) == len(secret.sentences)
            and all(0 <= token < model.vocab_size for ids in secret.ids for token in ids)
            and (secret.labels is None or len(secret.labels) == len(secret.ids))
            and known.batch_size in (None, len(secret.ids))
            and known.lengths in (None, tuple(map(len, secret.ids)))
        )

    def certificate(self, recovery: Recovery) -> Certificate:
        """What the answer's own gradient says."""
        from textleak.attacks.base import least_limit
        from textleak.proof.certificate import certificate_of

        limit = least_limit(self.attack, self.config.time_limit)
        return certificate_of(recovery, self.view, limit=limit)

    def proved(self, recovery: Recovery, proof: str | None) -> dict[str, Any]:
        """How many tokens: the answer's own gradient proves all of them; of others, rows may name some."""
        if proof == "gradient":
            tokens = sum(p.id >= 0 and not p.special for s in recovery.sentences for p in s.positions)
            return {"proved_tokens": tokens, "named_tokens": None, "named_rate": None}
        from textleak import scoring

        named = self.named()
        rate = None if self.secret is None else scoring.named_rate(named, self.secret, self.model)
        return {
            "proved_tokens": recovery.proved_tokens,
            "named_tokens": len(named) or None,
            "named_rate": rate,
        }

    def named(self) -> frozenset[int]:
        """The tokens that what was sent names for certain, whatever the attack made of it."""
        from textleak.jobs.telling import named_tokens

        return named_tokens(self.view, self.shared.gradients, self.defenses)

    def scores(self, recovery: Recovery) -> dict[str, Any]:
        """Figures, each sentence's and their means; null where the truth isn't known."""
        from textleak import scoring

        if self.secret is None:
            return {
                **self._sizes(recovery),
                "sentences": [self._without_truth(sentence) for sentence in recovery.sentences],
                **dict.fromkeys((*SCORES, *WORD_SCORES)),
                "unknown_tokens": None,
                "surplus": [],
                "stages": {},
            }
        scores = scoring.score(recovery, self.secret, self.model).to_json()
        stages = {
            name: scoring.score_sentences(sentences, self.secret, self.model)
            for name, sentences in recovery.stages.items()
        }
        return {
            **self._sizes(recovery),
            "sentences": [
                {**sentence, "tokens": len(sentence["reference_tokens"])} for sentence in scores["sentences"]
            ],
            **{figure: scores[figure] for figure in (*SCORES, *WORD_SCORES)},
            "unknown_tokens": scores["unknown_tokens"],
            "surplus": list(scores["surplus"]),
            "stages": {
                name: {figure: getattr(stage, figure) for figure in SCORES} for name, stage in stages.items()
            },
        }

    def _without_truth(self, sentence: Sentence) -> dict[str, Any]:
        tokens = [p.text for p in sentence.positions if not p.special]
        unknown = ("reference", "reference_tokens", "token_match_rate", "token_recall", "exact", *SCORES[3:])
        return {
            **dict.fromkeys((*unknown, *WORD_SCORES, "unknown_tokens")),
            "recovered": sentence.text,
            "recovered_tokens": tokens,
            "label": None,
            "recovered_label": sentence.label,
            "tokens": len(tokens),
        }

    def _sizes(self, recovery: Recovery | None) -> dict[str, Any]:
        """B, n and n/D: the truth's, else what is known, else the answer's."""
        tokens = self._tokens(recovery)
        size = self.shared.known.batch_size or (len(recovery.sentences) if recovery else None)
        return {
            "batch_size": size if self.secret is None else len(self.secret.ids),
            "tokens": tokens,
            "tokens_per_hidden": None if tokens is None else round(tokens / self.model.hidden_size, 4),
        }

    def _tokens(self, recovery: Recovery | None) -> int | None:
        """n: all tokens of the batch, special ones counted; the answer's where nothing else is known."""
        if self.secret is not None:
            return sum(map(len, self.secret.ids))
        if self.shared.known.lengths is not None:
            return sum(self.shared.known.lengths)
        return sum(len(sentence.positions) for sentence in recovery.sentences) if recovery else None


def prepare(config: RunConfig) -> TextJob:
    """`textleak.jobs.prepared.prepared`, for text.

    Raises:
        InputError: whatever the caller can mend (see the command line's contract).
    """
    sentences = config.batch()
    return prepared(TextJob, config, share=lambda: _share(config, sentences), read=lambda: _read(config))


def _share(config: RunConfig, sentences: Sequence[str]) -> Batch:
    model = load(config)
    shared, secret = share_text(config, model, sentences)
    return Batch(model=model, shared=shared, secret=secret)


def load(config: ClientConfig) -> TextModel:
    """The public model that the settings name."""
    from textleak.models.loading.text import load

    return load(_request(config))


def keep(config: ClientConfig) -> bool:
    """Have the model that the settings name ready for `load`, once; `textleak.models.loading.text.keep`."""
    from textleak.models.loading.text import keep

    return keep(_request(config))


def _request(config: ClientConfig) -> TextRequest:
    from textleak.models.loading.text import TextRequest

    return TextRequest(**asked_for(config), task=config.task, num_labels=config.num_labels)


def share_text(
    config: ClientConfig, model: TextModel, sentences: Sequence[str]
) -> tuple[SharedGradient, Secret]:
    """What the client that the settings name shares of some sentences, and the truth."""
    from textleak.private.share import share

    return share(
        model,
        sentences,
        config.labels or None,
        share=config.share,
        client=build_client(config),
        defenses=build_defenses(config),
        know=config.know,
        seed=seed_of_draws(config),
    )


def _read(config: RunConfig) -> Batch:
    """A gradient from a file, its model, and the truth where a file of it was given."""
    from textleak.models.base import Modality
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG
    from textleak.models.loading.text import TextRequest, load
    from textleak.private.secrets import Secret

    shared = read_gradient(config, Modality.TEXT)
    secret = None if config.truth is None else Secret.load(config.truth)
    public, given = shared.model, config.model_fields_set
    model = load(
        TextRequest(
            **asked_by_file(config, public, {*CATALOG, *BY_HUB_ID}),
            task=config.task if "task" in given else public.task,
            num_labels=config.num_labels if "num_labels" in given else public.num_labels,
            download="model" in given,  # nothing is downloaded for what a file names
            layers=config.layers,
        )
    )
    shared = dataclasses.replace(shared, gradients=within(shared.gradients, config, model))
    return Batch(model=model, shared=shared, secret=secret)
