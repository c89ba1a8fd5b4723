"""Which of many known vectors make a few measurements: sparse regression, far beyond as many as there are measurements.

A gradient of few rows, as a LoRA adapter's, is G = C X: each row another combination of the same inputs X. Which of the
inputs that there could be they are is told by rank-aware matching pursuit (Davies & Eldar 2012, RA-ORMP): the input
is taken that lies furthest in the span of what is left, orthonormalized anew at each step, as seen from outside those
taken so far. It works in coordinates where the usual inputs have no direction that stands out, or all would look alike.

Shapes: M measurements, N inputs, I their size, J coordinates, R directions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.exact.subspace import spectrum_end
from textleak.numerics import exact, svd

# Directions of a gradient this much fainter than its strongest are left to rounding, and what is left of them all when
# nothing is missing (our choice; measured on smollm2 and minilm in float32: 3e-7 to 2e-6 once all is found, 1e-3 and
# more before).
_FAINT, NOTHING = 1e-6, 1e-5
# A part within that counts as all (our choice; measured on smollm2 in float32: 1e-6 less where nothing is missing).
ALL = 1 - 1e-6
# Directions of what is left that count as used up.
_USED_UP = 1e-4
# Variances below this part of the mean one are rounding.
_NO_VARIANCE = 1e-9
# An input with less than this of its own length outside those taken can't be told from them.
_WITHIN = 1e-3
# A part is none where its square is below this many times what rounding accounts for (our choice, as `OUTSIDE`).
_INSIGNIFICANT = 100.0


def whitening(deviations_NI: Tensor, common_NI: Tensor, *, ridge: float) -> Tensor:
    """Coordinates (J, I) in which some vectors have no direction that stands out, float64.

    Args:
        deviations_NI: the vectors, their means taken off.
        common_NI: directions that tell nothing, as the means do: the new coordinates leave them out.
        ridge: part of the mean variance that is added to each.
    """
    deviations_NI = exact(deviations_NI)
    _, s_R, basis_RI = svd(exact(common_NI))
    basis_RI = basis_RI[s_R > _WITHIN * s_R[0]]
    deviations_NI = deviations_NI - (deviations_NI @ basis_RI.T) @ basis_RI
    variance_I, turned_II = torch.linalg.eigh(deviations_NI.T @ deviations_NI / len(deviations_NI))
    varies_I = variance_I > _NO_VARIANCE * variance_I.mean()
    variance_J = variance_I[varies_I] + ridge * variance_I.mean()
    white_JI: Tensor = (turned_II[:, varies_I] * variance_J.rsqrt()).T
    outside_JI: Tensor = white_JI - (white_JI @ basis_RI.T) @ basis_RI
    return outside_JI


class Pursuit:
    """What is left of a gradient as inputs are taken.

    Attributes:
        white_JI: the coordinates' change; inputs are given in the new ones.
        basis_JN: orthonormal directions that are taken.
        left_JR: what the gradient's directions have outside them.
    """

    def __init__(self, gradient_MI: Tensor, white_JI: Tensor) -> None:
        """Take nothing yet.

        Args:
            gradient_MI: G, not all zero.
            white_JI: from `whitening`.
        """
        eps = torch.finfo(gradient_MI.dtype).eps
        _, s_R, rows_RI = svd(exact(gradient_MI))
        floor, _, clear = spectrum_end(s_R, float(s_R[0]) * eps)
        rows_RI = rows_RI[s_R > (floor if clear else _FAINT * float(s_R[0]))]
        white_JI = white_JI.to(rows_RI.device)
        self.white_JI = white_JI.float()
        self.left_JR: Tensor = torch.linalg.qr(white_JI @ rows_RI.T).Q.float()
        self._whole = float(self.left_JR.norm())
        self.basis_JN: Tensor = self.left_JR[:, :0]

    @property
    def left(self) -> float:
        """The part of the directions that is left, 0 to 1."""
        return float(self.left_JR.norm()) / self._whole

    @property
    def room(self) -> int:
        """Inputs that can still be taken before anything would be explained."""
        return len(self.left_JR) - self.basis_JN.shape[1] - self.left_JR.shape[1]

    def directions(self) -> Tensor:
        """Orthonormal directions of what is left, (J, R)."""
        directions_JR, s_R, _ = svd(self.left_JR)
        left_JR: Tensor = directions_JR[:, s_R > _USED_UP]
        return left_JR

    def outside(self, inputs_NJ: Tensor) -> Tensor:
        """Inputs, in the new coordinates, without what lies in the taken ones."""
        for _ in range(2):  # once leaves the rounding of the first time
            inputs_NJ = inputs_NJ - (inputs_NJ @ self.basis_JN) @ self.basis_JN.T
        return inputs_NJ

    def take(self, outside_J: Tensor) -> Tensor:
        """Take an input, given as `outside` has it; returns the new unit direction."""
        unit_J: Tensor = outside_J / outside_J.norm()
        self.basis_JN = torch.cat([self.basis_JN, unit_J[:, None]], 1)
        self.left_JR = self.left_JR - unit_J[:, None] * (unit_J @ self.left_JR)
        return unit_J


def part_within(along_NR: Tensor, outside_N: Tensor, whole_N: Tensor) -> Tensor:
    """How much of each input, as seen from outside those taken, lies in what is left: 0 to 1.

    Args:
        along_NR: products with the directions of what is left.
        outside_N: its squared norm outside those taken.
        whole_N: its squared norm.
    """
    told_N = outside_N > _WITHIN**2 * whole_N
    return (along_NR.square().sum(1) / outside_N).where(told_N, 0.0).clamp(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What each of some inputs has in a gradient.

    Attributes:
        parts_NM: C, by input.
        there_N: which of them have a part that isn't rounding.
        left: relative norm of what they leave of the gradient.
    """

    parts_NM: Tensor
    there_N: Tensor
    left: float


def parts(gradient_MI: Tensor, inputs_NI: Tensor) -> Parts:
    """The parts of inputs in a gradient, by least squares in float64."""
    eps = torch.finfo(gradient_MI.dtype).eps
    gradient_MI, inputs_NI = exact(gradient_MI), exact(inputs_NI)
    back_IN = torch.linalg.pinv(inputs_NI)
    parts_MN = gradient_MI @ back_IN
    rest_MI = gradient_MI - parts_MN @ inputs_NI
    freedom = max(1, len(rest_MI) * (rest_MI.shape[1] - len(inputs_NI)))
    variance = max(
        float(rest_MI.square().sum()) / freedom, (eps * float(gradient_MI.norm())) ** 2 / gradient_MI.numel()
    )
    noise_N = variance * len(gradient_MI) * back_IN.square().sum(0)
    return Parts(
        parts_NM=parts_MN.T,
        there_N=parts_MN.square().sum(0) > _INSIGNIFICANT * noise_N,
        left=float(rest_MI.norm() / gradient_MI.norm()),
    )
