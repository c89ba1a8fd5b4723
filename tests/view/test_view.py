"""The live view: every event sequence fits every terminal, and says by sign and color what is right."""

from __future__ import annotations

import colorsys
import dataclasses
import io
import itertools
import os
import re
import sys
import time

import pytest
from rich.console import Console

from textleak.events import Finished, Phase, Position, Progress, Sentence, Started, Stop, Truth
from textleak.scoring.headline import how_much
from textleak.view import (
    POINTS_KEPT,
    REFRESHES_A_SECOND,
    LiveDisplay,
    LiveView,
    Newest,
    PlainDisplay,
    ViewState,
    display_on,
    picture,
    remaining_seconds,
    right_of,
    statuses_of,
)
from textleak.view.glyphs import PARTLY, PROTECTED, STYLES
from textleak.view.summary import summary
from textleak.words import loss_in_words

VOCABULARY = [
    "[CLS]",
    "[SEP]",
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "dog",
    "extraordinarily",
    "##ness",
    "Ġhello",
    "日本",
]


def sentence(*words: str, label: int | None = None, confidence: float = 0.5) -> Sentence:
    framed = ("[CLS]", *words, "[SEP]")
    return Sentence(
        positions=tuple(
            Position(
                position=at,
                id=VOCABULARY.index(word) if word else -1,
                text=word,
                confidence=confidence,
                special=word.startswith("["),
            )
            for at, word in enumerate(framed)
        ),
        text=" ".join(words),
        label=label,
        label_posterior=() if label is None else (0.25, 0.75),
    )


SETTINGS = {
    "model": "bert-tiny",
    "weights": "random",
    "attack": "match",
    "share": "no-embeddings",
    "defense": ["gaussian:sigma=0.001"],
    "batch_size": 1,
    "tokens": 5,
    "tokens_per_hidden": 0.04,
    "device": "cpu",
    "seed": 0,
}


def progress(*sentences: Sentence, step: int = 3, loss: float | None = 0.25) -> Progress:
    return Progress(
        phase="continuous",
        step=step,
        steps=10,
        loss=loss,
        losses=(0.25, 0.5, float("inf"), 0.125),
        candidate=3,
        evaluations=1234,
        sentences=sentences,
        detail="a line of words",
    )


def after(*events) -> ViewState:
    return ViewState.of((float(t), event) for t, event in enumerate(events))


def drawn(state: ViewState, *, width: int = 80, height: int = 24, **options) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, height=height, force_terminal=True, legacy_windows=False, **options
    )
    console.print(LiveView(lambda: state))
    return file.getvalue()


def plain(state: ViewState, **size: int) -> str:
    return drawn(state, color_system=None, **size)


TRUTH = Truth(sentences=(sentence("the", "cat", "sat", "on", "mat", label=1),))
RUNNING = after(
    Started(settings=SETTINGS),
    TRUTH,
    Phase(name="labels"),
    Phase(name="continuous"),
    progress(sentence("the", "sat", "dog", "on", "", label=1), step=1, loss=0.5),
    progress(sentence("the", "sat", "dog", "on", "", label=1)),
)


def test_each_token_is_right_elsewhere_wrong_or_open():
    guess, truth = RUNNING.progress.sentences[0], TRUTH.sentences[0]
    statuses = statuses_of(guess, truth)
    assert statuses == ["special", "right", "elsewhere", "wrong", "right", "open", "special"]
    assert set(statuses_of(guess, None)) == {"special", "unknown", "open"}


@pytest.mark.parametrize(
    ("outcome", "sign"), [("done", "✓"), ("stopped", "■"), ("interrupted", "■"), ("failed", "✗")]
)
def test_a_run_that_a_person_stopped_has_not_failed(outcome, sign):
    state = after(Phase(name="labels"), Phase(name="continuous"), Finished(outcome=outcome))
    text = plain(state, width=100)
    assert "✓ labels" in text
    assert f"{sign} continuous" in text


