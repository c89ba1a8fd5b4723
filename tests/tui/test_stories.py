"""The recordings that come with the app, and both sides of a run beside each other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from textual._xterm_parser import XTermParser
from textual.constants import ESCAPE_DELAY
from textual.events import Key
from textual.pilot import Pilot
from textual.widget import AwaitMount, Widget

from tests.tui import pilots
from tests.tui.pilots import until
from textleak.reports.reading import read
from textleak.runs import read_run
from textleak_tui import catalog
from textleak_tui.app import TextleakApp
from textleak_tui.catalog import Catalog
from textleak_tui.places import OpenRun
from textleak_tui.recording import Recording
from textleak_tui.screens.replay import ReplayScreen
from textleak_tui.screens.run import RunScreen
from textleak_tui.session import Sessions
from textleak_tui.stories import STORIES, Story
from textleak_tui.widgets import RunView
from textleak_tui.widgets.words import Words

MOST_BYTES = 200_000
NO_EMBEDDINGS = next(story for story in STORIES if story.name == "no-embeddings")


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_story_is_a_whole_run_of_what_it_says_and_tells_nothing_of_its_machine(story: Story) -> None:
    run = read_run(story.folder)
    assert run.outcome == "done"
    assert run.settings["sentences"] == [story.sentence]
    assert run.settings["weights"] == "pretrained"
    for name in ("model", "share"):
        assert run.settings[name] == story.values.get(name, run.settings[name])
    kinds = [kind.partition(":")[0] for kind in run.settings["client"]]
    assert kinds == [kind.partition(":")[0] for kind in story.values.get("client", "").split()]
    assert read(story.folder).records[0].status == "done", "a report can be made of it"
    files = list(story.folder.iterdir())
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert not any(b': "/' in path.read_bytes() for path in files), "no path"
    assert run.facts["machine"] == {"platform": "Linux", "cores": 1}
    recording = Recording(story.folder)
    recording.read()
    progress = recording.state().progress
    assert progress is not None
    assert [sentence.text for sentence in progress.sentences] == [
        sentence["recovered"] for sentence in run.result["sentences"]
    ], "the answer is seen"


def _keys_of(sent: str) -> list[Key]:
    """The keys that a terminal's bytes are taken for, once no more bytes come."""
    parser = XTermParser(False)
    found = list(parser.feed(sent))
    time.sleep(1.5 * ESCAPE_DELAY)
    return [event for event in (*found, *parser.tick()) if isinstance(event, Key)]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_what_terminals_send_for_a_story_s_key_plays_it_and_types_nothing(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        page = app.screen
        assert isinstance(page, RunScreen)
        await until(pilot, lambda: page.form.sentences.has_focus)
        for key in _keys_of(f"\x1b{story.key[-1]}"):
            app.post_message(key)
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
        assert isinstance(app.screen, ReplayScreen)
        assert app.screen.story == story
        assert page.form.sentences.text == ""

    pilots.play(scene, Sessions(tmp_path))


def test_a_story_plays_at_once_shows_both_sides_and_is_done_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(
        RunScreen,
        "_start",
        lambda self, kept_as: started.append((self.form.private_batch, self.form.values["model"])),
    )

    async def nothing() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        await pilot.press(STORIES[0].key)
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
        page = app.screen
        assert isinstance(page, ReplayScreen)
        assert page.playback is not None
        await until(pilot, lambda: page.playback.playing)
        await pilot.press("end")
        assert not page.playback.playing
        await pilot.press("d")
        await until(pilot, lambda: len(page.query(RunView)) == 2)
        await pilot.pause(0.1)
        left, right = page.query(RunView)
        hidden, told = (view.tokens._bands.sentences[0][1] for view in (left, right))
        assert (hidden.word, hidden.status, hidden.true) == ("the", "unknown", "")
        assert (told.word, told.status, told.true) == ("the", "right", "the")
        await pilot.press("home")
        await pilot.pause(0.1)
        assert not any(view.recovered for view in (left, right)), "one slider moves both"
        await pilot.press("d")
        await until(pilot, lambda: len(page.query(RunView)) == 1)
        await pilot.press("enter")
        await until(pilot, lambda: started)
        assert started == [([STORIES[0].sentence], "minilm")]
        assert app.current_mode == "run"

    pilots.play(scene, Sessions(tmp_path / "runs"))


def test_a_story_is_played_without_the_keys_that_browsers_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)

    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+g", "2")
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen))
        assert isinstance(app.screen, ReplayScreen)
        assert app.screen.story is STORIES[1]

    pilots.play(scene, Sessions(tmp_path / "runs"), size=(60, 16))


def test_planted_secrets_are_marked_where_the_truth_is_shown_and_tokens_are_seen_on_both_sides(
    tmp_path: Path,
) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        app.open_run(OpenRun(NO_EMBEDDINGS.folder, ("to friday", "sunday")))
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen) and app.screen.recording.whole)
        await pilot.press("d")
        await until(pilot, lambda: len(app.screen.query(RunView)) == 2)
        left, right = app.screen.query(RunView)
        await until(pilot, lambda: right.tokens._bands.sentences and right.answer.size.height)
        assert left.answer.size.height == right.answer.size.height, "a row is the same time on both sides"
        secret = [
            [cell.true for cell in view.tokens._bands.sentences[0] if cell.secret] for view in (left, right)
        ]
        assert secret == [[], ["to", "friday"]]
        assert "1 of 1 secret came back" in right.tokens._bands.heads[0].words
        for view in (left, right):
            await until(pilot, lambda view=view: "✓the" in _drawn(view) or "•the" in _drawn(view), 5)
        assert "◆ planted secrets" in str(app.screen.query(".of-side").last(Words).content)

    pilots.play(scene, Sessions(tmp_path / "runs"), place="history", size=(80, 24))


def test_a_frame_that_comes_while_the_second_side_is_put_up_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        app.open_run(OpenRun(NO_EMBEDDINGS.folder))
        await until(pilot, lambda: isinstance(app.screen, ReplayScreen) and app.screen.recording.whole)
        screen, sides = app.screen, app.screen.query_one(".sides")
        mount = sides.mount

        def after_a_frame(*widgets: Widget) -> AwaitMount:
            screen.refresh_view()
            return mount(*widgets)

        monkeypatch.setattr(sides, "mount", after_a_frame)
        await pilot.press("d")
        await until(pilot, lambda: len(screen.query(RunView)) == 2)
        right = screen.query(RunView).last()
        await until(pilot, lambda: right.tokens._bands.sentences)

    pilots.play(scene, Sessions(tmp_path / "runs"), place="history", size=(80, 24))


def _drawn(view: RunView) -> str:
    """What is seen of the tokens."""
    bands = view.tokens._bands
    return " ".join(segment.text for line in bands.draw()[: bands.size.height] for segment in line)
