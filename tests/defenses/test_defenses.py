"""What clients do to a gradient before they share it, and what a server can still tell."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import ToyModel
from tests.proof.test_certificate import truth, with_tokens
from textleak import seeds
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES, Gradients, Step
from textleak.defenses.largest import keep_largest
from textleak.errors import InputError
from textleak.events import Recovery, Stop
from textleak.matching import CosinePerTensor, Damage, Target
from textleak.matching.discrete import Guess
from textleak.matching.moments import moments_of
from textleak.matching.objectives import TAG
from textleak.matching.rules import Outer, Rows, Sum
from textleak.matching.single import form
from textleak.models import TextModel, load_model
from textleak.private.share import share
from textleak.proof.certificate import certify, own_gradient
from textleak.proof.likelihood import fit
from textleak.settings import Choice
from textleak.shared.effects import clip_factors, spacing
from textleak.shared.gradient import SharedGradient
from textleak.shared.public import PublicModel

TWO = ("the cat sat on the mat", "a dog ran home.")

# Every defense that leaves no more to chance than which entries or cells, as it is written on a command line.
REPEATABLE = [
    "clip:max_norm=0.1",
    "clip:max_norm=0.05,per=layer",
    "prune:ratio=0.5",
    "prune:ratio=0.9",
    "prune:ratio=0.9,which=random",
    "topk:ratio=0.05",
    "quantize:to=fp16",
    "quantize:to=bf16",
    "quantize:to=int8",
    "quantize:to=bf16,rounding=stochastic",
    "quantize:to=int8,rounding=stochastic",
    "sign",
    "freeze",
    "freeze:parameters=layer.0",
    "dpsgd:max_norm=0.1,noise_multiplier=0",
]
NOISY = ["gaussian:sigma=1e-3", "laplace:scale=1e-3", "dpsgd:max_norm=0.1,noise_multiplier=0.5"]
CHAINS = [
    ("clip:max_norm=0.1", "prune:ratio=0.8"),
    ("prune:ratio=0.8", "quantize:to=bf16"),
    ("quantize:to=bf16", "clip:max_norm=0.1"),
    ("freeze", "clip:max_norm=0.1,per=layer", "topk:ratio=0.2", "quantize:to=int8"),
    ("dpsgd:max_norm=0.2,noise_multiplier=0", "sign"),
]


def build(*specs: str) -> list[Any]:
    choices = [Choice.model_validate(spec) for spec in specs]
    return [DEFENSES.build(choice.name, choice.options) for choice in choices]


def step(seed: int = 0, **changes: Any) -> Step:
    return Step(**{"generator": seeds.generator(seed, "defense"), "batch_size": 1, **changes})


def random_gradient(seed: int = 0) -> Gradients:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (30, 40), "a.bias": (30,), "b.weight": (50, 20)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def norm(gradient: Gradients) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in gradient.values()))


def defended(spec: str, gradient: Gradients, **changes: Any) -> Gradients:
    (defense,) = build(spec)
    result: Gradients = defense.on_shared(gradient, step(**changes))
    return result


# What each does


def test_laplace_noise_has_its_mean_magnitude_and_tails() -> None:
    zeros = {"w": torch.zeros(400, 500)}
    noise = defended("laplace:scale=0.2", zeros)["w"]
    (public,) = build("laplace:scale=0.2")[0].effects(step())
    assert float(noise.abs().mean()) == pytest.approx(0.2, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(public.sigma, rel=0.02)
    assert float((noise / noise.std()).pow(4).mean()) == pytest.approx(public.kurtosis, rel=0.1)


def test_clipping_keeps_the_direction_and_bounds_the_norm() -> None:
    gradient = random_gradient()
    clipped = defended("clip:max_norm=2", gradient)
    assert norm(clipped) == pytest.approx(2)
    for name, value in gradient.items():
        torch.testing.assert_close(clipped[name], value * 2 / norm(gradient))
    torch.testing.assert_close(defended("clip:max_norm=1000", gradient), gradient)


def test_clipping_by_layer_takes_weight_and_bias_together() -> None:
    clipped = defended("clip:max_norm=2,per=layer", random_gradient())
    assert norm({name: value for name, value in clipped.items() if name.startswith("a")}) == pytest.approx(2)
    assert norm({"b.weight": clipped["b.weight"]}) == pytest.approx(2)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.99])
def test_pruning_leaves_the_largest_entries_of_each_tensor(ratio: float) -> None:
    gradient = random_gradient()
    for name, pruned in defended(f"prune:ratio={ratio}", gradient).items():
        left = pruned != 0
        assert int(left.sum()) == max(1, round((1 - ratio) * pruned.numel()))
        assert torch.equal(pruned[left], gradient[name][left])
        assert gradient[name][~left].abs().max() <= pruned[left].abs().min()


def test_random_pruning_takes_its_share_whatever_the_size() -> None:
    gradient = {"w": torch.linspace(1, 2, 100_000)}
    left = defended("prune:ratio=0.7,which=random", gradient)["w"] != 0
    assert float(left.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(gradient["w"][left].mean()) == pytest.approx(1.5, abs=0.01)


def test_topk_leaves_the_largest_of_all_tensors() -> None:
    gradient = random_gradient()
    gradient["a.weight"] *= 100
    kept = defended("topk:ratio=0.1", gradient)
    total = sum(value.numel() for value in gradient.values())
    assert sum(int((value != 0).sum()) for value in kept.values()) == round(0.1 * total)
    assert not kept["b.weight"].any()


@pytest.mark.parametrize(("grid", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_rounding_to_nearest_is_a_cast(grid: str, dtype: torch.dtype) -> None:
    for scale in (1.0, 1e-6, 3e4):
        gradient = {name: value * scale for name, value in random_gradient().items()}
        gradient["a.bias"][0] = 0
        if scale == 3e4:
            gradient = {name: value.clamp(-6e4, 6e4) for name, value in gradient.items()}
        for name, rounded in defended(f"quantize:to={grid}", gradient).items():
            assert torch.equal(rounded, gradient[name].to(dtype).float())


@pytest.mark.parametrize("grid", ["fp16", "bf16", "int8"])
def test_stochastic_rounding_goes_to_a_neighbor_and_keeps_the_mean(grid: str) -> None:
    value = torch.tensor([1.0, 0.3, -0.123, 3.001e-3]).repeat(4000, 1)
    rounded = defended(f"quantize:to={grid},rounding=stochastic", {"w": value})["w"]
    cell = spacing(value, {"fp16": "float16", "bf16": "bfloat16"}.get(grid, "int8"))  # type: ignore[arg-type]
    assert bool(((rounded - value).abs() <= cell * 1.001).all())
    assert all(len(set(column.tolist())) <= 2 for column in rounded.T)
    torch.testing.assert_close(rounded.mean(0), value[0], atol=float(cell.max()) * 0.05, rtol=0)


def test_int8_has_at_most_255_values() -> None:
    for value in defended("quantize:to=int8", random_gradient()).values():
        multiples = value / (value.abs().max() / 127)
        torch.testing.assert_close(multiples, multiples.round(), atol=1e-4, rtol=0)
        assert float(multiples.abs().max()) == pytest.approx(127)


def test_a_gradient_of_zeros_stays_one() -> None:
    zeros = {"w": torch.zeros(3, 4)}
    for spec in ("clip", "prune", "topk", "sign", "quantize:to=fp16", "quantize:to=bf16", "quantize:to=int8"):
        assert torch.equal(defended(spec, zeros)["w"], zeros["w"]), spec


def test_only_signs_are_left() -> None:
    assert set(defended("sign", random_gradient())["a.weight"].flatten().tolist()) == {-1.0, 1.0}


def test_frozen_parameters_leave_no_gradient(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO[:1], (2,), defenses=build("freeze"))
    assert not model.embedding_names & shared.gradients.keys()
    assert shared.gradients.keys() == model.parameters.keys() - model.embedding_names
    fewer, _ = share(model, TWO[:1], (2,), defenses=build("freeze:parameters=layer.1"))
    assert not any("layer.1" in name for name in fewer.gradients)


@pytest.mark.parametrize("pattern", ["(", "nowhere", "."])
def test_freezing_nothing_or_everything_is_refused(pattern: str, toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match="freeze"):
        share(
            toy_model("bert", task="classification"),
            TWO[:1],
            (2,),
            defenses=build(f"freeze:parameters={pattern}"),
        )


# DP-SGD


def test_dpsgd_clips_each_sample_before_the_mean(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    both, _ = share(model, TWO, (2, 1), defenses=build("dpsgd:max_norm=0.1,noise_multiplier=0"))
    alone = [
        share(model, TWO[i : i + 1], ((2, 1)[i],), defenses=build("clip:max_norm=0.1"))[0].gradients
        for i in (0, 1)
    ]
    for name, value in both.gradients.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)


@pytest.mark.parametrize("before", ["clip:max_norm=1", "gaussian", "freeze"])
def test_dpsgd_comes_before_what_works_on_the_mean(before: str, toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match=rf"(?s)dpsgd can't come after {before.partition(':')[0]}.*first"):
        share(toy_model("bert"), TWO, (2, 1), defenses=[*build(before), *build("dpsgd")])
    share(toy_model("bert"), TWO, (2, 1), defenses=[*build("dpsgd"), *build(before)])


def test_dpsgd_divides_its_noise_by_the_batch() -> None:
    zeros = {"w": torch.zeros(300, 300)}
    noise = defended("dpsgd:max_norm=0.5,noise_multiplier=2", zeros, batch_size=4)["w"]
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    (defense,) = build("dpsgd:max_norm=0.5,noise_multiplier=2")
    assert defense.effects(step(batch_size=4))[1].sigma == pytest.approx(0.25)


def test_dpsgd_needs_all_or_nothing_to_account_for_epsilon() -> None:
    (silent,) = build("dpsgd")
    assert silent.epsilon() is None
    (partial,) = build("dpsgd:steps=10")
    with pytest.raises(InputError, match="sampling_rate and delta"):
        partial.epsilon()
    (bare,) = build("dpsgd:noise_multiplier=0,steps=10,sampling_rate=0.1,delta=1e-5")
    assert bare.epsilon() == math.inf


def test_epsilon_is_opacus_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (defense,) = build("dpsgd:noise_multiplier=1,steps=1000,sampling_rate=0.01,delta=1e-5")
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants", None)
    with pytest.raises(InputError, match="Opacus isn't installed"):
        defense.epsilon()
    monkeypatch.undo()
    pytest.importorskip("opacus", reason="needs the extra: pip install 'textleak[privacy]'")
    # Opacus's RDP accountant bounds the same by 2.10.
    assert defense.epsilon() == pytest.approx(1.84, abs=0.02)
    assert defense.public(step()).epsilon == defense.epsilon()


# What is public


@pytest.mark.parametrize("spec", [*REPEATABLE, *NOISY])
def test_a_defense_travels_in_the_file_with_what_it_does(
    spec: str, tmp_path: Path, toy_model: ToyModel
) -> None:
    shared, _ = share(toy_model("bert", task="classification"), TWO, (2, 1), defenses=build(spec))
    shared.save(tmp_path / "g.safetensors")
    read = SharedGradient.load(tmp_path / "g.safetensors")
    assert read.defenses == shared.defenses
    assert read.effects == shared.effects
    assert read.noise_sigma == shared.noise_sigma
    assert (read.noise_sigma > 0) == (spec in NOISY)
    # And what a record says of it can be typed again.
    again = Choice(name=read.defenses[0].name, options=read.defenses[0].options).spec
    assert build(again) == build(spec)


def test_noise_of_several_defenses_adds_up(toy_model: ToyModel) -> None:
    defenses = build("gaussian:sigma=3e-3", "gaussian:sigma=4e-3")
    shared, _ = share(toy_model("bert", task="classification"), TWO[:1], (2,), defenses=defenses)
    assert shared.noise_sigma == pytest.approx(5e-3)


def test_defenses_are_applied_in_order(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    last_clipped, _ = share(model, TWO[:1], (2,), defenses=build("gaussian:sigma=1", "clip:max_norm=0.1"))
    last_noisy, _ = share(model, TWO[:1], (2,), defenses=build("clip:max_norm=0.1", "gaussian:sigma=1"))
    assert last_clipped.norm() == pytest.approx(0.1, rel=1e-4)
    assert last_noisy.norm() > 1


# What a server can still be certain of


@pytest.mark.parametrize("specs", [*((spec,) for spec in REPEATABLE), *CHAINS], ids=" ".join)
def test_the_true_batch_verifies_behind_a_defense_and_a_wrong_one_does_not(
    specs: tuple[str, ...], toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1), defenses=build(*specs))
    right = truth(model, TWO, (2, 1))
    at = len(model.prefix_ids) + 1
    new = next(int(i) for i in model.content_ids if int(i) != right[0].positions[at].id)
    certificate = certify(view_of(shared, model), right)
    assert certificate.verified is True
    assert certificate.gradient_distance is not None
    assert certificate.gradient_distance < 2e-6
    wrong = certify(view_of(shared, model), (with_tokens(right[0], {at: new}), right[1]))
    assert wrong.verified is False
    assert certify(view_of(shared, model), truth(model, TWO, (2, 0))).verified is False


@pytest.mark.parametrize("spec", NOISY)
def test_behind_noise_nothing_is_certain(spec: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, TWO, (2, 1), defenses=build(spec))
    assert certify(view_of(shared, model), truth(model, TWO, (2, 1))).verified is None


def test_half_precision_is_certified_by_the_same_computation(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="bfloat16")
    shared, _ = share(model, TWO[:1], (2,))
    (right,) = truth(model, TWO[:1], (2,))
    ids = [position.id for position in right.positions]
    assert certify(view_of(shared, model), (right,)).verified is True
    for at in range(1, len(ids) - 2):
        swapped = with_tokens(right, {at: ids[at + 1], at + 1: ids[at]})
        assert certify(view_of(shared, model), (swapped,)).verified is not True
    # Elsewhere, where rounding differs, nothing is claimed that rounding could have made.
    assert certify(view_of(shared, model.double()), (right,)).verified is None


def test_an_unclipped_gradient_is_its_own_factor() -> None:
    gradient = random_gradient()
    assert set(clip_factors(gradient, 1e9, "all").values()) == {1.0}
    assert set(clip_factors(gradient, 1e9, "layer").values()) == {1.0}


# What attacks make of it


def random_parts(seed: int = 0) -> tuple[dict[str, list[Any]], Gradients]:
    """What three candidates' gradients are made of, and these gradients (K first)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows_KN = torch.randint(90, (3, 5), generator=generator)
    found: dict[str, list[Any]] = {
        "a.weight": [Outer(left_KNO=draw(3, 5, 50), right_KNI=draw(3, 5, 20))],
        "a.bias": [Sum(terms_KND=draw(3, 5, 50))],
        "table": [
            Rows(rows_KN=rows_KN, right_KNI=draw(3, 5, 20)),
            Outer(left_KNO=draw(3, 5, 90), right_KNI=draw(3, 5, 20)),
        ],
    }
    shapes = {"a.weight": (50, 20), "a.bias": (50,), "table": (90, 20)}
    return found, {name: form(parts, shapes[name]) for name, parts in found.items()}


