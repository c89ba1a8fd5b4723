"""Picture files: read into values 0 to 1 with a word about every conversion.

This room knows files and Pillow. It knows no model, no attack and no gradient.

Shapes: B pictures, C color channels (1 or 3), H and W height and width.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from textleak import foreign
from textleak.data.hub import load_dataset
from textleak.errors import InputError, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image

Shape = tuple[int, int, int]

# On the hub: name, column of the picture, column of the class.
DATASETS = {
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label"),
    "cifar10": ("uoft-cs/cifar10", "img", "label"),
    "mnist": ("ylecun/mnist", "image", "label"),
}
_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Others that Pillow knows start programs: Ghostscript, for PostScript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Exif 2.3, sec. 4.6.4: the tag of a picture's orientation; from 5 on, rows and columns change places.
_ORIENTATION, _FIRST_ON_ITS_SIDE = 0x0112, 5
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A picture as a model reads it.

    Attributes:
        values_CHW: 0 to 1, multiples of 1/255.
        name: where it is from, for a person.
        label: its class where it has one.
        notes: what was converted, in words.
    """

    values_CHW: Tensor
    name: str
    label: int | None = None
    notes: tuple[str, ...] = ()


def read_picture(path: Path, shape: Shape, *, label: int | None = None) -> Picture:
    """Read a picture file at a size and number of channels.

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM or PGM.
        shape: channels, height and width wanted.
        label: the class, where it is known.

    Raises:
        InputError: no such file, empty, not a picture, cut short, or too large to be opened safely.
    """
    from PIL import Image

    if path.is_dir():
        raise InputError(f"{path} is a folder.", fix="Give a picture file, or --dataset FOLDER with --index.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty: 0 bytes.", fix="Give a picture file.")
    with (
        _reading(str(path)),
        foreign.open_regular(path, most=foreign.MOST) as file,
        Image.open(file, formats=_FORMATS) as image,
    ):
        notes = []
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            notes.append(f"the first of {frames} frames is taken")
        size = image.size
        image.draft(
            None, (2 * shape[2], 2 * shape[1])
        )  # a large JPEG is read at an eighth of its size, or so
        image.load()
        return _picture(image, shape, name=path.name, label=label, notes=notes, size=size)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what goes wrong in reading a picture into an `InputError`."""
    from PIL import Image, UnidentifiedImageError

    too_large = Image.DecompressionBombError, Image.DecompressionBombWarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise InputError(f"There is no picture file {name}.", fix="Check --image.") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is not a picture that can be read.",
            why="Its content is none of the formats that are read.",
            fix="Give a PNG, JPEG, WebP, GIF, BMP or TIFF file.",
        ) from None
    except too_large as error:
        raise InputError(
            f"{name} is too large to be opened.",
            why=f"{error}",
            fix="Scale it down first; the attacked picture is small anyway.",
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # as many ways as there are formats
        raise InputError(
            f"{name} can't be read as a picture.",
            why=f"{str(error) or type(error).__name__}.",
            fix="The file may be cut short or damaged: save it again.",
        ) from None


def _picture(
    image: Image,
    shape: Shape,
    *,
    name: str,
    label: int | None,
    notes: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> Picture:
    """The image as values, turned upright, in the channels and size wanted; every conversion is noted.

    Args:
        image: as Pillow read it.
        shape: channels, height and width wanted.
        name: where it is from.
        label: its class.
        notes: what was converted before.
        size: width and height in its file, where it was read at another one.
    """
    from PIL import ImageOps

    said = list(notes)
    full = size or image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation != 1:
        said.append("turned upright, as its EXIF data say")
        full = full if orientation < _FIRST_ON_ITS_SIDE else full[::-1]
    image = ImageOps.exif_transpose(image)
    channels, height, width = shape
    image = _in_channels(image, "L" if channels == 1 else "RGB", said)
    if image.size != (width, height):
        said.append(f"{full[0]} x {full[1]} pixels resized to {width} x {height}")
        if image.size[0] * height != image.size[1] * width:
            said[-1] += ", the edges cut off to keep its proportions"
        image = ImageOps.fit(image, (width, height))
    values = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    return Picture(
        values_CHW=torch.from_numpy(values).permute(2, 0, 1).contiguous(),
        name=name,
        label=label,
        notes=tuple(said),
    )


def _in_channels(image: Image, mode: str, notes: list[str]) -> Image:
    """The image as 8-bit gray or RGB."""
    from PIL import Image as Pillow

    if image.mode in _SIXTEEN_BITS:
        notes.append("16 bits a value rounded to 8")
        array = np.asarray(image, dtype=np.float64)
        scale = 65535 if array.max() > 255 or image.mode != "I" else 255
        image = Pillow.fromarray((array / scale * 255).clip(0, 255).round().astype(np.uint8))
    elif image.mode == "F":
        notes.append("floating-point values scaled to their own range")
        array = np.asarray(image, dtype=np.float64)
        reach = array.max() - array.min() or 1.0
        image = Pillow.fromarray(((array - array.min()) / reach * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        notes.append("transparency laid over white")
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
        image = Pillow.alpha_composite(white, image).convert("RGB")
    if image.mode not in ("L", "RGB", "P", "1"):
        notes.append(f"{image.mode} colors converted to RGB")
        image = image.convert("RGB")
    colored = image.mode in ("RGB", "P")
    if mode == "L" and colored:
        notes.append("colors converted to gray, as the model reads one channel")
    elif mode == "RGB" and not colored:
        notes.append("gray taken for all three color channels")
    return image.convert(mode)


def sample_paths() -> list[Path]:
    """The pictures that ship with the package."""
    folder = Path(str(files("textleak.data") / "samples"))
    return sorted(folder.glob("*.png"))


def chosen_pictures(
    images: Sequence[Path], indices: Sequence[int], dataset: str | None, shape: Shape
) -> tuple[Picture, ...]:
    """The private batch: files, or pictures of a data set by number.

    Args:
        images: picture files; then `indices` and `dataset` have to be empty.
        indices: places in the data set; the first picture where none is named.
        dataset: "cifar100", "cifar10", "mnist" or a folder of pictures; None for the sample pictures.
        shape: channels, height and width that the model reads.

    Raises:
        InputError: both files and numbers, a picture that can't be read, a data set that can't be had, a number
            beyond its end.
    """
    if images:
        if indices or dataset:
            raise InputError(
                f"--image was given with {'--index' if indices else '--dataset'}.",
                why="A batch is either of files or of pictures of a data set.",
                fix="Leave one of them out.",
            )
        return tuple(read_picture(path, shape) for path in images)
    chosen = list(indices) or [0]
    if dataset is not None and dataset not in DATASETS and not foreign.expanded(dataset).is_dir():
        raise unknown_name("data set", dataset, DATASETS, fix="Or name a folder of pictures that is there.")
    if dataset in DATASETS:
        return _of_hub(dataset, chosen, shape)
    paths, labels, words = sample_paths(), None, "the sample pictures"
    if dataset is not None:
        folder = foreign.expanded(dataset)
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
        classes = sorted({path.parent for path in found if path.parent != folder})
        paths, words = found, str(folder)
        if classes and all(path.parent in classes for path in found):
            labels = [classes.index(path.parent) for path in found]
        if not found:
            raise InputError(
                f"The folder {folder} has no picture in it.", fix="Name a folder of PNG or JPEG files."
            )
    _check_indices(chosen, len(paths), words)
    return tuple(
        read_picture(paths[index], shape, label=None if labels is None else labels[index]) for index in chosen
    )


def _check_indices(indices: Sequence[int], count: int, words: str) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise InputError(
                f"--index {index} is out of range.",
                why=f"There are {count} pictures in {words}.",
                fix=f"Use 0 to {count - 1}.",
            )


def _of_hub(name: str, indices: Sequence[int], shape: Shape) -> tuple[Picture, ...]:
    """Pictures of a data set's training part, from the local cache or the hub."""
    hub_id, column, label_column = DATASETS[name]
    rows, why = load_dataset(hub_id)
    if rows is None:
        raise InputError(
            f"The data set {name} can't be had.",
            why=f"{why[0].upper()}{why[1:]}.",
            fix="Use --image FILE, --dataset FOLDER, or neither for the sample pictures.",
        )
    _check_indices(indices, len(rows), name)
    found = []
    for index in indices:
        row = rows[index]
        with _reading(f"{name} {index}"):
            picture = _picture(row[column], shape, name=f"{name} {index}", label=int(row[label_column]))
        found.append(picture)
    return tuple(found)
