"""The replay screen: one run folder, scrubbed through, played, or followed while it is still being written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.worker import get_current_worker

from textleak.errors import InputError
from textleak.view import ViewState
from textleak.words import printable, seconds_in_words
from textleak_tui.places import AttackAgain, Sight
from textleak_tui.playback import Playback, speed_in_words
from textleak_tui.recording import Recording
from textleak_tui.screens.base import COPY, Page
from textleak_tui.standing import SIGNS, Standing, without_end
from textleak_tui.stories import Story
from textleak_tui.widgets import RunView
from textleak_tui.widgets.cells import MARK
from textleak_tui.widgets.scrubber import Scrubber, Track, course
from textleak_tui.widgets.waterfall import Waterfall
from textleak_tui.widgets.words import Words

FRAMES_A_SECOND = 15
ATTACKER = Sight(blind=True)
# Our choice: a story is watched to its end.
SECONDS_A_STORY = 15.0


class ReplayScreen(Page):
    """One run folder.

    A finished run opens at its end, where its answer is; playing begins at the beginning. A run without an end is
    followed until one goes elsewhere.

    Args:
        run: the folder.
        place: where it was opened from, and one gets back to.
        story: what the recording is of, where it came with the app: it plays at once.
        secrets: planted in its batch; marked where the truth is shown.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "play", "Play", tooltip="Play the run, or hold it."),
        Binding(
            "comma",
            "step(-1)",
            "Scrub",
            key_display="← →",
            tooltip="One event back or on, with Shift ten, by Page keys a tenth, by Home and End all the way.",
        ),
        Binding("x", "speed", "Speed", tooltip="Play at ¼×, 1×, 4× or 16× of the run's own time."),
        Binding("full_stop", "step(1)", "One on", show=False, tooltip="Go one event on; a comma, one back."),
        Binding("escape", "back", "Back", tooltip="Leave the replay."),
        Binding("enter", "attack", "Do it live", tooltip="Attack the recording's sentence now, live."),
        Binding(
            "d",
            "both_sides",
            "Both sides",
            tooltip="Left what a server sees, right the same with the truth; or one side again.",
        ),
        Binding("e", "export", "Export", tooltip="Write the screen, the run or a summary to a file."),
        Binding("t", "app.truth", "Truth", tooltip="Show or hide the true tokens."),
        COPY,
        Binding(
            "f",
            "newest",
            "Newest",
            show=False,
            tooltip="Go to the end; follow it while the run is still written.",
        ),
    ]
    DEFAULT_CSS = """
    ReplayScreen {
        & .sides { height: 1fr; }
        & .side { width: 1fr; }
        & .of-side { height: 1; padding: 0 2; text-style: bold; display: none; }
        &.-both .of-side { display: block; }
        & Scrubber { height: 2; }
        &.-low Scrubber { height: 1; }
        & .standing { height: auto; max-height: 4; padding: 0 2; color: $warning; }
    }
    """

    def __init__(
        self, run: Path, place: str, *, story: Story | None = None, secrets: Sequence[str] = ()
    ) -> None:
        super().__init__(place)
        self.story = story
        self._to_play = story is not None
        self.folder = run
        self.playback: Playback | None = None
        self.problem: Standing | None = None
        try:
            self.playback = Playback(Recording(run))
        except InputError as error:
            self.problem = Standing(outcome="broken", what=error.what, why=error.why, fix=error.fix)
        self.secrets = tuple(secrets)
        self.view = RunView()
        self.view.tokens.secrets = self.secrets
        self.both = False
        self.defender: RunView | None = None
        self.words = Words(grows=True, classes="standing")
        self.scrubber = Scrubber()
        self._drawn: tuple[object, object] = None, None

    def content(self) -> Iterable[Widget]:
        """The run, words on how it stands, the slider."""
        with Horizontal(classes="sides"), Vertical(classes="side"):
            yield Words(classes="of-side")
            yield self.view
        yield self.words
        yield self.scrubber

    def on_resize(self, event: events.Resize) -> None:
        """Leave the run what little room there is."""
        self.set_class(event.size.height < 20, "-low")

    def on_mount(self) -> None:
        """Open the folder, and begin to read it."""
        self.sub_title = printable(self.folder.name)
        if self.playback is not None:
            self.scrubber.focus()
            self.run_worker(self._read, thread=True, name="read", exclusive=True)
            self.set_interval(1 / FRAMES_A_SECOND, self._tick)
        self._draw()

    def _read(self) -> None:
        """In a thread: read the events until the run has ended or nobody looks any more."""
        worker = get_current_worker()
        assert self.recording is not None
        self.recording.follow(lambda: worker.is_cancelled)

    @property
    def recording(self) -> Recording | None:
        """The run; None where the folder can't be read."""
        return None if self.playback is None else self.playback.recording

    @property
    def standing(self) -> Standing | None:
        """How the run stands; None while it isn't known yet."""
        return self.problem if self.recording is None else self.recording.stands

    @property
    def state(self) -> ViewState:
        """What is on the screen."""
        playback = self.playback
        return ViewState() if playback is None else playback.recording.state(playback.event)

    def _tick(self) -> None:
        """Play on, or follow the end."""
        if self.playback is not None:
            if self._to_play and self.playback.recording.whole:
                self._to_play = False
                self.playback.play_within(SECONDS_A_STORY)
            self.playback.tick()
            self._draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what came with the app is known well enough to be done live."""
        if action == "attack":
            return self.story is not None
        return super().check_action(action, parameters)

    def action_attack(self) -> None:
        """The story's run, live."""
        if self.story is not None:
            self.dismiss()
            self.app.post_message(AttackAgain([self.story.sentence], self.story.values))

    def refresh_view(self) -> None:
        """Blind or truth has changed."""
        self._drawn = None, None
        self._draw()

    def _draw(self) -> None:
        """Draw what has changed since the last time: the run, or only the words and the slider."""
        place, how = self._place(), self._how()
        if place != self._drawn[0]:
            state, waiting = self._shown(), self._waiting()
            sight = ATTACKER if self.both else self.sight
            live = self.playback is not None and self.playback.live
            self.view.show(state, blind=sight.blind, truth=sight.truth, waiting=waiting, live=live)
            if self.both and self.defender is not None:
                self.defender.show(state, blind=False, truth=True, waiting=waiting, live=live)
        if (place, how) != self._drawn:
            self.words.say(self._standing())
            self.scrubber.show(self._track())
        self._drawn = place, how

    def _shown(self) -> ViewState:
        """The state; at the end of a run that was killed, without anything that goes on."""
        playback, standing = self.playback, self.standing
        at_end = playback is not None and playback.event >= len(playback.recording) - 1
        killed = standing is not None and standing.outcome == "killed"
        return without_end(self.state, "killed") if killed and at_end else self.state

    def _place(self) -> tuple[object, ...]:
        playback = self.playback
        return (
            () if playback is None else (playback.event, len(playback.recording), playback.recording.stands)
        )

    def _how(self) -> tuple[object, ...]:
        playback, recording = self.playback, self.recording
        if playback is None or recording is None:
            return ()
        moving = playback.playing, playback.following, playback.speed
        return *moving, recording.stands, recording.whole, recording.share_read

    def _waiting(self) -> str:
        """Words in place of the tokens."""
        recording = self.recording
        if recording is None:
            return "There is nothing to replay."
        if not recording.whole:
            return f"Reading the run, {recording.share_read:.0%} so far."
        if recording.finished is None and (self.standing is None or self.standing.outcome == "running"):
            return "No tokens yet: the attack hasn't shown any so far."
        if not len(recording):
            return "This run wrote no events: it ended before it began."
        return "No tokens at this place yet. Space plays on from here."

    def _standing(self) -> Text:
        standing, recording = self.standing, self.recording
        if recording is not None and not recording.whole:
            return Text(f"◌ Reading the run, {recording.share_read:.0%} so far.")
        if self.story is not None:
            return Text(f"A recording: {self.story.words} Enter does it live.")
        if standing is None or standing.outcome == "done":
            return Text()
        words = [standing.what, standing.why, standing.fix]
        return Text(f"{SIGNS[standing.outcome]} " + " ".join(part for part in words if part))

    def _track(self) -> Track:
        playback = self.playback
        if playback is None or not len(playback.recording):
            return Track(after="0 events")
        recording = playback.recording
        end = recording.extent("seconds")
        second = recording.value_at("seconds", playback.event)
        sign = "▶" if playback.playing else "●" if playback.live else "‖"
        return Track(
            place=second / end if end else 1.0,
            heights=course(recording.points(), "seconds", end, blind=self.sight.blind),
            marks=tuple(phase.start / end for phase in recording.phases() if end),
            before=f"{sign} {'live' if playback.live else speed_in_words(playback.speed)}",
            after=f"{seconds_in_words(second)} of {seconds_in_words(end)}, event {playback.event + 1:,} of "
            f"{len(recording):,}",
            still_growing=recording.finished is None,
        )

    def on_scrubber_moved(self, message: Scrubber.Moved) -> None:
        """The slider was moved."""
        if self.playback is not None:
            self.playback.go_to(message.place)
            self._draw()

    def on_scrubber_stepped(self, message: Scrubber.Stepped) -> None:
        """An arrow key on the slider."""
        self.action_step(message.by)

    def on_waterfall_picked(self, message: Waterfall.Picked) -> None:
        """A click in the waterfall: to its time."""
        if self.playback is not None:
            self.playback.go(self.playback.recording.event_of(message.number))
            self._draw()

    async def action_both_sides(self) -> None:
        """Left what a server sees, right the same with the truth; or one side again."""
        self.both = not self.both
        self.set_class(self.both, "-both")
        if self.both:
            defender = RunView()
            defender.tokens.secrets = self.secrets
            self.query_one(".side Words.of-side", Words).say("◌ Attacker: what a server sees")
            words = Words(classes="of-side")
            await self.query_one(".sides").mount(Vertical(words, defender, classes="side"))
            self.defender = defender  # a frame that comes before it is there doesn't draw it
            planted = f", {MARK} planted secrets" if self.secrets else ""
            known = bool(self.state.truth or self.state.originals)
            words.say(
                f"● Defender: the same with the truth{planted}"
                if known
                else "● Defender: the truth isn't known here"
            )
        elif self.defender is not None:
            side, self.defender = self.defender.parent, None
            if isinstance(side, Vertical):
                await side.remove()
        self.refresh_view()

    def action_step(self, by: int) -> None:
        """Go some events on."""
        if self.playback is not None:
            self.playback.go(self.playback.event + by)
            self._draw()

    def action_newest(self) -> None:
        """Go to the end; stay there while the run goes on."""
        if self.playback is not None:
            self.playback.newest()
            self._draw()

    def action_play(self) -> None:
        """Play or hold; at the end, from the beginning."""
        if self.playback is not None:
            self.playback.play()
            self._draw()

    def action_speed(self) -> None:
        """The next speed."""
        if self.playback is not None:
            self.playback.next_speed()
            self._draw()

    def action_export(self) -> None:
        """Ask what to write."""
        if self.recording is not None:
            self.export_run(self.recording.folder.path, self.state)

    def action_back(self) -> None:
        """Leave the replay."""
        self.dismiss()
