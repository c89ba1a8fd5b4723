"""Draws the sample pictures that ship with the package: `python -m tests.draw_samples FOLDER`.

Twenty small scenes of our own, drawn four times as large, grained and scaled down; so nobody else's rights are in them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, FINE = 64, 4
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]


class Canvas:
    """Draws in units of the picture's side, 0 to 1 from the upper left."""

    def __init__(self, top: Color, bottom: Color) -> None:
        self.size = SIDE * FINE
        rows = np.linspace(0, 1, self.size)[:, None, None]
        sky = np.array(top) * (1 - rows) + np.array(bottom) * rows
        self.image = Image.fromarray(np.repeat(sky, self.size, 1).astype(np.uint8))
        self.pen = ImageDraw.Draw(self.image)

    def _scaled(self, points: tuple[float, ...]) -> list[float]:
        return [point * self.size for point in points]

    def disc(self, x: float, y: float, r: float, color: Color, squash: float = 1.0) -> None:
        self.pen.ellipse(self._scaled((x - r, y - r * squash, x + r, y + r * squash)), fill=color)

    def box(self, area: Box, color: Color) -> None:
        self.pen.rectangle(self._scaled(area), fill=color)

    def shape(self, points: tuple[float, ...], color: Color) -> None:
        self.pen.polygon(self._scaled(points), fill=color)

    def line(self, points: tuple[float, ...], color: Color, width: float = 0.02) -> None:
        self.pen.line(self._scaled(points), fill=color, width=round(width * self.size), joint="curve")

    def arc(self, area: Box, start: float, end: float, color: Color, width: float = 0.04) -> None:
        self.pen.arc(self._scaled(area), start, end, fill=color, width=round(width * self.size))


def sunset(c: Canvas) -> None:
    c.disc(0.5, 0.55, 0.2, (255, 220, 120))
    c.box((0, 0.62, 1, 1), (40, 50, 100))
    for k in range(6):
        c.line(
            (0.5 - 0.2 + 0.02 * k, 0.66 + 0.055 * k, 0.7 - 0.02 * k, 0.66 + 0.055 * k), (250, 190, 110), 0.015
        )


def mountains(c: Canvas) -> None:
    c.shape((-0.1, 0.9, 0.3, 0.25, 0.7, 0.9), (90, 90, 120))
    c.shape((0.2, 0.38, 0.3, 0.25, 0.4, 0.42, 0.3, 0.36), (245, 245, 250))
    c.shape((0.35, 0.95, 0.75, 0.35, 1.2, 0.95), (60, 70, 95))
    c.box((0, 0.85, 1, 1), (50, 110, 60))


def sailboat(c: Canvas) -> None:
    c.box((0, 0.68, 1, 1), (30, 100, 150))
    c.shape((0.2, 0.68, 0.8, 0.68, 0.68, 0.82, 0.3, 0.82), (140, 60, 40))
    c.shape((0.5, 0.15, 0.5, 0.64, 0.8, 0.64), (250, 250, 240))
    c.shape((0.47, 0.22, 0.47, 0.64, 0.25, 0.64), (220, 70, 60))


def house(c: Canvas) -> None:
    c.box((0, 0.75, 1, 1), (90, 150, 70))
    c.box((0.25, 0.45, 0.75, 0.82), (225, 200, 150))
    c.shape((0.18, 0.46, 0.5, 0.2, 0.82, 0.46), (170, 60, 50))
    c.box((0.44, 0.6, 0.56, 0.82), (90, 60, 40))
    c.box((0.3, 0.52, 0.4, 0.62), (120, 180, 220))
    c.box((0.6, 0.52, 0.7, 0.62), (120, 180, 220))


def tree(c: Canvas) -> None:
    c.box((0, 0.8, 1, 1), (120, 170, 80))
    c.box((0.45, 0.5, 0.55, 0.85), (100, 70, 45))
    for x, y, r in ((0.5, 0.3, 0.2), (0.35, 0.42, 0.16), (0.65, 0.42, 0.16), (0.5, 0.45, 0.18)):
        c.disc(x, y, r, (40, 120 + round(60 * (0.5 - y)), 50))


def apple(c: Canvas) -> None:
    c.box((0, 0.72, 1, 1), (150, 110, 70))
    c.disc(0.5, 0.55, 0.27, (200, 40, 45))
    c.disc(0.41, 0.46, 0.07, (240, 140, 130))
    c.line((0.5, 0.32, 0.55, 0.18), (90, 60, 30), 0.03)
    c.disc(0.64, 0.23, 0.08, (80, 150, 60), 0.5)


