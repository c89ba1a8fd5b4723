"""The columns of the token grid: one a position, with its number, token, bar of confidence and next candidates.

The true tokens, where they are asked for, stand below the bars: in the place of one of the candidates or, where none
are listed, of the blank line, so that nothing moves when they are shown or hidden.

A sentence's text stands whole above its columns. Where a batch has no room for columns, each sentence is running
text (`compact`): its tokens with their marks, a line a sentence.

Long sentences wrap into bands and scroll. Drawn line by line, only what is visible, so that 512 tokens cost no more
than twelve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView

from textleak.view import SPECIAL, UNICODE
from textleak_tui.widgets.cells import MARK, Band, Cell, Head, fit, flow_width, lines_of_band
from textleak_tui.widgets.drawn import Drawn, Line
from textleak_tui.widgets.flow import Piece, flowed, nearest

# Our choice: a little longer than frames are apart at most, so that the next one calms what has changed, at no cost.
FLASH_SECONDS = 0.7
# A column is as wide as the longest token seen so far, between these (our choice), and one more for the gap; where
# a sentence's columns leave room, they are spread up to the last.
NARROWEST, WIDEST, SPREAD = 5, 12, 16
FITTED = 7
# Our choice: lines of a sentence's text above its columns, and of the screen for each; a longer one is cut.
MOST_HEAD_LINES, SCREEN_LINES_A_HEAD_LINE = 6, 6


class TokenBands(ScrollView, Drawn, can_focus=True):
    """The columns themselves; `TokenGrid` puts words around them.

    Args:
        moved: called when another position is in focus, or others are in view.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
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
        "token--secret",
        "token--rest",
        "token--next",
        "token--head",
    }

    class Wrapped(Message):
        """The columns wrap otherwise, as there is another width: at first there is none."""

    def __init__(self, moved: Callable[[], None]) -> None:
        super().__init__()
        self._moved = moved
        self.sentences: list[list[Cell]] = []
        self.heads: list[Head] = []
        self.bands: list[Band] = []
        self.cursor = (0, 0)
        self.numbered = True
        self.listed = 0
        self.headed = MOST_HEAD_LINES
        self.compact = False
        self.truth = False
        self._flow: list[list[Piece]] = []
        self._head_lines: list[int] = []
        self._flashing: frozenset[tuple[int, int]] = frozenset()
        self._words: dict[tuple[int, int], str] = {}
        self._width = self._longest = NARROWEST
        self._shape: tuple[object, ...] = ()
        self._columns_drawn: dict[tuple[object, ...], Line] = {}  # of the sentences that are shown

    @property
    def _room(self) -> int:
        """Columns of the screen that tokens can take: the scroll bar has one of its own."""
        return self.scrollable_content_region.width

    @property
    def rows(self) -> int:
        """Lines of a band, the blank one below it included."""
        return 3 + self.numbered + self.listed

    @property
    def columns(self) -> int:
        """Columns that fit side by side."""
        return self._columns(self._width)

    def _columns(self, width: int) -> int:
        return max(1, (self._room + 1) // (width + 1))

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
        self._columns_drawn = {}
        if flash:
            self._flashing = changed
            if changed:
                self.set_timer(FLASH_SECONDS, lambda: self._calm(changed))
        self.redraw()

    def forget(self) -> None:
        """Begin anew with another run: nothing flashes, columns are narrow again."""
        self._words, self._flashing, self._shape = {}, frozenset(), ()
        self._width = self._longest = NARROWEST
        self.sentences, self.heads, self.bands, self.cursor = [], [], [], (0, 0)
        self._flow, self._head_lines, self._columns_drawn = [], [], {}
        self.scroll_home(animate=False)

    def _calm(self, changed: frozenset[tuple[int, int]]) -> None:
        if self._flashing is changed:
            self._flashing = frozenset()
            self.redraw()

    def lines_needed(self, *, numbered: bool, listed: int, headed: int) -> int:
        """How many lines everything takes; the true tokens left out.

        Args:
            numbered: with numbers above the tokens.
            listed: candidates below each.
            headed: lines of a sentence's text, at most.
        """
        rows = 3 + numbered + listed
        heads = sum(min(headed, self._head_lines[band.sentence]) for band in self.bands if not band.start)
        return rows * len(self.bands) + heads - bool(self.bands)

    @property
    def lines_for_truth(self) -> int:
        """Lines more than that for the true tokens: in the last band there is no blank line to stand in."""
        return int(self.truth and not self.listed)

    def _arrange(self) -> None:
        """Where each band begins; only when the shape has changed."""
        most = max(map(len, self.sentences), default=1)
        spread = (self._room + 1) // max(1, most) - 1
        # A sentence that all but fits is made to fit: its longest tokens are cut.
        fits = FITTED <= spread < self._longest
        self._width = spread if fits else max(self._longest, min(SPREAD, spread))
        self._head_lines = [len(head.lines(self._room, self._most_head_lines)) for head in self.heads]
        widths = tuple(tuple(map(flow_width, cells)) for cells in self.sentences) if self.compact else ()
        sizes = tuple(map(len, self.sentences)), self._room, self._width, tuple(self._head_lines), self.headed
        shape = (*sizes, self.rows, self.truth, self.compact, widths)
        if shape == self._shape:
            return
        self._shape = shape
        lines_taken = self._arrange_bands(self.rows)
        self._flow = flowed(widths, self._room, self._indent)
        height = len(self._flow) if self.compact else max(0, lines_taken - 1) + self.lines_for_truth
        self.virtual_size = Size(self._room, height)
        sentence = min(self.cursor[0], max(0, len(self.sentences) - 1))
        last = len(self.sentences[sentence]) - 1 if self.sentences else 0
        self.cursor = (sentence, max(0, min(self.cursor[1], last)))

    @property
    def _most_head_lines(self) -> int:
        return max(1, min(MOST_HEAD_LINES, self.screen.size.height // SCREEN_LINES_A_HEAD_LINE))

    def _arrange_bands(self, rows: int) -> int:
        """Lay out the columns; how many lines they take."""
        bands, line = [], 0
        for index, cells in enumerate(self.sentences):
            for start in range(0, len(cells), self.columns):
                stop = min(len(cells), start + self.columns)
                headed = 0 if start else min(self.headed, self._head_lines[index])
                bands.append(Band(sentence=index, start=start, stop=stop, first=line, headed=headed))
                line += rows + headed
        self.bands = bands
        return line

    @property
    def _indent(self) -> int:
        """Columns before running text: a sentence's number."""
        return len(str(len(self.sentences))) + 1

    @property
    def compact_lines(self) -> int:
        """How many lines the batch takes as running text."""
        widths = [list(map(flow_width, cells)) for cells in self.sentences]
        return len(flowed(widths, self._room, self._indent))

    def give(self, *, numbered: bool, listed: int, headed: int, compact: bool = False) -> None:
        """Draw as `lines_needed` counts; or `compact`, as running text."""
        if (numbered, listed, headed, compact) != (self.numbered, self.listed, self.headed, self.compact):
            self.numbered, self.listed, self.headed, self.compact = numbered, listed, headed, compact
            self._arrange()
            self.redraw()

    def on_resize(self) -> None:
        """Wrap anew."""
        before = self._shape
        self._arrange()
        if self._shape != before:
            self.post_message(self.Wrapped())
        self.refresh()

    def notify_style_update(self) -> None:
        """Colors may have changed; those of the kinds of tokens follow only now."""
        super().notify_style_update()
        self._columns_drawn = {}
        self.call_after_refresh(self._moved)

    def in_view(self) -> tuple[int, int, int, int]:
        """Sentence in view, its first and last position in view (1-based), and how many it has."""
        top, bottom = self.scroll_offset.y, self.scroll_offset.y + self.size.height
        if self.compact:
            sentence = min(self.cursor[0], len(self.sentences) - 1)
            count = len(self.sentences[sentence])
            return sentence, min(1, count), count, count
        seen = [
            band
            for band in self.bands
            # A band is in view when its row of tokens is.
            if top <= band.first + band.headed + self.numbered < bottom
        ] or self.bands[:1]
        if not seen:
            return 0, 0, 0, 0
        sentence = self.cursor[0] if any(b.sentence == self.cursor[0] for b in seen) else seen[0].sentence
        mine = [band for band in seen if band.sentence == sentence]
        return sentence, mine[0].start + 1, mine[-1].stop, len(self.sentences[sentence])

    def draw(self) -> list[Line]:
        """The lines in view."""
        top, width, kinds = (
            self.scroll_offset.y,
            self._room,
            lines_of_band(self.numbered, self.truth, self.listed),
        )
        lines = range(top, top + self.size.height)
        if self.compact:
            return [self._running_text(line, width) for line in lines]
        return [self._line(line, width, kinds) for line in lines]

    def _line(self, line: int, width: int, kinds: tuple[str, ...]) -> Line:
        band = self._band_at(line)
        if band is None:
            return []
        row = line - band.first - band.headed
        if row < 0:
            return self._head(self.heads[band.sentence], band.headed + row, width)
        if row >= len(kinds):
            return []
        segments: Line = []
        cursor = self.cursor[1] if self.has_focus and self.cursor[0] == band.sentence else -1
        for position in range(band.start, band.stop):
            segments += self._column(band.sentence, position, kinds[row], position == cursor)
            segments.append(Segment(" "))
        return segments

    def _head(self, head: Head, number: int, width: int) -> Line:
        """A line of the text so far; beside the first one how it stands."""
        most = min(self.headed, self._most_head_lines)
        quiet, lines = self.look("token--number"), head.lines(width, most)
        text, words = lines[number] if number < len(lines) else "", head.words if number == 0 else ""
        return [
            Segment(text, self.look("token--head")),
            Segment(" " * (width - cell_len(text) - cell_len(words)), quiet),
            Segment(words, quiet),
        ]

    def _running_text(self, number: int, width: int) -> Line:
        """A line of running text."""
        if number >= len(self._flow):
            return []
        line = self._flow[number]
        before = self._flow[number - 1] if number else []
        begins = bool(line) and (not before or before[-1].sentence != line[0].sentence)
        name = str(line[0].sentence + 1) if begins else ""
        segments, x = [Segment(fit(name, self._indent), self.look("token--number"))], self._indent
        for piece in line:
            cell = self.sentences[piece.sentence][piece.position]
            here = (piece.sentence, piece.position) == self.cursor and self.has_focus
            style = self.look(f"token--{cell.status}")
            if (piece.sentence, piece.position) in self._flashing:
                style += self.look("token--flash")
            style += Style(underline=True) if here else Style()
            segments.append(Segment(" " * (piece.x - x)))
            segments.append(Segment(fit(UNICODE.marks[cell.status] + cell.word, piece.width), style))
            x = piece.x + piece.width
        return segments

    def _band_at(self, line: int) -> Band | None:
        for band in self.bands:
            if band.first <= line < band.first + self.rows + band.headed:
                return band
        return None

    def _column(self, sentence: int, position: int, kind: str, here: bool) -> Line:
        """A position's part of a line; most stay as they were when the cursor moves."""
        flashing = (sentence, position) in self._flashing
        key = sentence, position, kind, here, flashing, self._width
        if key not in self._columns_drawn:
            cell = self.sentences[sentence][position]
            self._columns_drawn[key] = self._new_column(cell, position, kind, here=here, flashing=flashing)
        return self._columns_drawn[key]

    def _new_column(self, cell: Cell, position: int, kind: str, *, here: bool, flashing: bool) -> Line:
        width = self._width
        if kind == "number":
            style = self.look("token--cursor") if here else self.look("token--number")
            return [Segment(set_cell_size(str(position + 1), width), style)]
        if kind == "true":
            # Below its token, which has a mark before it.
            mark, kind = (MARK, "secret") if cell.secret else (" ", "true")
            return [Segment(fit(f"{mark}{cell.true}", width), self.look(f"token--{kind}"))]
        style = self.look(f"token--{cell.status}")
        if kind == "word":
            if flashing:
                style += self.look("token--flash")
            if here:
                style += Style(underline=True)
            return [Segment(fit(UNICODE.marks[cell.status] + cell.word, width), style)]
        if kind != "bar":
            rank = int(kind)
            word = cell.next[rank] if rank < len(cell.next) else ""
            return [Segment(fit(f" {word}" if word else "", width), self.look("token--next"))]
        if cell.status == SPECIAL:
            return [Segment(" " * width)]
        filled = round(max(0.0, min(1.0, cell.confidence)) * width)
        return [
            Segment(UNICODE.bar * filled, Style(color=style.color)),
            Segment(UNICODE.rest * (width - filled), self.look("token--rest")),
        ]

    # No bindings: on its way up to the app, which looks for those, a key is handled by each widget that is around.

    def key_left(self, event: events.Key) -> None:
        """Focus the position to the left."""
        event.stop()
        self.action_move(-1)

    def key_right(self, event: events.Key) -> None:
        """Focus the position to the right."""
        event.stop()
        self.action_move(1)

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
        self.go(sentence, position)

    def action_line(self, by: int) -> None:
        """Focus the row above or below."""
        if self.compact:
            self._go_by_lines(by)
            return
        index = self._band_of_cursor()
        if index is None:
            return
        band = self.bands[index]
        other = self.bands[max(0, min(len(self.bands) - 1, index + by))]
        self.go(other.sentence, min(other.stop - 1, other.start + self.cursor[1] - band.start))

    def action_edge(self, end: int) -> None:
        """Focus the first or the last position of all."""
        if self.sentences:
            sentence = len(self.sentences) - 1 if end else 0
            self.go(sentence, len(self.sentences[sentence]) - 1 if end else 0)

    def _go_by_lines(self, by: int) -> None:
        at = self._line_of_cursor()
        if at is None:
            return
        x = next(p.x for p in self._flow[at] if (p.sentence, p.position) == self.cursor)
        piece = nearest(self._flow[max(0, min(len(self._flow) - 1, at + by))], x)
        if piece is not None:
            self.go(piece.sentence, piece.position)

    def _line_of_cursor(self) -> int | None:
        for number, line in enumerate(self._flow):
            if any((piece.sentence, piece.position) == self.cursor for piece in line):
                return number
        return None

    def _band_of_cursor(self) -> int | None:
        for index, band in enumerate(self.bands):
            if band.sentence == self.cursor[0] and band.start <= self.cursor[1] < band.stop:
                return index
        return None

    def go(self, sentence: int, position: int) -> None:
        """Focus a position, and bring it into view."""
        if not self.sentences:
            return
        self.cursor = (sentence, max(0, min(position, len(self.sentences[sentence]) - 1)))
        index = self._line_of_cursor() if self.compact else self._band_of_cursor()
        if index is not None and self.compact:
            self.scroll_to_region(Region(0, index, self._room, 1), animate=False)
        elif index is not None:
            band = self.bands[index]
            lines = self.rows + band.headed - 1 + self.lines_for_truth
            self.scroll_to_region(Region(0, band.first, self._room, lines), animate=False)
        self.redraw()
        self._moved()

    def on_click(self, event: events.Click) -> None:
        """Focus the position that was clicked."""
        if self.compact:
            line = event.y + self.scroll_offset.y
            piece = nearest(self._flow[line], event.x) if line < len(self._flow) else None
            if piece is not None:
                self.go(piece.sentence, piece.position)
            return
        band = self._band_at(event.y + self.scroll_offset.y)
        if band is not None:
            self.go(band.sentence, min(band.stop - 1, band.start + event.x // (self._width + 1)))

    def on_focus(self) -> None:
        """Show where the focus is."""
        self.refresh()
        if self.sentences:
            self._moved()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Tell the grid that other tokens are in view."""
        super().watch_scroll_y(old_value, new_value)
        self._moved()
