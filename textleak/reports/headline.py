"""A report in a few sentences, for a reader who reads no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from textleak.evaluation.records import cut_off_in_words
from textleak.reports.figures import SettingFigures, amount, beside, leaked
from textleak.reports.settings import in_words, named, strength_order, value_of
from textleak.words import count_of


def headline(
    settings: Sequence[SettingFigures], axes: Sequence[str], *, kind: str, unfinished: int = 0
) -> tuple[str, ...]:
    """What leaked most under what, in a sentence, and what else a hurried reader has to know.

    Args:
        settings: with their figures.
        axes: along which they differ.
        kind: "evaluation" or "run".
        unfinished: batches without a record.
    """
    scored = [one for one in settings if one.match is not None]
    if not scored:
        return (_nothing_scored(settings, kind),)
    done, failed = sum(one.batches for one in scored), sum(one.failed for one in settings)
    missing = []
    if unfinished:
        there = count_of(done + failed + unfinished, "batch")
        missing.append(f"Unfinished: {unfinished:,} of {there} are still to be evaluated.")
    if failed:
        missing.append(f"{count_of(failed, 'batch')} failed and {'is' if failed == 1 else 'are'} in no mean.")
    most = max(scored, key=leaked)
    assert most.match is not None
    assert most.exact is not None
    attack, defense = (value_of(most.setting, axis) for axis in ("attack", "defense"))
    behind = f"Behind {in_words('defense', defense)}" if defense else "With no defense"
    exactly = round(most.exact.mean * most.sentences)
    others = dict.fromkeys(("model", "batch_size", *axes))
    context = named(most.setting, [axis for axis in others if axis not in ("attack", "defense")])
    rank = f", the most of {len(scored)} settings" if len(scored) > 1 else ""
    random = [one for one in scored if one.weights == "random"]
    which = "" if len(random) == len(scored) else f" in {count_of(len(random), 'setting')}"
    on_random = f" On random weights{which}: no statement about a trained model." if random else ""
    sentences = [
        f"{behind}, {attack} recovered {amount(most)} and {exactly} of "
        f"{count_of(most.sentences, 'sentence')} word for word{beside(most)}{rank} ({context}).{on_random}"
    ]
    cut_off = sum(one.cut_off for one in scored)
    if cut_off:
        sentences.append(cut_off_in_words(cut_off, done))
    as_much = sum(leaked(one)[:2] == leaked(most)[:2] for one in scored) - 1
    if as_much and most.match.mean:
        sentences.append(f"As much leaked in {count_of(as_much, 'more setting')}.")
    return (sentences[0], *missing, *sentences[1:], *_held_best(settings))


def _held_best(settings: Sequence[SettingFigures]) -> tuple[str, ...]:
    """Which defense let least through to its strongest attack; nothing where there is none to compare it with.

    A defense behind which all batches of a setting failed is none to call the best: that attack may be the strongest.
    Nor is one behind which any batch of any attack was cut off: what it held back, more time may get.
    """
    strongest: dict[tuple[str, ...], SettingFigures] = {}
    failed: Counter[tuple[str, ...]] = Counter()
    cut_off: Counter[tuple[str, ...]] = Counter()
    worst: dict[tuple[str, ...], float] = {}
    unknown = set()
    for one in settings:
        defense = value_of(one.setting, "defense")
        failed[defense] += one.failed
        cut_off[defense] += one.cut_off
        if one.match is not None:
            strongest[defense] = max(strongest.get(defense, one), one, key=leaked)
            worst[defense] = max(worst.get(defense, 0.0), one.worse)
        elif one.failed:
            unknown.add(defense)
    defenses = sorted(
        (defense for defense in strongest if defense and defense not in unknown), key=strength_order
    )
    if not defenses or len(strongest) < 2:
        return ()
    best = min(
        defenses, key=lambda defense: (worst[defense], leaked(strongest[defense])[:2], cut_off[defense] > 0)
    )
    if () in worst and worst[best] >= worst[()]:
        return () if unknown else ("No defense held anything back.",)
    if cut_off[best]:
        return (
            f"INCONCLUSIVE which defense held best: behind {in_words('defense', best)} "
            f"{count_of(cut_off[best], 'batch')} {'was' if cut_off[best] == 1 else 'were'} cut off before the attack "
            "was done.",
        )
    late = ""
    if failed[best]:
        late = f", though {count_of(failed[best], 'batch')} behind it failed"
    return (
        f"The defense that held best was {in_words('defense', best)}: "
        f"the strongest attack got {amount(strongest[best])} through it{beside(strongest[best])}{late}.",
    )


def _nothing_scored(settings: Sequence[SettingFigures], kind: str) -> str:
    batches, failed = sum(one.batches for one in settings), sum(one.failed for one in settings)
    if batches:
        return "The truth isn't known, so nobody can say how much of what was found is right."
    if failed:
        return (
            "The run has no result."
            if kind == "run"
            else f"Every batch failed ({failed} of {failed}): nothing can be said about what leaks."
        )
    return "No batch has been evaluated yet."
