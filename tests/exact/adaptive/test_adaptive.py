"""A step of AdamW, or a short type, leaves most of a gradient between narrow bounds, and so the tokens with it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import write_toy
from textleak import recover
from textleak.attacks import replay
from textleak.attacks.replaying.batches import ReplayedBatch
from textleak.attacks.replaying.further import FurtherIn
from textleak.attacks.replaying.lists import FirstUpdate, ranked_tokens
from textleak.attacks.replaying.scores import sentences_of
from textleak.attacks.replaying.together import Together
from textleak.attacks.replaying.turns import in_turn
from textleak.clients import CLIENTS, Client, composed
from textleak.clients.view import Clock, view_of
from textleak.defenses import DEFENSES
from textleak.errors import InputError
from textleak.events import Recovery, Stop
from textleak.exact.adaptive.bounded import Bounds, fitted, rank_between
from textleak.exact.adaptive.loud import likely_gradients
from textleak.exact.adaptive.spans import bounded_span, first_layers
from textleak.exact.pairs import Pairs, pair_gradients
from textleak.exact.remainder import LayerRemainder
from textleak.exact.subspace import span_of
from textleak.jobs.parts import chosen_client
from textleak.matching.discrete import Guess
from textleak.models import TextModel, load_model
from textleak.models.base import Tensors
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.proof.certificate import certificate_of, certify
from textleak.settings.choices import Choice
from textleak.shared.effects import Grid, Noised, Rounded, before_rounding, spacing
from textleak.shared.gradient import SharedGradient

WIDE = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128}
ONE = "he told the doctor about a secret plan"
# The gradients of a toy are larger than those of a real model, and so is eps.
STEP: dict[str, object] = {"optimizer": "adamw", "steps": 1, "lr": 5e-5, "eps": 1e-4, "max_grad_norm": 1.0}


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TextModel]:
    """A toy BERT with room for masks."""

    @functools.cache
    def model() -> TextModel:
        folder = write_toy("bert", tmp_path_factory.mktemp("stepped"), **WIDE)
        return load_model(str(folder), weights="random", task="classification", num_labels=3)

    return model


def client(*kinds: str, **options: object) -> Client:
    parts = [CLIENTS.build(kind, {}) for kind in kinds]
    return composed([*parts, CLIENTS.build("fedavg", {**STEP, **options})])


def shared_by(who: Client, model: TextModel, *sentences: str, folder: Path) -> tuple[SharedGradient, Secret]:
    """What a client shares, read back from its file."""
    shared, secret = share(model, sentences, client=who, share="no-embeddings", seed=1)
    shared.save(folder / "gradient.safetensors")
    return SharedGradient.load(folder / "gradient.safetensors"), secret


def bounded(who: Client, model: TextModel) -> tuple[Mapping[str, tuple[Tensor, Tensor]], Tensors]:
    """What a client's step tells of its gradient, and the gradient itself."""
    shared, _ = share(model, [ONE], client=who, share="no-embeddings", seed=1)
    gradient, _ = share(model, [ONE], share="no-embeddings", seed=1)
    view = view_of(shared, model)
    bounds = view.client.bounds(view.shared.gradients, view.model)
    assert bounds is not None
    return bounds, gradient.gradients


def read(recovery: Recovery) -> list[tuple[int, ...]]:
    return [tuple(p.id for p in s.positions) for s in recovery.sentences]


def test_a_matrix_of_low_rank_is_found_between_bounds_that_leave_its_large_entries_open() -> None:
    generator = torch.Generator().manual_seed(0)
    left_OR = torch.randn(120, 5, generator=generator, dtype=torch.float64)
    right_RI = torch.randn(5, 80, generator=generator, dtype=torch.float64)
    whole_OI = left_OR @ right_RI
    off_OI = whole_OI.abs().square() * 1e-2  # as behind AdamW's step, large entries are told less
    shift_OI = off_OI * (2 * torch.rand(120, 80, generator=generator, dtype=torch.float64) - 1)
    low_OI, high_OI = whole_OI + shift_OI - off_OI, whole_OI + shift_OI + off_OI
    open_OI = whole_OI.abs() > 2
    low_OI = torch.where(open_OI & (whole_OI < 0), -torch.inf, low_OI)
    high_OI = torch.where(open_OI & (whole_OI > 0), torch.inf, high_OI)
    assert 0.3 < float(open_OI.double().mean()) < 0.5
    bounds = Bounds(low_OI=low_OI, high_OI=high_OI)
    assert fitted(bounds, 5, clock=Clock.of(0)) is None
    found = fitted(bounds, 5, clock=Clock())
    assert found is not None
    assert not found.missing
    assert float((found.whole_OI - whole_OI).norm() / whole_OI.norm()) < 1e-3
    short = fitted(bounds, 4, clock=Clock())
    assert short is not None
    assert short.missing
    outside_RI = right_RI - (right_RI @ found.basis_RI.T) @ found.basis_RI
    assert float(outside_RI.norm() / right_RI.norm()) < 10 * float(found.unsure_RI.max())