def test_tokens_beyond_the_end_are_too_many():
    guess = sentence("the", "cat", "sat", "on", "mat", "dog", "cat")
    assert "5 of 5 tokens right, 2 too many" in plain(after(TRUTH, progress(guess)))


def test_a_special_token_in_a_word_s_place_is_wrong():
    guess = sentence("the", "[SEP]", "sat", "on", "mat")
    statuses = statuses_of(guess, TRUTH.sentences[0])
    assert statuses == ["special", "right", "wrong", "right", "right", "right", "special"]
    padding = Position(position=1, id=99, text="[PAD]", special=True)
    assert statuses_of(Sentence(positions=(padding,), text=""), TRUTH.sentences[0]) == ["wrong"]


def test_the_view_tells_where_the_run_stands():
    text = plain(RUNNING, width=100)
    for words in (
        "textleak match on bert-tiny, random weights",
        "n = 5 tokens, n/D = 0.04",
        "gaussian:sigma=0.001",
        "✓ labels",
        "● continuous",
        "step 3 of 10",
        "loss 0.25",
        "1,234 evaluations",
        "K = 4",
        "#4 0.125",
        "2 of 5 tokens right",
        "0.75",
        "right label",
        "✗━",
        "~━",
        "elapsed",
        "left in this phase",
        "a line of words",
    ):
        assert words in text, words


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
@pytest.mark.parametrize("height", [12, 24])
@pytest.mark.parametrize("batch", [1, 8])
def test_the_view_fits_the_terminal(width, height, batch):
    words = ("the", "extraordinarily", "##ness", "Ġhello", "日本", "cat", "sat", "on", "", "dog") * 3
    state = after(
        Started(settings=SETTINGS),
        Truth(sentences=tuple(sentence(*reversed(words), label=0) for _ in range(batch))),
        *(Phase(name=f"phase {number}") for number in range(6)),
        progress(*(sentence(*words, label=1) for _ in range(batch))),
    )
    lines = plain(state, width=width, height=height).splitlines()
    from rich.cells import cell_len

    assert max(cell_len(line) for line in lines) <= width
    # Below 20 rows the head of the view alone takes the room; a terminal crops it.
    assert height < 20 or len(lines) < height


@pytest.mark.parametrize("width", [40, 60, 100])
def test_nothing_that_matters_is_left_out_on_a_narrow_terminal(width):
    text = plain(RUNNING, width=width)
    for words in ("2 of 5 tokens right", "1 ━━━━╌ 0.75", "right label", "n/D = 0.04", "continuous"):
        assert words in text, words


def test_nothing_is_drawn_wrong_before_there_is_anything_to_draw():
    assert "starting" in plain(ViewState())
    assert "no answer yet" in plain(after(Started(settings=SETTINGS), Phase(name="labels")))
    diverged = Progress(phase="continuous", step=0, losses=(float("nan"), float("inf")), loss=float("nan"))
    assert "all diverged" in plain(after(diverged))


def test_right_and_wrong_differ_without_color_and_without_unicode():
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38)[;m]", drawn(RUNNING, no_color=True))
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system=None)
    console.print(LiveView(lambda: RUNNING))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "x==" in text or "x=-" in text
    assert "+ right" in text


def test_colors_say_the_same_as_the_signs():
    text = drawn(RUNNING, color_system="standard")
    assert "\x1b[31m✓" in text  # leaked is hot
    assert "\x1b[33m~" in text
    assert "\x1b[36m✗" in text  # protected is cool
    assert "\x1b[32m✓ right" not in text


