"""A script: which knob is turned at which step. A person writes one by hand, or it is exported from a run's record.

One line a step, `STEP knob=value knob=value`, in rising order; `#` begins a comment.
"""

import shlex
from dataclasses import replace
from typing import Any

from moe_core.runs.identity import threads_of
from moe_core.runs.limits import LINE
from moe_core.runs.ranks import command_words, first_ranks
from moe_core.runs.runner import flags
from moe_core.runs.source import Record
from moe_core.runs.turns import as_knobs, check_changes
from moe_core.schema import Config, Knobs, shortened, whole

Script = list[tuple[int, str, float | str]]


def script_of(run: Record) -> str:
    """The changes that took effect in a run, as a script. Trained with the command in its heading, it gives the same losses."""
    run.check_turns()
    config = replace(run.config, threads=threads_of(run.facts, run.config), steps=run.steps()[1])
    trained = ["train", *flags(config, as_knobs(run.started_knobs))]
    command = shlex.join(command_words(trained, first_ranks(run.facts)))
    lines = [
        f"# The knob changes of {run.id}, up to step {config.steps}. To train it again:",
        f"# {command} --script FILE",
    ]
    by_step: dict[int, dict[str, float | str]] = {}
    for change in run.knob_changes():
        if change.step is not None and change.step <= config.steps:  # a live run goes on meanwhile
            values = by_step.setdefault(change.step, {})
            # Of several turns of a knob only the last took effect; its place in the order is kept.
            values.pop(change.name, None)
            values[change.name] = change.value
    for step, values in sorted(by_step.items()):
        words = (f"{name}={shlex.quote(exact_word(value))}" for name, value in values.items())
        lines.append(f"{step} {' '.join(words)}")
    return "\n".join(lines) + "\n"


def exact_word(value: float | str) -> str:
    """A value as a word that reads back as the same value, to the last bit."""
    return value if isinstance(value, str) else str(int(value)) if value == int(value) else repr(float(value))


def read_script(text: str, config: Config, knobs: Knobs) -> Script:
    """(step, knob, value) in order. ValueError, with the line's number, for a change that a run with this start could not
    take."""
    script: Script = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if len(line) > LINE:
                raise ValueError(f"it has {len(line):,} characters, and at most {LINE:,} are read")
            words = shlex.split(line, comments=True)
            if words:
                changes = _changes(words, config, knobs, after=script[-1][0] if script else 0)
                turned: dict[str, Any] = {name: value for _, name, value in changes}
                knobs = replace(knobs, **turned)
                script += changes
        except ValueError as error:
            raise ValueError(f"line {number} of the script: {error}") from None
    return script


def _changes(words: list[str], config: Config, knobs: Knobs, after: int) -> Script:
    """One line's changes."""
    try:
        step = whole(words[0] if words[1:] and words[0].isdigit() else "")
    except ValueError:
        given = shortened(" ".join(words), 80)
        raise ValueError(f"wanted a step and changes, such as 120 noise=0.5 k=1, got {given!r}") from None
    if step <= after:
        raise ValueError(
            f"the step must be above {after}, got {step}; write each step's changes on one line, and the steps in rising order"
        )
    if config.steps and step > config.steps:
        raise ValueError(f"step {step} is beyond the last, {config.steps}; raise --steps or leave the line out")
    return [(step, name, value) for name, value in check_changes(config, changes_of(words[1:]), knobs).items()]


def changes_of(words: list[str]) -> dict[str, str]:
    """knob=value, each; ValueError for a word that is not."""
    changes = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"a change is written knob=value, got {word!r}; for example noise=0.5")
        changes[name.strip().replace("-", "_")] = value.strip()
    return changes
