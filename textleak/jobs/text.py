"""One run from its settings to its result: load, share or read a gradient, attack, score, certify.

`prepare` does everything that can be the caller's fault, so that a run folder is made only for a run that can
go. `drive` takes it to its end in a run folder's recorder; a caller without one drives `Job.steps()` and hands the
recovery to `Job.result`. Who shows what happens is the caller's affair.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from textleak.errors import InputError
from textleak.events import Phase, Position, Recovery, Sentence, Stop, Truth
from textleak.runs import Recorder, cores, execute, versions
from textleak.settings import Choice, ClientConfig, ImageConfig, RunConfig

if TYPE_CHECKING:
    from textleak.attacks import Attack
    from textleak.attacks.base import Steps
    from textleak.clients import Client
    from textleak.clients.view import View
    from textleak.defenses import Defense
    from textleak.jobs.images import ImageJob
    from textleak.models import TextModel
    from textleak.models.vision import ImageModel
    from textleak.private.secrets import Secret
    from textleak.proof.certificate import Certificate
    from textleak.shared.gradient import SharedGradient
    from textleak.shared.public import PublicClient, PublicDefense

SCORES = ("token_match_rate", "token_recall", "exact_rate", "rouge1", "rouge2", "rougeL")
WORD_SCORES = ("rouge1_words", "rouge2_words", "rougeL_words")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A run that can go: everything is loaded and checked.

    Attributes:
        config: what was asked for.
        attack: the attack with its options.
        shared: what it sees.
        model: the public model.
        secret: what was really in the batch, for scoring; None where that isn't known.
        defenses: what the client did before sharing, whether the attack is told or not.
        client: how the client trained, likewise.
        threads: CPU threads in use.
        seconds_to_load: from the settings to here.
    """

    config: RunConfig
    attack: Attack
    shared: SharedGradient
    model: TextModel
    secret: Secret | None
    defenses: tuple[PublicDefense, ...]
    client: PublicClient
    threads: int
    seconds_to_load: float

    @property
    def name(self) -> str:
        """Model and attack in two words, for a folder's name."""
        return f"{self.model.name.rstrip('/').rpartition('/')[2]}-{self.attack.name}"

    def settings(self) -> dict[str, Any]:
        """What the run works on, as plain values: the head of its result, and what viewers show."""
        known = self.shared.known
        return {
            **run_facts(self),
            "know": told_to(self, [kind for kind in _KNOWN if getattr(known, _KNOWN[kind]) is not None]),
            "batch_size": self._batch_size(None),
            "tokens": self._tokens(None),
            "hidden_size": self.model.hidden_size,
            "tokens_per_hidden": _ratio(self._tokens(None), self.model.hidden_size),
            "sentences": None if self.secret is None else list(self.secret.sentences),
            "labels": None if self.secret is None or self.secret.labels is None else list(self.secret.labels),
            "gradients": None if self.config.gradients is None else str(self.config.gradients),
        }

    def truth(self) -> Truth | None:
        """What viewers may compare with; None where the truth isn't known."""
        if self.secret is None:
            return None
        labels = self.secret.labels or (None,) * len(self.secret.ids)
        special = self.model.special_ids
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

    def steps(self) -> Steps:
        """The attack, ready to be driven."""
        from textleak.attacks.base import begin

        return begin(self.attack, self.shared, self.model, seed=self.config.seed)

    @functools.cached_property
    def view(self) -> View:
        """What the server makes of what was shared."""
        from textleak.clients.view import view_of

        return view_of(self.shared, self.model)

    def result(
        self,
        recovery: Recovery,
        *,
        outcome: str,
        seconds: float,
        run_dir: str | None,
        certified: bool = True,
    ) -> dict[str, Any]:
        """What `run --json` prints: settings, figures and the certificate, as plain JSON values.

        Args:
            recovery: the attack's answer, or the best one when it was stopped.
            outcome: "done", "interrupted" or "stopped".
            seconds: the attack's own time.
            run_dir: the run folder.
            certified: form the answer's own gradient, which takes as long as a training step in float64.
        """
        from textleak.proof.certificate import Certificate, certificate_of

        certificate = Certificate(gradient_distance=None, verified=None)
        if certified or recovery.stop in (Stop.VERIFIED, Stop.PROVED):
            certificate = certificate_of(recovery, self.view)
        private = ("sentences", "labels")
        return {
            **{key: value for key, value in self.settings().items() if key not in private},
            "batch_size": self._batch_size(recovery),
            "tokens": self._tokens(recovery),
            "tokens_per_hidden": _ratio(self._tokens(recovery), self.model.hidden_size),
            **outcome_facts(recovery, certificate, outcome=outcome, seconds=seconds, run_dir=run_dir),
            **proof_facts(recovery, certificate),
            "seconds_to_load": round(self.seconds_to_load, 3),
            **self._scores(recovery),
        }

    def _scores(self, recovery: Recovery) -> dict[str, Any]:
        """Figures, each sentence's and their means; null where the truth isn't known."""
        from textleak import scoring

        if self.secret is None:
            return {
                "sentences": [self._without_truth(sentence) for sentence in recovery.sentences],
                **dict.fromkeys((*SCORES, *WORD_SCORES)),
                "surplus": [],
                "stages": {},
            }
        scores = scoring.score(recovery, self.secret, self.model).to_json()
        stages = {
            name: scoring.score_sentences(sentences, self.secret, self.model)
            for name, sentences in recovery.stages.items()
        }
        return {
            "sentences": [
                {**sentence, "tokens": len(sentence["reference_tokens"])} for sentence in scores["sentences"]
            ],
            **{figure: scores[figure] for figure in (*SCORES, *WORD_SCORES)},
            "surplus": list(scores["surplus"]),
            "stages": {
                name: {figure: getattr(stage, figure) for figure in SCORES} for name, stage in stages.items()
            },
        }

    def _without_truth(self, sentence: Sentence) -> dict[str, Any]:
        tokens = [p.text for p in sentence.positions if not p.special]
        unknown = ("reference", "reference_tokens", "token_match_rate", "token_recall", "exact", *SCORES[3:])
        return {
            **dict.fromkeys((*unknown, *WORD_SCORES)),
            "recovered": sentence.text,
            "recovered_tokens": tokens,
            "label": None,
            "recovered_label": sentence.label,
            "tokens": len(tokens),
        }

    def _batch_size(self, recovery: Recovery | None) -> int | None:
        if self.secret is not None:
            return len(self.secret.ids)
        return self.shared.known.batch_size or (len(recovery.sentences) if recovery else None)

    def _tokens(self, recovery: Recovery | None) -> int | None:
        """n: all tokens of the batch, special ones counted; the answer's where nothing else is known."""
        if self.secret is not None:
            return sum(map(len, self.secret.ids))
        if self.shared.known.lengths is not None:
            return sum(self.shared.known.lengths)
        return sum(len(sentence.positions) for sentence in recovery.sentences) if recovery else None


