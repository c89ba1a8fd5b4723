"""The token grid: one block a sentence, one column a position, every state by sign and by color.

A column holds the position's number, the true token where it is asked for, the current token with its mark, a bar
for the attack's confidence and, where there is room, the next three candidates. Long sentences wrap into bands and
scroll. Drawn line by line, only what is visible, so that 512 tokens cost no more than twelve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Static

from textleak.events import Position, Sentence
from textleak.view import OPEN, SPECIAL, UNICODE, ViewState, right_of, statuses_of, surplus_of
from textleak.words import readable
from textleak_tui.widgets.pictures import Pictures

FLASH_SECONDS = 0.45
# A column is as wide as the longest token seen so far, between these (our choice), and one more for the gap; where
# a sentence's columns leave room, they are spread up to the last.
NARROWEST, WIDEST, SPREAD = 5, 12, 16
FITTED = 7
CANDIDATES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A position as it is drawn."""

    word: str
    status: str
    confidence: float
    true: str
    next: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """A part of a sentence that stands in one row of columns; `first` is where its lines begin."""

    sentence: int
    start: int
    stop: int
    first: int
    headed: bool

    @property
    def columns(self) -> int:
        """How many positions stand in it."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The line above a sentence: its text so far, and words on how it stands."""

    text: str
    words: str


