"""What the app draws: every pane, at every size, of every state; and what can be done from it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.screen import ModalScreen
from textual.widgets import ContentSwitcher, Footer, OptionList, Static
from textual.widgets._footer import FooterKey

from tests.conftest import every_other
from tests.tui.pilots import screen, until
from textleak.events import Event, Finished, Phase, Position, Progress, Sentence, TokenGuess, Truth
from textleak.view import ViewState
from textleak_tui import catalog
from textleak_tui.app import TextleakApp, build_app
from textleak_tui.catalog import Catalog
from textleak_tui.palette import commands
from textleak_tui.places import PLACES, Sight
from textleak_tui.screens.help import HelpScreen
from textleak_tui.screens.jump import JumpScreen
from textleak_tui.screens.run import RunScreen
from textleak_tui.widgets import RunView
from textleak_tui.widgets.bands import FLASH_SECONDS
from textleak_tui.widgets.candidates import CandidateList
from textleak_tui.widgets.curves import braille
from textleak_tui.widgets.keys import fitting
from textleak_tui.widgets.run_view import PANES, answer

SIZES = [(160, 48), (100, 30), (80, 24), (60, 16), (50, 12)]
GOLDEN = Path(__file__).parent / "golden"
WORDS = "the meeting was moved to friday morning".split()  # noqa: SIM905
Scene = Callable[[TextleakApp, RunView, Pilot[None]], Awaitable[None]]


def sentence(*words: str, label: int | None = 1) -> Sentence:
    positions = [Position(position=0, id=1, text="[CLS]", special=True, confidence=1.0)]
    for at, word in enumerate(words, start=1):
        candidates = (TokenGuess(id=7, text="plan", score=0.25), TokenGuess(id=8, text="day", score=0.125))
        identity = 100 + sum(map(ord, word)) if word else -1
        positions.append(
            Position(
                position=at, id=identity, text=word, confidence=0.5, channel="matching", candidates=candidates
            )
        )
    positions.append(Position(position=len(words) + 1, id=2, text="[SEP]", special=True, confidence=1.0))
    return Sentence(
        positions=tuple(positions), text=" ".join(words), label=label, label_posterior=(0.25, 0.75)
    )


def progress(step: int, *sentences: Sentence, losses: tuple[float, ...] = (0.5, 0.25, 1.0)) -> Progress:
    return Progress(
        phase="continuous",
        step=step,
        steps=40,
        loss=min(losses) / (step + 1),
        losses=losses,
        candidate=losses.index(min(losses)),
        evaluations=3 * step,
        total_steps=step,
        sentences=sentences,
    )


SETTINGS = {
    "attack": "match",
    "model": "bert-tiny",
    "weights": "random",
    "batch_size": 1,
    "tokens": 9,
    "tokens_per_hidden": 0.07,
    "share": "all",
    "seed": 0,
    "device": "cpu",
}
RESULT = {
    "token_match_rate": 1.0,
    "verified": True,
    "channel": "span",
    "sentences": [{"token_match_rate": 1.0, "tokens": 7}],
}


def state(*events: Event, truth: tuple[Sentence, ...] = (sentence(*WORDS),)) -> ViewState:
    before: list[Event] = [Truth(sentences=truth), Phase(name="labels"), Phase(name="continuous")]
    found = ViewState(settings=SETTINGS)
    for number, event in enumerate([*before, *events]):
        found = found.add(event, 0.5 * number)
    return found


HALF_WAY = state(
    progress(0, sentence(*["day"] * 7)),
    progress(0, sentence(*["plan"] * 7)),
    progress(1, sentence("the", "plan", "was", "", "friday", "to", "plan")),
)
VERIFIED = state(progress(0, sentence(*WORDS)), Finished(outcome="done", result=RESULT))


def laid_out(view: RunView) -> bool:
    """Whether each pane that is to be seen has its place."""
    panes = (view.tokens, view.waterfall, view.curves, view.candidates, view.labels)
    seen = [pane for pane in panes if all(widget.display for widget in pane.ancestors_with_self)]
    return all(pane.region.height for pane in seen)


class Shared:
    """One app that scenes are played in, one after another: to start one takes longer than most of them."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self._app = build_app()
        self._pilot: Pilot[None] | None = None

    def play(self, scene: Scene, size: tuple[int, int], first: ViewState) -> TextleakApp:
        self._runner.run(self._play(scene, size, first))
        return self._app

    async def _play(self, scene: Scene, size: tuple[int, int], first: ViewState) -> None:
        app = self._app
        if self._pilot is None:
            self._pilot = await self._stack.enter_async_context(app.run_test(size=size))
            await self._pilot.pause()
        while isinstance(app.screen, ModalScreen):
            app.pop_screen()
        app.sight = Sight()
        assert isinstance(app.screen, RunScreen)
        view = app.screen.view
        view.forget()
        view.pane = PANES[0]
        if app.size != size:
            await self._pilot.resize_terminal(*size)
        view.on_resize()
        await scene_in(app, self._pilot, scene, first)

    def close(self) -> None:
        with self._runner:
            self._runner.run(self._stack.aclose())


