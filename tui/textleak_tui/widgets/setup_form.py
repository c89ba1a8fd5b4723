"""The setup of a run: a sentence, a line a field with its words or its error beside it, and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Click
from textual.message import Message
from textual.widgets import Button, Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option as Line

from textleak.errors import InputError
from textleak_tui.catalog import Catalog
from textleak_tui.field import Field, Option
from textleak_tui.setups import TEXT, Setup, command_line, sentences_of
from textleak_tui.stories import STORIES


class SentenceInput(TextArea):
    """The private batch: Enter starts the run, Ctrl+N begins another sentence."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "Start", show=False, priority=True),
        Binding("ctrl+n,shift+enter,alt+enter", "another", "Another sentence", show=False, priority=True),
    ]

    class Start(Message):
        """Enter was pressed."""

    def action_start(self) -> None:
        """Ask for the run to start."""
        self.post_message(self.Start())

    def action_cursor_down(self, select: bool = False) -> None:
        """The next line; from the last one, the next field."""
        if not select and self.cursor_location[0] == self.document.line_count - 1:
            self.screen.focus_next()
        else:
            super().action_cursor_down(select)

    def action_another(self) -> None:
        """Begin another line."""
        self.insert("\n")


class ComboInput(Input):
    """The text of a `ComboBox`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "choose(1)", "Next choice", show=False),
        Binding("up", "choose(-1)", "Choice before", show=False),
        Binding("enter", "accept", "Accept", show=False),
        Binding("escape", "close", "Close", show=False),
    ]

    def action_choose(self, by: int) -> None:
        """Open the list, or move in it."""
        self._box.choose(by)

    def action_accept(self) -> None:
        """Take the choice, or go on to the next field."""
        if not self._box.accept():
            self.screen.focus_next()

    def action_close(self) -> None:
        """Close the list."""
        self._box.close()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Escape means something else while the list is closed."""
        return self._box.opened if action == "close" else super().check_action(action, parameters)

    @property
    def _box(self) -> ComboBox:
        assert isinstance(self.parent, ComboBox)
        return self.parent


class ComboBox(Vertical):
    """A text field with a list of names below it: typing narrows the list down, any text may stay."""

    @dataclasses.dataclass
    class Changed(Message):
        """The text is another one."""

        name: str
        value: str

    def __init__(self, field: Field, value: str) -> None:
        super().__init__()
        self.field = field
        self.options: list[Option] = []
        self.input = ComboInput(value, placeholder=field.empty, compact=True, id=f"field-{field.name}")
        self.list = OptionList(compact=True)
        self.list.can_focus = False

    def compose(self) -> ComposeResult:
        """Text and list."""
        yield self.input
        yield self.list

    @property
    def opened(self) -> bool:
        """Whether the list is open."""
        return self.has_class("-open")

    def choose(self, by: int) -> None:
        """Open the list with everything in it, or move in it; where there is none, to the next field."""
        if not self.options:
            (self.screen.focus_next if by > 0 else self.screen.focus_previous)()
            return
        if not self.opened:
            self._open(self.options)
            return
        if by > 0:
            self.list.action_cursor_down()
        else:
            self.list.action_cursor_up()

    def accept(self) -> bool:
        """Take the choice; False where the list is closed."""
        if not self.opened:
            return False
        at = self.list.highlighted
        if at is not None:
            self._take(str(self.list.get_option_at_index(at).id))
        self.close()
        return True

    def close(self) -> None:
        """Close the list."""
        self.remove_class("-open")

    def _take(self, name: str) -> None:
        with self.prevent(Input.Changed):
            self.input.value = name
        self.input.cursor_position = len(name)
        self.post_message(self.Changed(self.field.name, name))

    def _open(self, options: list[Option]) -> None:
        if not options:
            self.close()
            return
        longest = max(len(option.name) for option in options)
        self.list.clear_options()
        for option in options:
            line = Text(f"{option.name:<{longest}}", no_wrap=True, overflow="ellipsis")
            self.list.add_option(Line(line.append(f"  {option.words}", style="dim"), id=option.name))
        names = [option.name for option in options]
        self.list.highlighted = names.index(self.input.value) if self.input.value in names else 0
        self.add_class("-open")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if self.input.has_focus:
            # The last of several blank-separated names is the one being typed.
            text = event.value.rpartition(" ")[2].lower()
            matching = [option for option in self.options if text in option.name.lower()]
            exact = len(matching) == 1 and matching[0].name == event.value
            if text and matching and not exact:
                self._open(matching)
            else:
                self.close()
        self.post_message(self.Changed(self.field.name, event.value))

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._take(str(event.option.id))
        self.close()
        self.input.focus()

    def on_descendant_blur(self) -> None:
        """Leaving the field closes its list."""
        self.close()


