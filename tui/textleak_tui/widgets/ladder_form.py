"""The form of a ladder: the sentence, which defense grows by which option, its strengths, and what stays the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Static, TextArea

from textleak.errors import InputError
from textleak_tui import ladder
from textleak_tui.catalog import Catalog
from textleak_tui.field import Field
from textleak_tui.fields import FIELDS
from textleak_tui.ladder import Knob
from textleak_tui.setups import TEXT, check_sentences, sentences_of
from textleak_tui.widgets.setup_form import ComboBox, FieldRow, SentenceInput


def _field(name: str, **changes: Any) -> Field:  # noqa: ANN401 - any of Field's own
    return dataclasses.replace(next(field for field in FIELDS if field.name == name), **changes)


def _check_knob(text: str, catalog: Catalog) -> None:
    if catalog.defenses:
        ladder.knob_named(catalog, text)


LADDER_FIELDS = (
    _field("model"),
    _field("attack"),
    _field("share"),
    Field(
        name="knob",
        title="Defense",
        flag="",
        words="which defense grows, and by which of its options",
        default="gaussian sigma",
        options=ladder.knob_options,
        check=_check_knob,
    ),
    Field(
        name="rungs",
        title="Ladder",
        flag="",
        words="its strengths, with commas between; none is without the defense",
        default="none, 0.0001, 0.001, 0.01",
    ),
    _field("seed", words="the same for every rung"),
)


class LadderForm(Vertical):
    """The sentence and the fields of the ladder.

    Args:
        values: the fields' texts; their defaults where there are none.
        used: gives the fields of the run screen as they were last used: what isn't here is as there.
    """

    DEFAULT_CSS = """
    LadderForm {
        height: auto; max-height: 100%; overflow-y: auto; scrollbar-size-vertical: 1; padding: 0 1;
        & .title { width: 10; color: $text-muted; }
        & .hint {
            width: 1fr; height: 1; color: $text-muted; padding: 0 0 0 1; text-wrap: nowrap; text-overflow: ellipsis;
        }
        & .more { width: 2; color: $text-muted; }
        & .-wrong, & .-wrong .hint { color: $error; }
        & .-wrong .hint { height: auto; text-wrap: wrap; }
        & .sentence-row { height: auto; }
        & SentenceInput { height: auto; min-height: 1; max-height: 4; width: 1fr; background: $panel; padding: 0 1; }
        & SentenceInput { border: none; }
        & SentenceInput:focus { background: $accent 18%; }
        & .wrong { color: $error; padding: 0 0 0 10; height: auto; }
        & .rest { height: auto; color: $text-muted; padding: 0 0 0 10; }
    }
    """

    class Changed(Message):
        """A field or the sentence is another one."""

    class Start(Message):
        """The ladder is asked for."""

    def __init__(self, values: Mapping[str, str], used: Callable[[], Mapping[str, str]]) -> None:
        super().__init__()
        self.catalog = Catalog()
        self.knob: Knob | None = None
        self.sentences = SentenceInput(
            placeholder=TEXT.invitation, id="ladder-sentences", compact=True, highlight_cursor_line=False
        )
        self.rows = {f.name: FieldRow(f, values.get(f.name, f.default)) for f in LADDER_FIELDS}
        self._wrong = Static("", classes="wrong", markup=False)
        self._rest = Static("", classes="rest", markup=False)
        self._used = used
        self._suggested = ""

    def compose(self) -> ComposeResult:
        """The sentence first."""
        with Horizontal(classes="sentence-row"):
            yield Static("Sentence", classes="title")
            yield self.sentences
        yield self._wrong
        yield from self.rows.values()
        yield self._rest

    def on_mount(self) -> None:
        """Nothing is wrong yet."""
        self._wrong.display = self._rest.display = False
        self.check()

    @property
    def texts(self) -> dict[str, str]:
        """The ladder's own fields, to be remembered."""
        return {name: row.box.input.value for name, row in self.rows.items()}

    @property
    def values(self) -> dict[str, str]:
        """The fields of the run: those here, and the others as they were last used on the run screen."""
        used = self._used()
        here = {name: text.strip() for name, text in self.texts.items()}
        return {f.name: here.get(f.name, str(used.get(f.name, f.default))) for f in FIELDS}

    @property
    def private_batch(self) -> list[str]:
        """The private sentences as they are."""
        return sentences_of(self.sentences.text)

    def strengths(self) -> list[str]:
        """The rungs.

        Raises:
            InputError: the defense or its rungs can't be used.
        """
        knob = ladder.knob_named(self.catalog, self.rows["knob"].box.input.value)
        return ladder.strengths(knob, self.rows["rungs"].box.input.value)

    def command_lines(self) -> list[str]:
        """The ladder as command lines; none while it can't run."""
        try:
            return [] if self.knob is None else self._lines(self.knob)
        except InputError:
            return []

    def _lines(self, knob: Knob) -> list[str]:
        return ladder.command_lines(self.private_batch, self.values, knob, self.strengths())

    def list_names(self, catalog: Catalog) -> None:
        """Take in what attacks and defenses there are."""
        self.catalog = catalog
        for row in self.rows.values():
            row.box.options = list(row.field.options(catalog))
        self.check()

    def check(self) -> bool:
        """Judge every field; whether the ladder can run."""
        rows = self.rows
        fine = [row.check(self.catalog) for name, row in rows.items() if name != "rungs"]
        self.knob = None
        try:
            self.knob = ladder.knob_named(self.catalog, rows["knob"].box.input.value)
        except InputError:
            rows["rungs"].tell()
            return False
        self._suggest(self.knob)
        try:
            self.strengths()
            rows["rungs"].error = None
        except InputError as error:
            rows["rungs"].error = error
        rows["rungs"].tell()
        self._tell_rest()
        return all(fine) and rows["rungs"].error is None

    def _tell_rest(self) -> None:
        """What the run screen has that isn't a default."""
        defaults = {field.name: field.default for field in FIELDS}
        others = [
            f"{name} {value}"
            for name, value in self.values.items()
            if name not in self.rows and value and value != defaults[name]
        ]
        self._rest.display = bool(others)
        self._rest.update(f"and as last used on the run screen: {', '.join(others)}")

    def check_sentences(self) -> bool:
        """Whether there is a sentence; else it is said and gets the focus."""
        try:
            check_sentences(self.private_batch)
        except InputError as error:
            self.say(f"✗ {error.what} {error.fix}")
            self.sentences.focus()
            return False
        return True

    def focus_wrong(self) -> None:
        """Go to the first field that can't be used."""
        wrong = next((row for row in self.rows.values() if row.error is not None), self.rows["knob"])
        wrong.box.input.focus()

    def say(self, words: str) -> None:
        """Words below the sentence; none take them away."""
        self._wrong.update(words)
        self._wrong.display = bool(words)

    def _suggest(self, knob: Knob) -> None:
        """Another defense has other strengths, unless a person wrote some."""
        field = self.rows["rungs"].box.input
        suggested = ", ".join(knob.suggested())
        if field.value.strip() in ("", self._suggested) and field.value != suggested:
            with self.prevent(field.Changed):
                field.value = suggested
        self._suggested = suggested

    @on(ComboBox.Changed)
    def _field_changed(self, message: ComboBox.Changed) -> None:
        message.stop()
        if message.name == "knob" and self.knob is not None:
            self._suggested = ", ".join(self.knob.suggested())
        self.check()
        self.post_message(self.Changed())

    @on(TextArea.Changed)
    def _sentence_changed(self) -> None:
        self.say("")
        self.post_message(self.Changed())

    @on(SentenceInput.Start)
    def _enter(self, message: SentenceInput.Start) -> None:
        message.stop()
        self.post_message(self.Start())
