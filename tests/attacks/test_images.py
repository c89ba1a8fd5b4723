"""Pictures are recovered from a gradient that was read from disk, on the very loop and comparison that text uses."""

import ast
import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import textleak.attacks.dummies.matched
import textleak.matching
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin
from textleak.attacks.dummies.moves import distance_of_places, moved
from textleak.attacks.dummies.onward import Onward
from textleak.attacks.dummies.pictures import (
    DummyPictures,
    PictureSettings,
    frame_distance,
    numbers_determined,
    roughness,
    total_variation,
)
from textleak.attacks.dummies.problem import DummyProblem
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.errors import InputError
from textleak.events import Phase, Progress, Recovery, Stop
from textleak.exact.classes import class_counts, single_class
from textleak.matching import (
    LBFGS,
    Adam,
    Crossing,
    Limits,
    Patient,
    SquaredL2,
    Turns,
    minimize,
    minimize_in_turns,
)
from textleak.models.base import Modality
from textleak.models.loading.images import load_image_model
from textleak.models.networks import CifarResNet
from textleak.private.secrets import ImageSecret
from textleak.private.share import share
from textleak.scoring.pixels import score_pictures
from textleak.shared.gradient import SharedGradient


def model_of(name="lenet", size=12, num_labels=5, seed=0, **options):
    return load_image_model(
        name, size=size, num_labels=num_labels, device="cpu", weights_seed=seed, **options
    )


