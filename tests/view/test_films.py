"""An image run's course as files: strips, grids and GIFs."""

import numpy as np
from PIL import Image

from textleak.events import Progress
from textleak.view.films import Film, as_bytes, write_films


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
