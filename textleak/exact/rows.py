"""What the gradients of the embeddings themselves give away: which tokens, and where (FILM's bag, and our order).

The gradient of a word's row is the sum of the loss's gradients at its occurrences, and that of a position's row the
sum over the sentences that reach it. Which rows were looked up is the evidence (`lookups`); equal sums (`placing`) and
right angles (`right_angles`) tell where the tokens stand; what is left over takes the places left over, in a batch of
one sentence. What these can't tell stays open; nothing is guessed.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from textleak.clients.view import View
from textleak.exact.lookups import PositionRows, looked_up_rows, position_rows
from textleak.exact.placing import Placed, place_by_sums
from textleak.exact.right_angles import fitting_tokens, place_by_angles
from textleak.models import TextModel
from textleak.models.probes.sums import EmbeddingSum, embedding_sum
from textleak.shared.gradient import SharedGradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingRows:
    """What the rows of the embeddings' gradients show.

    Attributes:
        bag: how often each token that was looked up occurs in the batch; None where that isn't known.
        places: tokens found at each position, as far as positions show; the last prediction's label isn't an input.
        closed: for each position whether nothing else stands there.
        unplaced: tokens some of whose positions aren't known.
        could_be: for each position that isn't closed, the unplaced tokens that could stand there.
        confidence: of the tokens in `places` (of each position), 1 where the rows' sums prove them.
        complete: whether all rows are explained, as those of one sentence.
        notes: sentences for a person.
    """

    bag: dict[int, int | None]
    places: tuple[tuple[int, ...], ...] = ()
    closed: tuple[bool, ...] = ()
    unplaced: tuple[int, ...] = ()
    could_be: tuple[tuple[int, ...], ...] = ()
    confidence: tuple[float, ...] = ()
    complete: bool = False
    notes: tuple[str, ...] = ()


def read_rows(view: View) -> EmbeddingRows | None:
    """Read tokens and positions off the gradients of the embeddings.

    Args:
        view: what the server sees.

    Returns:
        None where neither the word nor the position embedding was shared, or nothing stands out of them.

    Raises:
        InputError: a gradient of another model.
    """
    model, shared = view.text_model, view.shared
    shared.validate(model.parameters)
    places = embedding_sum(model)
    word_name = _word_name(model, shared)
    word, at_T = (shared.gradients.get(name or "") for name in (word_name, places.position_name))
    if word is None and at_T is None:
        return None
    notes: list[str] = []
    looked_up = positions = None
    if word is not None:
        looked_up = looked_up_rows(model, shared, word, notes, between=_bounds(view, word_name))
    if at_T is not None:
        between = _bounds(view, places.position_name)
        positions = position_rows(shared, places, at_T, looked_up, between=between)
    if looked_up is None or not looked_up.ids:
        return _positions_alone(model, places, positions, notes)
    placed = Placed.of(looked_up, positions, count=_possible_positions(shared, places))
    place_by_sums(placed, shared.noise_sigma, alone=known_alone(shared))
    if (
        not placed.hides
        and places.across
        and places.offset_TE is not None
        and looked_up.head_RE is None
        and shared.noise_sigma == 0
    ):
        offset_TE = places.offset_TE[: len(placed.at)].cpu()
        tokens_LE = model.word_embedding.weight[placed.ids].detach().double().cpu()
        for group in placed.groups:
            place_by_angles(placed, group, tokens_LE, offset_TE)
    alone = known_alone(shared) or (_open_size(shared) and _like_one_sentence(model, placed))
    if alone:
        _fill(model, shared, placed)
    return _told(model, shared, placed, alone=alone, notes=notes)


def _word_name(model: TextModel, shared: SharedGradient) -> str | None:
    table = model.word_embedding.weight
    return next((name for name in shared.gradients if model.parameters[name] is table), None)


def _bounds(view: View, name: str | None) -> tuple[Tensor, Tensor] | None:
    """Between what a tensor's entries lay before the weights were rounded; None where it is the gradient itself."""
    if name is None or view.shared.seen_effects:
        return None
    bounds = view.client.bounds({name: view.shared.gradients[name]}, view.model)
    return None if bounds is None else bounds[name]


def _possible_positions(shared: SharedGradient, places: EmbeddingSum) -> int:
    """How many positions there could be, where their rows weren't shared."""
    if shared.known.lengths:
        return max(shared.known.lengths)
    return 0 if places.offset_TE is None else len(places.offset_TE)


def known_alone(shared: SharedGradient) -> bool:
    """Whether the batch is known to be one sentence."""
    return shared.known.batch_size == 1 or (
        shared.known.lengths is not None and len(shared.known.lengths) == 1
    )


def _open_size(shared: SharedGradient) -> bool:
    return shared.known.batch_size is None and shared.known.lengths is None and shared.known.labels is None


def _like_one_sentence(model: TextModel, placed: Placed) -> bool:
    """Whether no position has two tokens, which all sentences but equal ones would share."""
    if placed.shown:
        return all(closed and len(here) == 1 for closed, here in zip(placed.closed, placed.at, strict=True))
    return _ends(model, placed) and all(len(here) <= 1 for here in placed.at)


