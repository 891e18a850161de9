"""The lessons: their texts and stages (texts.py), and the checks that read a run (checks.py)."""

from moe_core.lessons.checks import Verdict
from moe_core.lessons.texts import LESSONS, Lesson, Stage, flashcards

__all__ = ["LESSONS", "Lesson", "Stage", "Verdict", "flashcards"]
