"""Where one is in a recording: held at an event, playing, or following the end of a run that goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from textleak_tui.recording import Recording

SPEEDS = (0.25, 1.0, 4.0, 16.0)
# Our choices: an attack that goes on needs the processor more than its viewer does. So often it is drawn where that
# takes no more than this share of a core, and less often where it would, but never so seldom that it seems to stand.
SECONDS_BETWEEN_LIVE_FRAMES, SHARE_OF_A_CORE, MOST_SECONDS_BETWEEN_LIVE_FRAMES = 0.12, 0.04, 0.6


class Frames:
    """When the next frame of a run that goes on is due.

    Args:
        clock: seconds that only go forward.
        spent: the app's own processor time, in seconds.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.perf_counter, spent: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._processor = spent
        self._drawn = float("-inf")
        self._spent = 0.0

    def due(self) -> bool:
        """Whether to draw now: it is long enough ago, judged by what was spent since."""
        if self.wait() > 0:
            return False
        self._drawn, self._spent = self._clock(), self._processor()
        return True

    def wait(self) -> float:
        """Seconds until the next one is due, where nothing more is spent meanwhile; none or less where it is."""
        worth = (self._processor() - self._spent) / SHARE_OF_A_CORE
        wait = min(max(SECONDS_BETWEEN_LIVE_FRAMES, worth), MOST_SECONDS_BETWEEN_LIVE_FRAMES)
        return self._drawn + wait - self._clock()


class Playback:
    """A place in a recording, and how it moves.

    A run opens at its end, where its answer is; playing begins at the beginning.

    Args:
        recording: what is played.
        clock: seconds that only go forward.
    """

    def __init__(self, recording: Recording, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.recording = recording
        self.event = 0
        self.speed = 1.0
        self.playing = False
        self.following = True
        self.clock = clock
        self._second = 0.0
        self._ticked = self.clock()
        self._frames = Frames(clock=clock)

    @property
    def live(self) -> bool:
        """Whether it follows a run that has no end yet."""
        return self.following and self.recording.finished is None

    def tick(self) -> None:
        """Play on, or follow the end."""
        now = self.clock()
        passed, self._ticked = now - self._ticked, now
        recording = self.recording
        if self.playing:
            self._second += passed * self.speed
            self.event = recording.index_at("seconds", self._second)
            if self._second >= recording.extent("seconds"):
                self.playing = False
                self.following = recording.finished is None
        elif self.following and len(recording):
            if recording.finished is None and not self._frames.due():
                return
            self.event = len(recording) - 1
            self._second = recording.extent("seconds")

    def go(self, event: int) -> None:
        """Hold at an event."""
        if len(self.recording):
            self.playing = self.following = False
            self.event = max(0, min(event, len(self.recording) - 1))
            self._second = self.recording.value_at("seconds", self.event)

    def go_to(self, share: float) -> None:
        """Hold at a share of the whole, 0 to 1; from 1 on, follow the end."""
        if share >= 1:
            self.newest()
        else:
            self.go(self.recording.index_at("seconds", share * self.recording.extent("seconds")))

    def newest(self) -> None:
        """Go to the end; stay there while the run goes on."""
        self.go(len(self.recording) - 1)
        self.following = True

    def play(self) -> None:
        """Play or hold; at the end, from the beginning."""
        if not len(self.recording):
            return
        self.playing = not self.playing
        if self.playing:
            self.following = False
            if self.event >= len(self.recording) - 1:
                self.event, self._second = 0, 0.0
        self._ticked = self.clock()

    def play_within(self, seconds: float) -> None:
        """Play it from the beginning, at the lowest of the speeds, 1 or above, that is through by then."""
        whole = self.recording.extent("seconds")
        self.speed = next((one for one in SPEEDS if one >= 1 and whole / one <= seconds), SPEEDS[-1])
        self.newest()
        self.play()

    def next_speed(self) -> None:
        """The next of the speeds."""
        self.speed = speed_after(self.speed)


def speed_after(speed: float) -> float:
    """The next of the speeds; the first after the last."""
    return SPEEDS[(SPEEDS.index(speed) + 1) % len(SPEEDS)]


def speed_in_words(speed: float) -> str:
    """A speed as a person writes it."""
    return "¼×" if speed == 0.25 else f"{speed:g}×"