class FieldRow(Horizontal):
    """Title, text, and beside it what the field is or what is wrong with it."""

    def __init__(self, field: Field, value: str) -> None:
        super().__init__()
        self.field = field
        self.box = ComboBox(field, value)
        self.set_class(not field.rare, "-common")
        self.hint = Static("", classes="hint")
        self.error: InputError | None = None
        self.note = ""

    def compose(self) -> ComposeResult:
        """Title, text, hint."""
        yield Static(self.field.title, classes="title")
        yield self.box
        yield Static(
            "▾" if self.field.options(Catalog()) or self.field.name in _LISTED else " ", classes="more"
        )
        yield self.hint

    def on_click(self, event: Click) -> None:
        """A click on the arrow opens the list."""
        self.box.input.focus()
        if isinstance(event.widget, Static) and event.widget.has_class("more"):
            self.box.choose(1)

    def check(self, catalog: Catalog) -> bool:
        """Judge the text; whether it can be used."""
        try:
            self.field.check(self.box.input.value.strip(), catalog)
            self.error = None
        except InputError as error:
            self.error = error
        self.tell()
        return self.error is None

    def tell(self) -> None:
        """Say what the field is, what the chosen name means, or what is wrong."""
        self.set_class(self.error is not None, "-wrong")
        if self.error is not None:
            rest = " ".join(part for part in (self.error.why or self.error.fix,) if part)
            self.hint.update(Text(f"✗ {self.error.what} {rest}"))
            return
        value = self.box.input.value.strip()
        words = next((o.words for o in self.box.options if o.name == value), "") or self.field.words
        self.hint.update(Text(f"{words}{self.note}"))


_LISTED = ("attack", "client", "defense", "defenses", "knob", "model")
# Lines of the screen above and below the form.
_AROUND = 2
# Lines of the form beside its fields' where recordings stand below them; what is too low has them in one line, above.
_AROUND_STORIES = 10
# Width from which on recordings have a sentence each.
WITH_WORDS = 130


