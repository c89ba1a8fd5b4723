"""The token grid: one block a sentence, one column a position, every state by sign and by color.

A column holds the position's number, the current token with its mark, a bar for the attack's confidence, the true
token where it is asked for and, where there is room, the next candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from textleak.events import Position, Sentence
from textleak.view import OPEN, SPECIAL, UNICODE, ViewState, right_of, statuses_of, surplus_of
from textleak.words import count_of, readable
from textleak_tui.widgets.bands import MOST_HEAD_LINES, TokenBands
from textleak_tui.widgets.cells import Cell, Head
from textleak_tui.widgets.drawn import OneLine
from textleak_tui.widgets.pictures import Pictures

CANDIDATES = 3
# Our choice: from so many lines on, what doesn't fit anyway is scrolled through with the text and the numbers above it.
SCROLLED_WITH_NUMBERS = 12


class TokenGrid(Vertical):
    """The sentences of a state as a grid of tokens, with the position in focus told in words below."""

    BORDER_TITLE = "Tokens"

    class Moved(Message):
        """Another position is in focus."""

    class Wrapped(Message):
        """The tokens may need another number of lines, as they have another width."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._bands = TokenBands(self._tell)
        self._pictures = Pictures()
        self._detail = OneLine(classes="detail")
        self._empty = Static("", classes="empty")
        self._sentences: tuple[Sentence, ...] = ()
        self._truths: list[Sentence | None] = []
        self._statuses: list[list[str]] = []
        self._truth = False
        self.secrets: tuple[str, ...] = ()
        self._pointed = (0, 0)

    def compose(self) -> ComposeResult:
        """The columns, the words in their place while there are none, and the position in focus."""
        yield self._empty
        yield self._bands
        yield self._pictures
        yield self._detail

    def on_mount(self) -> None:
        """Nothing to show yet."""
        self._bands.display = self._detail.display = self._pictures.display = False

    @property
    def cursor(self) -> tuple[int, int]:
        """Sentence and position in focus, from 0."""
        return self._bands.cursor

    @property
    def truth_in_focus(self) -> Sentence | None:
        """The true sentence of the one in focus, where the truth is shown."""
        sentence = self._bands.cursor[0]
        return self._truths[sentence] if self._truth and sentence < len(self._truths) else None

    def move(self, by: int) -> None:
        """Focus the position so many further."""
        self._bands.action_move(by)

    def focus_position(self, position: int) -> None:
        """Focus a position of the sentence in focus, from 0."""
        self._bands.go(self._bands.cursor[0], position)

    def forget(self) -> None:
        """Begin anew with another run."""
        self._bands.forget()

    def focus_tokens(self) -> None:
        """Give the columns the focus, so that the arrow keys move in them."""
        self._bands.focus()

    def show(
        self,
        state: ViewState,
        *,
        blind: bool = False,
        truth: bool = False,
        waiting: str = "No tokens yet.",
        flash: bool = True,
    ) -> None:
        """Draw a state.

        Args:
            state: what the events so far add up to.
            blind: only what an attacker would see: no truth, and nothing that was compared with it.
            truth: the true tokens too (not while blind).
            waiting: words in place of the tokens while there are none.
            flash: tokens that changed since the last call light up for a moment.
        """
        pictures = state.progress is not None and bool(state.progress.image)
        self._pictures.display = pictures
        if pictures:
            self._empty.display = self._bands.display = self._detail.display = False
            self.border_subtitle = ""
            self._pictures.show(state, blind=blind, truth=truth and not blind)
            return
        shown = state.progress.sentences if state.progress else ()
        truths: list[Sentence | None] = [None] * len(shown)
        if not blind:
            truths = state.assigned()
        self._sentences, self._truths, self._truth = shown, truths, truth and not blind
        self._empty.display = not shown
        self._bands.display = self._detail.display = bool(shown)
        if not shown:
            self._empty.update(waiting)
            self.border_subtitle = ""
            return
        secrets = self.secrets if self._truth else ()
        cells = [_cells(sentence, true, secrets) for sentence, true in zip(shown, truths, strict=True)]
        self._statuses = [[cell.status for cell in row] for row in cells]
        heads = [
            _head_of(i, len(shown), sentence, true, secrets)
            for i, (sentence, true) in enumerate(zip(shown, truths, strict=True))
        ]
        self._bands.show(cells, heads, truth=self._truth, flash=flash)
        self._tell()

    def fit(self, lines: int) -> int:
        """How many lines to take of so many: those that all the tokens need, with their candidates where they fit.

        Args:
            lines: what there is, border and the line below the columns included.
        """
        around = 1 + (self.outer_size.height - self.size.height if self.size.height else 2)
        if self._pictures.display:
            return min(lines, max(5, self._pictures.lines + around - 1))
        has_candidates = any(cell.next for cells in self._bands.sentences for cell in cells)
        choices = [(True, CANDIDATES, MOST_HEAD_LINES)] if has_candidates else []
        # In few lines the tokens come before the end of the text above them.
        few = [(True, 0, 1), (False, 0, 1)] if lines < SCROLLED_WITH_NUMBERS else []
        for numbered, listed, headed in (
            *choices,
            (True, 0, MOST_HEAD_LINES),
            (False, 0, MOST_HEAD_LINES),
            *few,
        ):
            needed = around + self._bands.lines_needed(numbered=numbered, listed=listed, headed=headed)
            if needed <= lines:
                break
        if needed > lines and len(self._sentences) > 1:
            self._bands.give(numbered=False, listed=0, headed=1, compact=True)
            return min(lines, max(5, self._bands.compact_lines + around))
        if needed > lines >= SCROLLED_WITH_NUMBERS:
            numbered = True
            needed = around + self._bands.lines_needed(numbered=numbered, listed=listed, headed=headed)
        self._bands.give(numbered=numbered, listed=listed, headed=headed)
        return min(lines, max(5, needed + self._bands.lines_for_truth))

    def on_resize(self) -> None:
        """Other tokens are in view."""
        self.call_after_refresh(self._tell)

    def on_token_bands_wrapped(self, message: TokenBands.Wrapped) -> None:
        """The columns wrap otherwise."""
        message.stop()
        self.post_message(self.Wrapped())

    def _tell(self) -> None:
        """The range in view, and the position in focus in words."""
        sentence, first, last, count = self._bands.in_view()
        if not count:
            return
        where = f"text {sentence + 1} of {len(self._sentences)}, " if len(self._sentences) > 1 else ""
        subtitle = f"{where}tokens {first}–{last} of {count}"
        if subtitle != self.border_subtitle:
            self.border_subtitle = subtitle
        s, p = self._bands.cursor
        if (s, p) != self._pointed:
            self._pointed = s, p
            self.post_message(self.Moved())
        if s < len(self._sentences) and p < len(self._sentences[s].positions):
            self._detail.say(self._words(self._sentences[s].positions[p], self._truths[s], s, p))

    def _words(self, position: Position, truth: Sentence | None, s: int, p: int) -> Text:
        status = self._statuses[s][p]
        style, dim = self._bands.look(f"token--{status}"), self._bands.look("token--number")
        word = readable(position.text) if position.id >= 0 else "open"
        text = Text(no_wrap=True)
        text.append(f"position {p + 1}  ", style=dim)
        text.append(f"{UNICODE.marks[status]} {word}", style=style)
        text.append(f"  {_MEANINGS[status]}", style=dim)
        if status not in (SPECIAL, OPEN):
            text.append(f"  confidence {position.confidence:.2f}", style=dim)
            text.append(f" by {position.channel}" if position.channel else "", style=dim)
        if self._truth and truth is not None and p < len(truth.positions):
            text.append("  true ", style=dim).append(readable(truth.positions[p].text))
            text.append(", of a planted secret" if self._bands.sentences[s][p].secret else "", style=dim)
        if position.candidates:
            text.append("  next: ", style=dim)
            for index, guess in enumerate(position.candidates[:3]):
                text.append(", " if index else "", style=dim)
                text.append(readable(guess.text)).append(f" {guess.score:.2f}", style=dim)
        return text


