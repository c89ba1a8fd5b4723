"""What has changed on the screen, put together from the widgets that are seen there.

Textual asks every widget on the screen for all of its lines when one line of one of them has changed, which was half
of what the app cost while an attack ran. Here only those are asked that are seen where something has changed, and for
those lines. This is part of Textual's inside: `tests/tui/test_drawn.py` holds it against Textual's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from textual._compositor import ChopsUpdate, Compositor
from textual.geometry import Region
from textual.strip import Strip

# A line, a first column, and the one after the last.
Span: TypeAlias = tuple[int, int, int]


class PartialCompositor(Compositor):
    """Textual's compositor, with less work for a part of the screen."""

    def render_partial_update(self) -> ChopsUpdate | None:
        """What has changed since the last time; None for nothing."""
        spans = list(self._regions_to_spans(region for region in self._dirty_regions if region))
        self._dirty_regions.clear()
        if not spans:
            return None
        # An update looks up the lines of its spans, and no other.
        pieces: Any = self._pieces(spans)
        ends: Any = {y: self.cuts[y][1:] for y in pieces}
        return ChopsUpdate(pieces, spans, ends)

    def _pieces(self, spans: Sequence[Span]) -> Mapping[int, Mapping[int, Strip | None]]:
        """What is seen in spans, by line and column: a line falls into pieces where a widget begins or ends."""
        pieces: dict[int, dict[int, Strip | None]] = {
            y: dict.fromkeys(self.cuts[y][:-1]) for y, _, _ in spans
        }
        missing = _columns(spans, self.cuts)
        for widget, (region, clip) in self.visible_widgets.items():  # from the front to the back
            seen = region.intersection(clip)
            lines = [
                y
                for y, columns in missing.items()
                if seen.y <= y < seen.bottom and any(seen.x <= column < seen.right for column in columns)
            ]
            if not lines:
                continue
            top, bottom = min(lines), max(lines) + 1
            strips = widget.render_lines(Region(seen.x - region.x, top - region.y, seen.width, bottom - top))
            for y in lines:
                cuts = [cut for cut in self.cuts[y] if seen.x <= cut <= seen.right]
                parts = strips[y - top].divide([cut - seen.x for cut in cuts[1:]])
                found = {cut: part for cut, part in zip(cuts, parts, strict=False) if cut in missing[y]}
                pieces[y].update(found)
                missing[y] -= found.keys()
            missing = {y: columns for y, columns in missing.items() if columns}
            if not missing:
                break
        return pieces


def _columns(spans: Iterable[Span], cuts: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """Where the pieces begin that spans lie in, by line."""
    found: dict[int, set[int]] = {}
    for y, first, last in spans:
        pieces = zip(cuts[y], cuts[y][1:], strict=False)
        found.setdefault(y, set()).update(start for start, end in pieces if start < last and end > first)
    return found
