"""One audit from its settings to its verdict: an update as it was found, what it tells, and what an attack makes of it.

It is a run on text in every other way: shown live, recorded in a run folder, read by the same viewers.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from textleak.attacks.replaying import LIKELY, SURE
from textleak.clients import CLIENTS
from textleak.errors import InputError
from textleak.events import Followed, Phase, Recovery, Sentence, Stop
from textleak.jobs.advice import Facts, advice
from textleak.jobs.clipping import may_be_clipped, with_clipping
from textleak.jobs.files import check_model
from textleak.jobs.found import find
from textleak.jobs.parts import build_attack, build_client, set_threads
from textleak.jobs.prepared import check_truth
from textleak.jobs.rates import with_rate
from textleak.jobs.read_back import read_back
from textleak.jobs.telling import Telling
from textleak.jobs.text import TextJob
from textleak.jobs.verdict import CUT_OFF, Outcome, Verdict, judge
from textleak.settings.audit import AuditConfig
from textleak.settings.specs import written_of
from textleak.shared.public import ONE_STEP
from textleak.shared.traits import Trait

if TYPE_CHECKING:
    from collections.abc import Generator

    from textleak.attacks.base import Steps
    from textleak.events import Progress
    from textleak.models import TextModel
    from textleak.shared.gradient import SharedGradient
    from textleak.shared.public import PublicClient


_PAIRS = (
    "The client's texts are of two parts (token_type_ids of 1, as pairs of sentences have). Matching and replaying "
    "look for what stands in the first one: that a second part wasn't found is no sign of safety."
)
_MAY_BE_PAIRS = (
    "Whether texts are of two parts (token_type_ids of 1, as pairs of sentences have) can't be told; they are read as "
    "of one. If they are of two, say so: --client pairs."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditJob(TextJob):
    """An audit.

    Attributes:
        telling: what the update tells by itself.
        assumed: what had to be assumed, in sentences.
        refused: why the attack could not work on it; filled in when it says so.
        doubts: why the model may not be the client's, in sentences.
        inferred: whether the client is what the update tells, so that it may have clipped where that doesn't show.
        rates: the rate of a step of unknown size; filled in where a text proves it.
        norms: what gradients were clipped to before a step of Adam's, likewise.
        undropped: what the attack sees if nothing was dropped, where that can't be told and dropout was assumed.
        says_known: whether the update is a file that says itself what the server knows.
        proved_clients: the client's procedure by `undropped`; filled in where a text proves it.
    """

    config: AuditConfig
    telling: Telling
    assumed: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    refused: list[str] = dataclasses.field(default_factory=list)
    inferred: bool = False
    rates: list[float] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    undropped: SharedGradient | None = None
    says_known: bool = False
    proved_clients: list[PublicClient] = dataclasses.field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Those of a run, what was audited, and what that tells by itself."""
        config = self.config
        return {
            **super().facts(),
            "before": config.before,
            "after": None if config.after is None else str(config.after),
            "told": [dict(one) for one in self.telling.told],
            "client": self._procedure(),
        }

    def named(self) -> frozenset[int]:
        """As it was told."""
        return self.telling.named

    def limits(self) -> tuple[str, ...]:
        """What had to be assumed, and why the model may not be the client's."""
        return (*(() if self.rates else self.assumed), *self.doubts)

    def steps(self) -> Steps:
        """The attack, ready to be driven; where it can't work on the update, an answer without any text."""
        if not self.telling.moved:
            return _ended()
        return self._spared()

    def _spared(self) -> Steps:
        began = time.perf_counter()
        try:
            followed = Followed(super().steps())
            yield from followed
        except InputError as error:
            self.refused.append(f"{error.what} {error.why}".strip())
            recovery = Recovery(sentences=(), stop=Stop.CONVERGED, final_loss=None)
        else:
            recovery = followed.result
        if self.assumed and not self.refused:
            yield Phase(name="rate", detail="at which the answer's own update is nearest to this one")
            recovery, rate = with_rate(recovery, self.shared, self.model, self.view)
            self.rates.extend(() if rate is None else (rate,))
        if self.inferred and not self.refused and may_be_clipped(recovery, self.shared, self.model):
            yield Phase(name="clipping", detail="the norm at which the answer's own update equals this one")
            recovery, norm = with_clipping(recovery, self.shared, self.model, self.view)
            self.norms.extend(() if norm is None else (norm,))
        if self.undropped is not None and not recovery.stop.settled and not recovery.proved_tokens:
            limit = self.config.time_limit
            left = None if limit is None else limit - (time.perf_counter() - began)
            recovery = yield from self._undropped(self.undropped, recovery, left)
        return recovery

    def _undropped(
        self, shared: SharedGradient, recovery: Recovery, time_limit: float | None
    ) -> Generator[Phase | Progress, None, Recovery]:
        """A text whose own update equals this one if nothing was dropped; else what was found so far."""
        from textleak.attacks.base import begin_on
        from textleak.exact.second_parts import view_as_seen

        if time_limit is not None and time_limit <= 0:
            return recovery
        yield Phase(
            name="no dropout", detail="a text whose own update equals this one if nothing was dropped"
        )
        try:
            steps = begin_on(
                self.attack, view_as_seen(shared, self.model), seed=self.config.seed, time_limit=time_limit
            )
            followed = Followed(steps)
            yield from followed
        except InputError:
            return recovery
        ended = followed.result.stop
        if ended is Stop.VERIFIED:
            self.proved_clients.append(shared.client)
        elif not followed.result.proof_cut_off:
            return dataclasses.replace(recovery, stop=ended) if ended.value in CUT_OFF else recovery
        self.refused.clear()
        return followed.result

    def _procedure(self) -> list[str]:
        """How the client trains, with the rate that a text has proved."""
        client = self.proved_clients[0] if self.proved_clients else self.client
        kinds = [(name, dict(options)) for name, options in client.kinds]
        for _, options in kinds:
            options |= {"lr": self.rates[0]} if self.rates and "lr" in options else {}
            options |= {"max_grad_norm": self.norms[0]} if self.norms and "lr" in options else {}
        return [written_of(CLIENTS[name], name, options) for name, options in kinds]

    def _answers(self, recovery: Recovery, proof: str | None) -> list[dict[str, Any]]:
        """What the update tells, and what a proved text tells of it besides."""
        told, sentences = self.telling.told, recovery.sentences
        # Of several steps, each shows inputs of its own.
        counted = recovery.stop is Stop.PROVED and self.view.has(Trait.ONE_POINT)
        if proof != "gradient" and not (proof == "span" and counted):
            return [dict(one) for one in told]
        return read_back(told, sentences, proof=proof, rate=_first(self.rates), norm=_first(self.norms))

    def result(
        self,
        recovery: Recovery,
        *,
        outcome: str,
        seconds: float,
        run_dir: str | None,
        certified: bool = True,
    ) -> dict[str, Any]:
        """A run's, with the verdict first, what the update tells, and what would help."""
        result = super().result(
            recovery,
            outcome=outcome,
            seconds=seconds,
            run_dir=run_dir,
            certified=certified and self.telling.moved,
        )
        verdict = self._verdict(recovery, result)
        doubts = (*self.doubts, *self._pairs())
        return {
            "verdict": verdict.word.value,
            "verdict_reason": verdict.sentence,
            **result,
            "summary": f"{verdict.word.value}: {verdict.sentence}",
            "notes": [
                note
                for note in (*result["notes"], *self._pairs())
                if not result["proof"] or note not in doubts
            ],
            "client": self._procedure(),
            "told": self._answers(recovery, result["proof"]),
            "advice": list(advice(verdict.word, self._advised(result))),
        }

    def _verdict(self, recovery: Recovery, result: dict[str, Any]) -> Verdict:
        own = [p for s in recovery.sentences for p in s.positions if not p.special and p.id >= 0]
        likely = [p for p in own if p.channel in LIKELY and not p.proved]
        return judge(
            Outcome(
                attack=self.attack.name,
                seconds=result["seconds"],
                moved=self.telling.moved,
                unread=self.refused[0] if self.refused else None,
                cut_off=result["stop"] in CUT_OFF,
                tokens=len(own),
                likely_tokens=len(likely),
                sure_tokens=sum(p.confidence >= SURE for p in likely),
                batch_tokens=self._batch_tokens(),
                proof=result["proof"],
                proved_tokens=result["proved_tokens"],
                proved_sentences=sum(
                    grouped and _whole(sentence, self.model)
                    for sentence, grouped in zip(recovery.sentences, _grouped(recovery), strict=True)
                ),
                grouped=all(_grouped(recovery)),
                fits_as_well=recovery.stop is Stop.UNTOLD,
                proof_cut_off=recovery.proof_cut_off,
                match=result["token_match_rate"],
                recall=result["token_recall"],
                vocabulary=self.telling.vocabulary,
            )
        )

    def _pairs(self) -> tuple[str, ...]:
        """Why second parts of texts may be missing."""
        from textleak.exact.second_parts import holds_pairs

        if not self.telling.moved:
            return ()
        held = self.view.text_model.pairs or holds_pairs(self.view)
        return () if held is False else (_PAIRS if held else _MAY_BE_PAIRS,)

    def _batch_tokens(self) -> int | None:
        lengths = self.shared.known.lengths
        return self.telling.tokens if lengths is None else sum(lengths)

    def _advised(self, result: dict[str, Any]) -> Facts:
        return Facts(
            proof=result["proof"],
            embeddings=bool(self.model.embedding_names & self.shared.gradients.keys()),
            vocabulary=self.telling.vocabulary,
            tokens=result["tokens"],
            hidden_size=self.model.hidden_size,
            noise=bool(self.defenses),
            told_client=bool(self.config.client) or self.shared.client != ONE_STEP,
            told_lengths=self.shared.known.lengths is not None,
            says_known=self.says_known,
        )


