"""Keys one after another: each is done with before the next is looked at, however far the app lags behind.

Textual hands a key to what has the focus and goes on to the next key at once; what the first one is bound to is done
only when it has come back up from there. What was typed right after Tab went to the old field, and a backspace took a
letter that was typed after it, or one of another field.

It also takes the bytes that nearly every terminal sends for Alt and a digit for a sign that Option writes on a Mac.
"""

from __future__ import annotations

import functools
from collections import deque
from string import digits
from typing import cast

from textual import events
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.app import App
from textual.message import Message

# Our choice: after it a key that never came back (its screen has gone) holds up no other.
SECONDS_TO_COME_BACK = 0.5


def hear_alt_and_digits() -> None:
    """Let Alt and a digit be that key, and no sign such as an inverted exclamation mark."""
    for digit in digits:
        cast("dict[str, object]", ANSI_SEQUENCES_KEYS).pop(f"\x1b{digit}", None)


class Through(Message):
    """Follows a key on its way up, where that may end, and comes to the app after all that the key has done."""

    bubble = True

    def __init__(self, key: events.Key) -> None:
        super().__init__()
        self.key = key


class InOrder(App[None]):
    """An app that looks at one key at a time."""

    _waiting: deque[events.Key]
    _on_its_way: events.Key | None = None

    def at_rest(self) -> bool:
        """Whether all keys so far were done with."""
        return self._on_its_way is None

    async def on_event(self, event: events.Event) -> None:
        """Let a key that is typed wait for the one before it."""
        if not isinstance(event, events.Key):
            await super().on_event(event)
        elif event.is_forwarded:
            await super().on_event(event)
            await self._came_back(event)
        else:
            self._waiting = getattr(self, "_waiting", deque())
            self._waiting.append(event)
            if self._on_its_way is None:
                await self._look_at_keys()

    async def _look_at_keys(self) -> None:
        while self._waiting and self.screen_stack:  # none once it ends
            event = self._on_its_way = self._waiting.popleft()
            target = self.focused or self.screen
            await super().on_event(event)
            if event.is_forwarded:
                target.post_message(Through(event))
                self.set_timer(SECONDS_TO_COME_BACK, functools.partial(self._came_back, event))
                return
            self._on_its_way = None

    async def on_through(self, message: Through) -> None:
        """A key has come back, or was done with on its way."""
        await self._came_back(message.key)

    async def _came_back(self, key: events.Key) -> None:
        if key is self._on_its_way:
            self._on_its_way = None
            await self._look_at_keys()