def _ends(model: TextModel, placed: Placed) -> bool:
    """Whether the last token found is the one that the tokenizer ends a sentence with."""
    reach, suffix = placed.reach, model.suffix_ids
    return bool(reach and suffix) and [placed.ids[w] for w in placed.at[reach - 1]] == [suffix[-1]]


def _fill(model: TextModel, shared: SharedGradient, placed: Placed) -> None:
    """In a batch of one sentence, the last token without a place takes all places that are left."""
    left = placed.open_words
    if placed.hides or len(left) != 1 or any(len(here) > 1 for here in placed.at):
        return
    if placed.shown:
        inputs = len(placed.at)
    elif shared.known.lengths is not None:
        inputs = shared.known.lengths[0] - (model.task == "causal-lm")
    elif _ends(model, placed):
        inputs = placed.reach
    else:
        return
    sure = min((c for here in placed.at for c in here.values()), default=1.0)
    for here in placed.at[:inputs]:
        if not here:
            here[left[0]] = sure
    placed.done.add(left[0])


# What was found


def _told(
    model: TextModel, shared: SharedGradient, placed: Placed, *, alone: bool, notes: list[str]
) -> EmbeddingRows:
    """Everything by token id."""
    ids, at = placed.ids, placed.at if placed.shown else placed.at[: placed.reach]
    closed = [bool(here) for here in at] if alone else placed.closed[: len(at)]
    unplaced = placed.open_words
    if unplaced and not alone:
        notes.append(
            f"{len(unplaced)} of {len(ids)} tokens stand at several positions, or share theirs in a way that "
            "the rows' sums leave open."
        )
    elif unplaced:
        notes.append(f"The positions of {len(unplaced)} of {len(ids)} tokens don't show in the rows.")
    return EmbeddingRows(
        bag=_bag(model, shared, placed, alone=alone),
        places=tuple(tuple(ids[w] for w in here) for here in at),
        closed=tuple(closed),
        unplaced=tuple(ids[w] for w in unplaced),
        could_be=tuple(() if closed[t] else _could_be(placed, t) for t in range(len(at))),
        confidence=tuple(min(here.values(), default=0.0) for here in at),
        complete=alone and not unplaced and bool(at) and all(len(here) == 1 for here in at),
        notes=tuple(notes),
    )


def _could_be(placed: Placed, t: int) -> tuple[int, ...]:
    """The tokens without a place of their own that could stand at a position."""
    open_ = set(placed.open_words) - placed.at[t].keys()
    return tuple(
        placed.ids[w] for group in placed.groups if t in group.positions for w in group.words if w in open_
    )


def _bag(model: TextModel, shared: SharedGradient, placed: Placed, *, alone: bool) -> dict[int, int | None]:
    """How often each token occurs, where the places and what is known of the batch tell."""
    lengths = shared.known.lengths
    inputs = None if lengths is None else [n - (model.task == "causal-lm") for n in lengths]
    if inputs is not None and sum(inputs) == len(placed.ids):  # no room for a second occurrence
        return dict.fromkeys(placed.ids, 1)
    if alone:
        counts_T: list[int | None] = [1] * len(placed.at)
    else:
        counts_T = [_count_at(placed, t, inputs, shared.known.batch_size) for t in range(len(placed.at))]
    bag: dict[int, int | None] = {}
    for w, id_ in enumerate(placed.ids):
        counts = [counts_T[t] for t, here in enumerate(placed.at) if w in here and w in placed.done]
        bag[id_] = sum(c for c in counts if c is not None) if counts and None not in counts else None
    open_ = [id_ for id_, count in bag.items() if count is None]
    if inputs is not None and len(open_) == 1:
        bag[open_[0]] = sum(inputs) - sum(count or 0 for count in bag.values())
    return bag


def _count_at(placed: Placed, t: int, inputs: list[int] | None, batch_size: int | None) -> int | None:
    """How often each token found at a position stands there, in a batch that may be of several sentences."""
    if not placed.closed[t]:
        return None
    reach = sum(n > t for n in inputs) if inputs is not None else None
    if len(placed.at[t]) == reach or (reach is None and len(placed.at[t]) == batch_size):
        return 1
    return reach if len(placed.at[t]) == 1 else None


def _positions_alone(
    model: TextModel, places: EmbeddingSum, positions: PositionRows | None, notes: list[str]
) -> EmbeddingRows | None:
    """Where no token shows in the word embedding's rows, a position's row still has to fit its token, at B = 1."""
    if positions is None:
        return EmbeddingRows(bag={}, notes=tuple(notes)) if notes else None
    count = len(positions.rows_TE)
    fitting: tuple[tuple[int, ...], ...] = ((),) * count
    if places.across and places.offset_TE is not None:
        fitting = fitting_tokens(model, positions, places.offset_TE)
    if any(fitting):
        notes.append(
            "Tokens were told by the positions' rows alone: each is at right angles to its sum of embeddings."
        )
    elif count:
        notes.append(
            f"Only positions show: the longest sentence has {count + (model.task == 'causal-lm')} tokens."
        )
    else:
        notes.append("No position's row shows which positions there were.")
    return EmbeddingRows(
        bag={},
        places=((),) * count,
        closed=(False,) * count,
        could_be=fitting,
        confidence=(0.0,) * count,
        notes=tuple(notes),
    )
