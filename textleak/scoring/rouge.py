"""rouge-score without what it imports and seldom uses.

It imports nltk for a stemmer and for sentences, nltk imports scipy.stats, scikit-learn and pandas where they are
installed, and that takes longer than most attacks here. So nltk waits until something of it is asked for.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Waiting(types.ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the module has)
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _waiting(*names: str) -> Iterator[None]:
    """Modules wait while something else is imported; those that are there already don't."""
    added = {name: _Waiting(name) for name in names} if names[0] not in sys.modules else {}
    for name, module in added.items():
        package, _, child = name.rpartition(".")
        if package:
            setattr(added[package], child, module)
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


with _waiting("nltk", "nltk.stem", "nltk.stem.porter"):
    from rouge_score.rouge_scorer import RougeScorer

__all__ = ["RougeScorer"]