async def scene_in(app: TextleakApp, pilot: Pilot[None], scene: Scene, first: ViewState) -> None:
    await pilot.pause()
    page = app.screen
    assert isinstance(page, RunScreen)
    page.query_one(ContentSwitcher).current = "live"
    page.view.show(first, flash=False)
    await pilot.pause()
    page.view.show(first, flash=False)
    page.view.tokens.focus_tokens()
    await pilot.pause()
    await until(pilot, lambda: laid_out(page.view))
    await scene(app, page.view, pilot)


SHARED: list[Shared] = []


@pytest.fixture(scope="module", autouse=True)
def _none_left() -> Iterator[None]:
    yield
    while SHARED:
        SHARED.pop().close()


def shown(
    scene: Scene, size: tuple[int, int] = (120, 40), first: ViewState = HALF_WAY, *, alone: bool = False
) -> TextleakApp:
    """Plays a scene on a run screen that shows a state; no process runs.

    Args:
        scene: what is done and looked at.
        size: of the terminal.
        first: the state.
        alone: in an app of its own, for scenes that leave more behind than a state.
    """
    if alone:
        app = build_app()

        async def drive() -> None:
            async with app.run_test(size=size) as pilot:
                await scene_in(app, pilot, scene, first)

        asyncio.run(drive())
        return app
    if not SHARED:
        SHARED.append(Shared())
    shared = SHARED.pop()  # one in which a scene failed isn't used again
    try:
        app = shared.play(scene, size, first)
    except BaseException:
        shared.close()
        raise
    SHARED.append(shared)
    return app


def line_of(app: TextleakApp, words: str) -> str:
    return next(line for line in screen(app).splitlines() if words in line)


def statuses(view: RunView) -> list[str]:
    return [cell.status for cell in view.tokens._bands.sentences[0]]