def test_every_viewer_has_the_same_scale_of_colors():
    from importlib.resources import files

    assert (STYLES["right"], STYLES["elsewhere"], STYLES["wrong"]) == ("red", "yellow", "cyan")
    app = (files("textleak_tui") / "app.tcss").read_text("utf-8")
    for status, color in (("right", "error"), ("elsewhere", "warning"), ("wrong", "primary")):
        assert f"& .token--{status} {{ color: ${color};" in app

    def hue(name: str, sheet: str) -> float:
        red, green, blue = (int(sheet.split(f"--{name}: #")[1][i : i + 2], 16) / 255 for i in (0, 2, 4))
        return 360 * colorsys.rgb_to_hls(red, green, blue)[0]

    css = (files("textleak.reports") / "templates" / "report.css").read_text("utf-8")
    for sheet in css.split("@media (prefers-color-scheme: dark)"):
        assert hue("right", sheet) < 30 < hue("partly", sheet) < 60 < 180 < hue("wrong", sheet) < 240
    for rate, color in ((1.0, "red"), (0.5, "yellow"), (0.0, "cyan")):
        result = {**RESULT, "token_match_rate": rate, "token_recall": rate}
        file = io.StringIO()
        Console(file=file, width=120, force_terminal=True, color_system="standard").print(summary(result))
        code = {"red": 31, "yellow": 33, "cyan": 36}[color]
        assert f"\x1b[1;{code}m" in file.getvalue()


def test_a_token_that_the_vocabulary_lacks_is_not_shown_as_leaked():
    lacking = Position(position=0, id=99, text="[UNK]", special=True)
    truth = Sentence(positions=(lacking,), text="")
    guess = Sentence(positions=(dataclasses.replace(lacking, special=False),), text="")
    assert statuses_of(guess, truth) == ["special"]
    assert right_of(guess, truth) == (0, 0)


def test_a_batch_is_compared_by_assignment():
    truth = Truth(sentences=(sentence("the", "cat"), sentence("dog", "sat")))
    state = after(truth, progress(sentence("dog", "sat"), sentence("the", "mat")))
    assert state.assigned() == [truth.sentences[1], truth.sentences[0]]
    text = plain(state)
    assert "2 of 2 tokens right" in text
    assert "1 of 2 tokens right" in text


def test_a_surplus_sentence_is_compared_with_none():
    state = after(TRUTH, progress(sentence("dog"), TRUTH.sentences[0]))
    assert state.assigned() == [None, TRUTH.sentences[0]]


def test_without_the_truth_no_token_is_called_right():
    text = plain(after(progress(sentence("the", "cat"))))
    assert "right" not in text
    assert "•━" in text


def test_progress_without_an_answer_keeps_the_answer_before():
    state = after(progress(sentence("the")), progress(step=4))
    assert state.progress.sentences == (sentence("the"),)
    assert state.progress.step == 4


def test_the_time_that_is_left_is_judged_by_the_phase_s_own_speed():
    state = after(Phase(name="continuous"), progress(step=2), progress(step=4))
    assert remaining_seconds(state, now=2.0) == pytest.approx(3.0)
    assert remaining_seconds(state, now=3.0) == pytest.approx(2.0)
    assert remaining_seconds(after(Phase(name="x")), now=1.0) is None


def test_the_curve_keeps_its_length_however_many_losses_there_are():
    state = ViewState()
    for number in range(5000):
        state = state.add(progress(step=number, loss=1 / (number + 1)), number / 100)
        if number in (0, 1, 399, 400, 401, 4999):
            steps = [round(1 / loss) - 1 for loss in state.losses]
            assert steps[-1] == number
            assert len({after - before for before, after in itertools.pairwise(steps[:-1])}) <= 1
    assert POINTS_KEPT / 2 <= len(state.points) <= POINTS_KEPT
    assert state.seen == 5000


def test_the_match_rate_shown_is_the_one_that_scores_a_result():
    truth = Truth(sentences=(sentence("the", "cat"), sentence("dog", "sat", "on")))
    state = after(truth, progress(sentence("dog", "mat", "on"), sentence("the", "mat")))
    assert state.rates == (state.match_rate(),) == (pytest.approx((1 / 2 + 2 / 3) / 2),)
    surplus = after(truth, progress(*truth.sentences, sentence("the", "dog", "sat")))
    assert surplus.match_rate() == pytest.approx(5 / 8)
    assert after(progress(sentence("the"))).match_rate() is None