# What a server may be told, and where `SideInformation` holds it.
_KNOWN: Mapping[str, str] = {"batch-size": "batch_size", "lengths": "lengths", "labels": "labels"}


def prepare(config: RunConfig) -> Job:
    """Load and check all that a run needs; nothing is written.

    Raises:
        InputError: whatever the caller can mend (see the command line's contract).
    """
    began = time.perf_counter()
    sentences = config.batch()
    attack = build_attack(config)
    defenses = build_defenses(config)
    threads = set_threads(config.threads)
    from textleak.shared.public import ONE_STEP

    secret: Secret | None
    if config.gradients is None:
        from textleak.private.share import share

        model = load(config)
        shared, secret = share(
            model,
            sentences,
            config.labels or None,
            share=config.share,
            client=build_client(config),
            defenses=defenses,
            know=config.know,
            seed=config.seed,
        )
        done, client = secret.defenses, secret.client
    else:
        model, shared, secret = _read(config)
        done = shared.defenses or (secret.defenses if secret else ())
        client = shared.client if secret is None or shared.client != ONE_STEP else secret.client
        shared = _tell_less(shared, config)
    return Job(
        config=config,
        attack=attack,
        shared=shared,
        model=model,
        secret=secret,
        defenses=done,
        client=client,
        threads=threads,
        seconds_to_load=time.perf_counter() - began,
    )


def build_attack(config: RunConfig | ImageConfig) -> Attack:
    """The attack that the settings name, its options checked."""
    from textleak.attacks import ATTACKS

    name = config.attack.name
    if isinstance(config, RunConfig) and config.prior is not None:
        options = {option.name for option in dataclasses.fields(ATTACKS[name])}  # type: ignore[arg-type]
        if "prior" not in options:
            raise InputError(
                f"--prior {config.prior} was given, but the attack {name} has no language-model prior.",
                fix="Leave --prior out, or use --attack lamp.",
            )
    return ATTACKS.build(name, config.attack_options())


def build_defenses(config: ClientConfig | ImageConfig) -> tuple[Defense, ...]:
    """The defenses that the settings name, their options checked, in order."""
    from textleak.defenses import DEFENSES

    return tuple(DEFENSES.build(choice.name, choice.options) for choice in config.defenses)


def build_client(config: ClientConfig | ImageConfig) -> Client:
    """How the settings say that the client trains, its options checked."""
    from textleak.clients import CLIENTS, composed

    return composed([CLIENTS.build(choice.name, choice.options) for choice in config.client])


def set_threads(threads: int | None) -> int:
    """Set the CPU threads of this process; by default no more than the cores it may really use.

    More threads than free cores cost a factor of 10 on these small matrices.
    """
    import torch

    if threads is None:
        threads = min(torch.get_num_threads(), cores())
    torch.set_num_threads(threads)
    return threads


def load(config: ClientConfig) -> TextModel:
    """The public model that the settings name; weights that are drawn come from the seed's own stream."""
    from textleak import seeds
    from textleak.models import load_model

    return load_model(
        config.model,
        weights=config.weights,
        task=config.task,
        device=config.device,
        dtype=config.dtype,
        weights_seed=seeds.derive(config.seed, "weights"),
        num_labels=config.num_labels,
    )


def model_facts(model: TextModel | ImageModel) -> dict[str, Any]:
    """What a record says of the model."""
    return {
        "model": model.name,
        "weights": model.weights,
        "weights_source": model.source,
        "task": model.task,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def run_facts(job: Job | ImageJob) -> dict[str, Any]:
    """What a record says of any run's settings."""
    return {
        **model_facts(job.model),
        "attack": job.attack.name,
        "attack_options": dataclasses.asdict(job.attack),  # type: ignore[call-overload]
        "share": job.shared.share,
        "client": [Choice(name=name, options=options).spec for name, options in job.client.kinds],
        "defense": [Choice(name=d.name, options=d.options).spec for d in job.defenses],
        "epsilon": finite(next((d.epsilon for d in job.defenses if d.epsilon is not None), None)),
        "threads": job.threads,
        "seed": job.config.seed,
    }


def told_to(job: Job | ImageJob, kinds: Iterable[str]) -> list[str]:
    """What a run's attack is told, as `--know` names it: kinds of side information, and what is kept from it."""
    from textleak.shared.known import NO_CLIENT, NO_DEFENSE

    hidden = [NO_DEFENSE] if job.defenses and not job.shared.defenses else []
    return [*kinds, *hidden, *([NO_CLIENT] if job.client != job.shared.client else [])]


def outcome_facts(
    recovery: Recovery, certificate: Certificate, *, outcome: str, seconds: float, run_dir: str | None
) -> dict[str, Any]:
    """What a record says of any run's end."""
    return {
        "versions": versions(),
        "outcome": outcome,
        "stop": recovery.stop.value,
        "steps": recovery.steps,
        "evaluations": recovery.evaluations,
        "seconds": round(seconds, 3),
        "final_loss": finite(recovery.final_loss),
        "gradient_distance": finite(certificate.gradient_distance),
        "verified": certificate.verified,
        "verified_reason": certificate.reason,
        "channel": recovery.channel,
        "notes": [*recovery.notes, *certificate.notes],
        "run_dir": run_dir,
    }


def proof_facts(recovery: Recovery, certificate: Certificate) -> dict[str, Any]:
    """What proves an answer's tokens, and how many: its own gradient all of them, the span each by itself."""
    tokens = sum(p.id >= 0 and not p.special for s in recovery.sentences for p in s.positions)
    if certificate.verified and recovery.stop is not Stop.PROVED:
        return {"proof": "gradient", "proved_tokens": tokens}
    return {
        "proof": "span" if recovery.proved_tokens else None,
        "proved_tokens": recovery.proved_tokens,
    }


def _read(config: RunConfig) -> tuple[TextModel, SharedGradient, Secret | None]:
    """A gradient from a file, its model, and the truth where a file of it was given.

    The model is the one that the settings name, else the one that the file names: only an alias, and nothing is
    downloaded for it.
    """
    from textleak.clients.view import view_of
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG
    from textleak.models.loading.text import TextRequest, load
    from textleak.private.secrets import Secret
    from textleak.shared.gradient import SharedGradient

    assert config.gradients is not None
    shared = SharedGradient.load(config.gradients)
    secret = None if config.truth is None else Secret.load(config.truth)
    public, given = shared.model, config.model_fields_set
    if "model" not in given and public.name not in CATALOG and public.name not in BY_HUB_ID:
        raise InputError(
            f"{config.gradients} names the model {public.name!r}, which no file can have loaded.",
            why="It could be anything from anywhere: a file has only an alias loaded (`textleak models`).",
            fix="Name it yourself, if you trust it: --model NAME.",
        )
    model = load(
        TextRequest(
            name=config.model if "model" in given else public.name,
            weights=config.weights if "weights" in given else public.weights,
            task=config.task if "task" in given else public.task,
            device=config.device,
            dtype=config.dtype if "dtype" in given else public.dtype,
            weights_seed=public.weights_seed,
            num_labels=config.num_labels if "num_labels" in given else public.num_labels or 2,
            download="model" in given,
        )
    )
    view_of(shared, model)  # names and shapes
    if model.fingerprint != shared.model.fingerprint:
        raise InputError(
            f"{config.gradients} is a gradient of another model than the {model.name} that was loaded.",
            why=f"The weights differ: the file names {public.name} ({public.weights}, {public.dtype}), "
            f"loaded was {model.source}.",
            fix="Load the model that the client used (--model, --weights, --task), or make the same weights "
            "available here.",
        )
    if secret is not None:
        _check_truth(secret, shared, model, config)
    return model, shared, secret


def _check_truth(secret: Secret, shared: SharedGradient, model: TextModel, config: RunConfig) -> None:
    fits = bool(secret.ids) and len(secret.ids) == len(secret.sentences)
    fits = fits and all(0 <= token < model.vocab_size for ids in secret.ids for token in ids)
    fits = fits and (secret.labels is None or len(secret.labels) == len(secret.ids))
    fits = fits and shared.known.batch_size in (None, len(secret.ids))
    fits = fits and shared.known.lengths in (None, tuple(map(len, secret.ids)))
    if not fits:
        raise InputError(
            f"{config.truth} doesn't fit {config.gradients}.",
            why=f"Its tokens or labels are not those of a batch for {model.name}.",
            fix="Give the .truth.json that was written beside the gradient.",
        )


def _tell_less(shared: SharedGradient, config: RunConfig) -> SharedGradient:
    """The gradient with no more side information than `--know` names."""
    from textleak.shared.known import SideInformation, hides_client, hides_defense, leaves_default
    from textleak.shared.public import ONE_STEP

    if hides_defense(config.know):
        shared = dataclasses.replace(shared, defenses=())
    if hides_client(config.know):
        shared = dataclasses.replace(shared, client=ONE_STEP)
    if config.know is None or leaves_default(config.know):
        return shared
    told = SideInformation.parse(config.know, batch_size=shared.known.batch_size or 0)
    for kind in told:
        if getattr(shared.known, _KNOWN[kind]) is None:
            raise InputError(
                f"--know {kind} can't be told.",
                why=f"{config.gradients} doesn't say it.",
                fix=f"Write the file with `textleak share --know {kind}`.",
            )
    fewer = {field: None for kind, field in _KNOWN.items() if kind not in told}
    return dataclasses.replace(shared, known=dataclasses.replace(shared.known, **fewer))


def outcome_of(recovery: Recovery) -> str:
    """How a run that came back with an answer ended, in a word."""
    return {Stop.INTERRUPTED: "interrupted", Stop.STOPPED: "stopped"}.get(recovery.stop, "done")


def drive(job: Job | ImageJob, recorder: Recorder) -> dict[str, Any]:
    """Record the truth, drive the attack to its end or to an interrupt, certify; the result as it was written."""
    truth = job.truth()
    if truth is not None:
        recorder.record(truth)
    began = recorder.elapsed()
    try:
        recovery = execute(job.steps(), recorder)
    except KeyboardInterrupt:
        recovery = recorder.recovery(Stop.INTERRUPTED)
    seconds = recorder.elapsed() - began
    outcome, run_dir = outcome_of(recovery), str(recorder.folder.path)
    recorder.record(Phase(name="certify", detail="the answer's own gradient, in float64"))
    try:
        result = job.result(recovery, outcome=outcome, seconds=seconds, run_dir=run_dir)
    except KeyboardInterrupt:
        outcome = "interrupted"
        result = job.result(recovery, outcome=outcome, seconds=seconds, run_dir=run_dir, certified=False)
    return recorder.finish(outcome, result)


def _ratio(tokens: int | None, hidden_size: int) -> float | None:
    return None if tokens is None else round(tokens / hidden_size, 4)


def finite(number: float | None) -> float | None:
    """The number where it can be written as JSON."""
    return number if number is not None and math.isfinite(number) else None
