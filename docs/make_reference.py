"""Writes docs/reference.md from the declarations in moe_core/schema/, and docs/lessons.md from moe_core/lessons/:
`python docs/make_reference.py`."""

import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from moe_core.lessons import LESSONS
from moe_core.schema import STATS, Config, Knobs, meta_of, range_text


def settings_table(settings: type[Config] | type[Knobs]) -> list[str]:
    lines = ["| name | default | range | what it is |", "|---|---|---|---|"]
    for f in fields(settings):
        meta = meta_of(settings, f.name)
        span = ", ".join(meta.choices) or range_text(meta)
        default = settings().__dict__[f.name]
        lines.append(
            f"| `{f.name}` | {default if default != '' and default != () else 'none'} | {span} | {meta.help} |"
        )
    return lines


def stats_table() -> list[str]:
    one_for = {"": "step", "L": "step and layer", "LE": "step, layer and expert"}
    lines = ["| name | one for each | unit | what it is |", "|---|---|---|---|"]
    for stat in STATS:
        lines.append(f"| `{stat.name}` | {one_for[stat.shape]} | {stat.unit} | {stat.help} |")
    return lines


def reference() -> str:
    """The whole page; a test compares it with the file."""
    lines = ["# Reference", ""]
    lines += ["Made from moe_core/schema/ by docs/make_reference.py; edit there.", ""]
    lines += ["## Config: what fixes a run", "", *settings_table(Config), ""]
    lines += ["## Knobs: what is turned while it trains", "", *settings_table(Knobs), ""]
    lines += ["## Statistics: what is measured", "", *stats_table(), ""]
    return "\n".join(lines)


def lessons() -> str:
    """All lessons to read; a test compares it with the file."""
    lines = ["# Lessons", ""]
    lines += [
        "The lessons of the Learn page, to read or to print. There each step trains a model while you look on.",
        "",
    ]
    lines += ["Made from moe_core/lessons/ by docs/make_reference.py; edit there.", ""]
    for number, lesson in enumerate(LESSONS, 1):
        lines += [f"## {number}. {lesson.title}", "", lesson.idea, "", f"$${lesson.formula}$$", ""]
        lines += [f"{at}. **{stage.button}.** {stage.watch}" for at, stage in enumerate(lesson.stages, 1)]
        lines += ["", f"**Question.** {lesson.question}", "", f"**Answer.** {lesson.answer}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    for name, text in (("reference", reference()), ("lessons", lessons())):
        (Path(__file__).parent / f"{name}.md").write_text(text)