def face(c: Canvas) -> None:
    c.disc(0.5, 0.5, 0.36, (240, 200, 160))
    c.shape((0.14, 0.45, 0.2, 0.12, 0.5, 0.05, 0.8, 0.12, 0.86, 0.45, 0.75, 0.28, 0.3, 0.25), (70, 45, 30))
    for x in (0.38, 0.62):
        c.disc(x, 0.46, 0.05, (250, 250, 250))
        c.disc(x, 0.46, 0.025, (40, 70, 120))
    c.arc((0.35, 0.5, 0.65, 0.74), 20, 160, (180, 60, 60))


def cat(c: Canvas) -> None:
    c.shape((0.2, 0.45, 0.22, 0.1, 0.45, 0.3), (90, 85, 80))
    c.shape((0.8, 0.45, 0.78, 0.1, 0.55, 0.3), (90, 85, 80))
    c.disc(0.5, 0.55, 0.34, (110, 105, 100), 0.9)
    for x in (0.36, 0.64):
        c.disc(x, 0.5, 0.07, (190, 210, 80))
        c.disc(x, 0.5, 0.03, (20, 20, 20), 2.0)
    c.shape((0.46, 0.63, 0.54, 0.63, 0.5, 0.68), (230, 140, 140))
    for y in (0.66, 0.72):
        c.line((0.1, y, 0.36, 0.69), (230, 230, 230), 0.01)
        c.line((0.9, y, 0.64, 0.69), (230, 230, 230), 0.01)


def fish(c: Canvas) -> None:
    c.disc(0.45, 0.5, 0.28, (245, 140, 40), 0.6)
    c.shape((0.68, 0.5, 0.92, 0.3, 0.92, 0.7), (235, 110, 30))
    c.box((0.4, 0.34, 0.46, 0.66), (250, 245, 235))
    c.disc(0.28, 0.45, 0.035, (20, 20, 30))
    for x, y in ((0.15, 0.25), (0.2, 0.15), (0.8, 0.85)):
        c.disc(x, y, 0.03, (170, 220, 240))


def flower(c: Canvas) -> None:
    c.line((0.5, 0.5, 0.48, 1.0), (50, 120, 50), 0.04)
    for k in range(8):
        angle = k * np.pi / 4
        c.disc(0.5 + 0.2 * np.cos(angle), 0.4 + 0.2 * np.sin(angle), 0.11, (230, 90 + 12 * k, 170))
    c.disc(0.5, 0.4, 0.12, (250, 210, 60))


def car(c: Canvas) -> None:
    c.box((0, 0.72, 1, 1), (95, 95, 100))
    c.shape((0.25, 0.5, 0.36, 0.32, 0.66, 0.32, 0.78, 0.5), (60, 110, 190))
    c.box((0.1, 0.48, 0.9, 0.68), (50, 95, 175))
    c.shape((0.32, 0.48, 0.39, 0.36, 0.5, 0.36, 0.5, 0.48), (190, 220, 235))
    for x in (0.28, 0.72):
        c.disc(x, 0.7, 0.1, (25, 25, 25))
        c.disc(x, 0.7, 0.045, (180, 180, 185))


def balloon(c: Canvas) -> None:
    c.disc(0.5, 0.36, 0.26, (220, 60, 60), 1.1)
    c.disc(0.5, 0.36, 0.12, (250, 220, 90), 2.35)
    c.line((0.36, 0.58, 0.45, 0.8), (80, 60, 40), 0.01)
    c.line((0.64, 0.58, 0.55, 0.8), (80, 60, 40), 0.01)
    c.box((0.44, 0.79, 0.56, 0.88), (120, 80, 40))


def moon(c: Canvas) -> None:
    c.disc(0.62, 0.35, 0.2, (240, 235, 205))
    c.disc(0.54, 0.31, 0.18, (22, 24, 55))
    for x, y in ((0.15, 0.2), (0.3, 0.45), (0.85, 0.15), (0.2, 0.65), (0.9, 0.6)):
        c.disc(x, y, 0.012, (250, 250, 255))
    c.shape((0, 1, 0, 0.85, 0.3, 0.72, 0.6, 0.86, 1, 0.75, 1, 1), (10, 15, 25))


def bottle(c: Canvas) -> None:
    c.box((0, 0.8, 1, 1), (130, 90, 60))
    c.box((0.36, 0.35, 0.64, 0.85), (40, 110, 70))
    c.box((0.44, 0.12, 0.56, 0.4), (40, 110, 70))
    c.box((0.38, 0.5, 0.62, 0.7), (240, 230, 200))
    c.box((0.4, 0.37, 0.43, 0.83), (120, 190, 150))


def tiles(c: Canvas) -> None:
    colors = ((200, 80, 60), (240, 220, 180), (60, 90, 140))
    for row in range(5):
        for column in range(5):
            area = (0.2 * column, 0.2 * row, 0.2 * column + 0.18, 0.2 * row + 0.18)
            c.box(area, colors[(row * 2 + column) % 3])


