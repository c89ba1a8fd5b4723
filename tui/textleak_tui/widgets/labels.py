"""The class that an attack believes each sentence to have, with its probability."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.geometry import Size

from textleak.events import Sentence, same_label
from textleak.view import UNICODE, ViewState
from textleak_tui.widgets.drawn import Drawn

_BAR = 8
_CLASSES_SHOWN = 6


class LabelPosterior(Drawn):
    """A line a class for one sentence; a line a sentence for several."""

    BORDER_TITLE = "Labels"
    COMPONENT_CLASSES: ClassVar[set[str]] = {"label--top", "label--quiet", "label--right", "label--wrong"}

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._sentences: tuple[Sentence, ...] = ()
        self._truths: list[Sentence | None] = []
        self._pictures: tuple[int, ...] = ()
        self._true_labels: tuple[int, ...] = ()
        self._drawn: object = None
        self._lines = 0

    def show(self, state: ViewState, *, blind: bool = False) -> None:
        """Draw a state; blind says nothing of the true labels."""
        self._sentences = state.progress.sentences if state.progress else ()
        self._truths = [None] * len(self._sentences) if blind else state.assigned()
        self._pictures = state.progress.labels if state.progress and state.progress.image else ()
        self._true_labels = () if blind else state.labels
        drawn = (
            (self._pictures, self._true_labels),
            [(s.label, s.label_posterior) for s in self._sentences],
            [t and t.label for t in self._truths],
        )
        if drawn != self._drawn:
            self._drawn = drawn
            lines, self._lines = self._lines, self._needed()
            if lines != self._lines:
                self.refresh(layout=True)
            self.redraw()

    def _needed(self) -> int:
        """Lines that all of it takes."""
        if len(self._sentences) == 1 and not self._pictures:
            return len(self._one(self._sentences[0], self._truths[0]))
        return len(self._pictures) or len(self._sentences)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A line a sentence, a picture or, of one sentence, a class."""
        return self.lines

    @property
    def lines(self) -> int:
        """Lines that all of it takes."""
        return max(1, self._lines)

    @property
    def known(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._pictures) or any(s.label is not None or s.label_posterior for s in self._sentences)

    def draw(self) -> list[Text]:
        """The labels."""
        quiet = self._style("quiet")
        if self._pictures:
            return more_than(
                [self._of_picture(i) for i in range(len(self._pictures))], self.size.height, quiet
            )
        if not self._sentences:
            return [Text("no label yet", style=quiet)]
        if all(s.label is None and not s.label_posterior for s in self._sentences):
            words = Text("not inferred here: the tokens are the labels, or they are not told", style=quiet)
            return list(words.wrap(self.app.console, self.size.width))
        pairs = list(zip(self._sentences, self._truths, strict=True))
        if len(pairs) == 1:
            return self._one(*pairs[0])
        return more_than([self._of(i, *pair) for i, pair in enumerate(pairs)], self.size.height, quiet)

    def _one(self, sentence: Sentence, truth: Sentence | None) -> list[Text]:
        lines = []
        posterior = sentence.label_posterior
        best = sorted(range(len(posterior)), key=lambda c: -posterior[c])[:_CLASSES_SHOWN]
        for label in sorted(best):
            lines.append(self._class(label, posterior[label], top=label == sentence.label))
        if not lines:
            lines.append(Text(f"label {sentence.label}", style=self._style("top")))
        judged = self._judged(sentence, truth)
        return [*lines, judged] if judged.plain else lines

    def _of(self, index: int, sentence: Sentence, truth: Sentence | None) -> Text:
        label = sentence.label
        sure = (
            sentence.label_posterior[label] if isinstance(label, int) and sentence.label_posterior else None
        )
        line = Text(f"text {index + 1}  label {'?' if label is None else label}", style=self._style("top"))
        if sure is not None:
            line.append(f" {sure:.2f}", style=self._style("quiet"))
        return line.append("  ").append_text(self._judged(sentence, truth))

    def _of_picture(self, index: int) -> Text:
        label = self._pictures[index]
        line = Text(f"picture {index + 1}  label {label}  ", style=self._style("top"), no_wrap=True)
        if sorted(self._pictures) == sorted(self._true_labels):
            line.append("✓ right", style=self._style("right"))
        return line

    def _class(self, label: int, probability: float, *, top: bool) -> Text:
        filled = round(probability * _BAR)
        line = Text(f"{'▶' if top else ' '} {label:<2} ", style=self._style("top" if top else "quiet"))
        line.append(UNICODE.bar * filled, style=self._style("top"))
        line.append(UNICODE.rest * (_BAR - filled), style=self._style("quiet"))
        return line.append(f" {probability:.2f}", style=self._style("top" if top else "quiet"))

    def _judged(self, sentence: Sentence, truth: Sentence | None) -> Text:
        if truth is None or truth.label is None or sentence.label is None:
            return Text("")
        if is_tied(sentence):
            return Text("? undecided", style=self._style("quiet"))
        if same_label(truth.label, sentence.label):
            return Text("✓ right", style=self._style("right"))
        return Text("✗ wrong", style=self._style("wrong"))

    def _style(self, kind: str) -> Style:
        return self.ink(f"label--{kind}")


def more_than(lines: list[Text], room: int, quiet: Style) -> list[Text]:
    """As many lines as there is room for; the last one says how many are left out, where any are."""
    if len(lines) <= max(1, room):
        return lines
    kept = lines[: max(0, room - 1)]
    return [*kept, Text(f"{UNICODE.ellipsis} {len(lines) - len(kept)} more", style=quiet)]


def is_tied(sentence: Sentence) -> bool:
    """Whether another class is as probable as the attack's own, as far as two decimals tell."""
    own = sentence.label
    if not isinstance(own, int) or own not in range(len(sentence.label_posterior)):
        return False
    posterior = [round(probability, 2) for probability in sentence.label_posterior]
    return posterior.count(posterior[own]) > 1