class TokenBands(ScrollView, can_focus=True):
    """The columns themselves; `TokenGrid` puts words around them.

    Args:
        moved: called when another position is in focus, or others are in view.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Position to the left", show=False),
        Binding("right", "move(1)", "Position to the right", show=False),
        Binding("up", "line(-1)", "Row above", show=False),
        Binding("down", "line(1)", "Row below", show=False),
        Binding("home", "edge(0)", "First position", show=False),
        Binding("end", "edge(1)", "Last position", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "token--right",
        "token--elsewhere",
        "token--wrong",
        "token--unknown",
        "token--special",
        "token--open",
        "token--flash",
        "token--cursor",
        "token--number",
        "token--true",
        "token--rest",
        "token--next",
        "token--head",
    }

    def __init__(self, moved: Callable[[], None]) -> None:
        super().__init__()
        self._moved = moved
        self.sentences: list[list[Cell]] = []
        self.heads: list[Head] = []
        self.bands: list[Band] = []
        self.cursor = (0, 0)
        self.numbered = True
        self.listed = 0
        self.truth = False
        self._flashing: frozenset[tuple[int, int]] = frozenset()
        self._words: dict[tuple[int, int], str] = {}
        self._width = self._longest = NARROWEST
        self._shape: tuple[object, ...] = ()

    @property
    def rows(self) -> int:
        """Lines of a band, the blank one below it included."""
        return 3 + self.numbered + self.truth + self.listed

    @property
    def columns(self) -> int:
        """Columns that fit side by side."""
        return self._columns(self._width)

    def _columns(self, width: int) -> int:
        return max(1, (self.size.width + 1) // (width + 1))

    def show(self, sentences: list[list[Cell]], heads: list[Head], *, truth: bool, flash: bool) -> None:
        """Draw these sentences; `flash` marks what changed since the last time."""
        words = {(s, p): c.word for s, cells in enumerate(sentences) for p, c in enumerate(cells)}
        changed = frozenset(at for at, word in words.items() if at in self._words and self._words[at] != word)
        if sentences == self.sentences and heads == self.heads and truth == self.truth:
            return
        longest = max((cell_len(w) + 1 for w in words.values()), default=NARROWEST)
        if truth:
            longest = max(longest, *(cell_len(c.true) + 1 for cells in sentences for c in cells), NARROWEST)
        self._longest = max(self._longest, min(WIDEST, longest))
        self.sentences, self.heads, self.truth, self._words = sentences, heads, truth, words
        self._arrange()
        if flash and changed:
            self._flashing = changed
            self.set_timer(FLASH_SECONDS, lambda: self._calm(changed))
        self.refresh()

    def forget(self) -> None:
        """Begin anew with another run: nothing flashes, columns are narrow again."""
        self._words, self._flashing, self._shape = {}, frozenset(), ()
        self._width = self._longest = NARROWEST
        self.sentences, self.heads, self.bands, self.cursor = [], [], [], (0, 0)
        self.scroll_home(animate=False)

    def _calm(self, changed: frozenset[tuple[int, int]]) -> None:
        if self._flashing is changed:
            self._flashing = frozenset()
            self.refresh()

    def lines_needed(self, *, numbered: bool, listed: int) -> int:
        """How many lines everything takes, with or without numbers and candidates."""
        rows = 3 + self.truth + numbered + listed
        return sum(rows + band.headed for band in self.bands) - bool(self.bands)

    def _arrange(self) -> None:
        """Where each band begins; only when the shape has changed."""
        most = max(map(len, self.sentences), default=1)
        spread = (self.size.width + 1) // max(1, most) - 1
        # A sentence that all but fits is made to fit: its longest tokens are cut.
        fits = FITTED <= spread < self._longest
        self._width = spread if fits else max(self._longest, min(SPREAD, spread))
        shape = (tuple(map(len, self.sentences)), self.size.width, self._width, self.rows)
        if shape == self._shape:
            return
        self._shape = shape
        bands, line = [], 0
        for index, cells in enumerate(self.sentences):
            for start in range(0, len(cells), self.columns):
                stop = min(len(cells), start + self.columns)
                bands.append(Band(sentence=index, start=start, stop=stop, first=line, headed=start == 0))
                line += self.rows + (start == 0)
        self.bands = bands
        self.virtual_size = Size(self.size.width, max(0, line - 1))
        sentence = min(self.cursor[0], max(0, len(self.sentences) - 1))
        last = len(self.sentences[sentence]) - 1 if self.sentences else 0
        self.cursor = (sentence, max(0, min(self.cursor[1], last)))

    def give(self, *, numbered: bool, listed: int) -> None:
        """Draw numbers above the tokens or not, and so many candidates under each."""
        if (numbered, listed) != (self.numbered, self.listed):
            self.numbered, self.listed = numbered, listed
            self._arrange()
            self.refresh()

    def on_resize(self) -> None:
        """Wrap anew."""
        self._arrange()
        self.refresh()

    def notify_style_update(self) -> None:
        """Colors have changed."""
        super().notify_style_update()
        self.refresh()

    def in_view(self) -> tuple[int, int, int, int]:
        """Sentence in view, its first and last position in view (1-based), and how many it has."""
        top, bottom = self.scroll_offset.y, self.scroll_offset.y + self.size.height
        seen = [
            band
            for band in self.bands
            # A band is in view when its row of tokens is.
            if top <= band.first + band.headed + self.numbered + self.truth < bottom
        ] or self.bands[:1]
        if not seen:
            return 0, 0, 0, 0
        sentence = self.cursor[0] if any(b.sentence == self.cursor[0] for b in seen) else seen[0].sentence
        mine = [band for band in seen if band.sentence == sentence]
        return sentence, mine[0].start + 1, mine[-1].stop, len(self.sentences[sentence])

    def render_line(self, y: int) -> Strip:
        """One line of the widget."""
        line = y + self.scroll_offset.y
        band = self._band_at(line)
        width = self.size.width
        if band is None:
            return Strip.blank(width, self.rich_style)
        row = line - band.first - band.headed
        if row < 0:
            return self._head(self.heads[band.sentence], width)
        kinds = (
            *(("number",) if self.numbered else ()),
            *(("true",) if self.truth else ()),
            "word",
            "bar",
            *(str(rank) for rank in range(self.listed)),
        )
        if row >= len(kinds):
            return Strip.blank(width, self.rich_style)
        segments: list[Segment] = []
        for position in range(band.start, band.stop):
            segments += self._column(band.sentence, position, kinds[row])
            segments.append(Segment(" "))
        return Strip(segments).adjust_cell_length(width).apply_style(self.rich_style)

    def _head(self, head: Head, width: int) -> Strip:
        """The text so far, and how it stands."""
        quiet = self._style("token--number")
        left = max(0, width - cell_len(head.words) - 2)
        text = head.text if cell_len(head.text) <= left else _fit(head.text, left)
        segments = [
            Segment(text, self._style("token--head")),
            Segment(" " * (width - cell_len(text) - cell_len(head.words)), quiet),
            Segment(head.words, quiet),
        ]
        return Strip(segments).adjust_cell_length(width).apply_style(self.rich_style)

    def _band_at(self, line: int) -> Band | None:
        for band in self.bands:
            if band.first <= line < band.first + self.rows + band.headed:
                return band
        return None

    def _column(self, sentence: int, position: int, kind: str) -> list[Segment]:
        cell, width = self.sentences[sentence][position], self._width
        here = (sentence, position) == self.cursor and self.has_focus
        if kind == "number":
            style = self._style("token--cursor") if here else self._style("token--number")
            return [Segment(set_cell_size(str(position + 1), width), style)]
        if kind == "true":
            return [Segment(_fit(cell.true, width), self._style("token--true"))]
        style = self._style(f"token--{cell.status}")
        if kind == "word":
            if (sentence, position) in self._flashing:
                style += self._style("token--flash")
            if here:
                style += Style(underline=True)
            return [Segment(_fit(UNICODE.marks[cell.status] + cell.word, width), style)]
        if kind != "bar":
            rank = int(kind)
            word = cell.next[rank] if rank < len(cell.next) else ""
            return [Segment(_fit(f" {word}" if word else "", width), self._style("token--next"))]
        if cell.status == SPECIAL:
            return [Segment(" " * width)]
        filled = round(max(0.0, min(1.0, cell.confidence)) * width)
        return [
            Segment(UNICODE.bar * filled, Style(color=style.color)),
            Segment(UNICODE.rest * (width - filled), self._style("token--rest")),
        ]

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(name)

    def action_move(self, by: int) -> None:
        """Focus the position `by` further; past an end, the neighboring sentence."""
        sentence, position = self.cursor
        if not self.sentences:
            return
        position += by
        if position < 0 and sentence > 0:
            sentence -= 1
            position = len(self.sentences[sentence]) - 1
        elif position >= len(self.sentences[sentence]) and sentence + 1 < len(self.sentences):
            sentence, position = sentence + 1, 0
        self._go(sentence, position)

    def action_line(self, by: int) -> None:
        """Focus the row above or below."""
        index = self._band_of_cursor()
        if index is None:
            return
        band = self.bands[index]
        other = self.bands[max(0, min(len(self.bands) - 1, index + by))]
        self._go(other.sentence, min(other.stop - 1, other.start + self.cursor[1] - band.start))

    def action_edge(self, end: int) -> None:
        """Focus the first or the last position of all."""
        if self.sentences:
            sentence = len(self.sentences) - 1 if end else 0
            self._go(sentence, len(self.sentences[sentence]) - 1 if end else 0)

    def _band_of_cursor(self) -> int | None:
        for index, band in enumerate(self.bands):
            if band.sentence == self.cursor[0] and band.start <= self.cursor[1] < band.stop:
                return index
        return None

    def _go(self, sentence: int, position: int) -> None:
        self.cursor = (sentence, max(0, min(position, len(self.sentences[sentence]) - 1)))
        index = self._band_of_cursor()
        if index is not None:
            band = self.bands[index]
            self.scroll_to_region(
                Region(0, band.first, self.size.width, self.rows + band.headed - 1), animate=False
            )
        self.refresh()
        self._moved()

    def on_click(self, event: events.Click) -> None:
        """Focus the position that was clicked."""
        band = self._band_at(event.y + self.scroll_offset.y)
        if band is not None:
            self._go(band.sentence, min(band.stop - 1, band.start + event.x // (self._width + 1)))

    def on_focus(self) -> None:
        """Show where the focus is."""
        self.refresh()
        if self.sentences:
            self._moved()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Tell the grid that other tokens are in view."""
        super().watch_scroll_y(old_value, new_value)
        self._moved()


