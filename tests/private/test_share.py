"""The victim: what leaves the client for a batch, and what stays behind."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import EVERY_TASK, ToyModel
from textleak import seeds
from textleak.defenses import DEFENSES, Defense, Gradients, Step
from textleak.errors import InputError
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

ONE = ("the cat sat on the mat",)
TWO = ("the cat sat on the mat", "a dog ran")


def distance(one: SharedGradient, other: SharedGradient) -> float:
    """Relative to the first one's norm."""
    assert one.gradients.keys() == other.gradients.keys()
    squared = sum(
        float((a.double() - other.gradients[name].double()).square().sum())
        for name, a in one.gradients.items()
    )
    return squared**0.5 / one.norm()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unchanged(Defense):
    """Has the client form every sample's gradient, and leaves it as it is."""

    def on_sample(self, gradient: Gradients, step: Step) -> Gradients:
        return gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(Defense):
    """Keeps what it is given."""

    samples: list[Gradients] = dataclasses.field(default_factory=list)

    def on_sample(self, gradient: Gradients, step: Step) -> Gradients:
        self.samples.append(gradient)
        return gradient


def test_a_bare_text_is_one_sentence(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, secret = share(model, "hi", seed=0)
    assert secret.sentences == ("hi",)
    assert shared.known.batch_size == 1
    assert distance(share(model, ["hi"], seed=0)[0], shared) == 0


# What is computed


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
@pytest.mark.parametrize("sentences", [ONE, TWO])
def test_the_gradient_is_that_of_training_by_hugging_face(
    family: str, task: str, sentences: tuple[str, ...], toy_model: ToyModel
) -> None:
    model = toy_model(family, task=task, dtype="float64")
    labels = (2, 0)[: len(sentences)] if task == "classification" else None
    shared, _ = share(model, sentences, labels, seed=4)

    ids_BT, mask_BT = (batch := model.encode(sentences)).ids_BT, batch.mask_BT
    if task == "classification":
        wanted = torch.tensor(labels)
    elif task == "causal-lm":
        wanted = ids_BT.masked_fill(mask_BT == 0, -100)
    else:
        batch, targets = model.targets(batch, None, seeds.generator(4, "client"))
        wanted = ids_BT.masked_fill(targets.weights == 0, -100)
    parameters = dict(model.network.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        loss = model.network(input_ids=batch.ids_BT, attention_mask=mask_BT, labels=wanted).loss
        expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        model.network.requires_grad_(False)
    for name, gradient in zip(parameters, expected, strict=True):
        if gradient is None or not gradient.any():
            assert not shared.gradients.get(name, torch.zeros(1)).any()
        else:
            torch.testing.assert_close(shared.gradients[name], gradient, msg=name)


@pytest.mark.parametrize("task", ["classification", "causal-lm", "masked-lm"])
def test_a_batch_shares_the_mean_of_its_samples(task: str, toy_model: ToyModel) -> None:
    """By forming them apart; sentences of one length, as language modeling weighs by tokens."""
    family = "gpt2" if task == "causal-lm" else "bert"
    model = toy_model(family, task=task, dtype="float64")
    sentences = ("the cat sat", "the dog ran")
    assert len({len(ids) for ids in model.encode(sentences).sentences}) == 1
    together, _ = share(model, sentences)
    apart, _ = share(model, sentences, defenses=[Unchanged()])
    assert distance(together, apart) < 1e-12


def test_classification_weighs_sentences_of_any_length_alike(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    together, _ = share(model, TWO, (0, 1))
    apart, _ = share(model, TWO, (0, 1), defenses=[Unchanged()])
    assert distance(together, apart) < 1e-12


def test_a_defense_sees_each_sample_as_if_it_were_alone(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="float64")
    recorder = Recorder()
    share(model, TWO, (0, 1), defenses=[recorder])
    for sentence, label, seen in zip(TWO, (0, 1), recorder.samples, strict=True):
        alone, _ = share(model, [sentence], (label,))
        for name, gradient in alone.gradients.items():
            torch.testing.assert_close(seen[name], gradient, msg=name)


def test_the_network_is_left_as_it_was(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    state = torch.random.get_rng_state()
    share(model, ONE, defenses=[Unchanged()])
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters.values())
    assert torch.equal(torch.random.get_rng_state(), state)


# What is shared


def test_share_all_is_every_parameter_that_the_loss_reaches(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ONE)
    assert shared.gradients.keys() == model.parameters.keys()
    assert all(g.shape == model.parameters[name].shape for name, g in shared.gradients.items())


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_no_embeddings_leaves_out_tables_and_head(family: str, task: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task=task)
    shared, _ = share(model, ONE, share="no-embeddings")
    assert shared.gradients
    assert not shared.gradients.keys() & model.embedding_names
    assert not any(model.vocab_size in gradient.shape for gradient in shared.gradients.values())


def test_attention_is_query_key_and_value(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ONE, share="attention")
    assert shared.gradients.keys() == model.attention_names
    assert len(shared.gradients) == 2 * 3 * 2  # layers, roles, weight and bias


def test_an_expression_chooses_by_name(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ONE, share=r"layer\.0\..*dense\.weight$")
    assert len(shared.gradients) == 3
    assert all("layer.0." in name and name.endswith("dense.weight") for name in shared.gradients)
    assert shared.share == r"layer\.0\..*dense\.weight$"


@pytest.mark.parametrize(("expression", "says"), [("layer.77", "matches none"), ("(", "regular expression")])
def test_an_expression_that_chooses_nothing_is_refused(
    expression: str, says: str, toy_model: ToyModel
) -> None:
    with pytest.raises(InputError, match=says):
        share(toy_model("bert", task="classification"), ONE, share=expression)


# What the server is told


@pytest.mark.parametrize(
    ("know", "sentences", "told"),
    [
        (None, ONE, {"batch_size", "lengths"}),
        (None, TWO, {"batch_size"}),
        ("nothing", ONE, set()),
        ("lengths,labels,batch-size", TWO, {"batch_size", "lengths", "labels"}),
        ("labels", TWO, {"labels"}),
    ],
)
def test_the_server_is_told_what_was_asked_for(
    know: str | None, sentences: tuple[str, ...], told: set[str], toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, sentences, know=know)
    known = dataclasses.asdict(shared.known)
    assert {kind for kind, value in known.items() if value is not None} == told
    truth = {
        "batch_size": len(sentences),
        "lengths": tuple(len(ids) for ids in secret.ids),
        "labels": secret.labels,
    }
    assert {kind: known[kind] for kind in told} == {kind: truth[kind] for kind in told}


def test_a_server_that_is_not_told_of_the_defense_holds_none_of_it(
    toy_model: ToyModel, tmp_path: Path
) -> None:
    model = toy_model("bert", task="classification")
    noisy = [DEFENSES.build("prune", {"ratio": 0.5}), DEFENSES.build("quantize", {"to": "bf16"})]
    told, _ = share(model, ONE, defenses=noisy)
    shared, secret = share(model, ONE, defenses=noisy, know="no-defense")
    assert shared.defenses == ()
    assert shared.effects == ()
    assert shared.known == told.known
    assert secret.defenses == told.defenses
    assert distance(told, shared) == 0
    secret.save(tmp_path / "truth.json")
    assert Secret.load(tmp_path / "truth.json") == secret
    assert share(model, TWO, know="no-defense,lengths")[0].known.batch_size is None


def test_unknown_side_information_is_told_the_nearest(toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match="lengths"):
        share(toy_model("bert", task="classification"), ONE, know="length")


def test_the_secret_stays_out_of_what_is_shared(toy_model: ToyModel, tmp_path: Path) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, ["nobody told the secret plan"], know="nothing")
    shared.save(tmp_path / "gradient")
    header = (tmp_path / "gradient").read_bytes()[:20000]
    for word in ("nobody", "secret", "plan", "told"):
        assert word.encode() not in header
    assert secret.sentences == ("nobody told the secret plan",)
    assert model.decode(secret.ids[0]) == "nobody told the secret plan"


def test_the_secret_holds_the_words_that_were_masked(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="masked-lm")
    _, secret = share(model, ONE)
    assert model.decode(secret.ids[0]) == ONE[0]
    assert model.mask_id not in secret.ids[0]
    assert secret.labels is None


def test_a_secret_is_read_back_as_it_was(toy_model: ToyModel, tmp_path: Path) -> None:
    _, secret = share(toy_model("bert", task="classification"), TWO)
    secret.save(tmp_path / "truth.json")
    assert Secret.load(tmp_path / "truth.json") == secret
    (tmp_path / "truth.json").write_text(json.dumps({"sentences": "no list"}))
    with pytest.raises(InputError, match="truth file"):
        Secret.load(tmp_path / "truth.json")
    with pytest.raises(InputError, match="truth file"):
        Secret.load(tmp_path / "absent.json")


# Labels


def test_labels_are_drawn_from_the_seed(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    drawn = [share(model, ONE * 4, seed=seed)[1].labels for seed in range(6)]
    assert drawn == [share(model, ONE * 4, seed=seed)[1].labels for seed in range(6)]
    assert len(set(drawn)) > 3
    assert {label for labels in drawn for label in labels} == {0, 1, 2}


def test_masked_positions_are_drawn_from_the_seed(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="masked-lm")
    one, again, other = (share(model, ONE, seed=seed)[0] for seed in (0, 0, 3))
    assert distance(one, again) == 0
    assert distance(one, other) > 0.1


def test_labels_change_the_gradient(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    assert distance(share(model, ONE, (0,))[0], share(model, ONE, (1,))[0]) > 0.1


@pytest.mark.parametrize("label", [3, -1, 100])
def test_a_label_out_of_range_is_told_the_range(label: int, toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match=f"Label {label} is out of range") as told:
        share(toy_model("bert", task="classification"), ONE, [label])
    assert "0 to 2" in str(told.value)


def test_labels_have_to_fit(toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match="1 label for 2 sentences"):
        share(toy_model("bert", task="classification"), TWO, [0])
    with pytest.raises(InputError, match="causal-lm"):
        share(toy_model("gpt2", task="causal-lm"), ONE, [0])


@pytest.mark.parametrize(
    ("sentences", "says"), [((), "no sentence"), (("",), "no text"), (("a " * 50,), "40")]
)
def test_a_batch_without_text_or_with_too_much_is_refused(
    sentences: tuple[str, ...], says: str, toy_model: ToyModel
) -> None:
    with pytest.raises(InputError, match=says):
        share(toy_model("bert", task="classification"), sentences)


# Defenses


def test_noise_is_of_the_size_it_says_and_public(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    clean, _ = share(model, ONE, seed=5)
    noisy, _ = share(model, ONE, seed=5, defenses=[DEFENSES.build("gaussian", {"sigma": 0.03})])
    noise = torch.cat([(noisy.gradients[name] - g).flatten() for name, g in clean.gradients.items()])
    assert float(noise.std()) == pytest.approx(0.03, rel=0.02)
    assert abs(float(noise.mean())) < 5 * 0.03 / math.sqrt(len(noise))
    assert noisy.noise_sigma == pytest.approx(0.03)
    assert [(d.name, d.options) for d in noisy.defenses] == [("gaussian", {"sigma": 0.03})]


def test_noises_add_up_in_what_the_server_is_told(toy_model: ToyModel) -> None:
    pair = [DEFENSES.build("gaussian", {"sigma": sigma}) for sigma in (0.3, 0.4)]
    shared, _ = share(toy_model("bert", task="classification"), ONE, defenses=pair)
    assert shared.noise_sigma == pytest.approx(0.5)


def test_noise_is_drawn_from_the_seed(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    defenses = [DEFENSES.build("gaussian", {"sigma": 0.1})]
    one, again, other = (share(model, ONE, (0,), seed=s, defenses=defenses)[0] for s in (0, 0, 1))
    assert distance(one, again) == 0
    assert distance(one, other) > 0.01


@pytest.mark.parametrize("stream", ["attack", "weights", "client"])
def test_no_other_stream_replays_the_noise(stream: seeds.Stream, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    gaussian = DEFENSES.build("gaussian", {"sigma": 0.1})
    clean, _ = share(model, ONE, (0,), seed=5)
    noisy, _ = share(model, ONE, (0,), seed=5, defenses=[gaussian])
    replayed = gaussian.on_shared(clean.gradients, Step(generator=seeds.generator(5, stream), batch_size=1))
    true = torch.cat([(noisy.gradients[n] - g).flatten() for n, g in clean.gradients.items()])
    guessed = torch.cat([(replayed[n] - g).flatten() for n, g in clean.gradients.items()])
    correlation = float(torch.corrcoef(torch.stack([true, guessed]))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(len(true))
    # Nor does counting the run's seed up or down, or taking it as it is.
    for seed in range(8):
        step = Step(generator=torch.Generator().manual_seed(seed), batch_size=1)
        raw = gaussian.on_shared(clean.gradients, step)
        assert not torch.allclose(next(iter(raw.values())), noisy.gradients[next(iter(raw))])


@pytest.mark.parametrize(
    "spec", [{"sigma": 0}, {"sigma": -1}, {"sigma": "nan"}, {"sigma": "much"}, {"sgima": 1}]
)
def test_a_noise_that_makes_no_sense_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(spec))):
        DEFENSES.build("gaussian", spec)


def test_the_streams_of_a_seed_are_apart() -> None:
    streams: tuple[seeds.Stream, ...] = ("weights", "client", "defense", "attack")
    derived = {seeds.derive(seed, stream) for seed in range(50) for stream in streams}
    assert len(derived) == 200
