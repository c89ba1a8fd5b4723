"""What is recorded of a loop is what the client that the recording names would send."""

from __future__ import annotations

import copy
import stat
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import textleak
from tests.conftest import ToyModel
from textleak.clients.updates import with_adapter
from textleak.clients.view import view_of
from textleak.errors import InputError
from textleak.integrations.plain import Tape
from textleak.integrations.recording import Recording, recordings_in
from textleak.jobs.found import find
from textleak.models import TextModel, load_model
from textleak.models.batches import TextExamples
from textleak.private.secrets import Secret
from textleak.settings.audit import load_audit_config
from textleak.shared.formats import read_state
from textleak.shared.gradient import SharedGradient

FOUR = ("the cat sat", "a dog ran home", "he read", "she wrote a letter")
LABELS = (0, 1, 2, 1)
Optimizer = Callable[..., torch.optim.Optimizer]


def in_training(model: TextModel, *, train: bool = False) -> nn.Module:
    """A network of one's own, as a script has it."""
    return copy.deepcopy(model.network).requires_grad_(True).train(train)


def losses(model: TextModel, network: nn.Module, size: int, steps: int) -> Any:
    """The loss of each step's batch: some sentences after the other, and again from the first."""
    for step in range(steps):
        rows = [(step * size + b) % len(FOUR) for b in range(size)]
        batch = model.encode([FOUR[row] for row in rows])
        labels = torch.tensor([LABELS[row] for row in rows]) if model.num_labels else batch.ids_BT
        yield network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=labels).loss


def loop(
    model: TextModel,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    size: int = 4,
    steps: int = 1,
    accumulate: int = 1,
    clip: float | None = None,
) -> None:
    """An ordinary loop."""
    for number, loss in enumerate(losses(model, network, size, steps * accumulate), 1):
        (loss / accumulate).backward()
        if number % accumulate:
            continue
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


def read(recording: Recording) -> tuple[SharedGradient, TextModel]:
    """What an audit has of it: the files."""
    shared = SharedGradient.load(recording.file)
    model = load_model(recording.model, task=shared.model.task, device="cpu", dtype=shared.model.dtype)
    assert model.fingerprint == shared.model.fingerprint
    return shared, model


