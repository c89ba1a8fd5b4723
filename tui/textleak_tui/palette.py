"""The command palette: everything that can be done here and now, each with a plain sentence.

What there is to do is what the key bindings of the screen, its widgets and the app say; a binding's tooltip is
its sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.dom import DOMNode
from textual.screen import Screen

from textleak_tui.widgets.setup_form import SetupForm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Something that can be done.

    Attributes:
        title: what it is called.
        words: what it does, in a plain sentence.
        key: what to press.
        action: what runs it, in Textual's way of writing actions.
        node: whose action it is.
    """

    title: str
    words: str
    key: str
    action: str
    node: DOMNode


def commands(screen: Screen[object]) -> Iterator[Command]:
    """What can be done on a screen now: each command once, by its first key.

    Two bindings with one title are one command, such as a table's Enter and its screen's own key.
    """
    told: set[str] = set()
    for node, binding, enabled, words in screen.active_bindings.values():
        names = {binding.action.removeprefix("app."), binding.description}
        if words and enabled and not names & told:
            told |= names
            key = screen.app.get_key_display(binding)
            yield Command(title=binding.description, words=words, key=key, action=binding.action, node=node)


class Everything(Provider):
    """What the palette lists and searches."""

    def _commands(self) -> Iterator[Command]:
        """All but the palette, which is open; and the fields of a form, by their names."""
        for one in commands(self.screen):
            if one.action.rpartition(".")[2] != "command_palette":
                yield one
        for form in self.screen.query(SetupForm):
            if form.is_on_screen:
                for field in form.setup.fields:
                    words = f"A setting: {field.words}."
                    yield Command(
                        title=field.title, words=words, key="", action=f"field('{field.name}')", node=form
                    )

    async def discover(self) -> Hits:
        """All that can be done, while nothing is typed."""
        for command in self._commands():
            yield DiscoveryHit(command.title, self._runner(command), help=command.words)

    async def search(self, query: str) -> Hits:
        """What fits the words that were typed."""
        matcher = self.matcher(query)
        for command in self._commands():
            score = max(matcher.match(command.title), 0.7 * matcher.match(command.words))
            if score > 0:
                title = matcher.highlight(command.title)
                yield Hit(score, title, self._runner(command), help=command.words)

    def _runner(self, command: Command) -> partial[Coroutine[Any, Any, bool]]:
        return partial(self.app.run_action, command.action, command.node)
