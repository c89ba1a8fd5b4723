"""What every run is, whatever its batch is made of: what it works on, its attack, its result, and how it is driven."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from textleak.events import Phase, Progress, Recovery, Stop, Truth
from textleak.jobs.parts import seed_of_draws
from textleak.runs import Recorder, execute, run_words, versions
from textleak.settings import Choice, ImageConfig, RunConfig

if TYPE_CHECKING:
    from textleak.attacks import Attack
    from textleak.attacks.base import Steps
    from textleak.clients.view import AnyModel, View
    from textleak.models.base import Modality, Model
    from textleak.private.secrets import ImageSecret, Secret
    from textleak.proof.certificate import Certificate
    from textleak.shared.gradient import SharedGradient
    from textleak.shared.public import PublicClient, PublicDefense

_PRIVATE = ("sentences", "labels")
# Of what `--json` prints: raised where a field goes or means something else, not where one is added.
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(abc.ABC):
    """A run that can go: everything is loaded and checked.

    A kind of data fills in what is its own: `modality`, `facts`, `truth`, `truth_fits`, `scores`, `certificate`.

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

    config: RunConfig | ImageConfig
    attack: Attack
    shared: SharedGradient
    model: AnyModel
    secret: Secret | ImageSecret | None
    defenses: tuple[PublicDefense, ...]
    client: PublicClient
    threads: int
    seconds_to_load: float

    @property
    def name(self) -> str:
        """Words that tell the run, for a folder's name."""
        return run_words(self.model.name, self.attack.name)

    @functools.cached_property
    def view(self) -> View:
        """What the server makes of what was shared."""
        from textleak.exact.second_parts import view_as_seen

        return view_as_seen(self.shared, self.model)

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """What the run works on, as plain values: the head of its result, and what viewers show."""
        return {
            **model_facts(self.model),
            "attack": self.attack.name,
            "attack_options": dataclasses.asdict(self.attack),  # type: ignore[call-overload]
            "share": self.shared.share,
            "client": [Choice(name=name, options=options).spec for name, options in self.client.kinds],
            "defense": [Choice(name=d.name, options=d.options).spec for d in self.defenses],
            "epsilon": finite(next((d.epsilon for d in self.defenses if d.epsilon is not None), None)),
            "threads": self.threads,
            "seed": self.config.seed,
            "time_limit": self.config.time_limit,
            "know": self._told(),
            "gradients": None if self.config.gradients is None else str(self.config.gradients),
            **self.facts(),
        }

    def _told(self) -> list[str]:
        """What the attack is told, as `--know` names it: kinds of side information, and what is kept from it."""
        from textleak.shared.known import NO_CLIENT, NO_DEFENSE

        hidden = [NO_DEFENSE] if self.defenses and not self.shared.defenses else []
        hidden += [NO_CLIENT] if self.client != self.shared.client else []
        return [*self.shared.known.told, *hidden]

    @staticmethod
    @abc.abstractmethod
    def modality() -> Modality:
        """The kind of data."""

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the settings say of this kind of data alone."""

    @abc.abstractmethod
    def truth(self) -> Truth | None:
        """What viewers may compare with; None where the truth isn't known."""

    @abc.abstractmethod
    def truth_fits(self) -> bool:
        """Whether the truth can be what the shared gradient is of; asked only where it is known."""

    @abc.abstractmethod
    def scores(self, recovery: Recovery) -> dict[str, Any]:
        """Figures of an answer, each sample's and their means; null where the truth isn't known."""

    @abc.abstractmethod
    def certificate(self, recovery: Recovery) -> Certificate:
        """What the answer's own gradient, formed in float64, says."""

    def proved(self, recovery: Recovery, proof: str | None) -> dict[str, Any]:
        """How much of an answer is proved, where it has parts."""
        del recovery, proof
        return {}

    def limits(self) -> tuple[str, ...]:
        """Why no answer can be exact, in sentences."""
        return ()

    def warnings(self) -> tuple[str, ...]:
        """What a person should know before the run, in sentences."""
        return self.limits()

    def steps(self) -> Steps:
        """The attack, ready to be driven."""
        from textleak.attacks.base import begin_on

        seed = seed_of_draws(self.config)
        return begin_on(self.attack, self.view, seed=seed, time_limit=self.config.time_limit)

    def result(
        self,
        recovery: Recovery,
        *,
        outcome: str,
        seconds: float,
        run_dir: str | None,
        certified: bool = True,
    ) -> dict[str, Any]:
        """What `--json` prints: settings, figures and the certificate, as plain JSON values.

        Args:
            recovery: the attack's answer, or the best one when it was stopped.
            outcome: "done", "interrupted" or "stopped".
            seconds: the attack's own time.
            run_dir: the run folder.
            certified: form the answer's own gradient, which takes as long as a training step in float64; an attack
                that did so itself has said what came of it.
        """
        from textleak.proof.certificate import own_certificate
        from textleak.scoring.headline import how_much

        certificate = self.certificate(recovery) if certified else own_certificate(recovery)
        proof = proof_of(recovery, certificate)
        result = {
            "schema_version": SCHEMA_VERSION,
            **{key: value for key, value in self.settings.items() if key not in _PRIVATE},
            "versions": versions(),
            "outcome": outcome,
            "stop": stop_of(recovery, certificate).value,
            "steps": recovery.steps,
            "evaluations": recovery.evaluations,
            "seconds": round(seconds, 3),
            "seconds_to_load": round(self.seconds_to_load, 3),
            "final_loss": finite(recovery.final_loss),
            "gradient_distance": finite(certificate.gradient_distance),
            "verified": certificate.verified,
            "verified_reason": certificate.reason,
            "proof": proof,
            **self.proved(recovery, proof),
            "channel": recovery.channel,
            "notes": [*recovery.notes, *certificate.notes, *self.limits()],
            "run_dir": run_dir,
            **self.scores(recovery),
        }
        return {**result, "summary": how_much(result)}


def model_facts(model: Model) -> dict[str, Any]:
    """What a record says of the model."""
    return {
        "model": model.name,
        "weights": model.weights,
        "weights_source": model.source,
        "task": model.task,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def proof_of(recovery: Recovery, certificate: Certificate) -> str | None:
    """What proves an answer: its own "gradient" all of it, or the "span" parts, each by itself; None for nothing."""
    if certificate.verified and recovery.stop is not Stop.PROVED:
        return "gradient"
    return "span" if recovery.proved_tokens else None


def stop_of(recovery: Recovery, certificate: Certificate) -> Stop:
    """Why a run ended: as its attack says, or because time was up for the proof."""
    return Stop.TIME if certificate.cut_off else recovery.stop


def finite(number: float | None) -> float | None:
    """The number where it can be written as JSON."""
    return number if number is not None and math.isfinite(number) else None


def drive(job: Job, recorder: Recorder) -> dict[str, Any]:
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
    _show(recovery, recorder)
    outcome, run_dir = outcome_of(recovery), str(recorder.folder.path)
    recorder.record(Phase(name="certify", detail="the answer's own gradient, in float64"))
    try:
        result = job.result(recovery, outcome=outcome, seconds=seconds, run_dir=run_dir)
    except KeyboardInterrupt:
        outcome = "interrupted"
        result = job.result(recovery, outcome=outcome, seconds=seconds, run_dir=run_dir, certified=False)
    return recorder.finish(outcome, result)


def _show(recovery: Recovery, recorder: Recorder) -> None:
    """Let viewers see the answer, where no progress so far has shown it."""
    last = recorder.progress or Progress(phase="certify", step=0)
    if recovery.sentences and recovery.sentences != last.sentences:
        recorder.record(dataclasses.replace(last, sentences=recovery.sentences, others=(), detail=""))


def outcome_of(recovery: Recovery) -> str:
    """How a run that came back with an answer ended, in a word."""
    return {Stop.INTERRUPTED: "interrupted", Stop.STOPPED: "stopped"}.get(recovery.stop, "done")