def waves(c: Canvas) -> None:
    for k in range(9):
        xs = np.linspace(0, 1, 40)
        ys = 0.12 * k + 0.06 * np.sin(9 * xs + k)
        points = tuple(float(v) for pair in zip(xs, ys, strict=True) for v in pair)
        c.line(points, (40 + 20 * k, 90 + 12 * k, 200 - 12 * k), 0.05)


def letter(c: Canvas) -> None:
    c.shape((0.2, 0.9, 0.42, 0.1, 0.58, 0.1, 0.8, 0.9, 0.66, 0.9, 0.5, 0.28, 0.34, 0.9), (30, 30, 40))
    c.box((0.33, 0.58, 0.67, 0.68), (30, 30, 40))
    c.line((0.1, 0.95, 0.9, 0.95), (200, 60, 60), 0.03)


def cactus(c: Canvas) -> None:
    c.box((0, 0.78, 1, 1), (220, 180, 110))
    c.box((0.44, 0.2, 0.56, 0.85), (60, 130, 70))
    c.box((0.22, 0.42, 0.3, 0.6), (60, 130, 70))
    c.box((0.22, 0.55, 0.5, 0.62), (60, 130, 70))
    c.box((0.7, 0.32, 0.78, 0.52), (60, 130, 70))
    c.box((0.5, 0.47, 0.78, 0.54), (60, 130, 70))


def umbrella(c: Canvas) -> None:
    c.pen.pieslice(c._scaled((0.12, 0.15, 0.88, 0.85)), 180, 360, fill=(150, 50, 120))
    c.pen.pieslice(c._scaled((0.36, 0.15, 0.64, 0.85)), 180, 360, fill=(220, 120, 190))
    c.line((0.5, 0.45, 0.5, 0.85), (60, 40, 30), 0.025)
    c.arc((0.5, 0.78, 0.6, 0.9), 0, 180, (60, 40, 30), 0.025)
    for x in (0.1, 0.3, 0.7, 0.9):
        c.line((x, 0.65, x - 0.03, 0.78), (200, 215, 230), 0.012)


def rainbow(c: Canvas) -> None:
    bow = ((220, 50, 50), (240, 150, 50), (245, 225, 80), (80, 180, 90), (70, 110, 200), (130, 70, 160))
    for k, color in enumerate(bow):
        c.arc((0.08 + 0.05 * k, 0.2 + 0.05 * k, 0.92 - 0.05 * k, 1.2 - 0.05 * k), 180, 360, color, 0.055)
    c.disc(0.15, 0.72, 0.12, (245, 245, 248), 0.7)
    c.disc(0.85, 0.72, 0.12, (245, 245, 248), 0.7)
    c.box((0, 0.8, 1, 1), (90, 160, 90))


SCENES: tuple[tuple[Callable[[Canvas], None], Color, Color], ...] = (
    (sunset, (90, 60, 120), (250, 150, 80)),
    (mountains, (110, 170, 230), (220, 235, 245)),
    (sailboat, (150, 205, 240), (230, 240, 245)),
    (house, (120, 185, 240), (215, 235, 250)),
    (tree, (170, 215, 245), (240, 245, 235)),
    (apple, (210, 205, 190), (170, 160, 150)),
    (face, (60, 130, 120), (30, 80, 90)),
    (cat, (200, 170, 140), (150, 110, 90)),
    (fish, (40, 130, 190), (10, 60, 110)),
    (flower, (190, 225, 190), (110, 170, 110)),
    (car, (200, 215, 225), (235, 225, 205)),
    (balloon, (100, 175, 240), (210, 235, 250)),
    (moon, (12, 14, 40), (40, 45, 85)),
    (bottle, (225, 215, 200), (180, 165, 150)),
    (tiles, (235, 235, 230), (200, 200, 195)),
    (waves, (20, 40, 90), (120, 180, 210)),
    (letter, (245, 240, 225), (225, 215, 195)),
    (cactus, (240, 190, 130), (250, 225, 180)),
    (umbrella, (140, 155, 175), (90, 105, 125)),
    (rainbow, (120, 180, 235), (215, 235, 250)),
)


def main() -> None:
    """Write all scenes as PNG files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(0)
    for number, (draw, top, bottom) in enumerate(SCENES):
        canvas = Canvas(top, bottom)
        draw(canvas)
        small = np.asarray(canvas.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=float)
        small = small + grain.normal(0, 3, small.shape)
        picture = Image.fromarray(small.clip(0, 255).round().astype(np.uint8))
        picture.save(folder / f"{number:02}-{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