@pytest.mark.parametrize("rank", [3, 11])
def test_the_rank_shows_where_what_is_left_open_is_smaller_than_the_matrix(rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    left_OR = torch.randn(120, rank, generator=generator, dtype=torch.float64)
    right_RI = torch.randn(rank, 80, generator=generator, dtype=torch.float64)
    scale_O1 = 10 ** (2 * torch.rand(120, 1, generator=generator, dtype=torch.float64))
    whole_OI = scale_O1 * (left_OR @ right_RI)
    for part, shown in ((1e-3, rank), (1.0, None)):
        off_OI = part * (scale_O1 + whole_OI.abs())
        shift_OI = off_OI * (2 * torch.rand(120, 80, generator=generator, dtype=torch.float64) - 1)
        bounds = Bounds(low_OI=whole_OI + shift_OI - off_OI, high_OI=whole_OI + shift_OI + off_OI)
        assert rank_between(bounds) == shown


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("sent", ["update", "weights"])
def test_a_gradient_lies_between_the_bounds_that_a_step_tells(
    sent: str, decay: float, wide_model: Callable[[], TextModel]
) -> None:
    model = wide_model()
    who = client(share=sent, weight_decay=decay, max_grad_norm=None)
    bounds, gradient = bounded(who, model)
    for name, (low, high) in bounds.items():
        own = gradient[name].double()
        slack = 1e-6 * own.abs()
        assert bool(((low <= own + slack) & (own - slack <= high)).all()), name
    low, high = bounds["bert.encoder.layer.0.attention.self.value.weight"]
    told = (low * high > 0) & (high - low < 0.1 * (low + high).abs() / 2)
    assert float(told.double().mean()) > 0.3


def test_a_step_of_sgd_leaves_the_rounding_of_the_weights(wide_model: Callable[[], TextModel]) -> None:
    model = wide_model()
    who = client(optimizer="sgd", lr=0.01, max_grad_norm=None)
    bounds, gradient = bounded(who, model)
    for name, (low, high) in bounds.items():
        own = gradient[name].double()
        assert bool(((low <= own) & (own <= high)).all()), name
        assert float((high - low).max()) < 1e-4


def test_several_steps_leave_no_such_bounds(wide_model: Callable[[], TextModel]) -> None:
    model = wide_model()
    shared, _ = share(model, [ONE], client=client(steps=2), share="no-embeddings")
    view = view_of(shared, model)
    assert view.client.bounds(view.shared.gradients, view.model) is None


@pytest.mark.parametrize(("grid", "scale"), [("float16", 1.0), ("float16", 64.0), ("bfloat16", 1.0)])
def test_what_was_rounded_lay_between_the_bounds_that_its_grid_tells(grid: Grid, scale: float) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 5
    seen = (values * scale).to(getattr(torch, grid)).double() / scale
    found = before_rounding({"": (seen, seen)}, (Rounded(grid=grid, scale=scale),))
    assert found is not None
    low, high = found[""]
    assert bool(((low <= values) & (values <= high)).all())
    assert bool((high - low <= 1.01 * spacing(seen * scale, grid) / scale).all())
    assert before_rounding({"": (seen, seen)}, (Rounded(grid=grid), Noised(sigma=1e-3))) is None
    anything = (torch.full((1,), -torch.inf), torch.full((1,), torch.inf))
    assert before_rounding({"": anything}, (Rounded(grid=grid),)) == {"": (-torch.inf, torch.inf)}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kinds", [("autocast", "accumulate"), ("fedavg",)], ids="+".join)
def test_what_was_rounded_after_a_client_changed_it_is_taken_for_no_gradient(
    kinds: tuple[str, ...], steps: int, wide_model: Callable[[], TextModel]
) -> None:
    model = wide_model()
    who = composed([CLIENTS.build(kind, {} if kind == "autocast" else {"steps": steps}) for kind in kinds])
    halves = [DEFENSES.build("quantize", {"to": "fp16"})]
    shared, _ = share(model, [ONE, "he sat"], client=who, defenses=halves, share="no-embeddings", seed=1)
    view = view_of(shared, model)
    assert isinstance(bounded_span(view, first_layers(view)), str)


@pytest.mark.parametrize("attack", ["span", "auto"])
@pytest.mark.parametrize(
    "kinds",
    [(), ("train-mode",), ("train-mode", "autocast")],
    ids=["eval mode", "dropout", "dropout in bfloat16"],
)
def test_a_sentence_behind_a_clipped_step_of_adamw_is_read_and_each_token_proved(
    kinds: tuple[str, ...], attack: str, wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    shared, secret = shared_by(client(*kinds), model, ONE, folder=tmp_path)
    recovery = recover(shared, model, attack)
    assert read(recovery) == list(secret.ids)
    assert secret.labels is not None
    assert recovery.sentences[0].label == secret.labels[0]
    assert recovery.stop is Stop.PROVED
    assert all(p.proved for p in recovery.sentences[0].positions)
    assert "between bounds" in " ".join(recovery.notes)


@pytest.mark.parametrize(
    ("kinds", "defense"),
    [
        ("autocast", None),
        ("autocast:dtype=fp16,scale=1024", None),
        ("train-mode+autocast", None),
        ("train-mode+autocast:dtype=fp16,scale=1024", None),
        ("train-mode", "fp16"),
        ("train-mode", "bf16"),
    ],
)
def test_a_sentence_whose_gradient_ended_in_a_short_type_is_read_and_each_token_proved(
    kinds: str, defense: str | None, wide_model: Callable[[], TextModel]
) -> None:
    model = wide_model()
    who = chosen_client(map(Choice.model_validate, kinds.split("+")))
    defenses = [] if defense is None else [DEFENSES.build("quantize", {"to": defense})]
    shared, secret = share(
        model, [ONE], client=who, defenses=defenses, share="no-embeddings", know="batch-size", seed=1
    )
    recovery = recover(shared, model, "span")
    assert read(recovery) == list(secret.ids)
    assert recovery.stop is Stop.PROVED


def test_two_sentences_behind_dropout_and_a_step_are_read_though_nobody_says_how_long_they_are(
    wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    shared, secret = shared_by(client("train-mode"), model, ONE, "we ran home", folder=tmp_path)
    assert shared.known.lengths is None
    recovery = recover(shared, model, "span")
    assert sorted(read(recovery)) == sorted(secret.ids)
    assert all(p.proved for sentence in recovery.sentences for p in sentence.positions)


def test_what_an_attack_cant_read_names_those_that_can(
    wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    shared, _ = shared_by(client("train-mode", steps=2), model, ONE, folder=tmp_path)
    with pytest.raises(InputError, match="public weights") as refused:
        recover(shared, model, "span")
    assert "replay" in str(refused.value)


def test_of_several_sentences_without_masks_nothing_is_said_to_be_proved(
    wide_model: Callable[[], TextModel],
) -> None:
    model = wide_model()
    shared, _ = share(model, ["he sat", "we ran home"], client=client(), know="lengths,batch-size", seed=1)
    recovery = recover(shared, model, "span")
    assert recovery.proved_tokens == 0
    assert recovery.stop is not Stop.PROVED
    assert "told apart by masks alone" in " ".join(recovery.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"optimizer": "sgd", "steps": 3, "lr": 0.01}, id="steps of SGD"),
        pytest.param({"optimizer": "sgd", "epochs": 2, "batch_size": 2, "lr": 1e-3}, id="mini-batches"),
        pytest.param({"optimizer": "adamw"}, id="a step of AdamW"),
    ],
)
def test_several_sentences_behind_steps_are_read_and_verified_though_nobody_says_how_long_they_are(
    options: dict[str, object], wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    size = 3 if "batch_size" in options else 2
    sentences = [ONE, "we ran home", "he sat"][:size]
    plain = {"steps": None, "lr": None, "eps": STEP["eps"], "max_grad_norm": None}
    shared, secret = shared_by(client(**{**plain, **options}), model, *sentences, folder=tmp_path)
    assert shared.known.lengths is None
    recovery = recover(shared, model)
    assert sorted(read(recovery)) == sorted(secret.ids)
    assert recovery.stop is Stop.VERIFIED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "adapters"),
    [
        pytest.param("attention", None, id="attention alone"),
        pytest.param("all", {"rank": 32, "at": 3}, id="adapters"),
    ],
)
def test_whichever_layers_further_in_were_shared_tell_which_tokens_stand_together(
    what: str, adapters: dict[str, object] | None, wide_model: Callable[[], TextModel]
) -> None:
    model = wide_model()
    inserted = [] if adapters is None else [CLIENTS.build("lora", adapters)]
    who = composed([*inserted, CLIENTS.build("fedavg", STEP)])
    shared, secret = share(
        model, ["he sat", "we ran home"], client=who, share=what, know="batch-size", seed=1
    )
    recovery = recover(shared, model)
    assert sorted(read(recovery)) == sorted(secret.ids)
    assert recovery.stop is Stop.VERIFIED


