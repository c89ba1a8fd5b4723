"""Draws a run as a moving SVG for the first page: `python -m tests.draw_run --out .github/live-view.svg`.

The run is a real one (`textleak run -c matching-only`): its events are added up, and some of its states are drawn with
the terminal's own view, one after the other. Needs pretrained weights.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

from textleak.events import Event, Finished, Phase, Started
from textleak.jobs.text import prepare
from textleak.settings import load_run_config
from textleak.view import ViewState, picture
from textleak_tui.svg import portable

SENTENCE = "the meeting was moved to friday morning"
FRAMES, SECONDS_A_FRAME, LAST_SECONDS = 9, 0.9, 3.5


def states(sentence: str, preset: str) -> list[ViewState]:
    """What the view had added up after each event of a run that has an answer to show."""
    job = prepare(load_run_config(preset, {"sentences": [sentence], "threads": 1}, ()))
    truth = job.truth()
    first: list[Event] = [Started(settings=dict(job.settings))]
    state = ViewState.of((0.0, event) for event in [*first, *([truth] if truth else [])])
    found, steps, began = [], job.steps(), time.perf_counter()
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            seconds = time.perf_counter() - began
            result = job.result(end.value, outcome="done", seconds=seconds, run_dir=None)
            found.append(state.add(Finished(outcome="done", result=result), time.perf_counter() - began))
            return found
        state = state.add(event, time.perf_counter() - began)
        if not isinstance(event, Phase) and state.progress is not None and state.progress.sentences:
            found.append(state)


def chosen(run: Sequence[ViewState], count: int) -> list[ViewState]:
    """States with different answers, evenly over those that the run went through, the last one among them."""
    told: dict[tuple[str, ...], ViewState] = {}
    for state in run:
        assert state.progress is not None
        told[tuple(sentence.text for sentence in state.progress.sentences)] = state
    different = list(told.values())
    picked = sorted({round(i * (len(different) - 1) / max(count - 1, 1)) for i in range(count)})
    return [*(different[at] for at in picked[:-1]), run[-1]]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentence", default=SENTENCE)
    parser.add_argument("--preset", default="matching-only")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run = chosen(states(arguments.sentence, arguments.preset), FRAMES)
    command = f"textleak run -c {arguments.preset}"
    arguments.out.write_text(
        animated([portable(picture(state, title=command)) for state in run]), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