@pytest.fixture(autouse=True)
def _no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process lists the attacks: these tests look at one state."""

    async def nothing() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)


# The token grid


def test_each_token_has_its_state_as_a_sign_not_by_color_alone() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert statuses(view) == [
            *("special", "right", "wrong", "right", "open", "elsewhere", "elsewhere", "wrong", "special")
        ]
        row = line_of(app, "✓the")
        assert re.search(r"·\[CLS\] +✓the +✗plan +✓was +\? +~friday +~to +✗plan +·\[SEP\]", row)
        assert "2 of 7 right · label 1" in screen(app)
        # Below each token its confidence, below that the next candidates.
        lines = screen(app).splitlines()
        at = next(number for number, line in enumerate(lines) if "✓the" in line)
        assert "━" in lines[at + 1]
        assert lines[at + 2].count("plan") == 7
        assert lines[at + 3].count("day") == 7

    shown(scene)


def test_the_truth_is_hidden_until_asked_for_and_blind_hides_every_comparison() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "morning" not in screen(app)
        view.show(HALF_WAY, truth=True)
        await pilot.pause()
        assert "morning" in screen(app)
        view.show(HALF_WAY, truth=True, blind=True)
        await pilot.pause()
        seen = screen(app)
        assert "morning" not in seen
        assert "match rate" not in seen
        assert "right" not in seen
        assert set(statuses(view)) == {"special", "unknown", "open"}

    shown(scene)


LONG_WORDS = [f"word{number}" for number in range(60)]


@pytest.mark.parametrize(("size", "words"), every_other(SIZES, [WORDS, LONG_WORDS]))
def test_showing_the_truth_moves_nothing(size: tuple[int, int], words: list[str]) -> None:
    first = state(progress(0, sentence(*words, "nothing")), truth=(sentence(*words, "zebra"),))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        def places() -> list[int]:
            grid = view.tokens.region
            lines = list(enumerate(screen(app).splitlines()))[grid.y : grid.bottom]
            return [y for y, line in lines if f"✓{words[0]} " in line or f"✓{words[6]} " in line]

        before = places()
        assert before
        for truth in (True, False):
            view.show(first, truth=truth)
            await pilot.pause(0.1)
            assert places() == before
            await pilot.press("end")
            assert ("zebra" in screen(app)) == truth
            await pilot.press("home")

    shown(scene, size, first)


def test_arrow_keys_and_clicks_pick_a_position_and_it_is_told_in_words() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        await pilot.press("right", "right")
        told = line_of(app, "position 3")
        assert "✗ plan" in told
        assert "not in the sentence" in told
        assert "confidence 0.50 by matching" in told
        assert "next: plan 0.25, day 0.12" in told
        await pilot.press("end")
        assert line_of(app, "position 9").split("│")[1].strip() == "position 9  · [SEP]  set by the tokenizer"
        row = next(y for y, line in enumerate(screen(app).splitlines()) if "✓the" in line)
        column = screen(app).splitlines()[row].index("~friday")
        await pilot.click(offset=(column + 1, row))
        assert "position 6  ~ friday  in the sentence, not here" in screen(app)

    shown(scene)


def test_the_position_in_focus_is_told_in_the_theme_s_own_colors() -> None:
    def papers(app: TextleakApp) -> set[tuple[int, int, int]]:
        strip = next(
            strip
            for strip in app.screen._compositor.render_strips()
            if "position 1" in "".join(segment.text for segment in strip)
        )
        return {tuple(segment.style.bgcolor.triplet) for segment in strip if segment.style}

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        dark = papers(app)
        await pilot.press("f8")
        await pilot.pause(0.1)
        assert not papers(app) & dark

    shown(scene, alone=True)


def test_a_token_that_changes_lights_up_for_a_moment() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        bands = view.tokens._bands
        assert not bands._flashing
        view.show(state(progress(2, sentence("the", "meeting", "was", "", "friday", "to", "plan"))))
        assert bands._flashing == {(0, 2)}
        await pilot.pause(FLASH_SECONDS)
        assert not bands._flashing

    shown(scene)


def long_state(count: int) -> ViewState:
    words = [f"word{number}" for number in range(count - 2)]
    return state(progress(0, sentence(*words)), truth=(sentence(*words),))


def test_a_long_sentence_scrolls_and_says_what_is_in_view() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        subtitle = str(view.tokens.border_subtitle)
        found = re.fullmatch(r"tokens 1–(\d+) of 512", subtitle)
        assert found
        assert 20 < int(found[1]) < 512
        await pilot.press("end")
        await pilot.pause()
        assert str(view.tokens.border_subtitle).endswith("–512 of 512")
        assert "word509" in screen(app)
        await pilot.press("home")
        await pilot.pause()
        assert str(view.tokens.border_subtitle) == subtitle

    shown(scene, first=long_state(512))


def test_512_tokens_are_drawn_as_quickly_as_a_frame_allows() -> None:
    """Twelve frames a second leave 83 ms each; this bound is loose, and of the processor's own time."""

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        other = long_state(512)
        assert other.progress is not None
        moved = [sentence(*[f"word{(n + k) % 510}" for n in range(510)]) for k in range(3)]
        states = [state(progress(1, one), truth=other.truth) for one in moved]
        best = float("inf")
        for one in states:
            began = time.process_time()
            view.show(one)
            await pilot.pause()
            best = min(best, time.process_time() - began)
        assert best < 0.25

    shown(scene, first=long_state(512))


SCRIPTS = {
    "right-to-left": ["שלום", "לכולם", "مرحبا"],
    "wide": ["日本語", "テスト", "한국어"],
    "emoji": ["👩‍👩‍👧", "🎉", "é́"],
    "byte-level": ["Ġthe", "▁was", "Ċ"],
    "control": ["\x1b[31m", "\t", "\x00"],
    "long": ["a" * 60, "b", ""],
}


@pytest.mark.parametrize("size", [(120, 40), (60, 16)])
def test_tokens_of_every_script_keep_their_columns(size: tuple[int, int]) -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        for script, words in SCRIPTS.items():
            view.forget()
            view.show(state(progress(0, sentence(*words)), truth=(sentence(*words),)), truth=True)
            await pilot.pause(0.1)
            seen = screen(app)
            assert {cell_len(line) for line in seen.splitlines()} == {size[0]}, script
            assert not {"\x1b", "\x00", "\t"} & set(seen)

    shown(scene, size)


