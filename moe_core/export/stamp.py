"""What each export says of itself: run, step, version, and what was turned. No clock, so that the bytes repeat."""

from typing import Any

from moe_core import __version__
from moe_core.figures.reading import last_step
from moe_core.schema import value_text

Facts = dict[str, str]


def facts_of(run: Any, title: str, layer: int | None = None, step: int | None = None) -> Facts:
    """The stamp of one export, by the names that PNG and PDF use for the first three."""
    step = last_step(run) if step is None else step
    where = "" if layer is None else f", layer {layer + 1} of {run.config.layers}"
    facts = {
        "Title": title,
        "Description": f"MoEscope run {run.id}, {run.config.task} task, step {step}{where}",
        "Software": f"MoEscope {__version__}",
        "Run": str(run.id),
        "Step": str(step),
    }
    if layer is not None:
        facts["Layer"] = str(layer + 1)
    return facts | {"Changes": "; ".join(changes_until(run, step)) or "none"}


def changes_until(run: Any, step: int) -> list[str]:
    """Every knob change that took effect by a step, in words."""
    return [
        f"step {change.step}: {change.name} {value_text(change.previous)} → {value_text(change.value)} ({change.who})"
        for change in run.knob_changes()
        if change.step is not None and change.step <= step
    ]


def caption_of(facts: Facts) -> str:
    """One line for people: where the figure is from."""
    return f"{facts['Run']}, step {int(facts['Step']):,}, {facts['Software']}"
