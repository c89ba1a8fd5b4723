"""A decoder's sentences where padding was read: it counted as labels, or stood on the left.

Padding that is a label leaves its own inputs in the later layers' spans; so does padding on the left, whose last token
predicts the first one, and which attends to all of its row, its last token too. Tokens attend to no padding, so
sentences still grow token by token (`beginnings`), each from the padding that it stands behind.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from textleak.clients.view import Clock
from textleak.events import Phase, Progress
from textleak.exact.beginnings import Tree
from textleak.exact.endings import answer
from textleak.exact.found import OPEN, Found
from textleak.exact.later_inputs import LaterInputs, shows
from textleak.exact.subspace import shared_spans
from textleak.exact.vocabulary import Vocabulary
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.shared.gradient import SharedGradient


def padded_sentences(
    model: TextModel, shared: SharedGradient, clock: Clock | None = None
) -> Generator[Phase | Progress, None, Found]:
    """The sentences of a language model's batch, the last token of the longest ones open.

    Args:
        model: the public model, a causal one, with a loss whose padding isn't just masked.
        shared: the shared gradient.
        clock: when it is over, nothing is returned; None for no limit.

    Returns:
        Nothing where they don't account for all that the spans hold.
    """
    padding = model.language.padding
    yield Phase(name="prefixes", detail="beginnings of sentences, " + _WHERE[padding])
    clear = [(layers, span) for layers, span in shared_spans(model, shared) if shows(span)]
    checks = LaterInputs(model, shared)
    if not clear or checks[0] is None:
        return Found()
    layers, span = max(clear, key=lambda pair: pair[1].room)
    ordered, longest = layers[0].depends_on_position, model.max_length - 1
    vocabulary, counted = Vocabulary(model, layers[0], span), padding == "counted"

    def candidates(rows: Sequence[Row]) -> list[int]:
        """Some networks put all padding at one position: counted, it is tried everywhere; on the left, nowhere else."""
        tokens = vocabulary.after(rows)
        if not counted:
            return [token for token in tokens if token != model.pad_id]
        return list(dict.fromkeys([*tokens, *(model.pad_id,) * (len(rows[0]) > 0)]))

    tree = Tree(
        model=model,
        ordered=ordered,
        candidates=candidates,
        checks=checks,
        first=0,
        longest=longest,
        starts=[(model.pad_id,) * k for k in range(1 if counted or not ordered else longest)],
    )
    for _ in tree.grow():
        if clock is not None and clock.over:
            return Found()
    if tree.lost or not tree.beginnings:
        return Found()
    rows = _whole(tree, model.pad_id)
    if rows is None:
        return Found()
    found = answer(rows, complete=False, notes=())
    return Found(rows=found.rows, confidence=found.confidence, language=model.language)


_WHERE = {"counted": "with padding after them as labels", "left": "with padding before them"}


def _whole(tree: Tree, pad_id: int) -> list[Row] | None:
    """Sentences without padding, the last token open where no layer reads it; None where something is left over."""
    left = tree.model.language.padding == "left"
    longest = max(map(len, tree.leaves))
    counts = [sum(token == pad_id for token in row) for row in tree.leaves]
    shown = any(counts)
    if left and not shown:
        # Where positions don't show or padding has none, all but the longest ones stand behind some.
        counts = [(longest + 1 - len(row)) * (len(row) < longest) for row in tree.leaves]
    missing = tree.span.rank - len(tree.beginnings)
    if missing > left * sum(counts):  # fewer where the network reads some padding as other
        return None
    if left and not shown and missing <= 0:
        counts = [0] * len(counts)  # padding predicts nothing, so that nothing attends to the last tokens
    texts = [tuple(token for token in row if token != pad_id) for row in tree.leaves]
    if not all(texts):
        return None
    # In a network of two layers padding reads all last tokens alike, so that these don't show either.
    full = max(len(row) + (not count) for row, count in zip(tree.leaves, counts, strict=True))
    sizes = zip(texts, counts, strict=True)
    whole = [count > 0 and (not left or len(text) + count == full) for text, count in sizes]
    return [text if ends else (*text, OPEN) for text, ends in zip(texts, whole, strict=True)]