def test_a_batch_has_a_block_a_sentence() -> None:
    first, second = sentence("the", "cat"), sentence("a", "dog", "ran", label=0)
    batch = state(
        progress(0, sentence("a", "dog", "ran", label=0), sentence("the", "dog")), truth=(first, second)
    )

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        seen = screen(app)
        assert "text 1 of 2 · 3 of 3 right · label 0" in seen
        assert "text 2 of 2 · 1 of 2 right · label 1" in seen
        await pilot.press("down")
        assert "text 2 of 2, tokens 1–4 of 4" in str(view.tokens.border_subtitle)

    shown(scene, first=batch)


def test_panes_end_at_one_column_and_what_is_too_long_ends_with_an_ellipsis() -> None:
    batch = [sentence(*WORDS, label=number % 2) for number in range(8)]
    settings = {**SETTINGS, "defense": ["gaussian:sigma=0.001", "prune:ratio=0.9"], "share": "no-embeddings"}
    first = dataclasses.replace(state(progress(0, *batch), truth=tuple(batch)), settings=settings)

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        # Too many for columns: running text, a line a sentence, and no token is cut.
        assert screen(app).count("✓the ✓meeting ✓was ✓moved ✓to ✓friday ✓morning") == 8
        assert line_of(app, "match on bert-tiny").rstrip().endswith("…")
        panes = (view.tokens, view.waterfall, view.curves, view.candidates, view.labels)
        assert {pane.region.right for pane in panes if pane.display and pane.region} == {80}
        await pilot.press("down", "right")
        assert "text 2 of 8" in str(view.tokens.border_subtitle)
        assert "text 2 of 8" in str(view.waterfall.border_subtitle), "the waterfall goes along"
        row = next(y for y, line in enumerate(screen(app).splitlines()) if "│ 3 ·[CLS]" in line)
        await pilot.click(offset=(screen(app).splitlines()[row].index("friday"), row))
        assert view.tokens.cursor == (2, 6)

    shown(scene, (80, 30), first)


def test_a_long_answer_is_read_whole_above_its_columns_beside_the_scroll_bar() -> None:
    words = [f"word{number}" for number in range(40)]
    first = state(progress(0, sentence(*words)), truth=(sentence(*words),))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert view.tokens._bands.show_vertical_scrollbar
        assert "40 of 40 right · label 1 " in screen(app), "not cut by the bar"
        lines = "".join(re.sub(r"[│▁-█]", " ", line) for line in screen(app).splitlines())
        told = re.sub(r"\s+", " ", lines)
        assert "word5 word6 word7" in told
        assert "word37 word38 word39”" in told

    shown(scene, (100, 30), first)


def test_one_pane_is_given_all_the_room_and_gives_it_back() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        view.waterfall.focus()
        before = view.waterfall.region.height
        await pilot.press("z")
        await pilot.pause()
        assert view.waterfall.region.height > 2 * before
        assert not view.tokens.display
        assert "z: all" in screen(app)
        await pilot.press("right")
        assert view.tokens.cursor == (0, 1)
        await pilot.press("y")
        assert app.clipboard == "the plan was  friday to plan"
        await pilot.press("z")
        await pilot.pause()
        assert view.tokens.display
        assert view.waterfall.region.height == before

    shown(scene)


def test_the_waterfall_is_colored_by_the_truth_only_where_that_is_shown() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        fall = view.waterfall
        lines = [row.phase for row in fall._lines]
        assert lines == ["labels", "continuous", "continuous", "continuous"]
        assert "labels" in line_of(app, "no token yet")
        row = line_of(app, "continuous ·[C")
        assert row.count("day") == 7
        assert "✗" not in row
        view.show(HALF_WAY, truth=True)
        await pilot.pause()
        assert "✗day" in line_of(app, "continuous ·[C")
        view.show(HALF_WAY, truth=True, blind=True)
        await pilot.pause()
        assert "✗" not in screen(app)

    shown(scene)


