"""The defense screen: one batch against a ladder of one defense, a run a rung, one after another."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Static, TextArea

from textleak.errors import InputError, TextleakError
from textleak.runs import without_truth
from textleak.view import UNICODE, ViewState
from textleak.words import count_of, loss_in_words, seconds_in_words
from textleak_tui import export, fields, ladder
from textleak_tui.child import Child, Failure
from textleak_tui.fields import FIELDS, Catalog, Field
from textleak_tui.ladder import Knob
from textleak_tui.recording import Recording
from textleak_tui.screens.base import Page
from textleak_tui.widgets.bars import Bar, Bars
from textleak_tui.widgets.run_table import RunTable
from textleak_tui.widgets.setup_form import ComboBox, FieldRow, SentenceInput
from textleak_tui.widgets.words import Words

FRAMES_A_SECOND = 8
SECONDS_TO_READ = 0.02
# Sizes of the screen below which the form folds away once the ladder runs, and the command lines go; from which
# on the plot stands beside the table, or below it. In less room it shares the table's place.
FORM, COMMANDS = 34, 26
BESIDE, BELOW = (100, 18), (60, 22)
SIGNS = {
    "waiting": "·",
    "loading": "◌",
    "running": "●",
    "done": "✓",
    "stopped": "■",
    "interrupted": "■",
    "failed": "✗",
    "not run": "–",
}
_NOTHING = (
    "Nothing has run yet.\n\nOne run a rung, one after another, each with the same seed: "
    "how much does this defense keep back, and from which strength on?\nF5 runs the ladder."
)
_TONES = {"done": "success", "running": "accent", "loading": "accent", "failed": "error"}
COLUMNS = {"strength": 0, "state": 0, "match rate": 0, "verified": 70, "loss": 84, "took": 70, "text": 140}


@dataclasses.dataclass
class Rung:
    """One run of the ladder, and how it stands."""

    strength: str
    arguments: list[str]
    folder: Path
    status: str = "waiting"
    state: ViewState = dataclasses.field(default_factory=ViewState)
    failure: Failure | None = None
    seconds: float = 0.0

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it came to, once it has."""
        return self.state.finished.result if self.state.finished is not None else None

    @property
    def took(self) -> float:
        """The attack's own time, once it is over; until then the process's, loading included."""
        seconds = (self.result or {}).get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else self.seconds

    @property
    def rate(self) -> float | None:
        """The match rate, or how it stands so far."""
        if self.result is not None:
            rate = self.result.get("token_match_rate")
            return float(rate) if isinstance(rate, int | float) else None
        return self.state.points[-1].match_rate if self.state.points else None


def _field(name: str, **changes: Any) -> Field:  # noqa: ANN401 - any of Field's own
    return dataclasses.replace(next(field for field in FIELDS if field.name == name), **changes)


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
        check=lambda text, catalog: (
            None if not catalog.defenses else _ignore(ladder.knob_named(catalog, text))
        ),
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


def _ignore(_: object) -> None:
    """A check says what is wrong by raising."""


