"""What each kind of client sends, against torch's own training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import textleak
from tests.conftest import ToyModel
from textleak.clients import CLIENTS, composed
from textleak.clients.base import Client
from textleak.clients.view import view_of
from textleak.errors import InputError
from textleak.events import Stop
from textleak.jobs.files import tell_less
from textleak.models import TextModel
from textleak.models.gradient import formed_gradient
from textleak.private.share import share
from textleak.settings import RunConfig
from textleak.shared.effects import before_rounding
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

FOUR = ("the cat sat", "a dog ran home", "he read", "she wrote a letter")
LABELS = (0, 1, 2, 1)


def client(name: str, **options: object) -> Client:
    return composed([CLIENTS.build(name, options)])


def trained(
    model: TextModel,
    steps: int,
    make: Callable[..., torch.optim.Optimizer],
    *,
    clip: float | None,
    train: bool,
) -> dict[str, torch.Tensor]:
    """The difference of the weights after an ordinary loop on the whole batch."""
    network = copy.deepcopy(model.network).requires_grad_(True)
    network.train(train)
    optimizer = make(network.parameters())
    batch = model.encode(FOUR)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        output = network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=torch.tensor(LABELS))
        output.loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    return {name: p.detach() - before[name] for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"steps": 1, "lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ({"steps": 4, "lr": 0.05, "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (
            {"optimizer": "adamw", "steps": 3, "lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1.0},
            lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
        ),
    ],
)
def test_local_steps_are_torchs(options: dict[str, Any], make: Any, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, FOUR, LABELS, client=client("fedavg", **options))
    expected = trained(model, options["steps"], make, clip=options.get("max_grad_norm"), train=False)
    for name, value in shared.gradients.items():
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-7), name


def test_weights_may_leave_in_place_of_their_difference(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    update, _ = share(model, FOUR, LABELS, client=client("fedavg", lr=0.1))
    weights, _ = share(model, FOUR, LABELS, client=client("fedavg", lr=0.1, share="weights"))
    for name, value in weights.gradients.items():
        assert torch.allclose(value, model.parameters[name] + update.gradients[name])
    one, other = view_of(update, model).shared.gradients, view_of(weights, model).shared.gradients
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_one_step_of_sgd_is_read_as_the_gradient(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    plain, _ = share(model, FOUR, LABELS)
    update, _ = share(model, FOUR, LABELS, client=client("fedavg", lr=0.1))
    for name, gradient in view_of(update, model).shared.gradients.items():
        assert torch.allclose(gradient, plain.gradients[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("decay", [0.1, 0.5])
def test_what_decay_moves_is_no_part_of_the_gradient(decay: float, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    plain, _ = share(model, FOUR, LABELS)
    update, _ = share(model, FOUR, LABELS, client=client("fedavg", lr=0.05, weight_decay=decay))
    found = view_of(update, model).shared.gradients
    largest = max(float(gradient.abs().max()) for gradient in plain.gradients.values())
    for name, gradient in found.items():
        assert torch.allclose(gradient, plain.gradients[name], rtol=1e-3, atol=1e-5 * largest), name
        untouched = (plain.gradients[name] == 0).flatten()
        assert not found[name].flatten()[untouched].any(), name


def test_a_sentence_is_read_behind_several_steps_with_decay(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    made = client("fedavg", lr=0.01, steps=4, weight_decay=0.1)
    shared, secret = share(model, FOUR[:1], LABELS[:1], client=made)
    recovery = textleak.recover(shared, model, "auto", seed=0, time_limit=30)
    assert recovery.stop is Stop.VERIFIED
    assert recovery.sentences[0].text == secret.sentences[0]


def test_epochs_of_mini_batches_go_through_the_batch_in_order() -> None:
    kind = CLIENTS.build("fedavg", {"epochs": 2, "batch_size": 3})

    class Counted:
        def __init__(self, rows: range) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def only(self, rows: slice) -> Counted:
            return Counted(self.rows[rows])

    parts = [list(part.rows) for part in kind.step_batches(Counted(range(4)))]  # type: ignore[attr-defined, arg-type]
    assert parts == [[0, 1, 2], [3], [0, 1, 2], [3]]
    with pytest.raises(InputError, match="steps=2 and epochs=3"):
        CLIENTS.build("fedavg", {"steps": 2, "epochs": 3})


def test_micro_batches_of_equal_size_have_the_batchs_gradient(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    plain, _ = share(model, FOUR, LABELS)
    accumulated, _ = share(model, FOUR, LABELS, client=client("accumulate", steps=2))
    for name, gradient in accumulated.gradients.items():
        assert torch.allclose(gradient, plain.gradients[name], rtol=1e-9, atol=1e-14)
    with pytest.raises(InputError, match="3 equal micro-batches"):
        share(model, FOUR, LABELS, client=client("accumulate", steps=3))


def test_train_mode_drops_what_the_clients_seed_says_and_leaves_the_model_as_it_was(
    toy_model: ToyModel,
) -> None:
    model = toy_model("bert", task="classification")
    one, _ = share(model, FOUR, LABELS, client=client("train-mode"), seed=1)
    again, _ = share(model, FOUR, LABELS, client=client("train-mode"), seed=1)
    other, _ = share(model, FOUR, LABELS, client=client("train-mode"), seed=2)
    plain, _ = share(model, FOUR, LABELS, seed=1)
    name = next(iter(plain.gradients))
    assert torch.equal(one.gradients[name], again.gradients[name])
    assert not torch.allclose(one.gradients[name], other.gradients[name])
    assert not torch.allclose(one.gradients[name], plain.gradients[name])
    assert not any(module.training for module in model.network.modules())
    assert Trait.REPEATABLE not in client("train-mode").traits(model)


def test_a_model_without_dropout_is_the_same_in_train_mode(toy_model: ToyModel) -> None:
    model = toy_model("llama", task="causal-lm")
    assert client("train-mode").traits(model) == frozenset(Trait)


def test_the_server_asks_the_clients_own_question(toy_model: ToyModel) -> None:
    """What a client of two SGD steps would send if the batch were the truth is what it sent."""
    from textleak.models.batches import TextExamples

    model = toy_model("bert", task="classification")
    shared, _ = share(model, FOUR, LABELS, client=client("fedavg", steps=2))
    view = view_of(shared, model)
    batch, targets = model.targets(model.encode(FOUR), LABELS, torch.Generator())
    own = view.own(TextExamples(batch=batch, targets=targets))
    assert all(torch.equal(own[name], view.shared.gradients[name]) for name in own)


def test_a_client_travels_with_its_gradient(toy_model: ToyModel, tmp_path: Any) -> None:
    model = toy_model("bert", task="classification")
    both = composed([CLIENTS.build("train-mode", {}), CLIENTS.build("fedavg", {"lr": 0.1})])
    shared, secret = share(model, FOUR, LABELS, client=both)
    shared.save(tmp_path / "update.safetensors")
    read = SharedGradient.load(tmp_path / "update.safetensors")
    assert read.client == shared.client == secret.client
    assert [name for name, _ in read.client.kinds] == ["train-mode", "fedavg"]
    untold, told = share(model, FOUR, LABELS, client=both, know="no-client,batch-size")
    assert untold.client.kinds == ()
    assert told.client == shared.client


@pytest.mark.parametrize("written", [False, True])
def test_adapters_are_in_the_network_that_the_server_gave_out(
    written: bool, toy_model: ToyModel, tmp_path: Path
) -> None:
    model = toy_model("bert", task="classification")
    both = composed([CLIENTS.build("lora", {"rank": 2}), CLIENTS.build("fedavg", {"lr": 0.1})])
    shared, _ = share(
        model, FOUR, LABELS, client=both, know="batch-size" if written else "no-client,batch-size"
    )
    if written:
        shared = tell_less(shared, RunConfig(know="no-client", gradients=tmp_path / "update.safetensors"))
    assert [name for name, _ in shared.client.kinds] == ["lora"]
    assert {*shared.gradients} <= {*view_of(shared, model).model.parameters}


def test_a_gradient_without_a_client_is_of_one_step(toy_model: ToyModel, tmp_path: Any) -> None:
    """Files of format 1 have none."""
    from safetensors.torch import save_file

    from textleak.shared.tensors import read_tensors

    model = toy_model("bert", task="classification")
    shared, _ = share(model, FOUR, LABELS)
    shared.save(tmp_path / "now.safetensors")
    header, tensors = read_tensors(tmp_path / "now.safetensors")
    old = {key: value for key, value in header.items() if key != "client"}
    save_file(tensors, tmp_path / "old.safetensors", {**old, "textleak": "1"})
    assert SharedGradient.load(tmp_path / "old.safetensors").client.kinds == ()


def test_gradients_are_formed_of_any_examples(toy_model: ToyModel) -> None:
    from textleak.models.batches import TextExamples

    model = toy_model("bert", task="classification", dtype="float64")
    batch, targets = model.targets(model.encode(FOUR), LABELS, torch.Generator())
    examples = TextExamples(batch=batch, targets=targets)
    names = list(model.parameters)
    whole = formed_gradient(model, examples, names)
    halves = [formed_gradient(model, examples.only(rows), names) for rows in (slice(0, 2), slice(2, 4))]
    assert len(examples) == 4
    for name, gradient in whole.items():
        assert torch.allclose(gradient, (halves[0][name] + halves[1][name]) / 2, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_autocast_is_torchs(dtype: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, FOUR, LABELS, client=client("autocast", dtype=dtype))
    plainly, _ = share(model, FOUR, LABELS)
    network = copy.deepcopy(model.network).requires_grad_(True)
    batch = model.encode(FOUR)
    with torch.autocast("cpu", {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]):
        output = network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=torch.tensor(LABELS))
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == "fp16")
    scaler.scale(output.loss).backward()
    scaler.unscale_(torch.optim.SGD(network.parameters(), lr=1.0))
    for name, parameter in network.named_parameters():
        if name in shared.gradients:
            assert parameter.grad is not None
            # The loss itself is formed another way, from the same logits.
            off = (shared.gradients[name] - parameter.grad).norm()
            assert off <= 0.5 * (plainly.gradients[name] - parameter.grad).norm() + 1e-7, name


@pytest.mark.parametrize("scale", [1.0, 1024.0, 65536.0])
def test_float16_rounds_the_scaled_gradient_where_its_effect_says(scale: float, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, FOUR, LABELS, client=client("autocast", dtype="fp16", scale=scale))
    (effect,) = shared.effects
    name = next(name for name in shared.gradients if name.endswith("0.attention.self.query.weight"))
    seen = shared.gradients[name].double()
    assert torch.equal((seen * scale).half().double() / scale, seen)  # a grid's point, underflow and all
    nothing = torch.zeros((), dtype=torch.float64)
    half = 2.0**-25 / scale  # of float16's smallest number
    assert before_rounding({name: (nothing, nothing)}, (effect,)) == {name: (-half, half)}


def test_a_loss_scale_that_overflows_float16_is_said(toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match="too large a loss scale"):
        share(toy_model("bert"), FOUR, LABELS, client=client("autocast", dtype="fp16", scale=2.0**24))
    for wrong in ({"scale": 1024.0}, {"dtype": "fp16", "scale": 1000.0}):
        with pytest.raises(InputError, match="powers of two"):
            client("autocast", **wrong)


def test_hf_trainer_sends_what_a_step_of_transformers_trainer_moves(
    toy_model: ToyModel, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = toy_model("bert", task="classification")
    network = copy.deepcopy(model.network).requires_grad_(True)
    for module in network.modules():  # what the Trainer's own dropout draws can't be repeated
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = model.encode(FOUR)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(batch.ids_BT, batch.mask_BT, LABELS, strict=True)
    ]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=len(FOUR),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    transformers.Trainer(model=network, args=arguments, train_dataset=rows).train()
    real = {name: p.detach() - before[name] for name, p in network.named_parameters()}
    step = {"optimizer": "adamw", "lr": 5e-5, "steps": 1, "max_grad_norm": 1.0}
    shared, _ = share(model, FOUR, LABELS, client=client("fedavg", **step))
    for name, ours in shared.gradients.items():
        # Where the gradient is only rounding, so is its step.
        unit = torch.finfo(ours.dtype).eps * before[name].abs().clamp_min(1e-3)
        told = real[name].abs() > 0.9 * 5e-5
        assert bool(((ours - real[name]).abs()[told] <= 2 * unit[told] + 1e-6 * 5e-5).all()), name
    assert sum(int((value.abs() > 0.9 * 5e-5).sum()) for value in real.values()) > 1000