@pytest.mark.parametrize("size", [(160, 48), (100, 30), (80, 24)])
def test_the_few_answers_of_a_short_run_fill_the_waterfall_phase_by_phase(size: tuple[int, int]) -> None:
    ended = state(
        progress(0, sentence(*WORDS)), Phase(name="certify"), Finished(outcome="done", result=RESULT)
    )

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        fall = view.waterfall
        await until(pilot, lambda: len(fall._lines) == fall.size.height - fall._headed)
        names = [name for name in fall._names if name]
        if size[1] > 30:
            assert names == ["labels", "0.5 s", "continuous", "1.0 s", "certify", "0.5 s"]
            told = [line for line in screen(app).splitlines() if "•meet" in line]
            assert len(told) == 2, "written again where the next phase begins"
        assert names[::2] == ["labels", "continuous", "certify"] or names == [
            "labels",
            "continuous",
            "certify",
        ]
        assert not view.curves.display, "one figure is no curve"

    shown(scene, size, ended)


def test_a_finished_run_tells_the_attack_s_time_apart_and_that_its_answer_is_final_before() -> None:
    last = progress(0, sentence(*WORDS))
    certifying = state(last, Phase(name="certify"))
    ended = state(last, Phase(name="certify"), Finished(outcome="done", result={**RESULT, "seconds": 1.25}))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert view.status.draw()[0].plain.startswith("the answer is final")
        view.show(ended)
        assert view.status.draw()[0].plain.startswith("took 1.2 s, 2.5 s with its certificate")

    shown(scene, first=certifying)


# The other panes


def test_phases_are_a_timeline_with_their_times() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "✓ labels 0.5 s ─ ● continuous 1.5 s" in screen(app)
        view.show(VERIFIED)
        await pilot.pause()
        assert "✓ continuous" in screen(app)

    shown(scene)


@pytest.mark.parametrize(
    ("outcome", "sign"), [("stopped", "■"), ("interrupted", "■"), ("failed", "✗"), ("done", "✓")]
)
def test_how_a_run_ended_is_told_by_its_last_phase_and_in_a_word(outcome: str, sign: str) -> None:
    result = None if outcome == "failed" else RESULT
    ended = state(progress(0, sentence(*WORDS)), Finished(outcome=outcome, result=result))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "✓ labels 0.5 s" in screen(app)
        assert f"{sign} continuous" in screen(app)
        assert view.status.draw()[0].plain.startswith(outcome) == (outcome != "done")

    shown(scene, first=ended)


def test_a_run_that_was_stopped_says_so_of_what_was_stopped_not_of_its_certificate() -> None:
    last = progress(0, sentence(*WORDS))
    ended = state(last, Phase(name="certify"), Finished(outcome="stopped", result=RESULT))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "■ continuous" in screen(app)
        assert "✓ certify" in screen(app)

    shown(scene, first=ended)


def test_the_labels_are_seen_whole_beside_many_candidates() -> None:
    many = tuple(0.1 * (k + 1) for k in range(12))
    first = state(*(progress(step, sentence(*WORDS), losses=many) for step in range(3)))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        right = view.query_one(".right").region
        await until(pilot, lambda: view.labels.region.bottom <= right.bottom)
        assert "✓ right" in screen(app)
        assert view.candidates.region.height >= 3

    shown(scene, (100, 30), first)


def test_the_lines_that_the_tokens_take_are_those_of_their_width_from_the_first_frame_on() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        view.forget()
        view.show(state(), flash=False)
        await pilot.pause()
        view.show(HALF_WAY, flash=False)  # and no other frame comes
        await until(pilot, lambda: view.tokens.region.height < 12, 5)

    shown(scene, (160, 48), HALF_WAY)


def test_an_answer_is_as_short_as_the_terminal_that_it_is_moved_to() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "its own gradient equals" in screen(app)
        await pilot.resize_terminal(60, 16)
        await until(pilot, lambda: "its own gradient" not in screen(app))
        assert "✓ verified" in screen(app)
        await pilot.resize_terminal(160, 48)
        await until(pilot, lambda: "its own gradient equals" in screen(app))

    shown(scene, (160, 48), VERIFIED)


def test_candidates_are_ranked_and_another_one_can_be_followed() -> None:
    others = tuple(
        (tuple((9, word) for word in ("[CLS]", *[name] * 7, "[SEP]")),) for name in ("one", "two", "three")
    )
    told = state(dataclasses.replace(progress(1, sentence(*WORDS)), others=others))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert view.candidates.ranked == [1, 0, 2]
        rows = [line for line in screen(app).splitlines() if re.search(r"#\d", line)]
        assert ["▶  1  #2" in rows[0], "2  #1" in rows[1], "3  #3" in rows[2]] == [True] * 3
        await pilot.press("tab", "tab")
        assert isinstance(app.focused, CandidateList)
        await pilot.press("down", "down", "enter")
        await pilot.pause()
        assert view.candidates.followed == 2
        assert [cell.word for cell in view.tokens._bands.sentences[0]][1] == "three"
        assert "candidate #3" in screen(app)
        await pilot.press("escape")
        await pilot.pause()
        assert [cell.word for cell in view.tokens._bands.sentences[0]][1] == "the"
        await pilot.click(CandidateList, offset=(6, 2))
        await pilot.pause()
        assert view.candidates.followed == 0

    shown(scene, first=told)


