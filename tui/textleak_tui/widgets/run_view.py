"""A run on the screen: all panes together, folded where there is little room.

With room everything is visible. In little room the lower panes fold into one, and in very little there is one
pane in all, with a line that says which are hidden; `v` shows the next.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Static

from textleak.events import Finished, Position, Sentence, Tokens
from textleak.view import ViewState, how_much
from textleak_tui.playback import MOST_SECONDS_BETWEEN_LIVE_FRAMES
from textleak_tui.widgets.candidates import CandidateList
from textleak_tui.widgets.curves import Curves
from textleak_tui.widgets.labels import LabelPosterior
from textleak_tui.widgets.phases import PhaseTimeline
from textleak_tui.widgets.status import NO_PULSE, Pulse, StatusLine
from textleak_tui.widgets.tokens import TokenGrid
from textleak_tui.widgets.told import Told
from textleak_tui.widgets.waterfall import Waterfall
from textleak_tui.widgets.words import Words

# Sizes of the whole screen below which panes fold, and below which one pane is left.
FOLDED = (100, 30)
SINGLE = (60, 16)
# Lines that the lower panes keep, border included.
LEAST, LEAST_FOLDED, LEAST_LOW = 9, 5, 1
# Lines around a pane's own, and what what an update tells has at least, as the style sheet says.
AROUND, LEAST_TOLD = 2, 4
# Our choice: while a run goes on, its tokens are drawn at each frame, the panes around them so often.
SECONDS_BETWEEN_OTHERS = 1.0
# Height of the whole screen below which the lower panes have no border and one line.
LOW = 20
# Our choice: in less width than this the answer is said in short, as it is where there are few lines.
SHORT_ANSWER = 60
CALLED = {"told": "what the update tells"}
PANES = ("tokens", "told", "waterfall", "curves", "candidates", "labels")


class RunView(Vertical):
    """Composes the widgets of a run."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.of_pictures = False  # also before there is one
        self.facts = Static("", classes="facts")
        self.phases = PhaseTimeline()
        self.tokens = TokenGrid(id="tokens")
        self.waterfall = Waterfall(id="waterfall")
        self.told = Told(id="told")
        self.curves = Curves(id="curves")
        self.candidates = CandidateList(id="candidates")
        self.labels = LabelPosterior(id="labels")
        self.answer = Words(grows=True, classes="answer")
        self.status = StatusLine()
        self.hidden = Static("", classes="hidden")
        self.pane = "tokens"
        self.zoomed = False
        self._pictures = False
        self._token_lines = 0
        self._begun = False
        self._folding: tuple[object, ...] = ()
        self._state = ViewState()
        self._result: dict[str, object] | None = None
        self._blind = False
        self._factual: tuple[Mapping[str, object] | None, Finished | None] = None, None
        self._last: Callable[..., None] | None = None
        self._others: Callable[[], None] | None = None  # draws the other panes, once it is their turn
        self._others_at = float("-inf")

    def compose(self) -> ComposeResult:
        """Facts, phases, tokens, the lower panes, the answer, figures."""
        yield self.facts
        yield self.phases
        yield self.tokens
        with Container(classes="panes"):
            with Vertical(classes="left"):
                yield self.waterfall
                yield self.curves
            with Vertical(classes="right"):
                yield self.told
                yield self.candidates
                yield self.labels
        yield self.answer
        yield self.status
        yield self.hidden

    def show(
        self,
        state: ViewState,
        *,
        blind: bool = False,
        truth: bool = False,
        pulse: Pulse = NO_PULSE,
        waiting: str = "No tokens yet.",
        flash: bool = True,
        live: bool = False,
    ) -> None:
        """Draw a state.

        Args:
            state: what the events so far add up to.
            blind: only what an attacker would see.
            truth: the true tokens too (not while blind).
            pulse: how the attack's process is doing, where there is one.
            waiting: words in place of the tokens while there are none.
            flash: tokens that changed since the last call light up for a moment.
            live: the next state comes soon, and panes other than the tokens can wait for their turn.
        """
        self._last = functools.partial(
            self.show, state, blind=blind, truth=truth, pulse=pulse, waiting=waiting
        )
        if (state.settings, state.finished) != self._factual:
            self._factual = state.settings, state.finished
            self.facts.update(_facts(state), layout=False)
        others = functools.partial(self._show_others, state, blind=blind, pulse=pulse)
        self._state = state = self._followed(state)
        self.tokens.show(state, blind=blind, truth=truth, waiting=waiting, flash=flash)
        now = time.monotonic()
        if live and self._begun and now - self._others_at < SECONDS_BETWEEN_OTHERS:
            if self._others is None:  # where no other state comes, these are drawn all the same
                self.set_timer(3 * MOST_SECONDS_BETWEEN_LIVE_FRAMES, self._others_turn)
            self._others = others
        else:
            self._others, self._others_at = None, now
            others()
        result = state.finished.result if state.finished else None
        if self.answer.display != (result is not None):
            self.answer.display = result is not None
            self.call_after_refresh(self._share_out)  # how many lines it takes is known then
        self.tokens.set_class(bool(result and result.get("verified")), "-verified")
        self._result, self._blind = result, blind
        self._say_answer()
        begun, pictures = state.progress is not None, bool(state.progress and state.progress.image)
        self._begun, self._pictures = begun, pictures
        self._make_room()

    def _say_answer(self) -> None:
        if self._result is not None:
            short = self.has_class("-low") or self.has_class("-single") or self.size.width < SHORT_ANSWER
            self.answer.say(answer(self._result, blind=self._blind, short=short))

    def _others_turn(self) -> None:
        """Draw the other panes as they were shown last."""
        others, self._others = self._others, None
        if others is not None:
            self._others_at = time.monotonic()
            others()
            self._make_room()

    def _show_others(self, state: ViewState, *, blind: bool, pulse: Pulse) -> None:
        """Draw all but the tokens."""
        self.candidates.show(state, blind=blind)
        self.phases.show(state, blind=blind, now=pulse.now)
        self.status.show(state, blind=blind, pulse=pulse)
        self.told.show(state)
        self.curves.show(state, blind=blind)
        state = self._followed(state)
        self.labels.show(state, blind=blind)
        self._state = state
        self._fall()

    def _make_room(self) -> None:
        """Fold anew where other panes have something to show, else share the lines out."""
        folding = (self._begun, *self._panes)
        if folding != self._folding:
            self._folding = folding
            self._fold()
        else:
            self._share_out()

    def _fall(self) -> None:
        """Draw the waterfall around the position in focus, compared with the truth where that is shown."""
        self.waterfall.show(self._state, at=self.tokens.cursor, truth=self.tokens.truth_in_focus)

    def on_token_grid_moved(self, message: TokenGrid.Moved) -> None:
        """Another position is in focus."""
        message.stop()  # nobody above asks, and each that it passes costs
        self._fall()

    def on_token_grid_wrapped(self, message: TokenGrid.Wrapped) -> None:
        """The tokens have another width."""
        message.stop()
        self._share_out()

    def on_waterfall_moved(self, message: Waterfall.Moved) -> None:
        """An arrow key in the waterfall."""
        self.tokens.move(message.by)

    def on_waterfall_picked(self, message: Waterfall.Picked) -> None:
        """A click in the waterfall; the replay goes to its time."""
        self.tokens.focus_position(message.position)

    def forget(self) -> None:
        """Begin anew with another run."""
        self._last = None
        self.tokens.forget()
        self.candidates.followed = None

    def _followed(self, state: ViewState) -> ViewState:
        """The state with the tokens of the candidate that is followed."""
        chosen, progress = self.candidates.followed, state.progress
        title = "Pictures" if self.of_pictures or (progress is not None and progress.image) else "Tokens"
        if chosen is not None and progress is not None and chosen != progress.candidate:
            if chosen < len(progress.others):
                title = f"Tokens of candidate #{chosen + 1}, Esc in the list follows the best"
                sentences = sentences_of(progress.others[chosen], progress.sentences)
                state = dataclasses.replace(
                    state, progress=dataclasses.replace(progress, sentences=sentences)
                )
            else:
                title = f"Tokens of the best: those of candidate #{chosen + 1} were not recorded"
        if self.tokens.border_title != title:
            self.tokens.border_title = title
        return state

    def on_candidate_list_followed(self) -> None:
        """Another candidate was chosen."""
        if self._last is not None:
            self._last(flash=False)

    def on_mount(self) -> None:
        """Nothing has ended yet."""
        self.answer.display = False

    def on_resize(self) -> None:
        """Fold or unfold, and say the answer in as few words as the size asks for."""
        self._fold()
        self._say_answer()
        self.call_after_refresh(self._share_out)

    @property
    def recovered(self) -> str:
        """The text that is shown, a line a sentence."""
        progress = self._state.progress
        return "\n".join(sentence.text for sentence in progress.sentences) if progress is not None else ""

    def next_pane(self) -> None:
        """Show the next of the panes that share a place."""
        single = self.has_class("-single")
        sharing, here = (self._panes, self.pane) if single else (self._panes[1:], self._lower)
        if sharing:
            at = sharing.index(here) if here in sharing else -1
            self.pane = sharing[(at + 1) % len(sharing)]
            self._fold()

    def zoom(self) -> None:
        """Give the pane in focus all the room, or all panes theirs again."""
        self.zoomed = not self.zoomed
        if self.zoomed:
            panes = {name: self.query_one(f"#{name}") for name in self._panes}
            focused = [name for name, pane in panes.items() if pane.has_focus_within or pane.has_focus]
            self.pane = focused[0] if focused else "tokens"
        self._fold()

    @property
    def _panes(self) -> tuple[str, ...]:
        """Those that have something to show so far."""
        known = {
            "tokens": True,
            "told": self.told.known,
            "waterfall": not self._pictures,
            "curves": self.curves.known,
            "candidates": self.candidates.known,
            "labels": self.labels.known,
        }
        return tuple(name for name in PANES if known[name])

    @property
    def _lower(self) -> str:
        """The pane below the tokens where there is room for one."""
        sharing = self._panes[1:]
        if self.pane in sharing:
            return self.pane
        if not sharing or (self.has_class("-low") and "curves" in sharing):
            return "curves"
        return sharing[0]

    def _share_out(self) -> None:
        """Give the tokens the lines that they need, and the lower panes the rest."""
        single = self.has_class("-single")
        self.query_one(".panes").display = self.pane != "tokens" if single else self._begun
        if single or not self._begun:
            if self._token_lines:
                self._token_lines, self.tokens.styles.height = 0, "1fr"
            return
        above = (
            self.facts.size.height + self.phases.size.height + self.hidden.size.height * self.hidden.display
        )
        below = 1 + (self.answer.size.height or 2) * self.answer.display
        least = LEAST_LOW if self.has_class("-low") else LEAST_FOLDED if self.has_class("-folded") else LEAST
        room = self.size.height - above - below
        lines = self.tokens.fit(max(5, room - least))
        if self._token_lines != lines:
            self._token_lines = lines
            self.tokens.styles.height = lines
        # The right side: where not all fits, the candidates have what the labels leave.
        needed = sum(pane.lines + AROUND for pane in (self.candidates, self.labels) if pane.display)
        self.set_class(needed + LEAST_TOLD * self.told.display > room - lines, "-tight")

    def _fold(self) -> None:
        screen = self.screen.size
        width = self.outer_size.width
        single = self.zoomed or screen.width < SINGLE[0] or screen.height < SINGLE[1]
        folded = single or screen.height < FOLDED[1] or width < FOLDED[0]
        low = screen.height < LOW
        self.set_class(self.zoomed, "-zoomed")
        self.set_class(folded and not single, "-folded")
        self.set_class(low and not single, "-low")
        self.set_class(single, "-single")
        self.set_class(self._pictures, "-pictures")
        shown = {self.pane} if single else {"tokens", self._lower} if folded else set(self._panes)
        panes: dict[str, Widget] = {name: self.query_one(f"#{name}") for name in PANES}
        for name, pane in panes.items():
            pane.display = name in shown and name in self._panes
        for side in self.query(".left, .right"):
            side.display = any(pane.display for pane in side.children)
        self.phases.display = self.facts.display = not single
        away = [name for name in self._panes if name not in shown]
        if single:
            away = ["phases", *away]
        self.hidden.display = bool(away)
        keys = "v: next, z: all" if self.zoomed else "v: next"
        self.hidden.update(f"hidden: {', '.join(CALLED.get(name, name) for name in away)} ({keys})")
        self._share_out()