class TokenGrid(Vertical):
    """The sentences of a state as a grid of tokens, with the position in focus told in words below."""

    BORDER_TITLE = "Tokens"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._bands = TokenBands(self._tell)
        self._pictures = Pictures()
        self._detail = Static("", classes="detail")
        self._empty = Static("", classes="empty")
        self._sentences: tuple[Sentence, ...] = ()
        self._truths: list[Sentence | None] = []
        self._statuses: list[list[str]] = []
        self._truth = False
        self._said = Text("")

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
            self._pictures.show(state, blind=blind)
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
        cells = [_cells(sentence, true) for sentence, true in zip(shown, truths, strict=True)]
        self._statuses = [[cell.status for cell in row] for row in cells]
        heads = [
            _head_of(i, len(shown), sentence, true)
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
        choices = [(True, CANDIDATES)] if has_candidates else []
        for numbered, listed in (*choices, (True, 0), (False, 0)):
            needed = self._bands.lines_needed(numbered=numbered, listed=listed) + around
            if needed <= lines:
                break
        # What doesn't fit anyway is scrolled through, and then the numbers help.
        numbered = numbered or (needed > lines and lines >= 12)
        self._bands.give(numbered=numbered, listed=listed)
        return min(lines, max(5, needed))

    def on_resize(self) -> None:
        """Other tokens are in view."""
        self.call_after_refresh(self._tell)

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
        if s < len(self._sentences) and p < len(self._sentences[s].positions):
            words = self._words(self._sentences[s].positions[p], self._truths[s], s, p)
            if words != self._said:
                self._said = words
                self._detail.update(words, layout=False)

    def _words(self, position: Position, truth: Sentence | None, s: int, p: int) -> Text:
        status = self._statuses[s][p]
        style = self._bands.get_component_rich_style(f"token--{status}")
        dim = self._bands.get_component_rich_style("token--number")
        word = readable(position.text) if position.id >= 0 else "open"
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"position {p + 1}  ", style=dim)
        text.append(f"{UNICODE.marks[status]} {word}", style=style)
        text.append(f"  {_MEANINGS[status]}", style=dim)
        if status not in (SPECIAL, OPEN):
            text.append(f"  confidence {position.confidence:.2f}", style=dim)
        if position.channel:
            text.append(f" by {position.channel}", style=dim)
        if self._truth and truth is not None and p < len(truth.positions):
            text.append("  true ", style=dim).append(readable(truth.positions[p].text))
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