@pytest.mark.parametrize(
    ("terminal", "name", "shown"),
    [(True, "xterm", LiveDisplay), (True, "dumb", PlainDisplay), (False, "xterm", PlainDisplay)],
)
def test_only_a_terminal_that_can_draw_is_drawn_on(terminal, name, shown):
    console = Console(file=io.StringIO(), force_terminal=terminal, _environ={"TERM": name})
    assert type(display_on(console, LiveDisplay, PlainDisplay)) is shown


def test_a_loss_is_never_shown_below_nothing():
    assert [loss_in_words(loss) for loss in (None, 0.25, 1e-5, 0.0, -4.6e-9)] == [
        "?",
        "0.25",
        "1.0e-05",
        "0",
        "0",
    ]


def test_a_finished_run_says_how_it_ended():
    text = plain(RUNNING.add(Finished(outcome="interrupted"), 7.0))
    assert "interrupted" in text
    assert "7.0 s elapsed" in text
    assert "Ctrl-C" not in text


def test_a_terminal_never_makes_the_attack_wait():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=24)
    with LiveDisplay(console) as display:
        display.show(Started(settings=SETTINGS))
        display.show(TRUTH)
        began, worked = time.perf_counter(), time.thread_time()
        for number in range(2000):
            display.show(progress(sentence("the", "cat"), step=number))
        spent, worked = time.perf_counter() - began, time.thread_time() - worked
        display.show(Finished(outcome="done"))
    assert worked < 1
    assert file.getvalue().count("textleak") < 5 + 2 * REFRESHES_A_SECOND * (spent + 1)
    assert "done" in file.getvalue()


def test_after_a_resize_the_picture_begins_on_an_empty_screen():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=24)
    cleared = "\x1b[2J\x1b[H"
    with LiveDisplay(console) as display:
        display.show(Started(settings=SETTINGS))
        console.print("a line")
        assert cleared not in file.getvalue()
        console.size = (60, 20)
        console.print("another")
        assert file.getvalue().count(cleared) == 1
        console.print("a third")
    assert file.getvalue().count(cleared) == 1


def test_what_is_typed_during_a_run_is_not_echoed_into_the_picture(monkeypatch):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    master, slave = pty.openpty()
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())

    def echoes() -> bool:
        return bool(termios.tcgetattr(slave)[3] & termios.ECHO)

    with os.fdopen(slave) as terminal, os.fdopen(master):
        monkeypatch.setattr(sys, "stdin", terminal)
        assert echoes()
        with LiveDisplay(Console(file=io.StringIO(), force_terminal=True)):
            assert not echoes()
        assert echoes()
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: -1)
        with LiveDisplay(Console(file=io.StringIO(), force_terminal=True)):
            assert echoes()  # in the background


def test_progress_that_nobody_looked_at_loses_no_answer():
    newest = Newest()
    for number, event in enumerate(
        (TRUTH, Phase(name="continuous"), progress(sentence("the")), progress(step=4), progress(step=5))
    ):
        newest.add(event, float(number))
    assert newest.state.progress.step == 5
    assert newest.state.progress.sentences == (sentence("the"),)
    assert newest.state.seen == 1
    newest.add(Progress(phase="discrete", step=0), 9.0)
    assert [phase.name for phase in newest.state.phases] == ["continuous", "discrete"]


def test_a_log_gets_a_line_a_phase_and_one_every_few_seconds():
    file, clock = io.StringIO(), [0.0]
    display = PlainDisplay(Console(file=file, width=80), clock=lambda: clock[0], seconds_between=5)
    with display:
        display.show(Started(settings=SETTINGS))
        display.show(TRUTH)
        display.show(Phase(name="continuous", detail="16 candidates"))
        for number in range(100):
            clock[0] += 0.1
            display.show(progress(sentence("the", "cat", "sat", "on", "dog"), step=number))
        display.show(progress(sentence("the"), step=5))
    lines = file.getvalue().splitlines()
    assert lines[0] == "[    0.0 s] continuous, 16 candidates"
    assert len(lines) in (2, 3)
    assert "of 10, loss 0.25, 1,234 evaluations, 4 of 5 tokens right, 'the cat sat on dog'" in lines[1]


RESULT = {
    "outcome": "done",
    "token_match_rate": 0.75,
    "token_recall": 1.0,
    "rouge1": 1.0,
    "rouge2": 0.5,
    "rougeL": 0.75,
    "channel": "span",
    "verified": False,
    "gradient_distance": 0.02,
    "batch_size": 1,
    "tokens": 6,
    "tokens_per_hidden": 0.05,
    "seconds": 75.0,
    "evaluations": 4321,
    "run_dir": "/somewhere/run",
    "sentences": [
        {
            "reference": "the cat sat down",
            "recovered": "the cat down sat",
            "reference_tokens": ["the", "cat", "sat", "down"],
            "recovered_tokens": ["the", "cat", "down", "sat"],
            "token_match_rate": 0.5,
            "token_recall": 1.0,
            "exact": False,
        }
    ],
}


def written(result: dict) -> str:
    file = io.StringIO()
    Console(file=file, width=120, color_system=None).print(summary(result))
    return file.getvalue()


def test_the_summary_says_in_a_sentence_how_much_leaked():
    text = written(RESULT)
    assert (
        "Every token leaked through the span of a layer's gradient: 4 of 4 tokens recovered, 2 in place."
        in text
    )
    assert "the cat sat down" in text
    assert "the cat down sat" in text
    assert "ROUGE-1/2/L 1.00/0.50/0.75" in text
    assert "4,321 gradient evaluations in 1:15 min" in text
    assert "/somewhere/run" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_match_rate": None, "verified": True}, "its own gradient equals the shared one"),
        ({"token_match_rate": None, "verified": False}, "nobody can say"),
        ({"verified": None, "defense": ["gaussian:sigma=0.001"]}, "not provable"),
        ({"verified": None, "defense": []}, "not checked"),
        ({"outcome": "interrupted"}, "Interrupted"),
        ({"notes": ["the labels were guessed"]}, "Note: the labels were guessed"),
        ({"know": ["batch-size", "no-client"]}, "Note: The attack wasn't told how the client trains"),
        ({"know": ["no-defense"]}, "Note: The attack wasn't told of the defense"),
        ({"verified": True, "client": ["autocast"]}, "the client computes in bfloat16, so that was repeated"),
        ({"verified": True, "client": []}, "yes, the text's own gradient is 2.0e-02 away"),
        ({"attack": "auto", "stop": "Why."}, "attack            auto (the answer is span's); ended: Why."),
        ({"attack": "dlg", "stop": "Why.", "verified": True}, "attack            dlg; ended: Why."),
    ],
)
def test_the_summary_fits_what_happened(changes, words):
    assert words in written({**RESULT, **changes})


@pytest.mark.parametrize(
    ("match", "recall", "words"),
    [
        (9, 9, "All of the text leaked through gradient matching: 9 of 9 tokens recovered, 9 in place."),
        (2, 9, "Every token leaked through gradient matching: 9 of 9 tokens recovered, 2 in place."),
        (0, 7, "Most of the text leaked through gradient matching: 7 of 9 tokens recovered, 0 in place."),
        (2, 6, "A part of the text leaked through gradient matching: 6 of 9 tokens recovered, 2 in place."),
        (1, 1, "Little of the text leaked through gradient matching: 1 of 9 tokens recovered, 1 in place."),
        (0, 0, "No token was recovered: 0 of 9."),
    ],
)
def test_how_much_leaked_is_graded_on_the_worse_of_match_and_recall(match, recall, words):
    assert how_much(scored(9, match, recall)) == words