class DefenseScreen(Page):
    """A form for the ladder, and below it a row a rung and the plot."""

    place = "defenses"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f5,ctrl+r", "start", "Start", priority=True, tooltip="Run the ladder, one rung after another."
        ),
        Binding(
            "x",
            "stop",
            "Stop",
            tooltip="Stop the rung that runs with its best answer, and leave out the rest.",
        ),
        Binding("n", "edit", "Change", tooltip="Back to the sentence and the ladder."),
        Binding("o", "open", "Open", show=False, tooltip="Replay the run of a rung."),
        Binding(
            "ctrl+l",
            "copy",
            "Copy commands",
            priority=True,
            tooltip="Copy the ladder as command lines, one a rung, to the clipboard.",
        ),
        Binding("e", "export", "Export", tooltip="Write the ladder as a picture, a table and JSON."),
        Binding("v", "other", "Plot", tooltip="In little room: the plot in the table's place, or back."),
    ]
    DEFAULT_CSS = """
    DefenseScreen {
        & .form { height: auto; max-height: 100%; overflow-y: auto; scrollbar-size-vertical: 1; padding: 0 1; }
        & .form .title { width: 10; color: $text-muted; }
        & .form .hint {
            width: 1fr; height: 1; color: $text-muted; padding: 0 0 0 1; text-wrap: nowrap; text-overflow: ellipsis;
        }
        & .form .more { width: 2; color: $text-muted; }
        & .form .-wrong, & .form .-wrong .hint { color: $error; }
        & .form .-wrong .hint { height: auto; text-wrap: wrap; }
        & .sentence-row { height: auto; }
        & SentenceInput { height: auto; min-height: 1; max-height: 4; width: 1fr; background: $panel; padding: 0 1; }
        & SentenceInput { border: none; }
        & SentenceInput:focus { background: $accent 18%; }
        & .form .wrong { color: $error; padding: 0 0 0 10; height: auto; }
        & .rest { height: auto; color: $text-muted; padding: 0 0 0 10; }
        & .results { height: 1fr; }
        & .empty { height: 1fr; content-align: center middle; text-align: center; color: $text-muted; padding: 0 4; }
        & RunTable { width: 3fr; }
        & Bars { width: 2fr; height: 1fr; max-height: 20; }
        & .results.-stacked {
            layout: vertical;
            & RunTable { width: 1fr; height: auto; min-height: 4; max-height: 60%; }
            & Bars { width: 1fr; height: 1fr; min-height: 6; }
        }
        & .results.-alone RunTable { height: 1fr; max-height: 100%; }
        & .verdict { height: auto; padding: 0 2; text-style: bold; }
        & .words { height: auto; max-height: 6; padding: 0 2; color: $text-muted; }
        & .commands.-none { display: none; }
        & .commands { height: auto; max-height: 7; padding: 0 2; background: $surface; color: $text-muted; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog()
        self.sentences = SentenceInput(
            placeholder="type a private sentence, then Enter (Ctrl+N begins another one)",
            id="ladder-sentences",
            compact=True,
            highlight_cursor_line=False,
        )
        self.rows: dict[str, FieldRow] = {}
        self.wrong = Static("", classes="wrong", markup=False)
        self.rest = Static("", classes="rest", markup=False)
        self.table = RunTable()
        self.bars = Bars()
        self.results = Horizontal(classes="results")
        self.empty = Words(grows=True, classes="empty")
        self.verdict = Words(grows=True, classes="verdict")
        self.words = Words(grows=True, classes="words")
        self.commands = Static("", classes="commands", markup=False)
        self.rungs: list[Rung] = []
        self.child: Child | None = None
        self.going = False
        self.stopping = False
        self._editing = True
        self._plot = False
        self._knob: Knob | None = None
        self._wanted = False
        self._suggested = ""
        self._columns: tuple[str, ...] = ()

    def content(self) -> Iterable[Widget]:
        """Form, table and plot, what it says, the command lines."""
        remembered = self.textleak.remembered.get("ladder")
        values = {str(k): str(v) for k, v in remembered.items()} if isinstance(remembered, dict) else {}
        self.rows = {f.name: FieldRow(f, values.get(f.name, f.default)) for f in LADDER_FIELDS}
        self.form = Form(self.sentences, self.wrong, list(self.rows.values()), self.rest)
        yield self.form
        with self.results:
            yield self.table
            yield self.bars
            yield self.empty
        yield self.verdict
        yield self.words
        yield self.commands

    def on_mount(self) -> None:
        """Take what names are remembered, and ask for them anew."""
        super().on_mount()
        self.bars.border_title = "Match rate by strength"
        self._take(Catalog.from_json(self.textleak.remembered.get("catalog")))
        self._list_names()
        self.watch(self.app, "theme", lambda: self.refresh_view(), init=False)
        self.sentences.focus()
        self._lay_out()

    @work(exclusive=True, group="catalog")
    async def _list_names(self) -> None:
        catalog = await fields.list_catalog()
        if catalog.defenses:
            self._take(catalog)
            self.textleak.remember("catalog", catalog.to_json())

    def _take(self, catalog: Catalog) -> None:
        self.catalog = catalog
        for row in self.rows.values():
            row.box.options = list(row.field.options(catalog))
        self._check()
        if self._wanted and catalog.defenses:
            self._wanted = False
            self.wrong.display = False
            self.action_start()

    def on_screen_resume(self) -> None:
        """The run screen's other fields may be different ones."""
        if self.is_mounted:
            self._check()

    # The form

    @property
    def values(self) -> dict[str, str]:
        """The fields of the run: those here, and the others as they were last used on the run screen."""
        remembered = self.textleak.remembered.get("fields")
        known = {field.name: field.default for field in FIELDS}
        used = remembered if isinstance(remembered, dict) else {}
        here = {name: row.box.input.value.strip() for name, row in self.rows.items()}
        return {name: here.get(name, str(used.get(name, default))) for name, default in known.items()}

    @property
    def private_batch(self) -> list[str]:
        """The sentences as they are."""
        return fields.sentences_of(self.sentences.text)

    def _check(self) -> bool:
        """Judge every field; whether the ladder can run."""
        rows = self.rows
        fine = [row.check(self.catalog) for name, row in rows.items() if name != "rungs"]
        self._knob = None
        try:
            self._knob = ladder.knob_named(self.catalog, rows["knob"].box.input.value)
        except InputError:
            return False
        self._suggest(self._knob)
        try:
            ladder.strengths(self._knob, rows["rungs"].box.input.value)
            rows["rungs"].error = None
        except InputError as error:
            rows["rungs"].error = error
        rows["rungs"].tell()
        defaults = {field.name: field.default for field in FIELDS}
        others = [
            f"{name} {value}"
            for name, value in self.values.items()
            if name not in rows and value and value != defaults[name]
        ]
        self.rest.display = bool(others)
        self.rest.update(f"and as last used on the run screen: {', '.join(others)}")
        self._tell_commands()
        return all(fine) and rows["rungs"].error is None

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
        if message.name == "knob" and self._knob is not None:
            self._suggested = ", ".join(self._knob.suggested())
        self._check()

    @on(TextArea.Changed)
    def _sentence_changed(self) -> None:
        self.wrong.display = False
        self._tell_commands()

    @on(SentenceInput.Start)
    def _enter(self) -> None:
        self.action_start()

    def _tell_commands(self) -> None:
        self.commands.update(
            Text("\n").join(Text(f"$ {line}", no_wrap=True) for line in self.command_lines())
        )

    def command_lines(self) -> list[str]:
        """The ladder as command lines; none while it can't run."""
        if self._knob is None:
            return []
        try:
            rungs = ladder.strengths(self._knob, self.rows["rungs"].box.input.value)
        except InputError:
            return []
        return ladder.command_lines(self.private_batch, self.values, self._knob, rungs)

    # The runs

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that mean nothing now are not in the footer."""
        allowed = {
            "start": not self.going,
            "stop": self.going,
            "edit": bool(self.rungs) and not self.form.display if self.is_mounted else False,
            "open": bool(self.rungs),
            "export": bool(self.rungs) and not self.going,
            "other": bool(self.rungs) and not self._roomy,
        }
        return allowed.get(action, True)

    def action_start(self) -> None:
        """Run the ladder, where it can be."""
        fine = self._check()
        try:
            fields.check_sentences(self.private_batch)
        except InputError as error:
            self.wrong.update(f"✗ {error.what} {error.fix}")
            self.wrong.display = True
            self._editing = True
            self._lay_out()
            self.sentences.focus()
            return
        if fine and self._knob is not None:
            self._climb(self._knob)
            return
        self._editing = True
        if not self.catalog.defenses:
            self._wanted = True
            self.wrong.update("◌ Asking what defenses there are. The ladder starts as soon as that is known.")
            self.wrong.display = True
            return
        self._lay_out()
        wrong = next((row for row in self.rows.values() if row.error is not None), self.rows["knob"])
        wrong.box.input.focus()

    @work(exclusive=True, group="ladder")
    async def _climb(self, knob: Knob) -> None:
        """One rung after another."""
        values, batch = self.values, self.private_batch
        self.textleak.remember("ladder", {name: row.box.input.value for name, row in self.rows.items()})
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        mark = secrets.token_hex(2)
        self.rungs = [
            Rung(
                strength=strength,
                arguments=ladder.arguments(batch, values, knob, strength),
                folder=self.textleak.root / f"{now}-ladder-{mark}-{number}-{knob.defense}",
            )
            for number, strength in enumerate(ladder.strengths(knob, self.rows["rungs"].box.input.value), 1)
        ]
        self.going, self.stopping, self._editing = True, False, False
        self._lay_out()
        self.table.focus()
        for rung in self.rungs:
            if self.stopping:
                rung.status = "not run"
            else:
                await self._run(rung)
        self.going, self.child = False, None
        self._lay_out()

    async def _run(self, rung: Rung) -> None:
        """One rung's run, watched until its process has ended."""
        self.child = child = Child(rung.folder)
        self.textleak.own(child)
        rung.status, began = "loading", time.monotonic()
        self._draw()
        try:
            await child.start(rung.arguments)
        except OSError as error:
            rung.status = "failed"
            rung.failure = Failure(
                what="The attack's process can't be started.",
                why=f"{error.strerror or error}.",
                fix="Free some memory or processes, then start it again.",
            )
            return
        recording: Recording | None = None
        while True:
            ended = child.ended
            if recording is None and (rung.folder / "events.jsonl").exists():
                try:
                    recording = Recording(rung.folder)
                except InputError:
                    recording = None
            if recording is not None and recording.read(SECONDS_TO_READ):
                rung.state, rung.status = recording.state(), "running"
            rung.seconds = time.monotonic() - began
            if ended and (recording is None or recording.whole):
                break
            self._draw()
            await asyncio.sleep(1 / FRAMES_A_SECOND)
        finished = rung.state.finished
        if finished is None or finished.outcome == "failed":
            rung.status, rung.failure = "failed", child.failure()
        else:
            rung.status = finished.outcome
        self._draw()

    def action_stop(self) -> None:
        """Stop the rung that runs; asked again, by force."""
        self.stopping = True
        if self.child is not None:
            self.child.stop()
        self._draw()

    # What is on the screen

    @property
    def _beside(self) -> bool:
        return self.size.width >= BESIDE[0] and self.size.height >= BESIDE[1]

    @property
    def _roomy(self) -> bool:
        return self._beside or (self.size.width >= BELOW[0] and self.size.height >= BELOW[1])

    def on_resize(self, event: events.Resize) -> None:
        """Fold or unfold."""
        del event
        self._lay_out()

    def refresh_view(self) -> None:
        """Blind or the theme has changed."""
        self._columns = ()
        self._draw()

    def _lay_out(self) -> None:
        if not self.is_mounted:
            return
        self.form.display = self._editing or self.size.height >= FORM
        self.commands.display = self.size.height >= COMMANDS or not self.rungs
        self.results.set_class(not self._beside, "-stacked")
        self.refresh_bindings()
        self._columns = ()
        self._draw()

    def _draw(self) -> None:
        if not self.is_mounted:
            return
        begun = bool(self.rungs)
        self.empty.say("" if begun else _NOTHING)
        self.table.display = begun and (self._roomy or not self._plot)
        self.bars.display = begun and (self._roomy or self._plot)
        self.results.set_class(not self.bars.display, "-alone")
        self._fill()
        self._tell()
        blind = self.textleak.blind
        self.bars.show(
            tuple(
                Bar(name=r.strength, rate=r.rate, moving=r.status in ("running", "loading"))
                for r in self.rungs
            ),
            instead="It takes the truth to know a match rate; b shows it." if blind and begun else "",
        )

    def _tell(self) -> None:
        """What the ladder says, and what is wrong with the rung under the cursor."""
        over = [rung for rung in self.rungs if rung.status not in ("waiting", "loading", "running")]
        text = ""
        if self.going:
            text = f"{len(over)} of {count_of(len(self.rungs), 'rung')} {'is' if len(over) == 1 else 'are'} done."
            text += " Stopping; x again stops by force." if self.stopping else ""
        elif self.rungs and self._knob is not None and not self.textleak.blind:
            rates = [(rung.strength, rung.rate) for rung in over if rung.result is not None]
            text = ladder.verdict(self._knob, [(name, rate) for name, rate in rates if rate is not None])
        self.verdict.say(text)
        words = Text()
        rung = self._rung()
        if rung is not None and rung.failure is not None:
            parts = (rung.failure.what, rung.failure.why, rung.failure.fix)
            words.append(f"✗ {rung.strength}: {' '.join(part for part in parts if part)}")
            for line in rung.failure.lines[-3:]:
                words.append(f"\n  │ {line}")
        if self.rungs and not self._roomy:
            other = "table" if self._plot else "plot"
            words.append("\n" if words.plain else "").append(f"hidden: {other} (v shows it)", style="italic")
        self.words.say(words)

    def _fill(self) -> None:
        columns = tuple(name for name, width in COLUMNS.items() if self.size.width >= width)
        if columns != self._columns or len(self.table.rows) != len(self.rungs):
            at = self.table.cursor_row
            self.table.clear(columns=True)
            for name in columns:
                self.table.add_column(name, key=name)
            for number, rung in enumerate(self.rungs):
                self.table.add_row(*self._cells(rung, columns), key=str(number))
            if self.rungs:
                self.table.move_cursor(row=min(at, len(self.rungs) - 1), scroll=False)
            self._columns = columns
            return
        for number, rung in enumerate(self.rungs):
            for name, cell in zip(columns, self._cells(rung, columns), strict=True):
                if self.table.get_cell(str(number), name) != cell:
                    self.table.update_cell(str(number), name, cell, update_width=True)

    def _cells(self, rung: Rung, columns: Sequence[str]) -> list[Text]:
        colors, blind = self.app.theme_variables, self.textleak.blind
        phase = rung.state.progress.phase if rung.status == "running" and rung.state.progress else ""
        status = f"{SIGNS.get(rung.status, '?')} {phase or rung.status}"
        rate = Text("")
        if rung.rate is not None:
            rate = Text("····" if blind else f"{rung.rate:.2f} ")
            if not blind:
                filled = round(rung.rate * 8)
                rate.append(UNICODE.bar * filled, style=colors["success"])
                rate.append(UNICODE.rest * (8 - filled), style=colors["border-blurred"])
        verified = None if rung.result is None else rung.result.get("verified")
        known = {True: "✓ yes", False: "✗ no"}.get(verified, "can't be told") if rung.result else ""  # type: ignore[arg-type]
        loss = rung.state.progress.loss if rung.state.progress else None
        shown = rung.state.progress.sentences if rung.state.progress else ()
        cells = {
            "strength": Text(rung.strength, style="bold"),
            "state": Text(f"{status:<13}", style=colors[_TONES.get(rung.status, "foreground")]),
            "match rate": rate,
            "verified": Text(known),
            "loss": Text("" if loss is None else loss_in_words(loss)),
            "took": Text(seconds_in_words(rung.took) if rung.seconds else ""),
            "text": Text(_short(" / ".join(sentence.text for sentence in shown), 60), style="dim"),
        }
        return [cells[name] for name in columns]

    def _rung(self) -> Rung | None:
        at = self.table.cursor_row
        return self.rungs[at] if 0 <= at < len(self.rungs) else None

    def on_data_table_row_highlighted(self) -> None:
        """Another rung is under the cursor."""
        self._tell()

    def on_data_table_row_selected(self) -> None:
        """Enter or a click on a rung."""
        self.action_open()

    def action_open(self) -> None:
        """Replay a rung's run."""
        rung = self._rung()
        if rung is not None and (rung.folder / "run.json").exists():
            self.textleak.open_replay(rung.folder)
        elif rung is not None:
            self.notify("It has written nothing yet.", title="Nothing to replay")

    def action_edit(self) -> None:
        """Show the form again."""
        self._editing = True
        self._lay_out()
        self.sentences.focus()

    def action_other(self) -> None:
        """Plot or table."""
        self._plot = not self._plot
        self._draw()

    def action_copy(self) -> None:
        """Copy the command lines."""
        lines = self.command_lines()
        if lines:
            self.app.copy_to_clipboard("\n".join(lines))
            self.notify(f"{count_of(len(lines), 'command line')} copied to the clipboard.", timeout=3)

    def action_export(self) -> None:
        """Write the ladder."""
        knob = self._knob
        if knob is None or not self.rungs:
            return
        name = self.rungs[0].folder.name.rsplit("-1-", 1)[0]
        blind = self.textleak.blind
        try:
            folder = export.export_folder(self.textleak.root / name)
            written = [
                export.write(folder, "screen.svg", self.app.export_screenshot(title="textleak")),
                export.write(folder, "ladder.md", self._markdown(knob, blind=blind)),
                export.write(
                    folder, "ladder.json", json.dumps(self._json(knob, blind=blind), indent=1) + "\n"
                ),
            ]
        except TextleakError as error:
            self.notify(
                f"{error.why} {error.fix}", title=error.what, severity="error", timeout=10, markup=False
            )
            return
        names = ", ".join(path.name for path in written)
        self.notify(f"{names} in {folder}", title="Exported", timeout=8, markup=False)

    def _markdown(self, knob: Knob, *, blind: bool) -> str:
        lines = [f"# textleak: {knob.name}", ""]
        if str(self.verdict.content):
            lines += [f"**{self.verdict.content}**", ""]
        lines += ["| strength | state | match rate | verified | seconds |", "|---|---|---|---|---|"]
        for rung in self.rungs:
            rate = "" if rung.rate is None or blind else f"{rung.rate:.2f}"
            verified = {True: "yes", False: "no"}.get((rung.result or {}).get("verified"), "")  # type: ignore[arg-type]
            seconds = (rung.result or {}).get("seconds")
            took = "" if seconds is None else f"{seconds:.1f}"
            lines.append(f"| {rung.strength} | {rung.status} | {rate} | {verified} | {took} |")
        return "\n".join([*lines, "", "```sh", *self.command_lines(), "```", ""])

    def _json(self, knob: Knob, *, blind: bool) -> dict[str, Any]:
        found = []
        for rung in self.rungs:
            result = dict(rung.result) if rung.result is not None else None
            if blind and result is not None:
                result = without_truth(result)
            found.append({"strength": rung.strength, "status": rung.status, "result": result})
        return {"defense": knob.defense, "option": knob.option, "rungs": found}


class Form(Vertical):
    """The sentence and the fields of the ladder."""

    def __init__(self, sentences: SentenceInput, wrong: Static, rows: list[FieldRow], rest: Static) -> None:
        super().__init__(classes="form")
        self._sentences, self._wrong, self._rows, self._rest = sentences, wrong, rows, rest

    def compose(self) -> ComposeResult:
        """The sentence first."""
        with Horizontal(classes="sentence-row"):
            yield Static("Sentence", classes="title")
            yield self._sentences
        yield self._wrong
        yield from self._rows
        yield self._rest

    def on_mount(self) -> None:
        """Nothing is wrong yet."""
        self._wrong.display = self._rest.display = False


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + UNICODE.ellipsis
