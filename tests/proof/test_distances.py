"""How far a text's gradient is from the shared one, where clipping hides how large that was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_toy
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.matching.discrete import Guess
from textleak.models import load_model
from textleak.models.guesses import examples_of
from textleak.private.share import share
from textleak.proof.distances import distance_to, norm_of, off_direction
from textleak.proof.rivals import Parts, alike, distances, further

TWO = ("the cat sat on the mat", "a dog ran home.")


@pytest.mark.parametrize("per", ["all", "layer"])
def test_no_text_is_nearer_than_what_its_direction_at_a_few_tensors_leaves(per: str, tmp_path: Path) -> None:
    model = load_model(
        str(write_toy("bert", tmp_path)),
        weights="random",
        task="classification",
        num_labels=3,
        dtype="float64",
    )
    clip = DEFENSES.build("clip", {"max_norm": 0.01, "per": per})
    shared, secret = share(model, TWO, (2, 0), share="no-embeddings", defenses=[clip])
    answer = Guess(rows=tuple(map(tuple, secret.ids)), classes=(2, 0))
    rivals = [*alike(model, answer), *further(model, answer)][::12]
    view, norm = view_of(shared, model), norm_of(shared.gradients)
    assert norm <= 0.01 * len(shared.gradients)

    def least(own: object) -> float:
        return off_direction(shared.gradients, own, as_one=per == "all") / norm  # type: ignore[arg-type]

    own = view.own(examples_of(model, answer.rows, answer.classes))
    assert least(own) < 1e-12
    assert distance_to(shared, own) < 1e-12
    told = 0
    for rival, bound in zip(
        rivals, distances(Parts(model, own, answer), answer, rivals, own, least), strict=True
    ):
        apart = distance_to(shared, view.own(examples_of(model, rival.rows, rival.classes)))
        assert bound <= apart * (1 + 1e-9) + 1e-12
        told += bound > 1e-6
    assert told >= 0.8 * len(rivals)
