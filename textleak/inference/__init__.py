"""What an update tells before any attack: how it was made, and what of the data shows on its face.

`told` asks every question of `QUESTIONS`; one question, one file. What can't be told is said so, never guessed.
"""

from textleak.inference.base import Findings, Kind, Told, Value
from textleak.inference.kind import turned
from textleak.inference.questions import QUESTIONS, told

__all__ = ["QUESTIONS", "Findings", "Kind", "Told", "Value", "told", "turned"]
