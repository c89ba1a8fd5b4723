"""Adapters as PEFT makes them around a network."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn


def adapted(network: nn.Module, config: Any) -> Any:
    """PEFT's wrapper of a network, less the warning that is of PEFT's and transformers' own making.

    PEFT 0.21.2 reads `is_gradient_checkpointing` of every model, which transformers 5.24 has under another name.
    """
    import peft

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return peft.get_peft_model(network, config)
