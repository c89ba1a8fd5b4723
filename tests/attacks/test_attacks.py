"""The contract of an attack, for every attack on every kind of model, on gradients read back from disk."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from tests import warm
from tests.conftest import ToyModel
from textleak import seeds
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.attacks.dummies.text import Dummies
from textleak.clients import CLIENTS, composed
from textleak.clients.view import Clock, view_of
from textleak.errors import InputError
from textleak.events import Phase, Progress, Recovery, Sentence, Stop, from_json, to_json
from textleak.exact.found import OPEN
from textleak.models import TextModel, load_model
from textleak.models.decoding import fixed_tokens
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.proof import certificate
from textleak.shared.gradient import SharedGradient

ROOT = Path(__file__).parents[2]
SENTENCE = "the cat sat on the mat"

# A new attack has a row here: the options that make it quick.
QUICK: dict[str, dict[str, object]] = {
    "match": {"budget": 400, "restarts": 2, "steps": 10},
    "dlg": {"steps": 3, "restarts": 2},
    "idlg": {"steps": 3, "restarts": 2},
    "tag": {"steps": 3, "restarts": 2},
    "cosine": {"steps": 3, "restarts": 2},
    "lamp": {"steps": 3, "restarts": 2, "starts": 4, "moves": 8, "moves_every": 2},
    "grab": {"steps": 3, "rounds": 1, "restarts": 2, "starts": 4, "beams": 1, "sweeps": 1},
    "embedding": {},
    "span": {},
    "auto": {},
    "replay": {"proposals": 4, "sweeps": 1},
}
# These read off what is there, and leave open what isn't.
EXACT = ("embedding", "span")
WITHOUT_OPTIONS = (*EXACT, "auto")
ITERATIVE = tuple(attack for attack in QUICK if attack not in (*WITHOUT_OPTIONS, "replay"))
CONTINUOUS = ("dlg", "idlg", "tag", "cosine")
DUMMIES = (*CONTINUOUS, "lamp", "grab")
MODELS = [
    ("bert", "classification"),
    ("albert", "classification"),
    ("gpt2", "classification"),
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("bert", "masked-lm"),
]
WORKS_ON = {"idlg": ("classification",), "replay": ("classification",)}
NOT_ON = {("replay", "albert")}  # whose layers share their weights
CONTRACT = [
    (attack, family, task)
    for attack in QUICK
    for family, task in MODELS
    if task in WORKS_ON.get(attack, (task,)) and (attack, family) not in NOT_ON
]

FromDisk = Callable[..., tuple[SharedGradient, Secret]]


@pytest.fixture
def from_disk(tmp_path: Path) -> FromDisk:
    """Shares a gradient, writes it, reads it back."""

    def written_and_read(
        model: TextModel, *sentences: str, labels: tuple[int, ...] | None = None, **options: object
    ) -> tuple[SharedGradient, Secret]:
        shared, secret = share(model, sentences or (SENTENCE,), labels, **{"seed": 1, **options})
        shared.save(tmp_path / "gradient.safetensors")
        return SharedGradient.load(tmp_path / "gradient.safetensors"), secret

    return written_and_read


def run(
    attack: str, shared: SharedGradient, model: TextModel, *, seed: int = 0, **options: object
) -> tuple[list[Phase | Progress], Recovery]:
    """All that an attack yields, and what it returns."""
    steps = begin(ATTACKS.build(attack, options), shared, model, seed=seed)
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value


@pytest.fixture(scope="module")
def recovered(
    toy_model: ToyModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Recovery]:
    """Gives what an attack finds at a seed in a gradient of BERT's read from disk; it is run once."""
    model = toy_model("bert", task="classification")
    file = tmp_path_factory.mktemp("shared") / "gradient.safetensors"
    share(model, (SENTENCE,), seed=1)[0].save(file)

    @functools.cache
    def at(attack: str, seed: int) -> Recovery:
        return run(attack, SharedGradient.load(file), model, seed=seed, **QUICK[attack])[1]

    return at


def tokens(sentences: tuple[Sentence, ...]) -> list[list[int]]:
    return [[position.id for position in sentence.positions] for sentence in sentences]