def _cells(sentence: Sentence, truth: Sentence | None) -> list[Cell]:
    true = {} if truth is None else {p.position: readable(p.text) for p in truth.positions}
    return [
        Cell(
            word=readable(position.text) if position.id >= 0 else "",
            status=status,
            confidence=round(position.confidence, 2),
            true=true.get(position.position, ""),
            next=tuple(readable(guess.text) for guess in position.candidates[:CANDIDATES]),
        )
        for position, status in zip(sentence.positions, statuses_of(sentence, truth), strict=True)
    ]


def _head_of(index: int, count: int, sentence: Sentence, truth: Sentence | None) -> Head:
    words = [f"text {index + 1} of {count}"] if count > 1 else []
    if truth is not None:
        right, total = right_of(sentence, truth)
        surplus = surplus_of(sentence, truth)
        words.append(f"{right} of {total} right" + (f", {surplus} too many" if surplus else ""))
    if sentence.label is not None:
        words.append(f"label {sentence.label}")
    text = " ".join(readable(sentence.text).split()) if sentence.text else ""
    return Head(text=f"“{text}”" if text else "", words=" · ".join(words))


def _fit(word: str, width: int) -> str:
    """A word in exactly so many cells, cut with an ellipsis."""
    if cell_len(word) > width:
        return set_cell_size(set_cell_size(word, width - 1).rstrip() + UNICODE.ellipsis, width)
    return set_cell_size(word, width)
