"""What a report comes to, for a reader of three lines: a word, what the server was given, and what to do.

The word is an audit's own; of runs and evaluations it follows from the setting that leaked most, by the same scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textleak.jobs.verdict import Outcome, Word, judge
from textleak.reports.figures import SettingFigures, percent
from textleak.reports.reading import Findings, PictureFindings
from textleak.reports.settings import in_words, strength_of, strength_order, value_of
from textleak.scoring.headline import GUESSED_DB, SEEN_DB

ICONS = {Word.LEAKS: "▲", Word.PARTLY: "◆", Word.NOT_FOUND: "○", Word.INCONCLUSIVE: "?"}
# Our choice, README's: a rung that let no more through may be worth a try.
HELD = 0.1


def word_of(evaluation: Findings, settings: Sequence[SettingFigures]) -> Word:
    """The verdict in a word."""
    if evaluation.audit is not None:
        return Word(evaluation.audit.verdict)
    if evaluation.pictures is not None:
        return _of_pictures(evaluation.pictures)
    scored = [one for one in settings if one.match is not None]
    cut_off = any(one.cut_off for one in settings)
    if evaluation.kind == "run" and not scored:
        return _unscored(evaluation, cut_off=cut_off)
    word = judge(
        Outcome(
            attack="",
            seconds=0.0,
            match=max((one.match.mean for one in scored if one.match), default=None),
            recall=max((one.recall.mean for one in scored if one.recall), default=None),
            cut_off=cut_off,
            proof="gradient" if any(one.verified for one in settings) else None,
            vocabulary=1 if any(one.named for one in settings) else None,
        )
    ).word
    missing = not scored or evaluation.unfinished or any(one.failed for one in settings)
    return Word.INCONCLUSIVE if word is Word.NOT_FOUND and missing else word


def _unscored(evaluation: Findings, *, cut_off: bool) -> Word:
    """What can be said of a run without the truth: only what is proved."""
    (record,) = evaluation.records
    proved, tokens = evaluation.proved or (0, 0)
    if record.status != "done" or not (record.verified or proved or evaluation.named):
        return Word.INCONCLUSIVE
    return judge(
        Outcome(
            attack="",
            seconds=0.0,
            proof="gradient" if record.verified else "span" if proved else None,
            proved_tokens=proved,
            tokens=tokens,
            vocabulary=evaluation.named,
            cut_off=cut_off,
        )
    ).word


def _of_pictures(found: PictureFindings) -> Word:
    """By the picture that came back best: one that leaked isn't made up for by others."""
    best = max((one.psnr for one in found.images if one.psnr is not None), default=None)
    if best is None:
        return Word.LEAKS if found.verified else Word.INCONCLUSIVE
    if found.verified or best >= SEEN_DB:
        return Word.LEAKS
    if best >= GUESSED_DB:
        return Word.PARTLY
    return Word.INCONCLUSIVE if found.cut_off else Word.NOT_FOUND


_SHARED = {
    "all": "every gradient",
    "no-embeddings": "the gradients without embeddings and output head",
    "attention": "the gradients of the attention layers",
}
_TOLD = {
    "batch-size": "the batch size",
    "lengths": "the sentences' lengths",
    "labels": "the labels",
    "batch-norm": "the batch's statistics",
}


def threat_model(evaluation: Findings, common: Mapping[str, str]) -> str:
    """Who is imagined to attack, with what, in plain words.

    Args:
        evaluation: what a folder holds.
        common: what is the same in all settings, by axis.
    """
    share = common.get("share")
    seen = "what each setting shares"
    if share is not None:
        seen = _SHARED.get(share, f"the gradients whose names match {share}")
    if evaluation.audit is not None:
        seen = "the update that was audited"
    if common.get("client", "one-step") != "one-step":
        seen += f" of a client that trains by {common['client']}"
    defense = common.get("defense")
    if defense is None and share is not None:
        seen += " behind each defense"
    elif defense not in (None, "none"):
        seen += f", changed by {defense},"
    kept = "pictures or labels" if evaluation.pictures is not None else "text, tokens or labels"
    told = _told(common.get("know"), pictures=evaluation.pictures is not None)
    if "the labels" in told:
        kept = kept.replace(" or labels", "").replace(", ", " or ")
    return (
        f"The attacker is a curious server that follows the protocol: it sees {seen} and the public model, "
        f"{told}, and never sees {kept}."
    )


