"""A run as a moving SVG document, for a README: some of its states as the terminal shows them, one after another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from textleak.events import Event, Phase
from textleak.view.state import ViewState
from textleak.view.svg import portable
from textleak.view.terminal import picture
from textleak.view.waterfall import evenly

# Our choice: a film of ten seconds, of which a third is the answer.
FRAMES, SECONDS_A_FRAME, LAST_SECONDS = 9, 0.9, 3.5


def film(events: Iterable[tuple[float, Event]], *, title: str) -> str:
    """What the events of a run show, as a document that moves; where nothing may move, its last picture.

    Args:
        events: with their seconds.
        title: above the pictures.
    """
    return animated([portable(picture(state, title=title)) for state in chosen(states_of(events), FRAMES)])


def states_of(events: Iterable[tuple[float, Event]]) -> list[ViewState]:
    """What a viewer had added up whenever there was an answer to show, and at the end."""
    state, found, last = ViewState(), [], None
    for t, event in events:
        state = state.add(event, t)
        last = state
        if not isinstance(event, Phase) and state.progress is not None and state.progress.sentences:
            found.append(state)
    return found or [last or state]


def chosen(run: Sequence[ViewState], count: int) -> list[ViewState]:
    """States with different answers, evenly over those that the run went through, the last one among them."""
    told: dict[tuple[str | None, ...], ViewState] = {}
    for state in run:
        sentences = () if state.progress is None else state.progress.sentences
        told[tuple(sentence.text for sentence in sentences)] = state
    return [*evenly(list(told.values()), count)[:-1], run[-1]]


def animated(frames: Sequence[str]) -> str:
    """SVG documents of one size as one, each shown for a while; the last one longest, and where nothing moves."""
    whole = SECONDS_A_FRAME * (len(frames) - 1) + LAST_SECONDS
    boxes = [re.search(r'viewBox="([^"]*)"', frame) for frame in frames]
    sizes = [tuple(map(float, box[1].split()[2:])) for box in boxes if box]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    rules, drawn = [], []
    for at, frame in enumerate(frames):
        last = at == len(frames) - 1
        start = 100 * SECONDS_A_FRAME * at / whole
        end = 100.0 if last else 100 * SECONDS_A_FRAME * (at + 1) / whole
        before = f"0%,{start - 0.01:.2f}%{{opacity:0}}" if at else ""
        after = "" if last else f"{end + 0.01:.2f}%,100%{{opacity:0}}"
        rules.append(f"@keyframes f{at}{{{before}{start:.2f}%,{end:.2f}%{{opacity:1}}{after}}}")
        rules.append(f".f{at}{{opacity:{int(last)};animation:f{at} {whole:.1f}s step-end infinite}}")
        drawn.append(f'<g class="f{at}">{frame}</g>')
    rules.append("@media (prefers-reduced-motion:reduce){g[class^=f]{animation:none}}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}">'
        f"<style>{''.join(rules)}</style>{''.join(drawn)}</svg>\n"
    )