def test_a_diverged_candidate_is_last_and_says_so() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert view.candidates.ranked == [1, 0, 2]
        assert "diverged" in screen(app)

    shown(scene, first=state(progress(1, sentence(*WORDS), losses=(0.5, 0.25, float("inf")))))


def test_the_label_is_shown_with_its_probability_and_judged_unless_blind() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "▶ 1  ━━━━━━╌╌ 0.75" in screen(app)
        assert "✓ right" in screen(app)
        view.show(HALF_WAY, blind=True)
        await pilot.pause()
        assert "✓ right" not in screen(app)

    shown(scene)


def test_a_class_that_is_no_more_probable_than_another_is_not_judged() -> None:
    tied = dataclasses.replace(sentence(*WORDS), label_posterior=(0.498, 0.502))

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        drawn = "\n".join(line.plain for line in view.labels.draw())
        assert "0.50" in drawn
        assert "? undecided" in drawn
        assert "right" not in drawn

    shown(scene, first=state(progress(0, tied)))


def test_a_falling_curve_falls_and_a_flat_one_is_flat() -> None:
    falling = braille([3.0, 2.0, 1.0, 0.0], 0.0, 3.0, 4, 3)
    assert [len(line) for line in falling] == [4, 4, 4]
    assert falling[0][0] != "⠀"
    assert falling[2][-1] != "⠀"
    assert falling[2][0] == "⠀"
    (flat,) = braille([1.0] * 9, 0.0, 1.0, 5, 1)
    assert flat == "⠉" * 5


def test_the_answer_has_number_channel_and_certificate() -> None:
    told = answer(RESULT).plain
    assert told.startswith("All of the text leaked through the span of a layer's gradient: 7 of 7 tokens")
    assert "match rate 1.00" in told
    assert "✓ verified" in told
    assert "can't be verified" in answer({**RESULT, "verified": None}).plain
    assert "✗ not verified" in answer({**RESULT, "verified": False}).plain
    assert "match rate" not in answer(RESULT, blind=True).plain
    assert len(answer(RESULT, short=True).plain) < 100
    reason = "83 % of the tokens came back at their place."
    audited = {**RESULT, "token_match_rate": 0.83, "verdict": "LEAKS", "verdict_reason": reason}
    assert f"LEAKS: {reason}" in answer(audited).plain
    assert "83 %" not in answer(audited, blind=True).plain
    assert "LEAKS" not in answer(audited, blind=True).plain
    untold = {**audited, "token_match_rate": None}
    assert f"LEAKS: {reason}" in answer(untold, blind=True).plain


# Sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("end", [False, True], ids=["half-way", "verified"])
def test_at_every_size_the_tokens_are_seen_and_nothing_runs_out_of_the_screen(
    size: tuple[int, int], end: bool
) -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        seen = screen(app)
        assert "✓the" in seen
        assert "loss" in seen
        if end:
            assert "All of the text leaked" in seen
        for pane in (view.tokens, view.curves, view.candidates, view.labels, view.status, view.answer):
            if pane.display and all(
                above.display for above in pane.ancestors_with_self if hasattr(above, "display")
            ):
                assert pane.region.bottom <= size[1] - 1, pane
                assert pane.region.right <= size[0], pane

    shown(scene, size, VERIFIED if end else HALF_WAY)


