"""Styles are worked out once where Textual works them out several times, and are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.css.stylesheet import Stylesheet
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets._footer import FooterKey

from tests.conftest import every_other
from tests.tui.pilots import play, until
from textleak_tui import catalog
from textleak_tui.app import TextleakApp
from textleak_tui.catalog import Catalog
from textleak_tui.places import PLACES
from textleak_tui.screens.base import Page
from textleak_tui.session import Sessions
from textleak_tui.widgets.keys import Keys


@pytest.fixture(autouse=True)
def _no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> Catalog:
        return Catalog()

    monkeypatch.setattr(catalog, "list_catalog", nothing)


def styles_of(screen: Screen[object]) -> dict[object, object]:
    """What the sheet says of everything on a screen, and of its parts."""
    return {
        node: (
            dict(node.styles.base.get_rules()),
            {name: dict(styles.base.get_rules()) for name, styles in node._component_styles.items()},
        )
        for node in screen.walk_children(with_self=True)
    }


@pytest.mark.parametrize(
    ("place", "size"), every_other([place.name for place in PLACES], [(160, 48), (60, 16)])
)
def test_a_place_looks_as_if_all_styles_were_worked_out_anew(
    place: str, size: tuple[int, int], tmp_path: Path
) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        assert isinstance(app.screen, Page)
        await until(pilot, lambda: app.screen.query(FooterKey))
        await pilot.pause()
        seen = styles_of(app.screen)
        app.screen.update_node_styles(animate=False)
        assert styles_of(app.screen) == seen
        # In other colors it is another one; back in the first ones, the first.
        await pilot.press("f8")
        await pilot.pause()
        other = styles_of(app.screen)
        assert other.keys() == seen.keys()
        assert other != seen
        app.screen.update_node_styles(animate=False)
        assert styles_of(app.screen) == other
        await pilot.press("f8")
        await pilot.pause()
        assert styles_of(app.screen) == seen

    play(scene, Sessions(tmp_path), place=place, size=size)


def test_a_place_that_was_left_has_the_colors_that_were_chosen_meanwhile(tmp_path: Path) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        await pilot.pause()
        first = app.screen
        before = styles_of(first)
        app.switch_mode("defenses")
        await pilot.pause()
        await pilot.press("f8")
        app.switch_mode("history")
        await until(pilot, lambda: app.screen is first)
        await until(pilot, lambda: styles_of(first) != before)
        seen = styles_of(first)
        first.update_node_styles(animate=False)
        assert styles_of(first) == seen

    play(scene, Sessions(tmp_path), place="history")


def test_rules_are_those_that_textual_parses_from_the_same_sources(tmp_path: Path) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        for _ in range(2):
            for place in PLACES:
                app.switch_mode(place.name)
                await pilot.pause()
            textual = Stylesheet(variables=app.get_css_variables())
            textual.source = dict(app.stylesheet.source)
            textual.parse()
            rules = [(rule.selectors, repr(rule.styles.get_rules())) for rule in app.stylesheet.rules]
            assert rules == [(rule.selectors, repr(rule.styles.get_rules())) for rule in textual.rules]
            await pilot.press("f8")

    play(scene, Sessions(tmp_path), place="history")


def test_keys_are_made_anew_where_they_are_others_and_only_there(tmp_path: Path) -> None:
    async def scene(app: TextleakApp, pilot: Pilot[None]) -> None:
        footer = app.screen.query_one(Keys)
        await until(pilot, lambda: footer.query(FooterKey))
        await pilot.pause()
        keys = list(footer.query(FooterKey))
        done: list[bool] = []
        footer.call_later(footer.recompose)
        footer.call_later(done.append, True)
        await until(pilot, lambda: done)
        assert list(footer.query(FooterKey)) == keys
        # Fewer have room.
        await pilot.resize_terminal(30, 20)
        await until(pilot, lambda: list(footer.query(FooterKey)) != keys)
        assert [key.description for key in footer.query(FooterKey)][-1] == "Help"
        assert all(key.has_class("-compact") == key.compact for key in footer.query(FooterKey))
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: len(footer.query(FooterKey)) == len(keys))
        told = [(key.key, key.description, key.compact, key.classes) for key in footer.query(FooterKey)]
        assert told == [(key.key, key.description, key.compact, key.classes) for key in keys]

    play(scene, Sessions(tmp_path), place="run")
