"""What the app believes of a run folder, which can come from anywhere: types, bounds, and texts a screen can show.

Settings and results that make no sense are errors with a reason. An event whose numbers make none is passed over.
Long texts are cut, and what a terminal would obey is written out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from textleak.errors import InputError
from textleak.events import Finished, Position, Progress, Sentence, TokenGuess, Truth
from textleak.words import printable

# Our choices, each far above what any run of ours writes.
LONGEST_NAME, LONGEST_TOKEN, LONGEST_TEXT = 400, 200, 100_000
MOST_ITEMS, DEEPEST = 10_000, 6
MOST_COUNT, MOST_SECONDS, LARGEST_LOSS = 2**53, 1e9, 1e100

Check = Callable[[Any], Any]


def cut(text: str, most: int) -> str:
    """A text in so many letters, its end left out."""
    return text if len(text) <= most else text[:most] + "…"


def name_of(value: object) -> str:
    """A short text that is shown as it is."""
    if not isinstance(value, str | int | float):
        raise TypeError("is no text")
    return printable(cut(str(value), LONGEST_NAME))


def number_of(value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """A number that is one, within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("is no number")
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"can't be {cut(str(value), LONGEST_NAME)}")
    return value


def count_of(value: object) -> int:
    """A whole number from 0 on."""
    return int(number_of(value, 0, MOST_COUNT))


def _share(value: object) -> float:
    return number_of(value, 0, 1)


def _seconds(value: object) -> float:
    return number_of(value, 0, MOST_SECONDS)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("is no text")
    return cut(value, LONGEST_TEXT)


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("is neither true nor false")
    return value


def _list(check: Check) -> Check:
    def checked(value: object) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise TypeError("is no list")
        return [None if item is None else check(item) for item in value[:MOST_ITEMS]]

    return checked


def _table(checks: Mapping[str, Check]) -> Check:
    def checked(value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError("is no table")
        found = {}
        for key, item in list(value.items())[:MOST_ITEMS]:
            try:
                check: Check = checks.get(key) or _plain
                found[key] = None if item is None else check(item)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"{cut(key, LONGEST_NAME)} {error}") from None
        return found

    return checked


def _plain(value: object, depth: int = DEEPEST) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A value that nothing draws by itself: as it is, within bounds; None in the place of what isn't."""
    if isinstance(value, str):
        return cut(value, LONGEST_TEXT)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) <= MOST_COUNT else None
    if depth and isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value[:MOST_ITEMS]]
    if depth and isinstance(value, Mapping):
        return {key: _plain(item, depth - 1) for key, item in list(value.items())[:MOST_ITEMS]}
    return None


_VERDICT = ("verdict", "verdict_reason")
_NAMES = (
    "model",
    "weights",
    "task",
    "attack",
    "share",
    "device",
    "dtype",
    "channel",
    "outcome",
    "stop",
    "verified_reason",
    "proof",
    *_VERDICT,
)
_SCORES = ("token_match_rate", "token_recall", "exact_rate", "rouge1", "rouge2", "rougeL")
_FIGURES = ("tokens_per_hidden", "epsilon", "psnr", "mse", "ssim", "gradient_distance", "final_loss")
_COUNTS = (
    "batch_size",
    "tokens",
    "hidden_size",
    "seed",
    "threads",
    "steps",
    "evaluations",
    "proved_tokens",
    "named_tokens",
)
_ANY: dict[str, Check] = {
    **dict.fromkeys((*_NAMES, "verified_reason"), name_of),
    **dict.fromkeys((*_SCORES, *(f"{score}_words" for score in _SCORES[3:])), _share),
    **dict.fromkeys(_FIGURES, number_of),
    **dict.fromkeys(_COUNTS, count_of),
    **dict.fromkeys(("seconds", "seconds_to_load"), _seconds),
    **dict.fromkeys(("client", "defense", "know", "notes"), _list(name_of)),
    "verified": _yes_or_no,
}
_TOKENS = dict.fromkeys(("reference_tokens", "recovered_tokens"), _list(_text))
_SENTENCE: dict[str, Check] = {**_ANY, **_TOKENS, "reference": _text, "recovered": _text}
_settings = _table({**_ANY, "sentences": _list(_text), "pictures": _list(_text)})
_result = _table(
    {
        **_ANY,
        "sentences": _list(_table(_SENTENCE)),
        "images": _list(_table(_ANY)),
        "pictures": _list(_text),
        "surplus": _list(_text),
    }
)


def settings_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings.

    Raises:
        InputError: one of them makes no sense.
    """
    return _checked(_settings, settings, "settings")


def result_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's result.

    Raises:
        InputError: a part of it makes no sense.
    """
    return _checked(_judged, result, "result")


def _judged(value: object) -> dict[str, Any]:
    """A result; an audit's has a verdict and its reason, and no other has either."""
    found: dict[str, Any] = _result(value)
    there = any(name in found for name in _VERDICT)
    if there and not all(isinstance(found.get(name), str) for name in _VERDICT):
        raise ValueError("the verdict or its reason is missing")
    return found


def _checked(check: Check, value: Mapping[str, Any], what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = check(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"This run's {what} can't be shown.",
            why=f"In its {what} {error}.",
            fix="Run it again, or look into its files.",
        ) from None
    return found


def progress_of(progress: Progress) -> Progress | None:
    """A progress that can be drawn; None where its numbers make no sense."""
    counts = (
        progress.step,
        progress.steps or 0,
        progress.evaluations,
        progress.total_steps,
        progress.candidate,
    )
    if not all(0 <= count <= MOST_COUNT for count in counts):
        return None
    return dataclasses.replace(
        progress,
        phase=name_of(progress.phase),
        sentences=tuple(map(_sentence_of, progress.sentences)),
        others=tuple(
            tuple(tuple((id, cut(text, LONGEST_TOKEN)) for id, text in row) for row in tokens)
            for tokens in progress.others
        ),
    )


def truth_of(truth: Truth) -> Truth:
    """A truth that can be drawn."""
    return dataclasses.replace(truth, sentences=tuple(map(_sentence_of, truth.sentences)))


def finished_of(finished: Finished) -> Finished:
    """A last event that can be drawn: without a result where that makes no sense, which is its error then."""
    result, error = finished.result, finished.error
    if result is not None:
        try:
            result = result_of(result)
        except InputError as problem:
            result, error = None, f"{problem.what} {problem.why}"
    return Finished(outcome=name_of(finished.outcome), result=result, error=name_of(error))


def _sentence_of(sentence: Sentence) -> Sentence:
    label, posterior = sentence.label, sentence.label_posterior
    if not all(0 <= probability <= 1 for probability in posterior):
        posterior = ()
    if posterior and label is not None and label not in range(len(posterior)):
        posterior = ()
    return dataclasses.replace(
        sentence,
        positions=tuple(map(_position_of, sentence.positions)),
        text=cut(sentence.text, LONGEST_TEXT),
        label_posterior=posterior,
    )


def _position_of(position: Position) -> Position:
    """Most are as they should be, and stay the same object."""
    texts = (position.text, position.channel, *(guess.text for guess in position.candidates))
    if max(map(len, texts)) <= LONGEST_TOKEN:
        return position
    return dataclasses.replace(
        position,
        text=cut(position.text, LONGEST_TOKEN),
        channel=cut(position.channel, LONGEST_TOKEN),
        candidates=tuple(
            TokenGuess(id=guess.id, text=cut(guess.text, LONGEST_TOKEN), score=guess.score)
            for guess in position.candidates
        ),
    )