def test_with_room_nothing_is_hidden_and_below_100_by_30_panes_fold() -> None:
    async def roomy(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert not view.hidden.display
        assert view.waterfall.display
        assert view.curves.display
        assert view.candidates.display
        assert view.labels.display

    async def folded(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "hidden: curves, candidates, labels (v: next)" in screen(app)
        await pilot.press("v")
        await pilot.pause()
        assert view.curves.display
        assert not view.waterfall.display
        assert "hidden: waterfall, candidates, labels" in screen(app)

    shown(roomy, (100, 30))
    shown(folded, (99, 30))
    shown(folded, (100, 29))


def test_below_60_by_16_there_is_one_pane_and_a_line_says_which_are_hidden() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert "hidden: phases, waterfall, curves, candidates, labels" in screen(app)
        for pane in (view.waterfall, view.curves, view.candidates, view.labels, view.tokens):
            await pilot.press("v")
            await pilot.pause()
            panes = (view.tokens, view.waterfall, view.curves, view.candidates, view.labels)
            assert [one for one in panes if one.display] == [pane]
            assert pane.region.height >= 3

    shown(scene, (80, 15))


def test_where_the_pane_in_view_has_nothing_to_show_the_next_one_is_the_first_that_has() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        await pilot.press("v")
        await pilot.pause()
        assert view.waterfall.display, "there are no curves before the first loss"
        view.show(HALF_WAY)
        await pilot.press("v", "v")
        view.candidates.focus()
        await pilot.press("z")
        await pilot.pause()
        assert view.candidates.display
        view.show(state())
        await pilot.press("v")
        await pilot.pause()
        assert view.tokens.display, "another run has no candidates yet"
        await pilot.press("z")
        await pilot.resize_terminal(80, 24)
        view.show(state(Progress(phase="continuous", step=0, image=(((((0.5,),),)),))))
        await pilot.press("v")
        await pilot.pause()
        assert view.tokens.display, "a picture without loss and labels stands alone"

    shown(scene, (80, 18), state())


def test_the_panes_follow_the_terminal_when_it_changes_its_size() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        for size in ((60, 16), (160, 48), (50, 12), (100, 30)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert "✓the" in screen(app)
        assert not view.hidden.display

    shown(scene, alone=True)


DRAWN_BY = f"<!-- textual {version('textual')}, rich {version('rich')} -->"


@pytest.mark.parametrize("size", [(160, 48), (80, 24), (60, 16)])
def test_the_screen_is_drawn_as_it_was(size: tuple[int, int]) -> None:
    """TEXTLEAK_GOLDEN=1 writes the pictures anew; look at them before you commit them."""
    path = GOLDEN / f"run-{size[0]}x{size[1]}.svg"
    writing = os.environ.get("TEXTLEAK_GOLDEN") == "1"
    first = "" if writing else path.read_text("utf-8").partition("\n")[0]
    if not writing and first != DRAWN_BY:
        pytest.skip(f"{path.name} was drawn by {first}, here is {DRAWN_BY}: letters are tested above")

    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        await pilot.pause(0.6)
        drawn = re.sub(r"terminal-\d+", "terminal", app.export_screenshot(title="textleak"))
        if writing:
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{DRAWN_BY}\n{drawn}", "utf-8")
        assert path.read_text("utf-8") == f"{DRAWN_BY}\n{drawn}"

    shown(scene, size, alone=True)


# What can be done


def footer(app: TextleakApp) -> list[str]:
    return [key.description for key in app.screen.query_one(Footer).query(FooterKey)]


def test_the_footer_has_at_most_seven_keys() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert len(footer(app)) <= 7
        await pilot.press("n")
        await pilot.pause()
        assert footer(app)[:2] == ["Start", "Copy command"]
        assert len(footer(app)) <= 7

    shown(scene)


def test_a_key_that_the_footer_has_no_room_for_is_left_out_whole_and_the_help_is_always_there() -> None:
    words = ("Play", "Scrub", "Export", "Truth", "Help")
    keys = [FooterKey(word[0], word[0], word, word.lower()) for word in words]
    palette = FooterKey("^p", "^p", "palette", "command_palette", classes="-command-palette")

    def told(room: int) -> list[str]:
        return [key.description for key in fitting([*keys, palette], room)]

    whole = sum(len(word) + 4 for word in words)
    assert told(whole + 13) == [*words, "palette"]
    assert told(whole + 12) == list(words)
    assert told(whole) == list(words)
    assert told(whole - 1) == ["Play", "Scrub", "Export", "Help"]
    assert told(whole - 10) == ["Play", "Scrub", "Help"]
    assert told(5) == ["Help"]


def test_everything_is_in_the_palette_with_a_plain_sentence() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        found = {command.title: command.words for command in commands(app.screen)}
        assert {"Truth", "Blind", "New run", "Dark or light", "Save picture", "Help", "Quit"} <= set(found)
        assert {place.title for place in PLACES} <= set(found)
        # The app's own words; Textual's for the palette itself are shorter.
        short = [words for words in found.values() if len(words.split()) < 4 or words[-1] not in ".e"]
        assert not short
        await pilot.press("ctrl+p")
        await pilot.pause(0.3)
        assert isinstance(app.screen, CommandPalette)
        await pilot.press(*"attacker", "enter")
        await pilot.pause(0.5)
        if isinstance(app.screen, CommandPalette):
            await pilot.press("enter")
            await pilot.pause(0.3)
        assert app.sight.blind

    shown(scene)


def test_the_palette_lists_each_command_once_and_not_itself() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+p")
        await pilot.pause(0.3)
        titles = [
            str(option.prompt).partition("\n")[0] for option in app.screen.query_one(OptionList).options
        ]
        assert "Truth" in titles
        assert len(set(titles)) == len(titles)
        assert not any("palette" in title.lower() for title in titles)

    shown(scene)


def test_a_dialog_leaves_what_it_is_about_to_be_seen() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        await pilot.pause()
        # The help is 96 wide; the panes at the sides of it are still there, if darker.
        assert "Tokens" in screen(app)
        assert "╭" in screen(app).splitlines()[4][:10]

    shown(scene, (160, 48))


def test_help_tells_what_the_signs_mean() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        seen = screen(app)
        assert "✓  the right token at its place" in seen
        assert "Show only what an attacker would see" in seen
        await pilot.press("escape")
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)

    shown(scene)


def test_keys_and_clicks_go_to_every_place() -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        for place in PLACES:
            await pilot.press(place.key)
            await until(pilot, lambda name=place.name: app.current_mode == name)
        tabs = list(app.screen.query(".place").results(Static))
        await pilot.click(tabs[0], offset=(3, 0))
        await until(pilot, lambda: app.current_mode == "run")

    shown(scene, alone=True)


def test_a_sign_leads_to_each_field_and_pane_that_is_seen() -> None:
    async def look(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        await pilot.press("j")
        assert isinstance(app.screen, JumpScreen)
        signs = {widget: sign for sign, widget in app.screen.targets.items()}
        assert {view.waterfall, view.candidates} <= signs.keys()
        assert signs[view.waterfall] < signs[view.candidates], "from the top, then from the left"
        await pilot.pause()
        labels = {str(label.content): label.region.offset for label in app.screen.query(Static)}
        assert labels == {sign: widget.region.offset for widget, sign in signs.items()}
        await pilot.press(signs[view.candidates])
        assert app.focused is view.candidates
        await pilot.press("ctrl+g", "j", "escape")
        assert app.focused is view.candidates
        page = app.screen
        assert isinstance(page, RunScreen)
        page.query_one(ContentSwitcher).current = "setup"
        page.form.sentences.focus()
        await pilot.press("ctrl+g", "j")
        assert isinstance(app.screen, JumpScreen)
        box = page.form.rows["attack"].box.input
        (sign,) = [sign for sign, widget in app.screen.targets.items() if widget is box]
        await pilot.press(sign)
        assert app.focused is box

    shown(look)


def test_the_theme_changes_and_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        dark = app.export_screenshot()
        await pilot.press("f8")
        await pilot.pause()
        assert app.export_screenshot() != dark
        assert app.current_theme.dark is False
        # Nothing is written in the color of what it stands on.
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                if segment.text.strip() and segment.style and segment.style.color and segment.style.bgcolor:
                    ink, paper = segment.style.color.triplet, segment.style.bgcolor.triplet
                    assert ink is not None
                    assert paper is not None
                    if "▔" not in segment.text:
                        assert max(abs(a - b) for a, b in zip(ink, paper, strict=True)) > 40, segment

    shown(scene, alone=True)
    monkeypatch.setenv("NO_COLOR", "1")

    async def gray(app: TextleakApp, view: RunView, pilot: Pilot[None]) -> None:
        assert app.no_color
        strips = app.screen._compositor.render_strips()
        drawn = [
            app.ansi_theme and strip.apply_filter(app._filters[-1], app.screen.styles.background)
            for strip in strips
        ]
        colors = {
            triplet
            for strip in drawn
            for segment in strip
            if segment.style and segment.style.color and (triplet := segment.style.color.triplet)
        }
        assert colors
        assert all(triplet.red == triplet.green == triplet.blue for triplet in colors)
        assert "✓the" in screen(app)

    shown(gray, alone=True)