def test_a_masked_gradient_is_compared_where_something_is_left() -> None:
    found, formed = random_parts()
    seen = {name: keep_largest(value[0], 0.2) for name, value in formed.items()}
    target = Target.from_gradients(seen, Damage(masked=True))
    moments = moments_of(found, target, absolute=True)
    assert moments.absolute_KP is not None
    for p, name in enumerate(moments.names):
        tensor = target.tensors[name]
        rows = slice(None) if tensor.rows_S is None else tensor.rows_S
        own_K = (formed[name] * (seen[name] != 0))[:, rows].flatten(1)
        goal = seen[name][rows].flatten()
        torch.testing.assert_close(moments.own_KP[:, p], own_K.square().sum(1))
        torch.testing.assert_close(moments.cross_KP[:, p], own_K @ goal)
        torch.testing.assert_close(moments.absolute_KP[:, p], (own_K - goal).abs().sum(1))
    distances_K = CosinePerTensor()(moments)
    assert float(distances_K[0]) < 1e-12
    assert float(distances_K[1:].min()) > 0.5


@pytest.mark.parametrize("per", ["all", "layer", "tensor"])
def test_candidates_are_scaled_as_clipping_scales(per: Any) -> None:
    found, formed = random_parts()
    alone = {name: value[0] for name, value in formed.items()}
    clip = clip_factors(alone, 0.1, per)
    if per == "tensor":
        clip = {name: 0.1 / float(value.norm()) for name, value in alone.items()}
    target = Target.from_gradients({n: v * clip[n] for n, v in alone.items()}, Damage(rescaled=per))
    moments = moments_of(found, target, absolute=True)
    distances_K = TAG(alpha=0.01)(moments)
    assert float(distances_K[0]) < 1e-7
    assert float(distances_K[1:].min()) > 1e-4