def _told(know: str | None, *, pictures: bool) -> str:
    """What the server is told, as a sentence goes on with it."""
    if know is None:
        return "is told what each setting says"
    if know == "by default":
        lengths = "" if pictures else " (and the length where that is 1)"
        return f"is told the batch size{lengths}"
    kinds = [kind.strip() for kind in know.split(",")]
    told = [_TOLD[kind] for kind in kinds if kind in _TOLD]
    words = "is told nothing else" if not told else f"is told {' and '.join(told)}"
    hidden = {"no-defense": "not the defense", "no-client": "not how the client trains"}
    return ", ".join([words, *(words for kind, words in hidden.items() if kind in kinds)])


def proved_in_words(evaluation: Findings, settings: Sequence[SettingFigures]) -> tuple[str, str] | None:
    """How much is proved without knowing the text: "6 of 6", "tokens"; None where nothing can be."""
    if evaluation.kind == "run":
        if evaluation.proved is None or not evaluation.proved[1]:
            return None
        proved, tokens = evaluation.proved
        return f"{proved:,} of {max(proved, tokens):,}", "tokens"
    verifiable = sum(one.verifiable for one in settings)
    if not verifiable:
        return None
    return f"{sum(one.verified for one in settings):,} of {verifiable:,}", "batches"


def recommendation(evaluation: Findings, settings: Sequence[SettingFigures]) -> str:
    """What follows from the defenses that were measured; what to measure where none was; "" where nothing is known."""
    if evaluation.audit is not None or evaluation.pictures is not None:
        return ""  # an audit has advice of its own; an evaluation measures no pictures
    found: dict[tuple[str, ...], list[SettingFigures]] = {}
    for one in settings:
        found.setdefault(value_of(one.setting, "defense"), []).append(one)
    rungs = sorted((defense for defense in found if defense), key=strength_order)
    if evaluation.kind == "run" or not rungs:
        return _measure(evaluation, measured=len(rungs))
    held: dict[str, tuple[str, ...]] = {}
    for defense in rungs:
        if all(_holds(one) for one in found[defense]):
            held.setdefault(strength_of(defense).kind, defense)  # the weakest of its kind
    if not held:
        none = "The one rung" if len(rungs) == 1 else f"None of the {len(rungs)} rungs"
        kept = "didn't keep" if len(rungs) == 1 else "kept"
        return (
            f"{none} measured {kept} every attack at or below "
            f"{percent(HELD)} % of the tokens with all batches done: measure stronger ones, or give the attacks "
            "more time."
        )
    words = " and ".join(in_words("defense", defense) for defense in held.values())
    verb = "is the weakest rung" if len(held) == 1 else "are the weakest rungs"
    return (
        f"{words} {verb} measured behind which no attack here got more than {percent(HELD)} % of the tokens, the "
        "interval's upper end counted. Weigh that against the accuracy lost; an attack that wasn't run may get more."
    )


def _holds(one: SettingFigures) -> bool:
    if one.match is None or one.failed or one.cut_off:
        return False
    figures = [figure for figure in (one.match, one.recall) if figure is not None]
    highest = max(figure.mean if figure.high is None else figure.high for figure in figures)
    return max(highest, one.named or 0.0) <= HELD


def _measure(evaluation: Findings, *, measured: int) -> str:
    models = {record.cell.model for record in evaluation.records if record.cell.model}
    if len(models) != 1:
        return ""
    said = "One defense was measured once" if measured else "No defense was measured"
    return (
        f"{said}, so none can be recommended. What some hold back, and where: textleak eval --model {models.pop()} "
        "--defense none --defense gaussian:sigma=1e-3 --defense gaussian:sigma=1e-2 --defense prune:ratio=0.9"
    )