class SetupForm(Vertical):
    """All fields, the sentence first, and the command line below them."""

    class Start(Message):
        """The run is asked for."""

    class Copy(Message):
        """The command line is asked for."""

    def __init__(self, values: Mapping[str, str], setup: Setup = TEXT, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.setup = setup
        self.catalog = Catalog()
        self.sentences = SentenceInput(
            placeholder=setup.invitation,
            id="sentences",
            compact=True,
            highlight_cursor_line=False,
        )
        self.sentence_hint = Static("", classes="hint")
        self.rows = {
            field.name: FieldRow(field, values.get(field.name, field.default)) for field in setup.fields
        }
        self.command = Static("", classes="command")
        self.notice = Static("", classes="notice")
        self.warmth = Static("", classes="warmth")
        self.stories, self.stories_line = Static(classes="stories"), Static(classes="stories -line")

    def compose(self) -> ComposeResult:
        """Sentence, fields, command line."""
        # As it will most likely be: all styles below are worked out anew where that was wrong.
        self._air(self.app.size.width, self.app.size.height - _AROUND)
        with VerticalScroll(can_focus=False, classes="fields"):
            question, invitation = self.setup.intro
            yield Static(f"[b]{question}[/b]  [dim]{invitation}[/dim]", classes="intro")
            yield self.notice
            with Horizontal(classes="sentence-row"):
                yield Static(self.setup.title, classes="title")
                with Vertical():
                    yield self.sentences
                    yield self.sentence_hint
            if self.setup is TEXT:
                yield self.stories_line
            yield from (row for row in self.rows.values() if not row.field.rare)
            if self.setup is TEXT:
                yield self.stories
            yield Static(
                "[dim]More settings; Ctrl+P finds any by its name, Ctrl+B sets all back:[/]", classes="rare"
            )
            yield from (row for row in self.rows.values() if row.field.rare)
        with Horizontal(classes="command-row"):
            yield Button("▶ Start", id="start", variant="success", compact=True)
            yield self.command
            yield self.warmth

    def on_mount(self) -> None:
        """Check everything once."""
        self.notice.display = False
        self.list_names(self.catalog)
        self.sentences.focus()

    def on_resize(self) -> None:
        """Air between the fields where there is room for it, none where there is not."""
        before = self.classes
        self._air(*self.size)
        if self.classes != before:
            self.update_node_styles()
        if (focused := self.screen.focused) is not None and self in focused.ancestors:
            self.call_after_refresh(focused.scroll_visible, animate=False)

    def _air(self, width: int, height: int) -> None:
        self.set_class(width < 80, "-narrow", update=False)
        self.set_class(width < 100, "-slim", update=False)
        self.set_class(width >= 120, "-wide", update=False)
        self.set_class(height < 18, "-low", update=False)
        common = sum(not row.field.rare for row in self.rows.values())
        self.set_class(height >= 2 * common + 10, "-roomy", update=False)
        self.set_class(height < common + _AROUND_STORIES, "-brief", update=False)
        self.stories.update(_stories(words=width >= WITH_WORDS))
        self.stories_line.update(_stories_line("Watch" if width < 80 else "Or watch a recording:"))

    @property
    def values(self) -> dict[str, str]:
        """The fields as they are."""
        return {name: row.box.input.value.strip() for name, row in self.rows.items()}

    @property
    def private_batch(self) -> list[str]:
        """The sentences as they are."""
        return sentences_of(self.sentences.text)

    def list_names(self, catalog: Catalog) -> None:
        """Take in what attacks, clients and defenses there are."""
        self.catalog = catalog
        for row in self.rows.values():
            row.box.options = list(row.field.options(catalog))
        self._update()

    def fill(self, values: Mapping[str, str], sentences: str) -> None:
        """Set every field."""
        for name, row in self.rows.items():
            row.box.input.value = values.get(name, row.field.default)
        self.sentences.text = sentences
        self.sentences.move_cursor(self.sentences.document.end)

    def reset(self) -> None:
        """Every field as it was at first; the batch stays."""
        self.fill({}, self.sentences.text)

    def action_field(self, name: str) -> None:
        """Go to a field."""
        self.rows[name].box.input.focus()

    def say(self, words: Text | None) -> None:
        """Words above the fields, for what was wrong with the run that was tried; None takes them away."""
        self.notice.display = words is not None
        if words is not None:
            self.notice.update(words)

    def tell_warmth(self, doing: str, ready: str) -> None:
        """Say what is being loaded while one types, and what is.

        Args:
            doing: in words, "" for nothing.
            ready: the model that is loaded, "" for none.
        """
        words = f"◌ {doing}" if doing else f"● {ready} is loaded" if ready else ""
        if words != str(self.warmth.content):
            self.warmth.update(Text(words))

    def check(self) -> bool:
        """Whether the run can start; else the first wrong field gets the focus."""
        wrong = [row for row in self.rows.values() if not row.check(self.catalog)]
        try:
            self.setup.check(self.private_batch)
            self._hint_sentences()
        except InputError as error:
            self.sentence_hint.update(Text(f"✗ {error.what} {error.fix}"))
            self.sentence_hint.add_class("-wrong", "-told")
            self.sentences.focus()
            return False
        if wrong:
            wrong[0].box.input.focus()
        return not wrong

    def _update(self) -> None:
        attack = self.rows["attack"].box.input.value.strip()
        for name in {"restarts", "steps"} & self.rows.keys():
            default = self.catalog.option_default(attack, name)
            row = self.rows[name]
            row.note = f"; {attack}'s own: {default}" if default is not None else ""
        for row in self.rows.values():
            row.check(self.catalog)
        self.command.update(
            Text.assemble(("$ ", "dim"), command_line(self.private_batch, self.values, self.setup))
        )

    def _hint_sentences(self) -> None:
        self.sentence_hint.remove_class("-wrong")
        count = len(self.private_batch)
        self.sentence_hint.set_class(count > 1, "-told")
        self.sentence_hint.update(self.setup.several.format(count))

    @on(ComboBox.Changed)
    def _field_changed(self) -> None:
        self._update()

    @on(TextArea.Changed)
    def _sentence_changed(self) -> None:
        self._hint_sentences()
        self.command.update(
            Text.assemble(("$ ", "dim"), command_line(self.private_batch, self.values, self.setup))
        )

    @on(SentenceInput.Start)
    @on(Button.Pressed, "#start")
    def _start(self) -> None:
        self.post_message(self.Start())

    def on_click(self, event: object) -> None:
        """A click on the command line copies it."""
        if getattr(event, "widget", None) is self.command:
            self.post_message(self.Copy())


def _stories(*, words: bool) -> str:
    """The recordings that come with the app, a line each; a click plays one."""
    lines = [
        f"[@click=app.story('{story.name}')]▶ {story.title}[/]  [dim]{story.key}[/]"
        + (f"  [dim]{story.words}[/]" if words else "")
        for story in STORIES
    ]
    return "\n".join(["[dim]Or watch a recording first:[/]", *lines])


def _stories_line(head: str) -> str:
    """The same in one line."""
    links = [f"[@click=app.story('{story.name}')]▶ {story.brief}[/] [dim]{story.key}[/]" for story in STORIES]
    return f"[dim]{head}[/] " + "  ".join(links)
