"""What a defense costs is measured on the gradients that a client shares, and its errors are the textbook's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import textleak
from tests.figures import utility
from textleak.errors import InputError
from textleak.reports.utility import Utility, UtilityRow, UtilityRun, read_utility, write_utility


def run(seed: int, accuracy: float = 0.7, mcc: float = 0.3) -> UtilityRun:
    return UtilityRun(
        seed=seed, accuracy=accuracy, accuracy_error=0.02, mcc=mcc, mcc_error=0.05, cpu_seconds=1.0
    )


def table(*rows: UtilityRow, **settings: object) -> Utility:
    facts = {
        "model": "minilm",
        "data": "cola_train.tsv",
        "train": 32,
        "test": 16,
        "epochs": 6,
        "batch_size": 8,
        "learning_rate": 0.007,
        "command": "",
        "versions": {},
    }
    return Utility(rows=rows, **{**facts, **settings})


def test_matthews_correlation_of_a_table_of_four():
    true = np.array([1] * 8 + [0] * 12)
    predicted = np.array([1] * 6 + [0] * 2 + [1] * 3 + [0] * 9)
    tp, fn, fp, tn = 6, 2, 3, 9
    by_hand = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert utility.mcc(true, predicted) == pytest.approx(by_hand)
    assert utility.mcc(true, np.ones(20, dtype=int)) == 0
    assert utility.mcc(true, true) == pytest.approx(1)


def test_its_error_is_the_deviation_over_other_test_sentences():
    draw = np.random.default_rng(4)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        true = draw.integers(2, size=300)
        return true, np.where(draw.random(300) < 0.75, true, 1 - true)

    deviation = np.std([utility.mcc(*sample()) for _ in range(500)])
    assert utility.mcc_error(*sample()) == pytest.approx(deviation, rel=0.2)


def test_the_error_of_a_mean_has_both_sources():
    row = UtilityRow(defense=(), runs=(run(0, accuracy=0.70), run(1, accuracy=0.74)))
    assert row.accuracy == pytest.approx(0.72)
    assert row.accuracy_error == pytest.approx(math.sqrt(0.02**2 + (0.04**2 / 2) / 2))
    assert UtilityRow(defense=(), runs=(run(0),)).accuracy_error == 0.02


def test_tables_are_put_together_and_nothing_counts_twice(tmp_path):
    first = table(UtilityRow(defense=("gaussian:sigma=1e-3",), runs=(run(0),)))
    second = table(UtilityRow(defense=("gaussian:sigma=0.001",), runs=(run(0, 0.1), run(1))))
    both = utility.with_runs(first, second)
    assert [(r.seed, r.accuracy) for r in both.rows[0].runs] == [(0, 0.7), (1, 0.7)]
    with pytest.raises(SystemExit, match="epochs is 9 there and 6 here"):
        utility.with_runs(first, table(epochs=9))
    write_utility(tmp_path / "t.json", both)
    assert read_utility(tmp_path / "t.json") == both
    with pytest.raises(InputError, match="can't be read"):
        read_utility(tmp_path / "none.json")


def test_an_epoch_takes_each_sentence_once_in_batches_of_like_length():
    lengths = torch.randint(3, 30, (130,), generator=torch.Generator().manual_seed(0)).tolist()
    found = utility.batches(lengths, 8, torch.Generator().manual_seed(1))
    assert sorted(index for batch in found for index in batch) == list(range(130))
    assert sorted(map(len, found)) == [2, *[8] * 16]
    assert max(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in found) <= 4
    assert found != utility.batches(lengths, 8, torch.Generator().manual_seed(2))


def test_training_learns_from_shared_gradients_and_a_defense_stands_in_its_way(toy_folder, monkeypatch):
    texts = [
        "the cat sat",
        "a good day",
        "the boat",
        "love the sea",
        "a red car",
        "the moon",
        "new snow",
        "tea",
    ]
    rows = [(f"{word} {text}", label) for label, word in enumerate(("again", "never")) for text in texts]
    load, toy = textleak.load_model, str(toy_folder("bert"))
    monkeypatch.setattr(textleak, "load_model", lambda _, **more: load(toy, **{**more, "weights": "random"}))
    trained = utility.fine_tuned(table(), rows * 2, rows, (), 0)
    again = utility.fine_tuned(table(), rows * 2, rows, (), 0)
    hidden = utility.fine_tuned(table(), rows * 2, rows, ("gaussian:sigma=10",), 0)
    assert (trained.accuracy, trained.mcc) == (again.accuracy, again.mcc)
    assert trained.accuracy >= 0.9
    assert hidden.accuracy <= 0.75
