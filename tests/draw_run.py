"""Draws a run as a moving SVG for the first page: `python -m tests.draw_run --out .github/live-view.svg`.

The run is a real one (`textleak run -c matching-only`), drawn as `textleak run --film` does. Needs pretrained weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from textleak.events import Event, Finished, Started
from textleak.jobs.text import prepare
from textleak.settings import load_run_config
from textleak.view.moving import film

SENTENCE = "the meeting was moved to friday morning"


def events(sentence: str, preset: str) -> Iterator[tuple[float, Event]]:
    """The events of a run, with their seconds; its settings and its truth first."""
    job = prepare(load_run_config(preset, {"sentences": [sentence], "threads": 1}, ()))
    truth = job.truth()
    yield 0.0, Started(settings=dict(job.settings))
    if truth is not None:
        yield 0.0, truth
    steps, began = job.steps(), time.perf_counter()
    while True:
        try:
            yield time.perf_counter() - began, next(steps)
        except StopIteration as end:
            recovery = end.value
            break
    seconds = time.perf_counter() - began
    result = job.result(recovery, outcome="done", seconds=seconds, run_dir=None)
    yield time.perf_counter() - began, Finished(outcome="done", result=result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentence", default=SENTENCE)
    parser.add_argument("--preset", default="matching-only")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    drawn = film(events(arguments.sentence, arguments.preset), title=f"textleak run -c {arguments.preset}")
    arguments.out.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