def sentences_of(tokens: Tokens, best: tuple[Sentence, ...]) -> tuple[Sentence, ...]:
    """A candidate's tokens as sentences; what the tokenizer set is as in the best answer."""
    found = []
    for row, words in enumerate(tokens):
        special = {(p.position, p.id) for p in (best[row].positions if row < len(best) else ()) if p.special}
        positions = tuple(
            Position(position=at, id=id, text=text, special=(at, id) in special)
            for at, (id, text) in enumerate(words)
        )
        text = " ".join(position.text for position in positions if not position.special)
        found.append(Sentence(positions=positions, text=text.replace(" ##", "")))
    return tuple(found)


def _facts(state: ViewState) -> Text:
    """What the run works on, in a line."""
    settings = state.settings
    text = Text(no_wrap=True, overflow="ellipsis")
    if not settings:
        return text
    text.append(f"{settings.get('attack', '?')}", style="bold")
    text.append(" on ").append(f"{settings.get('model', '?')}", style="bold")
    parts = ["random weights"] if settings.get("weights") == "random" else []
    # What runs differ in comes first: the end is cut where there is little width.
    parts += [f"share {settings.get('share')}"] if settings.get("share") else []
    # An audit's answer may have proved the rate that its settings could only assume.
    result = state.finished.result if state.finished is not None else None
    parts += [f"client {spec}" for spec in (result or {}).get("client") or settings.get("client") or ()]
    parts += [f"defense {spec}" for spec in settings.get("defense") or ()]
    batch, tokens = settings.get("batch_size"), settings.get("tokens")
    if batch:
        what = "picture" if "picture_shape" in settings else "sentence"
        parts.append(f"{batch} {what}{'s' if batch != 1 else ''}")
    if tokens:
        ratio = settings.get("tokens_per_hidden")
        parts.append(f"n = {tokens} tokens" + (f", n/D = {ratio:.2g}" if ratio else ""))
    parts += [f"seed {settings['seed']}"] if "seed" in settings else []
    return text.append(" · " + " · ".join(parts) if parts else "", style="dim")


