"""A sentence of the batch is proved, with its label and share, and taken off; another one isn't."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.conftest import FAMILIES, toy_tokenizer
from textleak.clients.view import view_of
from textleak.exact.alone import each_alone
from textleak.exact.checks import Descent, LayerCheck
from textleak.exact.context_check import ContextCheck
from textleak.exact.pairs import Pairs, Partners, find_pairs, pair_gradients
from textleak.exact.remainder import LayerRemainder, Member, Remainder, batch_counts
from textleak.exact.subspace import layer_span, shared_spans
from textleak.matching.replaced import WatchedOperations
from textleak.models import TextModel, load_model
from textleak.models.probes.attention import first_attention
from textleak.models.probes.layers import LinearLayer, following_layers
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

THREE = ("he sat on the mat", "we ran home", "a dog")
LABELS = (2, 0, 1)
WIDE = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextModel]:
    """A toy encoder with room for a batch's tokens."""
    from transformers import AutoConfig

    @functools.cache
    def model(*, num_labels: int = 3, dtype: str = "float32") -> TextModel:
        shape, kind = FAMILIES["bert"]
        tokenizer = toy_tokenizer(kind)
        folder = tmp_path_factory.mktemp("wide")
        shape = {**shape, **WIDE, "vocab_size": len(tokenizer)}
        AutoConfig.for_model("bert", **shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_model(
            str(folder), weights="random", task="classification", num_labels=num_labels, dtype=dtype
        )

    return model


def whole(model: TextModel, shared: SharedGradient) -> Remainder:
    """All of a shared gradient; judged by the second block's input."""
    _, first = start(model, shared)
    further = [
        LayerRemainder.of(shared, group, span)
        for group in following_layers(model, 4)
        if (span := layer_span(shared, group)) is not None
    ]
    return Remainder.of(view_of(shared, model), (first, *further), judge=len(further))


def start(model: TextModel, shared: SharedGradient) -> tuple[Pairs, LayerRemainder]:
    """The candidate pairs, and all of the gradient at the first input."""
    layers, span = max(shared_spans(model, shared), key=lambda pair: pair[1].room)
    return find_pairs(model, layers[0], span, longest=None), LayerRemainder.of(shared, layers, span)


def shared_by(
    model: TextModel, sentences: tuple[str, ...] = THREE, labels: tuple[int, ...] = LABELS
) -> tuple[SharedGradient, Secret]:
    return share(model, sentences, labels, share="no-embeddings", know="nothing")


def taken_off(left: Remainder, row: Sequence[int]) -> tuple[Member, Remainder] | None:
    """The sentence's part in the batch, and what is left without it; None where it isn't in the batch."""
    found = left.among([tuple(row)])
    return None if found is None else (found[0][0], found[1])


# The pairs


def test_of_many_pairs_at_a_position_the_surest_are_kept(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, _ = shared_by(model)
    layers, span = max(shared_spans(model, shared), key=lambda pair: pair[1].room)
    blurred = dataclasses.replace(span, unsure_R=torch.full_like(span.unsure_R, 0.1))  # holds all there is
    few = find_pairs(model, layers[0], blurred, longest=4, most=3)
    assert [len(here) for here in few.by_position] == [3] * 4
    every = find_pairs(model, layers[0], blurred, longest=4)
    eps = torch.finfo(model.dtype).eps
    for t, here in enumerate(few.by_position):
        misfits_N = blurred.misfit(every.inputs_NI[every.by_position[t]], eps=eps)
        assert len(misfits_N) > 3
        kept_N = blurred.misfit(few.inputs_NI[here], eps=eps)
        torch.testing.assert_close(kept_N.sort().values, misfits_N.sort().values[:3])


# The proof


@pytest.mark.parametrize("num_labels", [3, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_sentence_is_proved_with_its_label_and_share(
    encoder: Callable[..., TextModel], num_labels: int, dtype: str
) -> None:
    model = encoder(num_labels=num_labels, dtype=dtype)
    shared, secret = shared_by(model)
    left = whole(model, shared)
    members = []
    for row, label in zip(secret.ids, LABELS, strict=True):
        found = taken_off(left, row)
        assert found is not None
        member, left = found
        assert member.parts[label] == pytest.approx(1 / 3, abs=1e-4)
        assert sum(member.parts) == pytest.approx(1 / 3, abs=1e-3)
        members.append(member)
    # Nothing is left once all of them are taken off.
    assert all(input_.span is None for input_ in left.inputs)
    assert batch_counts(members, batch_size=None) == (
        3,
        [tuple(int(c == label) for c in range(num_labels)) for label in LABELS],
    )


def test_a_sentence_one_token_away_is_not_proved(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    left = whole(model, shared)
    row = secret.ids[0]
    for place in range(1, len(row) - 1):
        for other in model.content_ids[60:70].tolist():
            if other != row[place]:
                assert taken_off(left, (*row[:place], other, *row[place + 1 :])) is None


def test_tokens_of_the_batch_in_another_order_are_not_proved(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model, ("the cat sat on", "the dog ran on"), (0, 1))
    left = whole(model, shared)
    (cls, the, cat, sat, on, sep), (_, _, dog, ran, _, _) = secret.ids
    assert taken_off(left, (cls, the, cat, ran, on, sep)) is None
    assert taken_off(left, (cls, the, dog, sat, on, sep)) is None
    assert taken_off(left, (cls, the, cat, sat, sep)) is None
    assert taken_off(left, (cls, the, cat, sat, on, sep)) is not None
    assert taken_off(left, (cls, the, dog, ran, on, sep)) is not None


def test_of_sentences_put_to_the_proof_together_the_wrong_ones_are_left_out(
    encoder: Callable[..., TextModel],
) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    rows = [tuple(row) for row in secret.ids]
    wrong = (*rows[0][:2], rows[1][2], *rows[0][3:])
    found = whole(model, shared).among([rows[0], wrong, rows[2], rows[1]])
    assert found is not None
    members, left = found
    assert [member.row for member in members] == [rows[0], rows[2], rows[1]]
    assert left.nothing
    assert whole(model, shared).among([wrong]) is None


def test_what_is_left_is_the_gradient_of_the_rest(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    before = whole(model, shared)
    found = taken_off(before, secret.ids[0])
    assert found is not None
    _, after = found
    rest, _ = shared_by(model, THREE[1:], LABELS[1:])
    for was, left, of_rest in zip(before.inputs, after.inputs, whole(model, rest).inputs, strict=True):
        expected_OI = of_rest.stacked_OI * 2 / 3
        assert float((left.stacked_OI - expected_OI).norm()) < 1e-4 * float(was.stacked_OI.norm())
        assert left.span is not None
        assert of_rest.span is not None
        assert left.span.rank == of_rest.span.rank


def test_further_in_the_rank_falls_by_the_sentences_length(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    left = whole(model, shared)
    for row in secret.ids[:2]:
        before = left.inputs[-1].span
        found = taken_off(left, row)
        assert found is not None
        _, left = found
        after = left.inputs[-1].span
        assert before is not None
        assert after is not None
        assert before.rank - after.rank == len(row)


# How often


def member(*parts: float, chances: tuple[float, ...] = (0.5, 0.3, 0.2)) -> Member:
    return Member(row=(1, 2), parts=parts, chances=chances)


def test_repeated_sentences_are_counted() -> None:
    assert batch_counts([member(0, 2 / 3, 0), member(1 / 3, 0, 0)], batch_size=None) == (
        3,
        [(0, 2, 0), (1, 0, 0)],
    )


def test_the_same_sentence_with_different_labels_is_counted() -> None:
    assert batch_counts([member(0.25, 0.25, 0), member(0, 0, 0.5)], batch_size=None) == (
        4,
        [(1, 1, 0), (0, 0, 2)],
    )


def test_with_every_label_what_the_model_predicts_is_missing_from_each() -> None:
    # 1, 2 and 1 of 5 sentences; the least part is 0 after the prediction's multiple is taken off.
    chances = (0.5, 0.3, 0.2)
    counts = torch.tensor([1.0, 2.0, 1.0])
    parts = counts / 5 - float((counts / 5 / torch.tensor(chances)).min()) * torch.tensor(chances)
    assert batch_counts([member(*parts.tolist()), member(0, 0.2, 0)], batch_size=5) == (
        5,
        [(1, 2, 1), (0, 1, 0)],
    )


def test_missing_sentences_leave_the_counts_below_the_size() -> None:
    assert batch_counts([member(0.25, 0, 0)], batch_size=None) == (4, [(1, 0, 0)])
    assert batch_counts([member(0.25, 0, 0)], batch_size=8) == (8, [(2, 0, 0)])


def test_parts_that_fit_no_batch_are_said_to() -> None:
    assert batch_counts([member(0.3, 0, 0)], batch_size=4) is None
    assert batch_counts([member(0.7, 0, 0), member(0, 0.7, 0)], batch_size=None) is None


# What tells the sentences apart


def test_every_token_of_the_batch_is_a_pair_with_its_own_gradient(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    pairs, first = start(model, shared)
    true = {(t, token, False) for row in secret.ids for t, token in enumerate(row)}
    assert true <= pairs.index.keys()
    gradients = pair_gradients(pairs, first)
    # All of the gradient is explained.
    explained_OI = gradients.deltas_NO.T @ pairs.inputs_NI
    assert float((explained_OI - first.stacked_OI).norm()) < 1e-4 * float(first.stacked_OI.norm())


def test_pairs_that_form_no_cycle_have_their_own_sentences_gradient(
    encoder: Callable[..., TextModel],
) -> None:
    # Of one length, and nothing but the first and the last token is shared: no two ways from one pair to another.
    model = encoder()
    sentences = ("he sat", "we ran", "a dog")
    shared, secret = shared_by(model, sentences)
    pairs, first = start(model, shared)
    gradients = pair_gradients(pairs, first)
    for b, row in enumerate(secret.ids):
        alone, _ = shared_by(model, sentences[b : b + 1], LABELS[b : b + 1])
        own_pairs, own_first = start(model, alone)
        own = pair_gradients(own_pairs, own_first)
        for t in (1, 2):
            expected_O = own.deltas_NO[own_pairs.index[t, row[t], False]] / 3
            found_O = gradients.deltas_NO[pairs.index[t, row[t], False]]
            assert float((found_O - expected_O).norm()) < 1e-3 * float(expected_O.norm())


def test_a_pairs_partners_stand_in_its_sentence(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    pairs, first = start(model, shared)
    attention = first_attention(model)
    assert attention is not None
    partners = Partners(model, attention, first, pairs, pair_gradients(pairs, first))
    row = secret.ids[0]
    own = {pairs.index[t, token, False] for t, token in enumerate(row)}
    others = {i for i in range(len(pairs)) if i not in own}
    for t in (2, 3):
        tied = partners.of(pairs.index[t, row[t], False])
        strongest = [i for i in tied.argsort(descending=True).tolist() if i != pairs.index[t, row[t], False]][
            :3
        ]
        assert set(strongest) <= own
        assert float(tied[sorted(others)].max()) < 0.5 * float(tied.max())


def test_a_sentence_among_others_is_not_taken_for_all_of_the_batch() -> None:
    # An eighth with one label: in a batch of seven also six times that label and once the other, by its prediction.
    odds = 6 - 7 / 8
    member = Member(row=(1, 2), parts=(1 / 8, 0.0), chances=(odds / (1 + odds), 1 / (1 + odds)))
    assert batch_counts([member], batch_size=None) == (7, [(6, 1)])
    assert batch_counts([member], batch_size=None, more=True) == (8, [(1, 0)])


def test_it_shows_whether_more_than_rounding_is_left(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    all_ = left = whole(model, shared)
    for row in secret.ids:
        assert left.clear_beside(all_)
        found = taken_off(left, row)
        assert found is not None
        left = found[1]
    assert not left.clear_beside(all_)


def test_what_changes_at_a_place_or_two_is_what_the_whole_sentence_has_outside(
    encoder: Callable[..., TextModel],
) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    pairs, _ = start(model, shared)
    attention = first_attention(model)
    assert attention is not None
    spans = {left.layers[0].name: left.span for left in whole(model, shared).inputs[1:]}
    span = spans[attention.output.name]
    assert span is not None
    row = torch.tensor([pairs.index[t, token, False] for t, token in enumerate(secret.ids[0])])
    single = [((t,), (i,)) for t in range(len(row)) for i in pairs.by_position[t]]
    double = [
        ((1, t), (i, j)) for t in (2, 3) for i in pairs.by_position[1] for j in pairs.by_position[t][:2]
    ]
    for spread in (1.0, 30.0, 1000.0):  # attention to all, to few, to one
        check = ContextCheck(model, attention, pairs, span)
        check.queries_HNA *= spread
        for changes in (single, double):
            places_KM, pairs_KM = torch.tensor(changes).unbind(1)
            rows_KT = row.repeat(len(changes), 1).scatter_(1, places_KM, pairs_KM)
            outside_KT = check.changed(row.tolist(), places_KM, pairs_KM)
            assert torch.allclose(outside_KT, check.outside(rows_KT), rtol=2e-3, atol=1e-7)


def test_descent_finds_a_planted_sentence(encoder: Callable[..., TextModel]) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    pairs, _ = start(model, shared)
    check = LayerCheck.of(model, pairs, whole(model, shared).inputs[1:], least=1)
    assert check is not None
    row = secret.ids[0]
    true = [pairs.index[t, token, False] for t, token in enumerate(row)]
    options = [pairs.by_position[t] if 0 < t < len(row) - 1 else [] for t in range(len(row))]
    corrupted = list(true)
    for t in (1, 3):
        corrupted[t] = next(i for i in options[t] if i != true[t])
    descent = Descent(check, corrupted, options, sweeps=3, solved_at=1e-6)
    assert descent.outside > 1e-3
    descent.go_on()
    assert descent.row == true
    assert descent.outside < 1e-6


def test_sentences_run_together_are_what_each_is_by_itself(encoder: Callable[..., TextModel]) -> None:
    model = encoder(dtype="float64")
    rows, layers, names = _of_several_lengths(model)
    for alone, together in zip(
        (each_alone(model, [row], layers, names=names)[0] for row in rows),
        each_alone(model, rows, layers, names=names),
        strict=True,
    ):
        torch.testing.assert_close(together.deltas, alone.deltas)
        torch.testing.assert_close(together.inputs, alone.inputs)
        torch.testing.assert_close(together.chances_C, alone.chances_C)
        assert together.parts is not None
        assert alone.parts is not None
        for use, other in zip(together.parts.uses, alone.parts.uses, strict=True):
            torch.testing.assert_close(together.parts.own(use.input), alone.parts.own(other.input))
            torch.testing.assert_close(
                together.parts.weighed(use, (0.5, 0.25)), alone.parts.weighed(other, (0.5, 0.25))
            )


@pytest.mark.parametrize("reads", [False, True])
def test_padding_is_multiplied_where_a_network_reads_it_alone(
    reads: bool, encoder: Callable[..., TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoder(dtype="float64")
    rows, layers, names = _of_several_lengths(model)
    forward, passes = model.network.forward, 0

    def unmasked(*, attention_mask: torch.Tensor, **named: object) -> object:
        nonlocal passes
        passes += 1
        return forward(attention_mask=None if reads else attention_mask, **named)

    monkeypatch.setattr(model.network, "forward", unmasked)
    plainly = each_alone(model, rows, layers)
    passes = 0
    with _Multiplied() as multiplied:
        found = each_alone(model, rows, layers, names=names)
    assert passes == 1 + reads
    assert sum(map(len, rows)) in multiplied.counts
    assert (len(rows) * max(map(len, rows)) in multiplied.counts) == reads
    for one, other in zip(found, plainly, strict=True):
        torch.testing.assert_close(one.deltas, other.deltas)
        torch.testing.assert_close(one.inputs, other.inputs)


class _Multiplied(WatchedOperations):  # type: ignore[no-untyped-call]
    """How many rows are multiplied with matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: set[int] = set()

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        del kwargs, result
        if func is torch.ops.aten.addmm.default:
            self.counts.add(len(args[1]))


def _of_several_lengths(model: TextModel) -> tuple[list[tuple[int, ...]], list[LinearLayer], list[str]]:
    """Rows, the layers that the first block's inputs are seen at, and all parameters of linear layers."""
    shared, secret = shared_by(model)
    _, first = start(model, shared)
    layers = [*first.layers, *(layer for group in following_layers(model, 4) for layer in group)]
    assert len({*map(len, secret.ids)}) > 1
    names = [name for name in shared.gradients if ".encoder." in name and "norm" not in name.lower()]
    return [*map(tuple, secret.ids)], layers, names


def test_what_pairs_were_before_makes_a_start_that_leads_to_the_same(
    encoder: Callable[..., TextModel],
) -> None:
    model = encoder()
    shared, secret = shared_by(model)
    pairs, all_of_it = start(model, shared)
    every = pair_gradients(pairs, all_of_it)
    found = taken_off(whole(model, shared), secret.ids[0])
    assert found is not None
    left = found[1].inputs[0]
    assert left.span is not None
    fewer = pairs.inside(left.span, torch.finfo(model.dtype).eps)
    anew = pair_gradients(fewer, left).loudness_N
    again = pair_gradients(fewer, left, every.by_pair(pairs)).loudness_N
    assert float((again - anew).norm()) < 0.05 * float(anew.norm())
    nothing = pair_gradients(fewer, left, dict.fromkeys(fewer.index, 0.0)).loudness_N
    torch.testing.assert_close(nothing, anew)
