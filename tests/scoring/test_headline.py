"""How much leaked, in a sentence: an attack that was ended early never says that nothing more was there."""

from __future__ import annotations

import pytest

from textleak.events import Stop
from textleak.scoring.headline import how_much


def text(rate: float, *, recall: float = 0.0, **more: object) -> dict[str, object]:
    sentence = {"token_match_rate": rate, "token_recall": recall, "tokens": 4}
    return {"token_match_rate": rate, "sentences": [sentence], "channel": "span", **more}


def pictures(psnr: float | None, **more: object) -> dict[str, object]:
    return {"psnr": psnr, "images": [{}], **more}


@pytest.mark.parametrize(
    ("stop", "word"),
    [(Stop.TIME, "Time was up"), (Stop.INTERRUPTED, "interrupted"), (Stop.STOPPED, "stopped")],
)
@pytest.mark.parametrize(
    "result",
    [text(0.0), text(0.0, recall=0.5), text(0.75), {**text(0.0), "token_match_rate": None}]
    + [pictures(psnr) for psnr in (None, 5.0, 13.7, 25.0)],
)
def test_what_was_cut_off_says_so_beside_what_it_found(
    result: dict[str, object], stop: Stop, word: str
) -> None:
    whole = how_much({**result, "stop": Stop.CONVERGED.value})
    cut_off = how_much({**result, "stop": stop.value})
    assert cut_off.startswith(whole)
    assert word in cut_off[len(whole) :]
    assert "more" in cut_off[len(whole) :]


@pytest.mark.parametrize(
    "result",
    [text(1.0), text(0.75, verified=True), pictures(45.0), pictures(None, verified=True)],
)
def test_where_all_came_back_no_more_time_could_find_more(result: dict[str, object]) -> None:
    assert how_much({**result, "stop": Stop.TIME.value}) == how_much(result)