_MEANINGS = {
    "right": "right",
    "elsewhere": "in the sentence, not here",
    "wrong": "not in the sentence",
    "unknown": "a guess",
    "special": "set by the tokenizer",
    "open": "undecided",
}


def _cells(sentence: Sentence, truth: Sentence | None, secrets: Sequence[str]) -> list[Cell]:
    planted = _planted(truth, secrets)
    true = {} if truth is None else {p.position: readable(p.text) for p in truth.positions}
    return [
        Cell(
            word=readable(position.text) if position.id >= 0 else "",
            status=status,
            confidence=round(position.confidence, 2),
            true=true.get(position.position, ""),
            next=tuple(readable(guess.text) for guess in position.candidates[:CANDIDATES]),
            secret=position.position in planted,
        )
        for position, status in zip(sentence.positions, statuses_of(sentence, truth), strict=True)
    ]


def _planted(truth: Sentence | None, secrets: Sequence[str]) -> frozenset[int]:
    """The positions that planted secrets stand at."""
    if truth is None or not secrets:
        return frozenset()
    from textleak.data.planted import tokens_of

    words = [position.text for position in truth.positions]
    found = frozenset[int]().union(*(tokens_of(words, secret) for secret in secrets))
    return frozenset(truth.positions[at].position for at in found)


def _secrets_back(sentence: Sentence, truth: Sentence, secrets: Sequence[str]) -> str:
    """How many of the secrets of a sentence came back whole, in words; "" where it has none."""
    if not secrets:
        return ""
    from textleak.data.planted import holds

    mine = [secret for secret in secrets if holds(truth.text, secret)]
    back = sum(holds(sentence.text, secret) for secret in mine)
    return f"{back} of {count_of(len(mine), 'secret')} came back" if mine else ""


def _head_of(
    index: int, count: int, sentence: Sentence, truth: Sentence | None, secrets: Sequence[str]
) -> Head:
    words = [f"text {index + 1} of {count}"] if count > 1 else []
    if truth is not None:
        right, total = right_of(sentence, truth)
        surplus = surplus_of(sentence, truth)
        words.append(f"{right} of {total} right" + (f", {surplus} too many" if surplus else ""))
        words += [back] if (back := _secrets_back(sentence, truth, secrets)) else []
    if sentence.label is not None:
        words.append(f"label {sentence.label}")
    text = " ".join(readable(sentence.text).split()) if sentence.text else ""
    return Head(text=f"“{text}”" if text else "", words=" · ".join(words))