def answer(result: dict[str, object], *, blind: bool = False, short: bool = False) -> Text:
    """How much leaked, in one sentence with the number, the channel, and whether it is verified."""
    if "images" in result:
        return Text(answer_of_pictures(result, blind=blind), style="bold")
    seen = {**result, "token_match_rate": None} if blind else result
    if blind and result.get("token_match_rate") is not None:
        # An audit's verdict goes by the truth then; what it found out without it is no secret of the blind.
        seen = {name: value for name, value in seen.items() if name != "verdict"}
    sentence = how_much(seen)
    rate = seen.get("token_match_rate")
    words = [f"match rate {rate:.2f}"] if isinstance(rate, int | float) else []
    verified = result.get("verified")
    if verified:
        spanned = result.get("proof") == "span"
        why = "the span proves every token" if spanned else "its own gradient equals the shared one"
        words.append("✓ verified" + ("" if short else f": {why}"))
    elif verified is None:
        reason = result.get("verified_reason")
        if reason:
            words.append(
                "whether it is the text can't be told" + ("" if short else f". {str(reason).rstrip('.')}")
            )
        else:
            words.append(
                "can't be verified" + ("" if short else ", as the gradient was changed before it was shared")
            )
    else:
        words.append("✗ not verified" + ("" if short else ": its own gradient differs from the shared one"))
    if short and (rate is not None or verified):
        sentence = sentence.partition(":")[0].rstrip(".") + "."
    return Text(sentence, style="bold").append(f" ({', '.join(words)})", style="not bold")


def answer_of_pictures(result: Mapping[str, object], *, blind: bool = False) -> str:
    """How much of the pictures leaked, in one sentence with the figure."""
    if blind or result.get("psnr") is None:
        distance = result.get("gradient_distance")
        told = (
            f": its own gradient is {distance:.1e} from the shared one" if isinstance(distance, float) else ""
        )
        return f"A picture was found{told}; without the true one nobody can say how near it is."
    return how_much(result)