def values_in(value: object) -> list[object]:
    """Everything inside a value, itself included."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple | list):
        parts = list(value)
    elif isinstance(value, dict):
        parts = [*value, *value.values()]
    else:
        parts = []
    return [value, *(inner for part in parts for inner in values_in(part))]


# The contract


def test_every_attack_has_a_row_in_the_contract() -> None:
    assert set(QUICK) == set(ATTACKS)


@pytest.mark.parametrize(("attack", "family", "task"), CONTRACT)
def test_an_attack_on_a_gradient_read_from_disk_keeps_the_contract(
    attack: str, family: str, task: str, toy_model: ToyModel, from_disk: FromDisk
) -> None:
    model = toy_model(family, task=task)
    shared, secret = from_disk(model)
    before = {name: gradient.clone() for name, gradient in shared.gradients.items()}
    events, recovery = run(attack, shared, model, **QUICK[attack])

    assert isinstance(events[0], Phase)
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress
    assert all(isinstance(event, Phase | Progress) for event in events)
    for event in [*events, recovery]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.phase = "another"  # type: ignore[union-attr]
        assert not [v for v in values_in(event) if isinstance(v, torch.Tensor | numpy.generic | list)]
    for event in events:
        assert from_json(json.loads(json.dumps(to_json(event)))) == event

    # It answers with one sentence of the length it was told, and what the tokenizer adds is in its place.
    (ids,), (sentence,) = secret.ids, recovery.sentences
    assert [position.position for position in sentence.positions] == list(range(len(ids)))
    for position, token in fixed_tokens(model, len(ids)).items():
        assert sentence.positions[position].id == token
        assert sentence.positions[position].special
    lowest = OPEN if attack in EXACT else 0
    assert all(lowest <= position.id < model.vocab_size for position in sentence.positions)
    assert all((position.id == OPEN) == (position.text == "") for position in sentence.positions)
    assert all(0 <= position.confidence <= 1 for position in sentence.positions)
    assert sentence.text == model.decode([i for i in tokens(recovery.sentences)[0] if i != OPEN])
    if OPEN not in tokens(recovery.sentences)[0] or attack not in EXACT:
        assert (sentence.label is not None) == (task == "classification")
    if sentence.label_posterior:
        assert sum(sentence.label_posterior) == pytest.approx(1, abs=1e-5)
        assert len(sentence.label_posterior) == model.num_labels

    if OPEN not in tokens(recovery.sentences)[0]:
        assert recovery.final_loss is not None
        assert -1e-6 < recovery.final_loss < float("inf")
        assert recovery.evaluations > 0
    assert tokens(recovery.stages.get("continuous", recovery.sentences))

    # It leaves the gradient and the network as they were.
    assert all(torch.equal(shared.gradients[name], gradient) for name, gradient in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters.values())


@pytest.mark.parametrize("attack", QUICK)
def test_the_same_seed_gives_the_same_tokens_twice(
    attack: str, toy_model: ToyModel, from_disk: FromDisk, recovered: Callable[[str, int], Recovery]
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model)
    once = recovered(attack, 3)
    state = torch.random.get_rng_state()
    _, again = run(attack, shared, model, seed=3, **QUICK[attack])
    assert once == again
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("attack", DUMMIES)
def test_another_seed_starts_elsewhere(attack: str, recovered: Callable[[str, int], Recovery]) -> None:
    assert recovered(attack, 3).final_loss != recovered(attack, 4).final_loss


@pytest.mark.parametrize("attack", ITERATIVE)
def test_a_mistyped_option_is_told_the_nearest(attack: str) -> None:
    with pytest.raises(InputError, match="stesp") as told:
        ATTACKS.build(attack, {"stesp": 3})
    assert "steps" in str(told.value)


@pytest.mark.parametrize("attack", ITERATIVE)
@pytest.mark.parametrize(
    ("option", "value"), [("steps", 0), ("steps", -3), ("restarts", 0), ("restarts", "many")]
)
def test_no_steps_and_no_candidates_are_refused(attack: str, option: str, value: object) -> None:
    with pytest.raises(InputError, match=option):
        ATTACKS.build(attack, {option: value})


def test_an_unknown_attack_is_told_the_nearest() -> None:
    with pytest.raises(InputError, match="cosine"):
        ATTACKS["cosin"]


@pytest.mark.parametrize("attack", QUICK)
def test_a_gradient_of_another_model_is_refused(
    attack: str, toy_model: ToyModel, from_disk: FromDisk
) -> None:
    shared, _ = from_disk(toy_model("albert", task="classification"))
    with pytest.raises(InputError, match="parameter"):
        run(attack, shared, toy_model("bert", task="classification"), **QUICK[attack])


ATTACKER = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.shared.gradient import SharedGradient
from textleak.models import load_model

folder, gradient, attacks = sys.argv[1:]
shared = SharedGradient.load(Path(gradient))
public = shared.model
model = load_model(folder, weights=public.weights, task=public.task, device="cpu", dtype=public.dtype,
                   weights_seed=public.weights_seed, num_labels=public.num_labels)
found = {}
for attack, options in json.loads(attacks).items():
    recovery = to_end(begin(ATTACKS.build(attack, options), shared, model, seed=0))
    found[attack] = [[p.id for p in s.positions] for s in recovery.sentences]
assert "textleak.private.share" not in sys.modules
print(json.dumps(found))
"""


