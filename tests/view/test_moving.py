"""A run as a moving picture: states with different answers, the last one longest."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from textleak.events import Event, Finished, Phase, Position, Progress, Sentence, Started
from textleak.view.moving import FRAMES, film

WORDS = ("open", "door", "cat", "sat")


def events(steps: int) -> list[tuple[float, Event]]:
    found: list[tuple[float, Event]] = [(0.0, Started(settings={"attack": "match"})), (0.0, Phase(name="p"))]
    for step in range(steps):
        word = WORDS[step % len(WORDS)] * (1 + step // len(WORDS))
        position = Position(position=0, id=step, text=word, confidence=0.5)
        sentence = Sentence(positions=(position,), text=word)
        found.append((float(step), Progress(phase="p", step=step, sentences=(sentence,))))
    return [*found, (float(steps), Finished(outcome="done", result={}))]


def test_a_film_shows_different_answers_and_rests_on_the_last() -> None:
    drawn = film(events(3), title="textleak run")
    ET.fromstring(drawn)
    assert len(re.findall(r'<g class="f\d+">', drawn)) == 3
    assert drawn.count("opacity:1;animation") == 1, "where nothing moves, one picture is seen"
    assert "prefers-reduced-motion" in drawn
    assert all(word in drawn for word in WORDS[:3])


def test_a_long_run_has_so_many_pictures_and_one_without_an_answer_has_one() -> None:
    assert len(re.findall(r'<g class="f\d+">', film(events(40), title="t"))) == FRAMES
    assert len(re.findall(r'<g class="f\d+">', film(events(0), title="t"))) == 1
