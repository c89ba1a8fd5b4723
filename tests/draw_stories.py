"""Makes the app's bundled recordings: `python -m tests.draw_stories [NAME ...]`, from what `textleak_tui.stories` says.

Each is a run folder as any other, from a real run with pretrained weights and one thread; what is known of the machine
that it ran on is left out, and of its progress so much is kept as a person can see.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from textleak import runs
from textleak.jobs.base import drive
from textleak.jobs.text import prepare
from textleak.settings import load_run_config
from textleak.view.waterfall import evenly
from textleak_tui.setups import settings_of
from textleak_tui.stories import STORIES, Story

MOST_BYTES = 200_000
# Frames a recording keeps at most: some twenty a second of what takes half a minute.
MOST_EVENTS = 400


def record(story: Story, folder: Path) -> None:
    """Do a story's run in a folder."""
    settings = {**settings_of([story.sentence], story.values), "threads": 1, "weights": "pretrained"}
    job = prepare(load_run_config(None, settings, ()))
    made = runs.RunFolder.create(folder, name=story.name)
    with runs.Recorder(made, job.settings) as recorder:
        drive(job, recorder)


def bundle(story: Story, folder: Path) -> None:
    """Put what a person sees of a run into the app."""
    shutil.rmtree(story.folder, ignore_errors=True)
    story.folder.mkdir(parents=True)
    run = json.loads((folder / "run.json").read_text("utf-8"))
    write(story.folder / "run.json", {**run, "machine": {"platform": "Linux", "cores": 1}, "pid": 0})
    result = json.loads((folder / "result.json").read_text("utf-8"))
    write(story.folder / "result.json", {**result, "run_dir": None})
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    moving = [at for at, event in enumerate(events) if event["event"] == "progress"]
    kept = set(evenly(moving, MOST_EVENTS))
    # The last of a phase is what the phase came to.
    kept |= {at for at in moving if events[at + 1]["event"] != "progress"}
    with (story.folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for at, event in enumerate(events):
            if event["event"] == "progress" and at not in kept:
                continue
            if event["event"] == "finished":
                event["result"] = {**event["result"], "run_dir": None}
            file.write(json.dumps(event, ensure_ascii=False) + "\n")
    size = sum(path.stat().st_size for path in story.folder.iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"{story.name} has {size:,} bytes: more than {MOST_BYTES:,}.")
    sys.stdout.write(f"{story.name}: {size:,} bytes, {result['seconds']} s, {result['summary']}\n")


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Make those that are named, else all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    for story in STORIES:
        if not names or story.name in names:
            with tempfile.TemporaryDirectory() as folder:
                record(story, Path(folder) / "run")
                bundle(story, Path(folder) / "run")


if __name__ == "__main__":
    main()