def test_what_rows_name_is_said_beside_an_answer_that_lacks_it():
    named = " The word embedding's rows name 5 tokens of the batch for certain, in no order."
    assert how_much(scored(9, 0, 0) | {"named_tokens": 5}) == f"No token was recovered: 0 of 9.{named}"
    unscored = {"token_match_rate": None, "sentences": [], "named_tokens": 1}
    assert "rows name 1 token of the batch" in how_much(unscored)
    for whole in (scored(9, 2, 9), scored(9, 0, 0) | {"verified": True}):
        assert "rows name" not in how_much(whole | {"named_tokens": 5})


def test_nothing_found_is_only_cool_where_the_attack_came_to_its_end():
    def color(**changes: object) -> str:
        first = summary({**RESULT, **scored(9, 0, 0), **changes}).renderables[0]
        return str(first.style)

    assert color() == f"bold {PROTECTED}"
    assert color(named_tokens=5) == f"bold {PARTLY}"
    assert color(stop=Stop.TIME.value) == "bold"


def test_tokens_that_the_vocabulary_lacks_are_never_said_to_have_leaked():
    assert how_much(scored(4, 4, 4) | {"unknown_tokens": 5}) == (
        "All of the text that the vocabulary has leaked through gradient matching: "
        "4 of 4 tokens recovered, 4 in place; "
        "5 tokens have no entry in this model's vocabulary and count nowhere."
    )
    assert how_much(scored(4, 4, 4) | {"unknown_tokens": 1}).endswith(
        "1 token has no entry in this model's vocabulary and counts nowhere."
    )
    nothing = how_much(scored(0, 0, 0) | {"unknown_tokens": 1})
    assert nothing == "No text could be recovered: 1 token has no entry in this model's vocabulary."


def test_the_verdict_itself_says_that_weights_are_random():
    random = scored(9, 9, 9) | {"weights": "random"}
    assert how_much(random).endswith(" On random weights: no statement about a trained model.")
    assert "random" not in how_much(random | {"weights": "pretrained"})
    unscored = {"token_match_rate": None, "verified": True, "weights": "random", "sentences": []}
    assert how_much(unscored).endswith("no statement about a trained model.")


def scored(tokens: int, match: int, recall: int) -> dict:
    """A result of one sentence of so many tokens."""
    rates = {"token_match_rate": match / max(tokens, 1), "token_recall": recall / max(tokens, 1)}
    return {**rates, "channel": "matching", "sentences": [{**rates, "tokens": tokens}]}


@pytest.mark.parametrize("changes", [{"reference": None}, {"exact": True}, {"exact": False}])
def test_no_text_in_the_summary_is_obeyed_by_a_terminal(changes):
    sentence = {**RESULT["sentences"][0], "reference": "sat \x1b[2J", "recovered": "cat \x1b]0;x\x9c"}
    text = written({**RESULT, "sentences": [{**sentence, **changes}], "surplus": ["\x1b[8m"]})
    assert not {"\x1b", "\x9c"} & set(text)
    assert "cat \\x1b]0;x\\x9c" in text


def test_a_picture_is_an_svg_document():
    svg = picture(RUNNING, width=100)
    assert svg.startswith("<svg")
    assert "continuous" in svg


def test_the_summary_says_why_a_run_ended_and_that_weights_are_random():
    shown = Console(width=120, record=True, file=io.StringIO())
    shown.print(summary({"stop": "The time limit was reached.", "verified": False, "weights": "random"}))
    text = shown.export_text()
    assert "The time limit was reached." in text
    assert "random" in text
    shown.print(summary({"stop": "Equal.", "verified": True, "weights": "pretrained"}))
    text = shown.export_text()
    assert "Equal." in text
    assert "random" not in text


def test_one_is_not_written_in_the_plural():
    one = [{**RESULT["sentences"][0], "tokens": 1, "token_match_rate": 1.0, "token_recall": 1.0}]
    text = written({**RESULT, "evaluations": 1, "tokens": 1, "sentences": one, "token_match_rate": 1.0})
    for words in ("1 of 1 token recovered, 1 in place", "n = 1 token,", "1 gradient evaluation in"):
        assert words in re.sub(r" +\n", "\n", text), words
