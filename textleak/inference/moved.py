"""Which parameters moved."""

from __future__ import annotations

import re
from collections import Counter

from textleak.inference.base import Seen, Told, per_cent
from textleak.words import count_of

WHAT = "moved"
_NUMBER = re.compile(r"\.\d+\.")


def ask(seen: Seen) -> Told:
    """How many tensors moved, by group, and how many of all entries."""
    entries = sum(value.numel() for value in seen.sent.values())
    there = sum(int((value != 0).sum()) for value in seen.sent.values())
    moved = [name for name, _ in seen.moved()]
    groups = Counter(group_of(seen, name) for name in moved)
    share = there / max(1, entries)
    listed = ", ".join(f"{group} {count}" for group, count in groups.items()) or "nothing"
    still = [name for name in seen.sent if name not in set(moved)]
    kept = (
        f"; {', '.join(still[:3])}{' and others' if len(still) > 3 else ''} did not"
        if still and moved
        else ""
    )
    missing = len(set(seen.model.parameters) - set(seen.sent))
    absent = f"; {count_of(missing, 'parameter')} of the model came with nothing" if missing else ""
    return Told(
        what=WHAT,
        value={
            "tensors": len(moved),
            "untouched": len(seen.sent) - len(moved),
            "share of entries": round(share, 6),
            "groups": dict(groups),
        },
        evidence=f"{listed} moved{kept}{absent}. {per_cent(share)} of {entries:,} entries aren't 0.",
    )


def group_of(seen: Seen, name: str) -> str:
    """A few words for what a parameter belongs to: "embeddings", "attention", "other layers", "head", "adapters"."""
    if ".lora_" in name:
        return "adapters"
    if name in seen.model.embedding_names:
        return "embeddings"
    if name in seen.model.attention_names:
        return "attention"
    return "other layers" if _NUMBER.search(name) else "head"
