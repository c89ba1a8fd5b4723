"""Opacus: what its optimizer does to a gradient, as the defense `dpsgd` says it. Opacus itself isn't imported."""

from __future__ import annotations

from typing import Any

import torch

from textleak.defenses.base import DEFENSES, Defense


def seen_through(optimizer: Any) -> tuple[tuple[Defense, ...], torch.optim.Optimizer | None]:  # noqa: ANN401 - wrappers
    """What wrappers around an optimizer do to the gradient, and torch's own optimizer inside them.

    Args:
        optimizer: torch's, or Opacus's `DPOptimizer` or Accelerate's `AcceleratedOptimizer` around it; None for none.
    """
    defenses: list[Defense] = []
    while optimizer is not None:
        inner = getattr(optimizer, "original_optimizer", None)  # Opacus
        if inner is not None:
            options = {"max_norm": optimizer.max_grad_norm, "noise_multiplier": optimizer.noise_multiplier}
            defenses.append(DEFENSES.build("dpsgd", {key: float(value) for key, value in options.items()}))
        else:
            inner = getattr(optimizer, "optimizer", None)  # Accelerate
        if inner is None:
            break
        optimizer = inner
    return tuple(defenses), optimizer