def _ended() -> Steps:
    """An attack that has nothing to do."""
    yield Phase(name="nothing moved", detail="every number of the update is zero")
    return Recovery(sentences=(), stop=Stop.CONVERGED, final_loss=None)


def _first(values: list[float]) -> float | None:
    return values[0] if values else None


def _grouped(recovery: Recovery) -> tuple[bool, ...]:
    """For each sentence whether it is proved, if its tokens are, that they stand in one."""
    count = len(recovery.sentences)
    unknown = count > 1 and recovery.stop in (Stop.INTERRUPTED, Stop.STOPPED)  # before the attack said so
    return recovery.grouped or (not unknown,) * count


def _whole(sentence: Sentence, model: TextModel) -> bool:
    """Whether all of a sentence is proved, its end too where the tokenizer marks it."""
    ended = bool(sentence.positions) and (not model.suffix_ids or sentence.positions[-1].proved)
    tokens = [position for position in sentence.positions if not position.special]
    return ended and bool(tokens) and all(position.proved for position in tokens)


def prepare(config: AuditConfig) -> AuditJob:
    """Load and check all that an audit needs; nothing is written.

    Raises:
        InputError: whatever the caller can mend.
    """
    began = time.perf_counter()
    attack = build_attack(config)
    build_client(config)  # what is wrong with it is said before anything is loaded
    threads = set_threads(config.threads)
    found = find(config)
    job = AuditJob(
        config=config,
        attack=attack,
        shared=found.shared,
        model=found.model,
        secret=found.secret,
        defenses=found.shared.defenses,
        client=found.shared.client,
        threads=threads,
        seconds_to_load=time.perf_counter() - began,
        telling=found.telling,
        assumed=found.notes,
        doubts=found.doubts,
        undropped=found.undropped,
        inferred=found.inferred,
        says_known=found.says_known,
    )
    check_model(job)
    check_truth(job)
    return job