def test_attacks_run_in_a_process_that_never_saw_the_sentence(
    toy_model: ToyModel, toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, [SENTENCE], seed=1)
    file = tmp_path / "gradient.safetensors"
    shared.save(file)
    assert b"mat" not in file.read_bytes().replace(b"format", b"")
    attacks = {attack: QUICK[attack] for attack in ("match", "cosine")}
    arguments = ("-c", ATTACKER, str(toy_folder("bert")), str(file), json.dumps(attacks))
    answer = warm.run(warm.Anew, *arguments, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found.keys() == attacks.keys()
    assert [len(rows[0]) for rows in found.values()] == [len(secret.ids[0])] * len(attacks)
    assert tuple(found["match"][0]) == secret.ids[0]


# What they find


def test_match_recovers_the_sentence_and_its_class(toy_model: ToyModel, from_disk: FromDisk) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = from_disk(model, labels=(2,))
    _, recovery = run("match", shared, model)
    assert tokens(recovery.sentences) == [list(ids) for ids in secret.ids]
    assert recovery.sentences[0].label == 2


@pytest.mark.parametrize(
    ("attack", "family", "task"),
    [
        (attack, family, task)
        for attack, family, task in CONTRACT
        if attack in CONTINUOUS
        and (family, task) not in (("albert", "classification"), ("llama", "causal-lm"))
    ],
)
def test_continuous_attacks_bring_the_gradients_nearer(
    attack: str, family: str, task: str, toy_model: ToyModel, from_disk: FromDisk
) -> None:
    most = 24 if (attack, family, task) == ("dlg", "gpt2", "causal-lm") else 12  # it comes nearer slowest
    model = toy_model(family, task=task)
    shared, _ = from_disk(model)
    events, recovery = run(attack, shared, model, steps=most, restarts=2)
    losses = [event.loss for event in events if isinstance(event, Progress)]
    assert losses == sorted(losses, reverse=True)
    assert recovery.final_loss < 0.7 * losses[0]
    last = events[-1]
    assert isinstance(last, Progress)
    assert len(last.losses) == 2
    assert recovery.sentences == last.sentences
    assert recovery.steps <= most
    assert recovery.evaluations <= 2 * most
    assert recovery.channel == "matching"
    shown = [p for p in recovery.sentences[0].positions if not p.special]
    assert all(len(p.candidates) == 3 for p in shown)
    assert all(p.id not in {c.id for c in p.candidates} for p in shown)
    assert not any(p.id in model.special_ids for p in shown)


@pytest.mark.slow
def test_dlg_recovers_a_planted_sentence(toy_folder: Callable[[str], Path], from_disk: FromDisk) -> None:
    """Of a model whose layer norm over the embeddings hides nothing of a token.

    A layer norm takes shift and scale away from what it reads, so that the gradient leaves them open: where positions
    are added before it, they move the dummy toward other tokens. Here nothing is added and no embedding has a shift.
    """
    model = load_model(
        str(toy_folder("bert")), weights="random", task="classification", device="cpu", dtype="float64"
    )
    embeddings = model.network.get_submodule("bert.embeddings")
    with torch.no_grad():
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
        words_VE = embeddings.word_embeddings.weight
        words_VE -= words_VE.mean(1, keepdim=True)
    shared, secret = from_disk(model, "the cat sat")
    _, recovery = run("dlg", shared, model, steps=600, restarts=8)
    assert recovery.final_loss < 1e-6
    # Without positions the network reads a set.
    assert sorted(tokens(recovery.sentences)[0]) == sorted(secret.ids[0])
    assert recovery.sentences[0].label == secret.labels[0]


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("gpt2", "causal-lm"), ("bert", "masked-lm")]
)
def test_dummies_that_equal_the_truth_have_no_distance(
    family: str, task: str, toy_model: ToyModel, from_disk: FromDisk
) -> None:
    """Fed with the truth, the dummies give the client's gradient, and decode to the truth."""
    from textleak.attacks.search.problem import TextProblem
    from textleak.matching import CosineGlobal

    model = toy_model(family, task=task, dtype="float64")
    sentences = ("the cat sat on the mat", "a dog")
    shared, secret = from_disk(model, *sentences, know="lengths,batch-size")
    batch, targets = model.targets(model.encode(sentences), secret.labels, seeds.generator(1, "client"))
    if task == "classification":
        targets = model.targets(batch, secret.labels, seeds.generator(1, "client"))[1]
    else:
        batch, targets = model.targets(model.encode(sentences), None, seeds.generator(1, "client"))
    dummies = Dummies(model=model, lengths=shared.known.lengths)
    leaves = dummies.start(1, torch.Generator().manual_seed(0))
    sure = 200.0  # a logit that leaves the others no probability
    leaves["embeddings"] = model.embed(batch.ids_BT)[None]
    leaves["labels"] = sure * torch.nn.functional.one_hot(targets.labels, model.classes).double()[None]
    if task == "masked-lm":
        leaves["places"] = sure * (targets.weights > 0).double()[None]
    matcher = TextProblem(view=view_of(shared, model), objective=CosineGlobal()).soft_matcher
    assert float(matcher.distances(dummies.losses, leaves, create_graph=False)) < 1e-12
    decoded = dummies.decode(leaves, 0)
    assert tokens(decoded) == [list(ids) for ids in secret.ids]
    hidden = [[p.masked for p in s.positions] for s in decoded]
    read = [row[:length] for row, length in zip(batch.ids_BT.tolist(), batch.lengths, strict=True)]
    assert hidden == [[token == model.mask_id for token in row] for row in read]