def replayed(recording: Recording) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What was recorded, and what the client that it names sends of the recorded truth."""
    shared, model = read(recording)
    assert recording.truth is not None
    secret = Secret.load(recording.truth)
    view = view_of(shared, model)
    batch, targets = model.targets(model.encode(secret.sentences), secret.labels, torch.Generator())
    assert batch.sentences == secret.ids
    return view.shared.gradients, view.own(TextExamples(batch=batch, targets=targets))


def distance(sent: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> float:
    """Relative distance over all tensors."""
    apart = sum(float((sent[name] - own[name]).double().square().sum()) for name in sent)
    return (apart / sum(float(t.double().square().sum()) for t in own.values())) ** 0.5


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), {}),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), {"steps": 3}),
        (lambda p: torch.optim.SGD(p, lr=0.1), {"steps": 4, "size": 2}),
        (lambda p: torch.optim.SGD(p, lr=0.1), {"steps": 2, "size": 2, "accumulate": 2}),
        (lambda p: torch.optim.SGD(p, lr=0.1), {"clip": 0.05}),
    ],
)
def test_a_round_is_what_the_named_client_sends(
    make: Optimizer, how: dict[str, Any], toy_model: ToyModel, tmp_path: Path
):
    model = toy_model("bert", dtype="float64")
    network = in_training(model)
    optimizer = make(network.parameters())
    with textleak.record(
        network, model.tokenizer, optimizer=optimizer, out=tmp_path, at=(), truth=True
    ) as tape:
        loop(model, network, optimizer, **how)
    (recording,) = tape.recordings
    assert recording.notes == ()
    assert distance(*replayed(recording)) < 1e-6


def test_adamw_steps_are_told_with_their_settings(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert", dtype="float64")
    network = in_training(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.8, 0.99), weight_decay=0.05)
    with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path, truth=True) as tape:
        loop(model, network, optimizer, steps=2)
    assert [recording.file.name for recording in tape.recordings] == [
        "step-1.safetensors",
        "round.safetensors",
    ]
    for recording, steps in zip(tape.recordings, ("", "batch_size=4"), strict=True):
        (spec,) = recording.client
        assert spec.startswith("fedavg:optimizer=adamw,lr=0.001,steps=")
        assert "beta1=0.8,beta2=0.99" in spec
        assert "weight_decay=0.05" in spec
        assert steps in spec
        assert distance(*replayed(recording)) < 1e-4  # where gradients are all but 0, their sign decides


def test_a_gradient_is_what_the_optimizer_was_given(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("gpt2", task="causal-lm", dtype="float64")
    network = in_training(model)
    optimizer = torch.optim.Adagrad(network.parameters(), lr=0.1)
    with textleak.record(
        network, model.tokenizer, optimizer=optimizer, out=tmp_path, sends="gradient", end=False, truth=True
    ) as tape:
        for row in FOUR[:2]:
            batch = model.encode([row])
            network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=batch.ids_BT).loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.25)
            optimizer.step()
            optimizer.zero_grad()
    (recording,) = tape.recordings
    assert recording.client == ()
    assert recording.defenses == ("clip:max_norm=0.25",)
    sent, own = replayed(recording)
    norm = sum(float(gradient.square().sum()) for gradient in own.values()) ** 0.5
    assert distance(sent, {name: gradient * 0.25 / norm for name, gradient in own.items()}) < 1e-5


def test_micro_batches_of_a_gradient_are_told(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert", dtype="float64")
    network = in_training(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with textleak.record(
        network, model.tokenizer, optimizer=optimizer, out=tmp_path, sends="gradient", end=False, truth=True
    ) as tape:
        loop(model, network, optimizer, size=2, accumulate=2)
    assert tape.recordings[0].client == ("accumulate:steps=2",) or tape.recordings[0].client == (
        "accumulate",
    )
    assert distance(*replayed(tape.recordings[0])) < 1e-6


def test_a_loop_without_an_optimizer_says_when_its_gradients_are_there(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert", dtype="float64")
    network = in_training(model)
    with textleak.record(network, model.tokenizer, out=tmp_path, at=(2,), truth=True) as tape:
        for loss in losses(model, network, 2, 2):
            network.zero_grad()
            loss.backward()
            tape.step()
    (recording,) = tape.recordings
    assert recording.file.name == "step-2.safetensors"
    assert distance(*replayed(recording)) < 1e-6


def test_dropout_and_autocast_are_told(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model, train=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with (
        textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path) as tape,
        torch.autocast("cpu", torch.bfloat16),
    ):
        loop(model, network, optimizer)
    assert tape.recordings[0].client == ("train-mode", "autocast", "fedavg:lr=0.1,steps=1")
    network.eval()
    with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path) as tape:
        loop(model, network, optimizer)
    assert tape.recordings[0].client == ("fedavg:lr=0.1,steps=1",)


def test_what_the_named_client_does_not_say_is_noted(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    loop(model, network, optimizer)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=1)
    with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path, at=()) as tape:
        for _ in range(2):
            loop(model, network, optimizer)
            schedule.step()
    (recording,) = tape.recordings
    assert "from 0.1 to 0.05" in recording.notes[0]
    assert "remembered steps before these" in recording.notes[1]
    assert recordings_in(tmp_path) == [recording]  # beside the file, for whoever audits it


def test_an_optimizer_that_no_client_has_is_not_told_as_another(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model)
    optimizer = torch.optim.Adagrad(network.parameters(), lr=0.1)
    with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path) as tape:
        loop(model, network, optimizer)
    assert tape.recordings[0].client == ()
    assert tape.recordings[0].notes == ("No client here takes Adagrad's steps: none is told.",)


def test_the_truth_is_written_on_request_alone_and_for_its_owner(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for truth in (False, True):
        out = tmp_path / str(truth)
        with textleak.record(network, model.tokenizer, optimizer=optimizer, out=out, truth=truth):
            loop(model, network, optimizer)
        files = [path for path in out.rglob("*") if path.is_file()]
        assert (out / "step-1.truth.json" in files) is truth
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
        # No file but that one has a word of the text.
        others = [path for path in files if path.suffix == ".json" and "token" not in path.name]
        assert all(
            sentence not in path.read_text()
            for path in others
            if path.name != "step-1.truth.json"
            for sentence in FOUR
        )


@pytest.mark.parametrize(
    "wrapped", [pytest.param("compiled", marks=pytest.mark.slow), "parallel", "accelerated", "frozen"]
)
def test_names_are_the_networks_own_whatever_is_around_it(wrapped: str, toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert", dtype="float64")
    network = in_training(model)
    names = set(dict(network.named_parameters()))
    called: nn.Module = network
    if wrapped == "compiled":
        called = torch.compile(network, backend="eager")  # type: ignore[assignment]
    if wrapped == "parallel":
        called = nn.DataParallel(network)
    if wrapped == "frozen":
        network.bert.embeddings.requires_grad_(False)
        names = {name for name in names if ".embeddings." not in name}
    optimizer = torch.optim.SGD([p for p in called.parameters() if p.requires_grad], lr=0.1)
    if wrapped == "accelerated":
        accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
        called, optimizer = accelerate.Accelerator(cpu=True).prepare(called, optimizer)
    with textleak.record(called, model.tokenizer, optimizer=optimizer, out=tmp_path, truth=True) as tape:
        loop(model, called, optimizer)
    (recording,) = tape.recordings
    assert set(SharedGradient.load(recording.file).gradients) == names
    assert distance(*replayed(recording)) < 1e-6


def test_equal_weights_are_written_once(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    for name in ("first", "second"):
        network = in_training(model)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path) as tape:
            loop(model, network, optimizer, steps=2)
        assert len({recording.model for recording in tape.recordings}) == 1, name
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_weights_that_a_server_has_are_not_written_but_later_ones_are(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with textleak.record(
        network, model.tokenizer, optimizer=optimizer, out=tmp_path, at=(1, 2), public="bert-tiny"
    ) as tape:
        loop(model, network, optimizer, steps=2)
    first, second, whole = tape.recordings
    assert first.model == whole.model == "bert-tiny"
    assert read(second)[1].fingerprint != model.fingerprint
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [Path(second.model)]


def test_a_truth_that_was_not_seen_is_said_to_be_missing(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path, truth=True) as tape:
        batch = model.encode(FOUR)
        embeddings = network.get_input_embeddings()(batch.ids_BT).detach()  # no ids pass through the network
        tape._watch.take()
        network(inputs_embeds=embeddings, labels=torch.tensor(LABELS)).loss.backward()
        optimizer.step()
    (recording,) = tape.recordings
    assert recording.truth is None
    assert "no truth is written" in recording.notes[-1]


def test_a_loop_that_fails_leaves_no_round_and_no_hook(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def failing() -> None:
        with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path, at=()):
            loop(model, network, optimizer)
            raise KeyError("the script's own")

    with pytest.raises(KeyError):
        failing()
    assert not list(tmp_path.iterdir())
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_what_cannot_be_recorded_does_not_end_the_training(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = in_training(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=float("inf"))
    tape = textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path)
    with pytest.warns(UserWarning, match="step-1 was not recorded"), tape:
        loop(model, network, optimizer)
    assert tape.recordings == []


def test_models_and_wishes_that_make_no_sense_are_refused(toy_model: ToyModel):
    model = toy_model("bert")
    network = in_training(model)
    with pytest.raises(InputError, match="Linear"):
        textleak.record(nn.Linear(2, 2), model.tokenizer)
    with pytest.raises(InputError, match="counted from 1"):
        textleak.record(network, model.tokenizer, at=(0,))
    with pytest.raises(InputError, match="kind of message"):
        textleak.record(network, model.tokenizer, sends="weights")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No parameter"):
        textleak.record(network.requires_grad_(False), model.tokenizer)
    network.sharding_strategy = types.SimpleNamespace(name="FULL_SHARD")  # as FSDP's wrapper has it
    with pytest.raises(InputError, match="full_state_dict=True"):
        textleak.record(network, model.tokenizer)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # PEFT asks transformers for it
def test_a_recorded_adapter_names_the_client_that_peft_is(toy_model: ToyModel, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="needs peft")
    model = toy_model("llama", task="causal-lm")
    for saved in (None, ["norm"]):
        config = peft.LoraConfig(
            r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], modules_to_save=saved
        )
        network = peft.get_peft_model(in_training(model), config)
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
        tape: Tape
        with textleak.record(network, model.tokenizer, optimizer=optimizer, out=tmp_path) as tape:
            loop(model, network, optimizer)
        (recording,) = tape.recordings
        kept = ",modules_to_save=norm" if saved else ""
        assert recording.client == (
            f"lora:rank=2,alpha=4.0,targets=q_proj/v_proj{kept}",
            "fedavg:lr=0.1,steps=1",
        )
        # What `-m` takes is PEFT's folder; it lies in that of its base model.
        folder = Path(recording.model)
        base = load_model(str(folder.parent), task="causal-lm", device="cpu")
        assert base.fingerprint == model.fingerprint
        adapter = read_state(folder)
        assert adapter.adapter is not None
        assert adapter.adapter.base == ".."
        prepared = with_adapter(base, adapter.adapter, adapter.tensors, where=folder)
        shared = SharedGradient.load(recording.file)
        assert prepared.fingerprint == shared.model.fingerprint
        assert set(shared.gradients) == set(prepared.trainable)
        audited = find(load_audit_config({"gradients": recording.file, "model": recording.model}))
        assert audited.model.fingerprint == shared.model.fingerprint
        assert audited.shared.client.kinds[0][0] == "fedavg"  # the adapters are in place
        again = peft.PeftModel.from_pretrained(in_training(model), str(folder))
        assert len([name for name, _ in again.named_parameters() if "lora_A" in name]) == 4
