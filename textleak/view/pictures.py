"""Pictures in a terminal.

Two pixels share a cell, the upper as the sign's color and the lower as the background. Made of nothing but events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.text import Text

from textleak.assignment import assignment
from textleak.events import Progress
from textleak.view.glyphs import LEAKED, PROTECTED

_GAP = 2  # columns between pictures
_SMALLEST = 8  # pixels of a picture that still shows something
_SHADES = " .:-=+*#%@"  # dark to bright, where there is no Unicode


def compared(image: Sequence[Any], originals: Sequence[Any]) -> list[tuple[int, float] | None]:
    """For each original the place of the picture that stands for it, and their PSNR in dB (at most 100)."""
    if not image or not originals:
        return [None] * len(originals)
    pictures, truths = np.asarray(image, dtype=float), np.asarray(originals, dtype=float)
    errors = ((truths[:, None] - pictures[None]) ** 2).mean((2, 3, 4))
    found: list[tuple[int, float] | None] = [None] * len(originals)
    for row, column in assignment(errors):
        error = float(errors[row, column])
        found[row] = column, min(100.0, -10 * np.log10(error)) if error > 0 else 100.0
    return found


def mean_psnr(image: Sequence[Any], originals: Sequence[Any]) -> float | None:
    """Mean PSNR of a batch in dB, None where there is nothing to compare."""
    known = [one[1] for one in compared(image, originals) if one is not None]
    return sum(known) / len(known) if known else None


def picture_lines(
    progress: Progress,
    originals: Sequence[Any],
    labels: Sequence[int],
    width: int,
    rows: int,
    *,
    unicode: bool = True,
    beside: bool = True,
) -> list[Text]:
    """The recovered pictures, each beside its original where that is known, over a line of words.

    Args:
        progress: with pictures.
        originals: the true pictures; empty where they aren't known.
        labels: their classes.
        width: columns there are.
        rows: lines there are.
        unicode: whether half blocks can be written.
        beside: whether the originals are drawn; without them the words still tell how near the pictures are.
    """
    side = max(len(progress.image[0]), len(progress.image[0][0]))
    order = [one[0] if one else None for one in compared(progress.image, originals)] if originals else None
    count = len(order) if order is not None else len(progress.image)
    each = 2 if order is not None and beside else 1
    fits = max(1, (width + _GAP) // (each * (_SMALLEST + _GAP)))
    shown = min(count, fits)
    room = (width + _GAP) // (each * shown) - _GAP
    size = min(side, room, 2 * max(2, rows - 2))
    psnr = compared(progress.image, originals)
    blocks: list[list[Text]] = []
    for number in range(shown):
        if order is not None and beside:
            blocks.append(
                _drawn(originals[number], size, f"original, {labels[number]}", room, unicode=unicode)
            )
        index = order[number] if order is not None else number
        if index is None:
            blocks.append([Text("nothing yet".ljust(size))])
            continue
        words = f"label {progress.labels[index]}" if progress.labels else "recovered"
        style = ""
        if order is not None:
            found = psnr[number]
            right = bool(progress.labels) and progress.labels[index] == labels[number]
            style = LEAKED if right else PROTECTED
            words = (f"{found[1]:.1f} dB, " if found else "") + words
        blocks.append(_drawn(progress.image[index], size, words, room, style, unicode=unicode))
    lines = _beside(blocks)
    if shown < count:
        lines.append(Text(f"and {count - shown} more", style="bright_black"))
    return lines


def _drawn(
    picture: Sequence[Any], size: int, words: str, room: int, style: str = "", *, unicode: bool
) -> list[Text]:
    """A picture of so many pixels at most as lines of cells, then words, in so many columns at most."""
    values = _scaled(np.asarray(picture, dtype=float), size)
    height, width = values.shape[:2]
    if height % 2:
        values = np.concatenate([values, values[-1:]])
    lines = []
    for row in range(0, len(values), 2):
        line = Text(no_wrap=True)
        for column in range(width):
            upper, lower = values[row, column], values[row + 1, column]
            if unicode:
                line.append("▀", style=f"{_color(upper)} on {_color(lower)}")
            else:
                brightness = float((upper + lower).mean() / 2)
                line.append(_SHADES[min(len(_SHADES) - 1, int(brightness * len(_SHADES)))])
        lines.append(line)
    room = max(width, room)
    if len(words) > room:  # so that a class never looks like another one
        words = words[: room - 1] + ("…" if unicode else "~")
    for line in lines:
        line.pad_right(max(0, len(words) - width))
    caption = Text(no_wrap=True).append(words.ljust(width), style=style or "bright_black")
    return [*lines, caption]


def _scaled(values_HWC: np.ndarray, size: int) -> np.ndarray:
    """At most `size` pixels high and wide, each the mean of those it stands for; three channels."""
    height, width, channels = values_HWC.shape
    factor = max(1, -(-max(height, width) // max(1, size)))
    if factor > 1:
        high, wide = -(-height // factor), -(-width // factor)
        padded = np.pad(
            values_HWC, ((0, high * factor - height), (0, wide * factor - width), (0, 0)), mode="edge"
        )
        values_HWC = padded.reshape(high, factor, wide, factor, channels).mean((1, 3))
    scaled: np.ndarray = np.repeat(values_HWC, 3, 2) if channels == 1 else values_HWC
    return scaled.clip(0, 1)


def _color(value_C: np.ndarray) -> str:
    red, green, blue = (round(float(one) * 255) for one in value_C)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _beside(blocks: Sequence[Sequence[Text]]) -> list[Text]:
    """Blocks side by side."""
    lines = []
    for row in range(max(map(len, blocks))):
        line = Text(no_wrap=True)
        for block in blocks:
            width = block[0].cell_len
            line.append(block[row] if row < len(block) else Text(" " * width))
            line.append(" " * _GAP)
        lines.append(line)
    return lines