def test_what_is_fixed_gets_no_slope(toy_model: ToyModel, from_disk: FromDisk) -> None:
    model = toy_model("bert", task="classification")
    dummies = Dummies(model=model, lengths=(8, 5))
    leaves = dummies.start(2, torch.Generator().manual_seed(0))
    leaves["embeddings"].requires_grad_()
    (slope_KBTE,) = torch.autograd.grad(dummies.losses(leaves).sum(), leaves["embeddings"])
    moved_BT = slope_KBTE.abs().sum((0, 3)) > 0
    assert moved_BT.tolist() == [
        [False, *[True] * 6, False],
        [False, *[True] * 3, False, False, False, False],
    ]


# What they need


@pytest.mark.parametrize("attack", DUMMIES)
def test_unknown_lengths_are_asked_for(attack: str, toy_model: ToyModel, from_disk: FromDisk) -> None:
    model = toy_model("bert", task="classification")
    sentences = ("the cat sat",) if attack == "idlg" else ("the cat sat", "a dog ran home")
    shared, _ = from_disk(model, *sentences, know="batch-size")
    with pytest.raises(InputError, match="--know lengths"):
        run(attack, shared, model, **QUICK[attack])


@pytest.mark.parametrize("attack", ["dlg", "tag", "cosine", "lamp", "grab"])
def test_several_sentences_come_back_in_the_known_lengths(
    attack: str, toy_model: ToyModel, from_disk: FromDisk
) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = from_disk(model, "the cat sat on it", "a dog", know="lengths,batch-size")
    _, recovery = run(attack, shared, model, **QUICK[attack])
    assert [len(s.positions) for s in recovery.sentences] == [len(ids) for ids in secret.ids]


@pytest.mark.parametrize("attack", DUMMIES)
def test_known_labels_are_used(attack: str, toy_model: ToyModel, from_disk: FromDisk) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model, labels=(2,), know="labels,lengths,batch-size")
    _, recovery = run(attack, shared, model, **{**QUICK[attack], "steps": 1})
    assert recovery.sentences[0].label == 2
    assert recovery.sentences[0].label_posterior == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("attack", DUMMIES)