@pytest.mark.slow
def test_several_sentences_in_bfloat16_are_read_though_no_mask_tells_them_apart(
    wide_model: Callable[[], TextModel],
) -> None:
    model = wide_model()
    who = composed([CLIENTS.build("autocast", {})])
    shared, secret = share(model, [ONE, "we ran home"], client=who, share="no-embeddings", seed=1)
    recovery = recover(shared, model)
    assert sorted(read(recovery)) == sorted(secret.ids)
    assert recovery.proved_tokens == 0


@pytest.mark.slow
def test_steps_on_parts_of_a_batch_tell_which_sentences_came_first(
    wide_model: Callable[[], TextModel],
) -> None:
    model = wide_model()
    sentences = [ONE, "we ran home", "he sat", "the doctor ran"]
    who = client(optimizer="sgd", steps=None, epochs=2, batch_size=2, lr=1e-3, max_grad_norm=None)
    shared, secret = share(model, sentences, client=who, share="no-embeddings", seed=1)
    assert secret.labels is not None
    view = view_of(shared, model)
    for order in ((3, 0, 1, 2), (2, 3, 1, 0)):
        guess = Guess(tuple(secret.ids[b] for b in order), tuple(secret.labels[b] for b in order))
        rows = in_turn(view, guess).rows
        assert set(rows[:2]) == set(secret.ids[:2])
        assert set(rows[2:]) == set(secret.ids[2:])
    late = dataclasses.replace(view, clock=Clock.of(0))
    assert in_turn(late, guess) == guess


