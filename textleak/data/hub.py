"""Data sets of the Hugging Face hub: from its cache, else downloaded, else a reason in words."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any


def load_dataset(hub_id: str, configuration: str | None = None, *, split: str = "train") -> tuple[Any, str]:
    """A `datasets.Dataset`, or None with the reason why it can't be had.

    Args:
        hub_id: of the data set.
        configuration: of several that it may have.
        split: a part of it.
    """
    if importlib.util.find_spec("datasets") is None:
        return (
            None,
            "the package datasets, which reads it from the local cache or the hub, isn't installed "
            "(pip install datasets)",
        )
    import datasets

    from textleak.models.loading.places import why_unreachable

    def load() -> Any:  # noqa: ANN401
        bars = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(hub_id, configuration, split=split, trust_remote_code=False)
        finally:
            if bars:
                datasets.enable_progress_bars()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _from_cache_alone():
                return load(), ""
        except Exception:  # not in the cache: whatever the library of the day raises
            why = why_unreachable(hub_id, "README.md", "dataset")
        if not why:
            try:
                return load(), ""
            except Exception as error:
                why = f"the download broke off: {str(error).splitlines()[0] if str(error) else error!r}"
    return None, f"it is not in the local cache, and {why}"


@contextlib.contextmanager
def _from_cache_alone() -> Iterator[None]:
    """Have `datasets` read its cache and ask nobody for a while.

    Its own option for that (`local_files_only`) still asks the hub which version is the newest, five times, the waits
    doubling from one second: half a minute where nobody answers.
    """
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