@pytest.mark.parametrize(("family", "uses"), [("bert", 1), ("albert", 2)])
def test_noise_is_cut_at_the_rank_that_the_batch_can_have(
    family: str, uses: int, toy_model: ToyModel
) -> None:
    model = toy_model(family, task="classification")
    shared, _ = share(model, TWO, (2, 1), know="lengths,batch-size", defenses=build("gaussian:sigma=1e-9"))
    assert shared.known.lengths is not None
    problem = TextProblem(view=view_of(shared, model), objective=CosinePerTensor())
    assert problem._highest_rank == sum(shared.known.lengths) * uses


@pytest.mark.parametrize(
    "spec",
    [
        "prune:ratio=0.8",
        "prune:ratio=0.8,which=random",
        "topk:ratio=0.1",
        "clip:max_norm=0.1",
        "quantize:to=bf16",
    ],
)
def test_the_true_batch_is_nearest_behind_a_defense(spec: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, TWO, (2, 1), defenses=build(spec))
    problem = TextProblem(view=view_of(shared, model), objective=CosinePerTensor())
    right = Guess(secret.ids, (2, 1))
    others = [right.with_symbol(0, at, int(model.content_ids[at])) for at in range(1, 6)]
    distance, *wrong = problem.score([right, *others, right.with_class(1, 0)])
    assert distance < (1e-5 if "quantize" not in spec else 1e-4)
    assert min(wrong) > 100 * max(distance, 0)