def test_only_the_word_embedding_is_not_enough_for_dummies(
    attack: str, toy_model: ToyModel, from_disk: FromDisk
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model, share="word_embeddings", know="labels,lengths")
    with pytest.raises(InputError, match="word embedding"):
        run(attack, shared, model, **QUICK[attack])


def test_idlg_says_what_it_is_for(toy_model: ToyModel, from_disk: FromDisk) -> None:
    shared, _ = from_disk(toy_model("gpt2", task="causal-lm"))
    with pytest.raises(InputError, match="--attack dlg"):
        run("idlg", shared, toy_model("gpt2", task="causal-lm"))
    model = toy_model("bert", task="classification")
    for know in ("lengths", "batch-size"):
        shared, _ = from_disk(model, "the cat", "a dog", know=know)
        with pytest.raises(InputError, match="one sentence"):
            run("idlg", shared, model)


def test_dlg_runs_with_adam_as_on_text(toy_model: ToyModel, from_disk: FromDisk) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model)
    _, published = run("dlg", shared, model, steps=6)
    _, on_text = run("dlg", shared, model, steps=6, optimizer="adam")
    assert published.final_loss != on_text.final_loss
    with pytest.raises(InputError, match="optimizer"):
        ATTACKS.build("dlg", {"optimizer": "sgd"})


@pytest.mark.parametrize("attack", DUMMIES)
def test_a_time_limit_ends_an_attack_with_its_best(
    attack: str, toy_model: ToyModel, from_disk: FromDisk
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model)
    _, recovery = run(attack, shared, model, time_limit=1e-3)
    assert recovery.steps == 1
    assert recovery.stop.name == "TIME"
    assert recovery.sentences


def test_match_ends_with_its_time_while_it_still_looks_for_lengths(
    toy_model: ToyModel, from_disk: FromDisk
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model, know="labels")
    _, in_time = run("match", shared, model)
    _, recovery = run("match", shared, model, time_limit=1e-6)
    assert in_time.stop.name != "TIME"
    assert (recovery.stop.name, recovery.sentences) == ("TIME", ())


@pytest.mark.parametrize(
    ("attack", "family", "task", "shares"),
    [
        ("embedding", "bert", "classification", "all"),
        ("auto", "bert", "classification", "all"),
        ("match", "bert", "classification", "all"),
        ("span", "gpt2", "causal-lm", "no-embeddings"),
    ],
)
def test_an_attack_whose_proof_is_cut_off_ends_with_the_answer_and_its_distance(
    attack: str,
    family: str,
    task: str,
    shares: str,
    toy_model: ToyModel,
    from_disk: FromDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = toy_model(family, task=task)
    shared, secret = from_disk(model, share=shares, know="nothing" if attack == "embedding" else None)
    monkeypatch.setattr(certificate, "clock_of", lambda _view: Clock.of(0.0))
    recovery = to_end(begin(ATTACKS.build(attack, {}), shared, model, time_limit=600.0))
    assert recovery.stop is Stop.TIME
    assert tokens(recovery.sentences) == [list(ids) for ids in secret.ids]
    assert recovery.gradient_distance is not None
    told = certificate.certificate_of(recovery, view_of(shared, model))
    assert (told.verified, told.cut_off, told.gradient_distance) == (None, True, recovery.gradient_distance)
    assert "Their own gradient" not in " ".join(recovery.notes)


def test_replay_ends_with_its_time_while_it_still_ranks_tokens(
    toy_model: ToyModel, from_disk: FromDisk
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model, client=composed([CLIENTS.build("fedavg", {"steps": 2})]))
    _, recovery = run("replay", shared, model, time_limit=1e-6)
    assert (recovery.stop.name, recovery.sentences) == ("TIME", ())


@pytest.mark.parametrize("attack", ["dlg", "match"])
def test_while_a_run_waits_its_time_limit_does_too(
    attack: str, toy_model: ToyModel, from_disk: FromDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: waited)
    model = toy_model("bert", task="classification")
    shared, _ = from_disk(model)

    def ended(limit: float | None) -> str:
        nonlocal waited
        steps = begin(ATTACKS.build(attack, {"steps": 4}), shared, model, time_limit=limit)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return str(end.value.stop.name)
            waited += 10.0

    assert ended(5.0) == ended(None) != "TIME"
    assert ended(0.0) == "TIME"