@pytest.mark.parametrize(("seed", "blur", "filled_in"), [(0, 1e-3, False), (1, 1e-3, False), (0, 0.1, True)])
def test_of_a_blurred_gradient_true_inputs_are_told_from_what_its_blur_would_be_made_of(
    seed: int, blur: float, filled_in: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, true, rank = 300, 14, 24
    drawn_IR = torch.randn(64, rank, generator=generator, dtype=torch.float64)
    basis_RI = torch.linalg.qr(drawn_IR).Q.T
    inputs_NI = torch.randn(count, rank, generator=generator, dtype=torch.float64) @ basis_RI
    loud_T = 10 ** -torch.rand(true, generator=generator, dtype=torch.float64)
    deltas_TO = loud_T[:, None] * torch.randn(true, 80, generator=generator, dtype=torch.float64)
    stacked_OI = deltas_TO.T @ inputs_NI[:true]
    off_OI = torch.randn(80, 64, generator=generator, dtype=torch.float64)
    stacked_OI += blur * stacked_OI.norm() / off_OI.norm() * off_OI
    span = span_of(["first"], torch.ones(rank), basis_RI, shape=(80, 64), noise=0.0, clear=True)
    left = LayerRemainder(layers=(), stacked_OI=stacked_OI, outputs=[80], span=span, rounding=0.0)
    numbers = torch.arange(count)
    pairs = Pairs(positions_N=numbers, tokens_N=numbers, inputs_NI=inputs_NI)
    told = likely_gradients(pairs, left, filled_in=filled_in).loudness_N.argsort(descending=True)[:true]
    assert set(told.tolist()) == set(range(true))
    exactly = pair_gradients(pairs, left).loudness_N.argsort(descending=True)[:true]
    assert set(exactly.tolist()) != set(range(true))


def test_what_time_cuts_off_before_the_steps_are_replayed_is_neither_verified_nor_refuted(
    wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    who = client(optimizer="sgd", steps=2, lr=0.01, max_grad_norm=None)
    shared, secret = shared_by(who, model, ONE, folder=tmp_path)
    view = dataclasses.replace(view_of(shared, model), clock=Clock.of(0))
    answer = sentences_of(view, Guess(secret.ids, secret.labels or ()))
    certificate = certify(view, answer)
    assert certificate.verified is None
    assert certificate.reason is not None
    assert "Time was up" in certificate.reason
    recovery = Recovery(sentences=answer, stop=Stop.TIME, final_loss=None)
    assert certificate_of(recovery, view_of(shared, model)) == certificate
    assert certify(view_of(shared, model), answer).verified
    late = certify(dataclasses.replace(view, clock=rings_at(2)), answer)  # while rivals are compared
    assert late.verified is None
    assert late.gradient_distance is not None
    assert late.reason == certificate.reason


def rings_at(look: int) -> Clock:
    """A clock that rings when it has been looked at so often."""
    looks = itertools.count()

    class Rings(Clock):
        @property
        def over(self) -> bool:
            return next(looks) >= look

    return Rings()


def test_in_whatever_order_tokens_are_listed_inputs_further_in_tell_which_stand_together(
    wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    who = client(optimizer="sgd", steps=3, lr=0.01, max_grad_norm=None)
    shared, secret = shared_by(who, model, ONE, folder=tmp_path)
    view = view_of(shared, model)
    true = secret.ids[0]
    lists = [tokens[::-1] for tokens in ranked_tokens(view, FirstUpdate.of(view), len(true), 8)]
    assert sum(tokens[0] == token for tokens, token in zip(lists, true, strict=True)) < 4
    assert FurtherIn(view, lists).nearest() == true


def test_a_sentence_behind_steps_of_adamw_with_dropout_is_read_by_what_its_inputs_hold_together_and_not_called_proved(
    wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    who = client("train-mode", steps=4, max_grad_norm=None)
    shared, secret = shared_by(who, model, ONE, folder=tmp_path)
    view = view_of(shared, model)
    true = secret.ids[0]
    lists = [tokens[::-1] for tokens in ranked_tokens(view, FirstUpdate.of(view), len(true), 8)]
    assert sum(tokens[0] == token for tokens, token in zip(lists, true, strict=True)) < 4
    together = Together(view, FirstUpdate.of(view), lists)
    assert together.nearest() == true
    rivals, clear = together.rivals(true)
    assert rivals[0] == true
    held, other = together._scores(
        [
            tuple(where[token] for where, token in zip(together._where, row, strict=True))
            for row in (true, (*true[:2], true[3], true[2], *true[4:]))
        ]
    ).tolist()
    assert 0 < clear[2] <= 1 - other / held
    answer = recover(shared, model, "replay")
    assert read(answer) == [true]
    whole = ranked_tokens(
        view, FirstUpdate.of(view), len(true), max(replay.Replay().proposals, replay._LISTED)
    )
    together = Together(view, FirstUpdate.of(view), whole)
    _, clear = together.rivals(together.nearest())
    sure = [position.confidence for position in answer.sentences[0].positions]
    assert sure == pytest.approx([1 - math.exp(-apart / replay._SURER) for apart in clear], abs=1e-6)
    assert min(sure) > 0
    assert (answer.sentences[0].label,) == secret.labels
    assert (answer.proof, answer.proved_tokens) == (None, 0)
    assert answer.stop is not Stop.VERIFIED


@pytest.mark.parametrize(("second", "answered"), [(ONE, 2), ("we ran home", 1)])
def test_a_sentence_is_answered_twice_only_where_that_is_verified(
    second: str, answered: int, wide_model: Callable[[], TextModel], tmp_path: Path
) -> None:
    model = wide_model()
    who = client(optimizer="sgd", steps=2, lr=0.01, max_grad_norm=None)
    shared, secret = shared_by(who, model, ONE, second, folder=tmp_path)
    one_found = types.SimpleNamespace(rows=[secret.ids[0]], look=lambda: iter([None]))
    batch = ReplayedBatch(view_of(shared, model), one_found)  # type: ignore[arg-type]
    for _ in batch.run():
        pass
    assert batch.guess is not None
    assert batch.guess.rows == (secret.ids[0],) * answered
    assert bool(batch.certificate.verified) is (answered == 2)
