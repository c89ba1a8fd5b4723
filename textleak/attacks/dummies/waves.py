"""Pictures as cosine waves: what they are optimized as.

Shapes: C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Waves:
    """The orthonormal cosine transform (type II) of rows and columns, each wave in a unit of its own.

    Attributes:
        rows_HH, columns_WW: a wave a row.
        units_HW: of each wave.
    """

    rows_HH: Tensor
    columns_WW: Tensor
    units_HW: Tensor

    @classmethod
    def of(cls, height: int, width: int, smooth: float) -> Waves:
        """With units that fall with a wave's number beyond `smooth`."""
        number_HW = torch.hypot(torch.arange(height)[:, None].double(), torch.arange(width)[None].double())
        return cls(
            rows_HH=_cosines(height), columns_WW=_cosines(width), units_HW=1 / (1 + number_HW / smooth)
        )

    def inverted(self) -> Waves:
        """The same waves, one over their units."""
        return dataclasses.replace(self, units_HW=1 / self.units_HW)

    def pixels(self, waves: Tensor) -> Tensor:
        """What waves (..., H, W) add up to."""
        rows_HH, columns_WW, units_HW = self._like(waves)
        return rows_HH.mT @ (waves * units_HW) @ columns_WW

    def waves(self, pixels: Tensor) -> Tensor:
        """The reverse."""
        rows_HH, columns_WW, units_HW = self._like(pixels)
        return rows_HH @ pixels @ columns_WW.mT / units_HW

    def _like(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.rows_HH.to(tensor), self.columns_WW.to(tensor), self.units_HW.to(tensor)


def _cosines(size: int) -> Tensor:
    places = torch.arange(size, dtype=torch.float64)
    waves: Tensor = torch.cos(torch.pi * (places + 0.5) * places[:, None] / size) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves
