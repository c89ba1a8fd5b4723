"""An image run's course in cells and as files: strips, grids and GIFs."""

import numpy as np
import pytest
from PIL import Image

from textleak.events import Progress
from textleak.view.films import Film, as_bytes, write_films
from textleak.view.pictures import picture_lines


def test_a_runs_pictures_become_a_strip_a_grid_and_a_gif(tmp_path):
    film = Film()
    pictures = np.random.default_rng(0).random((2, 8, 8, 3))
    for step in range(1, 101):
        shown = pictures * step / 100
        film.show(Progress(phase="continuous", step=step, total_steps=step, image=tuple(shown.tolist())))
    originals = as_bytes(pictures[::-1])
    write_films(tmp_path, film.frames, originals, (1, 0))
    with Image.open(tmp_path / "recovery.gif") as gif:
        assert gif.n_frames == 60
    with (
        Image.open(tmp_path / "recovered-0.png") as recovered,
        Image.open(tmp_path / "original-0.png") as true,
    ):
        assert np.array_equal(np.asarray(recovered), np.asarray(true))
    for name in ("strip.png", "grid.png"):
        with Image.open(tmp_path / name) as sheet:
            assert min(sheet.size) > 100


@pytest.mark.parametrize(("width", "ends"), [(60, "label 65"), (14, "…")])
def test_the_words_below_a_picture_take_the_room_that_it_leaves(width: int, ends: str) -> None:
    black = [[[0.0]] * 8] * 8
    found = Progress(phase="continuous", step=1, image=[black], labels=(65,))
    lines = picture_lines(found, [[[[0.5]] * 8] * 8], (65,), width, 10, beside=False)
    assert lines[-1].plain.rstrip().endswith(ends)
    assert len({line.cell_len for line in lines}) == 1
    assert lines[0].cell_len <= width + 2
