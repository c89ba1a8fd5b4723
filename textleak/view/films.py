"""How the pictures of a run came back, as files: a strip, a grid and a GIF.

Shapes: B pictures, H and W height and width, C color channels (1 or 3).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textleak import owned
from textleak.events import Event, Progress, Truth
from textleak.view.waterfall import evenly

if TYPE_CHECKING:
    from PIL.Image import Image

Frames = Sequence[tuple[int, np.ndarray]]
"""Step and pictures (B, H, W, C) in bytes."""

_GAP = 4
_TEXT_ROW = 14
_BACKGROUND = (255, 255, 255)
_MOST_FRAMES = 60  # in a strip or a GIF; longer runs are thinned evenly (our choice)
_A_ROW = 12


def as_bytes(pictures: Any) -> np.ndarray:  # noqa: ANN401 - nested lists, arrays or a tensor
    """Pictures (B, H, W, C) of values 0 to 1 as bytes."""
    array = np.asarray(pictures, dtype=np.float64)
    return (array.clip(0, 1) * 255).round().astype(np.uint8)


class Film:
    """Keeps the pictures of a run's progress: a viewer of its events."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, np.ndarray]] = []

    def show(self, event: Event) -> None:
        """Take in one more event."""
        if isinstance(event, Progress) and event.image:
            self.frames.append((event.total_steps, as_bytes(event.image)))

    def write(self, folder: Path, truth: Truth | None, images: Sequence[Mapping[str, Any]]) -> None:
        """Write what was kept into the run's folder, as `write_films` does.

        Args:
            folder: where to.
            truth: the originals, where they are known.
            images: as a result has them.
        """
        originals = None if truth is None else as_bytes(truth.image)
        write_films(folder, self.frames, originals, [image["recovered"] for image in images])


def write_films(
    folder: Path, frames: Frames, originals: np.ndarray | None, order: Sequence[int | None]
) -> None:
    """Write strip.png, recovery.gif, grid.png and each picture of a run into its folder.

    Args:
        folder: where to.
        frames: pictures along the run, the answer last.
        originals: (B, H, W, C) in bytes; None where they aren't known.
        order: for each original the recovered picture that it is compared with; else the recovered pictures.
    """
    if not frames or not order:
        return
    frames = evenly(frames, _MOST_FRAMES)
    blank = np.full_like(frames[-1][1][0], 255)
    films = [
        [(step, blank if index is None else pictures[index]) for step, pictures in frames] for index in order
    ]
    _keep(_strip(films, originals), folder / "strip.png")
    last = [film[-1][1] for film in films]
    _keep(_grid(originals, last), folder / "grid.png")
    pages = [_grid(originals, [film[k][1] for film in films]) for k in range(len(frames))]
    durations = [120] * (len(pages) - 1) + [2000]  # ms
    film = {"save_all": True, "append_images": pages[1:], "duration": durations, "loop": 0}
    _keep(pages[0], folder / "recovery.gif", **film)
    for kind, pictures in (("original", () if originals is None else originals), ("recovered", last)):
        for number, picture in enumerate(pictures):
            _keep(_enlarged(picture, 1), folder / f"{kind}-{number}.png")


def _keep(image: Image, path: Path, **options: Any) -> None:  # noqa: ANN401 - the format's own
    """Write an image into a file of its owner's alone; its ending says the format."""
    drawn = io.BytesIO()
    image.save(drawn, format=path.suffix[1:].upper(), **options)
    owned.write(path, drawn.getvalue())


def _enlarged(picture_HWC: np.ndarray, scale: int) -> Image:
    from PIL import Image

    plain = picture_HWC[..., 0] if picture_HWC.shape[-1] == 1 else picture_HWC
    image = Image.fromarray(plain).convert("RGB")
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _scale(picture_HWC: np.ndarray) -> int:
    """How much a picture is enlarged, so that a person sees something."""
    side: int = max(picture_HWC.shape[:2])
    return max(1, 96 // side)


def _strip(films: Sequence[Frames], originals: np.ndarray | None) -> Image:
    """Each picture's recovery in rows, step by step, the original at the left of each row where it is known."""
    from PIL import Image, ImageDraw

    first = films[0][0][1]
    scale = _scale(first)
    height, width = (side * scale for side in first.shape[:2])
    rows = math.ceil(len(films[0]) / _A_ROW)
    columns = min(_A_ROW, len(films[0])) + (originals is not None)
    sheet = Image.new(
        "RGB",
        (columns * (width + _GAP) + _GAP, len(films) * rows * (height + _TEXT_ROW + _GAP) + _GAP),
        _BACKGROUND,
    )
    pen = ImageDraw.Draw(sheet)
    for number, film in enumerate(films):
        for row in range(rows):
            y = (number * rows + row) * (height + _TEXT_ROW + _GAP) + _GAP
            cells = [] if originals is None else [("original", originals[number])]
            cells += [(f"{step}", picture) for step, picture in film[row * _A_ROW : (row + 1) * _A_ROW]]
            for column, (words, picture) in enumerate(cells):
                x = column * (width + _GAP) + _GAP
                pen.text((x, y), words, fill=(90, 90, 90))
                sheet.paste(_enlarged(picture, scale), (x, y + _TEXT_ROW))
    return sheet


def _grid(originals: np.ndarray | None, recovered: Sequence[np.ndarray]) -> Image:
    """Originals in the upper row where they are known, below each what was recovered of it."""
    from PIL import Image, ImageDraw

    scale = _scale(recovered[0])
    height, width = (side * scale for side in recovered[0].shape[:2])
    rows = (
        [("recovered", recovered)]
        if originals is None
        else [("original", originals), ("recovered", recovered)]
    )
    wide, high = len(recovered) * (width + _GAP) + _GAP, len(rows) * (height + _TEXT_ROW + _GAP) + _GAP
    sheet = Image.new("RGB", (max(80, wide), high), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for row, (words, pictures) in enumerate(rows):
        y = row * (height + _TEXT_ROW + _GAP) + _GAP
        pen.text((_GAP, y), words, fill=(90, 90, 90))
        for number, picture in enumerate(pictures):
            x = number * (width + _GAP) + _GAP
            sheet.paste(_enlarged(picture, scale), (x, y + _TEXT_ROW))
    return sheet