def shallow(size):
    """ResNet-20's stages with one block each: what is shown of the loop doesn't depend on how deep a network is."""
    model = model_of("resnet20", size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CifarResNet(3, model.num_labels, blocks=1, activation="relu", strides=True)
    return dataclasses.replace(model, network=network.eval())


def pictures_of(model, count=1, seed=0):
    spots = torch.rand(count, model.shape[0], 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(spots, model.shape[1:], mode="bilinear")


def from_disk(folder: Path, model, pictures, labels=None, **options) -> tuple[SharedGradient, ImageSecret]:
    shared, secret = share(model, pictures, labels, **options)
    shared.save(folder / "gradient.safetensors")
    return SharedGradient.load(folder / "gradient.safetensors"), secret


def run(attack, shared, model, **options) -> tuple[list, Recovery]:
    steps = begin(ATTACKS.build(attack, options), shared, model, seed=0)
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value


def scores_of(secret, recovery):
    pictures = torch.tensor(recovery.image).permute(0, 3, 1, 2)
    return score_pictures(secret.pictures_BCHW, secret.labels, pictures, recovery.labels)


@pytest.mark.parametrize("attack", ["dlg", "idlg"])
def test_a_picture_and_its_label_come_back_from_a_gradient_on_disk(tmp_path, attack):
    model = model_of()
    shared, secret = from_disk(tmp_path, model, pictures_of(model))
    events, recovery = run(attack, shared, model)
    assert recovery.stop is Stop.MATCHED
    assert scores_of(secret, recovery).psnr >= 40
    assert recovery.labels == secret.labels
    assert recovery.sentences == ()
    shown = [event for event in events if getattr(event, "image", ())]
    assert len(shown[-1].image) == 1
    assert shown[-1].labels == secret.labels


def test_two_pictures_come_back_with_their_labels(tmp_path):
    model = model_of(size=6)
    shared, secret = from_disk(tmp_path, model, pictures_of(model, 2), [1, 3])
    _, recovery = run("dlg", shared, model, steps=3000)
    scores = scores_of(secret, recovery)
    assert min(one.psnr for one in scores.images) >= 30
    assert all(one.label == one.recovered_label for one in scores.images)


def test_one_picture_at_a_time_brings_the_gradients_nearer(tmp_path):
    model = model_of(size=8)
    shared, _ = from_disk(tmp_path, model, pictures_of(model, 2), [1, 3])
    events, recovery = run("dlg", shared, model, steps=40, one_at_a_time=10)
    losses = [event.loss for event in events if hasattr(event, "loss")]
    assert recovery.steps == 40
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(("name", "size"), [("resnet20", 8), ("vit", 8)])
def test_cosine_brings_the_gradients_nearer_and_keeps_values_in_their_range(tmp_path, name, size):
    model = model_of(name, size)
    shared, secret = from_disk(tmp_path, model, pictures_of(model))
    options = {"steps": 5, "restarts": 2, "closed_form": False, "moves": 0, "refinement": 0}
    events, recovery = run("cosine", shared, model, **options)
    losses = [event.loss for event in events if hasattr(event, "loss")]
    assert losses[-1] < losses[0]
    values = torch.tensor(recovery.image)
    assert 0 <= float(values.min()) <= float(values.max()) <= 1
    assert recovery.labels == secret.labels


def test_refinement_goes_on_where_the_published_steps_end_and_brings_the_gradients_nearer(tmp_path):
    model = shallow(8)
    shared, _ = from_disk(tmp_path, model, pictures_of(model, 2), [4, 2])
    options = {"restarts": 1, "steps": 6, "total_variation": 0, "moves": 0}
    _, published = run("cosine", shared, model, **options, refinement=0)
    events, refined = run("cosine", shared, model, **options, refinement=7 / 6)
    assert refined.final_loss < published.final_loss
    assert sorted(refined.labels) == sorted(published.labels)
    steps = [event.total_steps for event in events if hasattr(event, "total_steps")]
    assert steps == sorted(steps)
    assert (published.steps, refined.steps, refined.evaluations) == (6, 13, 13)
    phases = [event.name for event in events if isinstance(event, Phase)]
    assert phases == ["labels", "continuous", *["refinement"] * 3]
    values = torch.tensor(refined.image)
    assert 0 <= float(values.min()) <= float(values.max()) <= 1


def test_refinement_keeps_to_the_time_limit(tmp_path):
    model = model_of("resnet20", 8)
    shared, _ = from_disk(tmp_path, model, pictures_of(model))
    events, recovery = run("cosine", shared, model, steps=10_000, time_limit=0.5, closed_form=False)
    assert recovery.stop is Stop.TIME
    assert "refinement" not in [event.name for event in events if isinstance(event, Phase)]


def test_four_candidates_go_on_and_half_of_them_survive_each_round_of_the_refinement(tmp_path):
    model = shallow(8)
    shared, secret = from_disk(tmp_path, model, pictures_of(model, 2), [4, 2])
    events, recovery = run("cosine", shared, model, restarts=6, steps=12, moves=0, refinement=1)
    compared = {event.phase: len(event.losses) for event in events if isinstance(event, Progress)}
    assert compared == {"continuous": 6, "refinement": 1}
    assert recovery.evaluations == 6 + 4 * 11 + 4 * 2 + 2 * 3 + 7
    assert sorted(recovery.labels) == sorted(secret.labels)


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_picture_found_in_the_wrong_place_is_moved_to_where_its_gradient_is_nearer(
    tmp_path, monkeypatch, restarts
):
    model = shallow(16)
    picture_1CHW = pictures_of(model)
    shared, secret = from_disk(tmp_path, model, picture_1CHW)
    misplaced_1CHW = moved(picture_1CHW, 0, 4)[4]
    really = Onward.matched

    def matched(self, optimizer, *, steps, pictures, phase="continuous", **options):
        if phase == "continuous":
            pictures = dataclasses.replace(pictures, start_KBCHW=model.normalized(misplaced_1CHW)[None])
            steps = 1
        run = really(self, optimizer, steps=steps, pictures=pictures, phase=phase, **options)
        return (yield from run)

    monkeypatch.setattr(Onward, "matched", matched)
    options = {"restarts": restarts, "steps": 100, "refinement": 0, "closed_form": False}
    _, stayed = run("cosine", shared, model, **options, moves=0)
    events, recovery = run("cosine", shared, model, **options, moves=2)
    assert recovery.final_loss < stayed.final_loss
    assert scores_of(secret, recovery).psnr > scores_of(secret, stayed).psnr + 3
    assert [event.name for event in events if isinstance(event, Phase)] == [
        "labels",
        "continuous",
        *["moves"] * 2,
    ]


def test_only_pooled_places_with_strides_between_them_are_moved_by():
    sides = {"resnet20": 4, "resnet20:strides=false": None, "lenet": None, "vit": None}
    assert {name: distance_of_places(model_of(name, 16)) for name in sides} == sides
    assert distance_of_places(model_of("resnet20", 4)) is None  # one place has all


def test_moves_keep_the_batch_and_fill_what_they_uncover_with_the_border():
    batch_BCHW = torch.arange(2 * 9.0).view(2, 1, 3, 3)
    moved_MBCHW = moved(batch_BCHW, 1, 1)
    assert moved_MBCHW.shape == (9, 2, 1, 3, 3)
    assert torch.equal(moved_MBCHW[0], batch_BCHW)
    assert torch.equal(moved_MBCHW[:, 0], batch_BCHW[0].expand(9, 1, 3, 3))
    up_left = torch.tensor([[13.0, 14, 14], [16, 17, 17], [16, 17, 17]])
    assert torch.equal(moved_MBCHW[1, 1, 0], up_left)
    assert len({tuple(move.flatten().tolist()) for move in moved_MBCHW[:, 1]}) == 9


@pytest.mark.parametrize("smooth", [None, 2.0])
def test_parts_are_each_picture_s_numbers_where_labels_are_the_same_in_all_candidates(smooth):
    model = model_of("lenet", 8)
    shared, _ = share(model, pictures_of(model, 3), [2, 1, 3], know="batch-size")

    def dummies(labels_KB, **settings):
        settings = PictureSettings(smooth=smooth, precise=True, **settings)
        return DummyPictures(
            view=view_of(shared, model), objective=SquaredL2(), settings=settings, labels_KB=labels_KB
        )

    same = dummies(torch.tensor([[2, 1, 3], [2, 1, 3]]))
    leaves = same.draw(1, torch.Generator().manual_seed(3))
    point_D = torch.cat([leaves[name].flatten() for name in same.free])
    for b, part in enumerate(same.parts):
        assert torch.equal(point_D[part], leaves[f"pixels {b}"].flatten())
    assert len(same.parts) == 3
    assert dummies(None).parts == ()
    assert dummies(torch.tensor([[2, 1, 3], [1, 2, 3]])).parts == ()
    assert dummies(torch.tensor([[2, 1, 3], [2, 1, 3]]), one_at_a_time=5).parts == ()


def test_dlg_crosses_three_candidates_of_a_batch_whose_labels_are_known_and_no_others(tmp_path):
    model = model_of("lenet", 8)
    kinds = {
        ("batch-size,labels", 3, 100): Crossing,
        ("batch-size,labels", 3, 0): Patient,
        ("batch-size,labels", 2, 100): Patient,
        ("batch-size", 3, 100): Patient,
    }
    for (known, candidates, after), kind in kinds.items():
        shared, _ = from_disk(tmp_path, model, pictures_of(model, 2), [2, 1], know=known)
        problem = DummyProblem.of(view_of(shared, model), SquaredL2(), candidates=candidates)
        assert isinstance(problem.crossing(LBFGS(), after), kind), (known, candidates, after)
    shared, secret = from_disk(tmp_path, model, pictures_of(model, 2), [2, 1], know="batch-size,labels")
    _, recovery = run("dlg", shared, model, restarts=3, steps=60, crossing=8)
    assert recovery.evaluations < 3 * 60  # one candidate goes on
    assert recovery.labels == secret.labels


def test_roughness_is_the_mean_length_of_the_steps_from_pixel_to_pixel():
    pictures_KCHW = torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    pictures_KCHW[1, :2, :, 3:] = 0.5  # an edge down the picture, in two colors
    flat, edge = roughness(pictures_KCHW).tolist()
    assert flat == 0
    assert edge == pytest.approx(0.5 * 2**0.5 * 5 / 20, rel=0.03)
    torch.testing.assert_close(roughness(pictures_KCHW.mT), roughness(pictures_KCHW))


def test_rough_pictures_count_as_further_away_by_a_factor_whose_slope_is_known():
    model = model_of("lenet", 8).double()
    pictures_BCHW = pictures_of(model, 2).double()
    shared, _ = share(model, pictures_BCHW, [2, 1], know="batch-size")

    def dummies(weight):
        settings = PictureSettings(smooth=2.0, roughness=weight, precise=True)
        return DummyPictures(view=view_of(shared, model), objective=SquaredL2(), settings=settings)

    plain, rough = dummies(0.0), dummies(4.0)
    leaves = plain.start(3, torch.Generator().manual_seed(0))
    values_K, _ = plain.value_and_gradient(plain.matcher, leaves)
    rough_K, gradients = rough.value_and_gradient(rough.matcher, leaves)
    pictures_KBCHW = model.pictures(plain.pixels(leaves))
    mean_K = torch.stack([roughness(some).mean() for some in pictures_KBCHW])
    torch.testing.assert_close(rough_K, values_K * (4 * mean_K).exp())
    for name, slope in gradients.items():
        step = torch.randn(slope.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ahead, behind = (
            rough.value_and_gradient(rough.matcher, {**leaves, name: leaves[name] + by * step})[0]
            for by in (1e-5, -1e-5)
        )
        along_K = (slope * step).flatten(1).sum(1)
        torch.testing.assert_close((ahead - behind) / 2e-5, along_K, rtol=1e-5, atol=1e-6)


def test_waves_are_kept_within_the_range_of_pictures():
    model = model_of("resnet20", 8)
    shared, _ = share(model, pictures_of(model), [2])
    settings = PictureSettings(smooth=4.0, boxed=True)
    dummies = DummyPictures(view=view_of(shared, model), objective=SquaredL2(), settings=settings)
    leaves = {"pixels 0": 3 * torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))}
    once = dummies.project(leaves)
    torch.testing.assert_close(dummies.project(once), once, atol=1e-5, rtol=1e-5)
    logits = {"labels 0": torch.zeros(2, 5)}
    shown = torch.tensor(dummies.shown({**once, **logits}, 0, coarse=False)["image"])
    pixels = torch.tensor(dummies.shown({**leaves, **logits}, 0, coarse=False)["image"])  # cut off for show
    torch.testing.assert_close(shown, pixels, atol=1e-5, rtol=1e-5)


def test_every_attack_that_reads_pictures_takes_known_labels_and_several_candidates(tmp_path):
    model = model_of(size=8)
    shared, secret = from_disk(tmp_path, model, pictures_of(model, 2), [4, 2], know="labels,batch-size")
    for attack in ("dlg", "cosine", "tag"):
        events, recovery = run(attack, shared, model, steps=6, restarts=3)
        assert recovery.labels == secret.labels, attack
        assert max(len(getattr(event, "losses", ())) for event in events) == 3
    assert [name for name in ATTACKS if Modality.PICTURES in ATTACKS[name].reads] == [
        "cosine",
        "dlg",
        "idlg",
        "tag",
    ]


def test_the_best_candidate_is_chosen_by_its_own_distance(tmp_path):
    model = model_of(size=8)
    shared, _ = from_disk(tmp_path, model, pictures_of(model))
    events, recovery = run("dlg", shared, model, steps=30, restarts=4)
    last = events[-1]
    assert last.loss == recovery.final_loss
    assert last.loss <= min(loss for loss in last.losses) + 1e-9


def test_a_stuck_candidate_begins_anew_and_the_best_is_kept():
    # A valley without an end, which the optimizer falls into from the left; from the right it finds the minimum.
    def valley(leaves):
        x = leaves["x"]
        values = torch.where(x < 0, 5 + x.exp(), (x - 3).square()).sum(1)
        slopes = torch.where(x < 0, x.exp(), 2 * (x - 3))
        return values, {"x": slopes}

    begun = []

    def again(k):
        begun.append(k)
        return {"x": torch.full((1,), 1.0)}

    *_, step = minimize(
        valley,
        {"x": torch.tensor([[-9.0]])},
        Patient(optimizer=Adam(learning_rate=0.1), patience=30),
        limits=Limits(steps=400, tolerance=1e-3),
        reinitialize=again,
    )
    assert begun == [0]
    assert float(step.best["x"]) == pytest.approx(3, abs=0.05)


def test_projection_keeps_points_in_their_range():
    def slope(leaves):
        return leaves["x"].sum(1), {"x": torch.ones_like(leaves["x"])}

    *_, step = minimize(
        slope,
        {"x": torch.rand(2, 3)},
        Adam(learning_rate=0.3),
        limits=Limits(steps=30),
        project=lambda leaves: {name: leaf.clamp(0, 1) for name, leaf in leaves.items()},
    )
    assert torch.equal(step.best["x"], torch.zeros(2, 3))


def test_turns_minimize_all_leaves_and_never_lose_ground():
    def bowl(leaves):
        x, y = leaves["x"], leaves["y"]
        values = (x - 1).square().sum(1) + (y + 2).square().sum(1) + (x * y).sum(1)
        return values, {"x": 2 * (x - 1) + y, "y": 2 * (y + 2) + x}

    leaves = {"x": torch.zeros(1, 2, dtype=torch.float64), "y": torch.zeros(1, 2, dtype=torch.float64)}
    limits, turns = Limits(steps=200), Turns(groups=(("x",), ("y",)), each=10)
    seen = list(minimize_in_turns(bowl, leaves, LBFGS(), limits=limits, turns=turns))
    both = list(minimize(bowl, leaves, LBFGS(), limits=limits))
    assert torch.allclose(seen[-1].best["x"], both[-1].best["x"], atol=1e-4)
    assert torch.allclose(seen[-1].best["y"], both[-1].best["y"], atol=1e-4)
    assert [step.step for step in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].ending is not None


def test_text_and_pictures_pass_through_the_same_loop_and_comparison(tmp_path, monkeypatch, toy_model):
    called = []

    def watched(objective_fn, leaves, optimizer, **options):
        called.append(tuple(options["wrt"]))
        return minimize(objective_fn, leaves, optimizer, **options)

    monkeypatch.setattr(textleak.attacks.dummies.matched, "minimize", watched)
    compared = []
    original = textleak.matching.Matcher.value_and_gradient

    def counted(self, *arguments, **options):
        compared.append(type(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(textleak.matching.Matcher, "value_and_gradient", counted)
    images, text = model_of(size=8), toy_model("bert", task="classification")
    run("dlg", from_disk(tmp_path, images, pictures_of(images))[0], images, steps=3)
    after_pictures = len(compared)
    run("dlg", share(text, ["the cat sat"])[0], text, steps=3)
    assert called == [("pixels 0", "labels 0"), ("embeddings", "labels")]
    assert 0 < after_pictures < len(compared)
    assert set(compared) == {textleak.matching.Matcher}


# What the engine may import beside the standard library, and its only names that sound like text: a layer of torch's.
MAY_USE = ("torch", "textleak.matching", "textleak.errors", "textleak.numerics")
A_LAYER = {"Embedding", "_is_plain_embedding", "embedding_rule"}
TEXT_OR_PICTURES = re.compile(
    "image|picture|pixel|token|sentence|text(?!manager)|embed|vocab|word_", re.IGNORECASE
)


def what_it_knows(source: str) -> set[str]:
    """Imports of other rooms, and names that tell text from pictures, in a module's source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        for module in modules:
            ours = any(module == room or module.startswith(f"{room}.") for room in MAY_USE)
            if not ours and module.partition(".")[0] not in sys.stdlib_module_names:
                found.add(module)
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "arg")]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.append(node.value)
        if not isinstance(node, ast.alias):
            found |= {n for n in names if isinstance(n, str) and TEXT_OR_PICTURES.search(n)} - A_LAYER
    return found


def test_the_engine_knows_neither_text_nor_pictures():
    paths = sorted(Path(textleak.matching.__file__).parent.glob("*.py"))
    assert len(paths) > 8
    for path in paths:
        assert what_it_knows(path.read_text()) == set(), path.name


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import textleak.models", "textleak.models"),
        ("import transformers as t", "transformers"),
        ("from textleak.attacks.dummies.pictures import DummyPictures", "textleak.attacks.dummies.pictures"),
        ("from ..models import text", "..models"),
        ("def f(model):\n    return isinstance(model, ImageModel)", "ImageModel"),
        ("def f(leaves):\n    return 'pixels' in leaves", "pixels"),
        ("def f(model):\n    return model.max_tokens", "max_tokens"),
    ],
)
def test_an_engine_that_knew_would_be_caught(source, caught):
    assert caught in what_it_knows(source)
    assert (
        what_it_knows("import torch\nimport math\nfrom textleak.matching.rules import Call\nx = 'left'")
        == set()
    )


def test_the_class_of_one_picture_and_the_classes_of_a_batch_are_read_off_the_head():
    model = model_of("resnet20", 8, num_labels=10)
    generator = torch.Generator().manual_seed(0)
    for label in (0, 7):
        shared, _ = share(model, pictures_of(model), [label])
        assert single_class(shared, model, generator) == label
    shared, _ = share(model, pictures_of(model, 4), [1, 1, 5, 8])
    counts = class_counts(shared, model, 4, generator)
    assert [counts[1], counts[5], counts[8]] == [2, 1, 1]


def test_defended_gradients_are_attacked_to_the_end_of_the_steps(tmp_path):
    model = model_of(size=8)
    noise = DEFENSES.build("gaussian", {"sigma": 0.01})
    shared, secret = from_disk(tmp_path, model, pictures_of(model), defenses=[noise])
    _, recovery = run("dlg", shared, model, steps=60)
    assert recovery.stop is Stop.STEPS
    clean, _ = from_disk(tmp_path, model, pictures_of(model))
    _, better = run("dlg", clean, model, steps=400)
    assert scores_of(secret, better).psnr > scores_of(secret, recovery).psnr


def test_known_statistics_of_batch_norms_are_compared_with_a_candidates_own(tmp_path):
    model = model_of("resnet20:activation=sigmoid", 8, dtype="float64")
    pictures, client = pictures_of(model, 2).double(), composed([CLIENTS.build("batch-norm-train", {})])
    know = "batch-norm,batch-size,labels"
    shared, _ = from_disk(tmp_path, model, pictures, [1, 3], client=client, know=know)
    assert len(shared.known.batch_norm) == 21
    labels = torch.tensor([[1, 3]])

    def distance_of(shared, pictures, weight):
        settings = PictureSettings(batch_norm=weight)
        dummies = DummyPictures(
            view=view_of(shared, model), objective=SquaredL2(), settings=settings, labels_KB=labels
        )
        leaves = dummies.start(1, torch.Generator().manual_seed(0))
        for b in range(2):
            leaves[f"pixels {b}"] = model.normalized(pictures[None, b])
        value, slopes = dummies.value_and_gradient(dummies.matcher, leaves)
        return float(value) / dummies.matcher.target.squared_norm, slopes

    assert distance_of(shared, pictures, 0.1)[0] <= 1e-9
    brighter = pictures * 0.5 + 0.3
    known, slopes = distance_of(shared, brighter, 0.1)
    unknown, without = distance_of(shared, brighter, 0.0)
    assert known > 1.1 * unknown
    assert not torch.allclose(slopes["pixels 0"], without["pixels 0"])
    untold, _ = from_disk(tmp_path, model, pictures, [1, 3], client=client)
    assert untold.known.batch_norm is None
    assert distance_of(untold, brighter, 0.1)[0] == pytest.approx(unknown)
    with pytest.raises(InputError, match="no batch norm"):
        share(model_of(), pictures_of(model_of()), know="batch-norm")
    with pytest.raises(InputError, match="lengths"):  # pictures have none
        share(model, pictures, know="lengths")


@pytest.mark.parametrize("defense", ["prune", "topk"])
def test_entries_that_were_set_to_0_are_not_compared(tmp_path, defense):
    model = model_of(size=8)
    hides = DEFENSES.build(defense, {"ratio": 0.3} if defense == "prune" else {"ratio": 0.7})
    shared, secret = from_disk(tmp_path, model, pictures_of(model), defenses=[hides])
    dummies = DummyPictures(
        view=view_of(shared, model), objective=SquaredL2(), settings=PictureSettings(), labels_KB=None
    )
    leaves = dummies.start(1, torch.Generator().manual_seed(0))
    leaves["pixels 0"] = model.normalized(secret.pictures_BCHW[:1])
    leaves["labels 0"] = 50.0 * functional.one_hot(torch.tensor(secret.labels), model.num_labels)
    distance, _ = dummies.value_and_gradient(dummies.matcher, leaves)
    assert (
        float(distance) <= 1e-5 * dummies.matcher.target.squared_norm
    )  # the true picture's own entries, all of them
    _, recovery = run("dlg", shared, model)
    assert recovery.stop is Stop.MATCHED
    assert scores_of(secret, recovery).psnr >= 35


def test_lenets_gradient_determines_8136_numbers_and_768_a_picture():
    model = load_image_model("lenet", device="cpu")
    for batch in (1, 2, 4):
        assert numbers_determined(model, model.parameters, batch) == 8136 + 768 * batch
    assert numbers_determined(model, ["fc.weight"], 2) == 2 * 768


def test_waves_stand_for_the_same_pictures_as_pixels():
    model = model_of(size=6, dtype="float64")
    shared, _ = share(model, pictures_of(model).double(), [2])
    settings = PictureSettings(smooth=2.0)
    dummies = DummyPictures(view=view_of(shared, model), objective=SquaredL2(), settings=settings)
    leaves = dummies.start(1, None)
    leaves["pixels 0"] = torch.zeros_like(leaves["pixels 0"])
    flat = torch.tensor(dummies.shown(leaves, 0, coarse=False)["image"])
    assert torch.allclose(flat, torch.full_like(flat, 0.5))
    leaves["pixels 0"][0, 0, 0, 0] = 0.6  # the constant wave of the first channel, of 6 x 6 pixels
    brighter = torch.tensor(dummies.shown(leaves, 0, coarse=False)["image"])[0]
    assert torch.allclose(brighter[..., 0], torch.full((6, 6), 0.6))
    assert torch.allclose(brighter[..., 1:], torch.full((6, 6, 2), 0.5))


def test_total_variation_is_the_mean_difference_of_neighbors():
    stripes = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 1, 4, 4)
    assert total_variation(stripes).tolist() == [1.0]
    assert total_variation(torch.full((2, 3, 4, 4), 0.7)).tolist() == [0.0, 0.0]


def test_the_slope_of_what_cosine_minimizes_is_its_derivative():
    model = model_of("lenet", 6, dtype="float64")
    shared, _ = share(model, pictures_of(model).double(), [2])
    settings = PictureSettings(total_variation=0.3)
    dummies = DummyPictures(view=view_of(shared, model), objective=SquaredL2(), settings=settings)
    leaves = dummies.start(1, torch.Generator().manual_seed(0))
    value, slopes = dummies.value_and_gradient(dummies.matcher, leaves)
    for name in dummies.free:
        direction = torch.randn(leaves[name].shape, generator=torch.Generator().manual_seed(1)).double()
        moved = {**leaves, name: leaves[name] + 1e-6 * direction}
        changed, _ = dummies.value_and_gradient(dummies.matcher, moved)
        expected = float((slopes[name] * direction).sum())
        assert float(changed - value) / 1e-6 == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_long_run_shows_some_hundred_pictures_at_most():
    shown = [step for step in range(1, 24001) if step == 1 or step % frame_distance(step) == 0]
    assert shown[:5] == [1, 10, 20, 30, 40]
    assert len(shown) < 200


def test_pictures_of_another_size_or_without_a_label_each_are_refused():
    model = model_of(size=8)
    with pytest.raises(InputError, match="can't be shared"):
        share(model, torch.rand(1, 3, 9, 9))
    with pytest.raises(InputError, match="2 labels for 1"):
        share(model, pictures_of(model), [1, 2])
    with pytest.raises(InputError, match="out of range"):
        share(model, pictures_of(model), [5])