# Noise


def noisy(model: TextModel, sigma: float, spec: str = "gaussian:sigma={}") -> SharedGradient:
    return share(model, TWO, (2, 1), defenses=build(spec.format(sigma)))[0]


@pytest.mark.parametrize(
    "spec", ["gaussian:sigma={}", "laplace:scale={}", "dpsgd:max_norm=0.2,noise_multiplier={}"]
)
@pytest.mark.parametrize("sigma", [1e-4, 1e-2])
def test_what_the_true_text_leaves_of_a_noisy_gradient_is_noise(
    spec: str, sigma: float, toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification")
    shared = noisy(model, sigma, spec)
    found = fit(shared, own_gradient(view_of(shared, model.double()), truth(model, TWO, (2, 1))))
    assert found is not None
    assert found.plausible


def test_a_wrong_word_leaves_more_than_noise(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared = noisy(model, 1e-4)
    right = truth(model, TWO, (2, 1))
    true = fit(shared, own_gradient(view_of(shared, model.double()), right))
    at = len(model.prefix_ids) + 1
    wrong = (with_tokens(right[0], {at: int(model.content_ids[7])}), right[1])
    other = fit(shared, own_gradient(view_of(shared, model.double()), wrong))
    assert true is not None
    assert other is not None
    assert not other.plausible
    assert other.log_likelihood < true.log_likelihood - 100


def test_nothing_is_claimed_where_something_hides_the_noise(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    for specs in (["gaussian", "sign"], ["gaussian", "prune"], ["prune", "gaussian"], ["clip"], []):
        shared, _ = share(model, TWO, (2, 1), defenses=build(*specs))
        assert fit(shared, own_gradient(view_of(shared, model.double()), truth(model, TWO, (2, 1)))) is None


def test_the_deviation_of_rounded_entries_is_what_rounding_does() -> None:
    gradient = random_gradient()
    for spec in ("quantize:to=int8", "quantize:to=bf16", "quantize:to=bf16,rounding=stochastic"):
        (defense,) = build(spec)
        rounded = defense.on_shared(gradient, step())
        shared = dataclasses.replace(EMPTY, gradients=rounded, defenses=(defense.public(step()),))
        for name in gradient:
            measured = float((rounded[name] - gradient[name]).square().mean().sqrt())
            assert shared.deviation(name) == pytest.approx(measured, rel=0.2)


EMPTY = SharedGradient(
    gradients={},
    model=PublicModel(
        name="none",
        task="none",
        weights="random",
        weights_seed=0,
        num_labels=None,
        dtype="float32",
        fingerprint="",
    ),
    share="all",
)


# What match makes of it

SENTENCE = "the old doctor wrote a letter to the bank."


def recovered(model: TextModel, spec: str, **options: Any) -> Recovery:
    shared, _ = share(model, [SENTENCE], (1,), share="no-embeddings", defenses=build(spec))
    run = begin(ATTACKS.build("match", options), shared, model, seed=0)
    while True:
        try:
            next(run)
        except StopIteration as end:
            recovery: Recovery = end.value
            return recovery


@pytest.mark.parametrize(
    "spec",
    [
        "clip:max_norm=0.01",
        "prune:ratio=0.5",
        "quantize:to=bf16",
        "freeze:parameters=layer.1",
    ],
)
def test_match_knows_when_it_is_done_behind_a_defense(spec: str) -> None:
    recovery = recovered(load_model("bert-tiny", weights="random"), spec, budget=2000)
    assert recovery.stop is Stop.VERIFIED, spec
    assert recovery.sentences[0].text == SENTENCE
    assert recovery.evaluations < 500
    assert recovery.notes == ()


def test_match_stops_when_only_noise_is_left(toy_model: ToyModel) -> None:
    recovery = recovered(toy_model("bert", task="classification"), "gaussian:sigma=1e-6", budget=3000)
    assert recovery.stop is Stop.LIKELIEST
    assert recovery.sentences[0].text == SENTENCE
    assert recovery.evaluations < 2000
    assert "Confidence 0.99" in recovery.notes[0]


def test_match_says_when_noise_leaves_more_open_than_it_found(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    poor = recovered(model, "gaussian:sigma=1e-6", budget=1, proposals=1, beam=1, restarts=1, steps=1)
    if poor.sentences[0].text != SENTENCE:
        assert poor.stop is Stop.STEPS
        assert "isn't the text" in poor.notes[0]
    drowned = recovered(model, "gaussian:sigma=1", budget=300, restarts=2, steps=2)
    assert drowned.stop is not Stop.LIKELIEST
    assert "so does a text near it" in drowned.notes[0]
