"""The facts stamped into each export: run, step, version and knob changes. No time of day, so that the bytes repeat."""

import re
from typing import Any

from moe_core import __version__
from moe_core.figures.called import told_apart
from moe_core.figures.catalog import FIGURES
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.reading import last_step
from moe_core.runs.source import Source
from moe_core.schema import exact_text

Facts = dict[str, str]
MEAN = "each line is a centred "  # a caption, which is short, leaves this out


def facts_of(run: Source, title: str, layer: int | None = None, step: int | None = None) -> Facts:
    """The stamp of one export, by the names that PNG and PDF use for the first three."""
    step = last_step(run) if step is None else step
    layers = run.description.layers
    layer = None if len(layers) == 1 else layer  # where there is one, a figure is of that
    where = "" if layer is None else f", layer {layer + 1} of {len(layers)}"
    facts = {
        "Title": title,
        "Description": f"MoEscope run {run.id} of {run.description.task}, step {step}{where}",
        "Software": f"MoEscope {__version__}",
        "Run": str(run.id),
        "Step": str(step),
    }
    if layer is not None:
        facts["Layer"] = str(layer + 1)
        if layers[layer].name != f"layer {layer + 1}":
            facts["Layer name"] = layers[layer].name
    return facts | {"Changes": "; ".join(changes_until(run, step)) or "none"}


def changes_until(run: Source, step: int) -> list[str]:
    """Every knob change that took effect by a step, in words."""
    return [
        f"step {change.step}: {change.name} {exact_text(change.previous)} → {exact_text(change.value)} ({change.who})"
        for change in run.knob_changes()
        if change.step is not None and change.step <= step
    ]


def figure_facts(source: Source | SweepResults, name: str, look: Any) -> Facts:
    """The stamp of one figure: of a comparison with all its runs, of a sweep with its number of finished runs."""
    entry = FIGURES[name]
    title = look.title or entry.title
    if isinstance(source, SweepResults):
        return sweep_facts(source, title)
    facts = facts_of(source, title, look.layer if entry.layered else None, look.step)
    options = source.options
    if chosen := [f"{word} {value}" for word, value in options.items() if word != "align"]:
        facts["Chosen"] = ", ".join(chosen)
    if entry.page != "compare":
        return facts
    sources = [source, *source.others]
    runs = dict(zip(told_apart([run.name for run in sources]), sources, strict=True))
    changes = [
        f"{name}: {change}" for name, run in runs.items() for change in changes_until(run, look.step or last_step(run))
    ]
    ids = {name: f"{name} ({run.id})" if name != run.id else name for name, run in runs.items()}
    return facts | {
        "Compared": "; ".join(f"{ids[name]}, step {last_step(run)}" for name, run in runs.items()),
        "Aligned": options.get("align", "step"),
        "Changes": "; ".join(changes) or "none",
    }


def sweep_facts(sweep: SweepResults, title: str) -> Facts:
    """The stamp of a sweep's figures."""
    done = sum(bool(result.ended) for result in sweep.results)
    return {
        "Title": title,
        "Description": f"MoEscope sweep {sweep.id} of {sweep.description.task}, {sweep.description.settings['steps']} steps a run",
        "Software": f"MoEscope {__version__}",
        "Sweep": sweep.id,
        "Knobs": ", ".join(sweep.swept),
        "Runs": f"{done} of {len(sweep.results)}",
    }


def smoothed_facts(steps: int) -> Facts:
    """That lines were averaged over so many steps."""
    return {"Smoothed": f"{MEAN}mean of {steps:,} steps"}


def caption_of(facts: Facts) -> str:
    """The caption: one line that says where the figure is from."""
    if "Sweep" in facts:
        return f"{facts['Sweep']}, {facts['Runs']} runs, {facts['Software']}"
    compared = re.split(r", step \d+(?:; |$)", facts.get("Compared", ""))
    of = ", ".join(filter(None, compared)) or facts["Run"]
    layer = f", layer {facts['Layer']} {facts.get('Layer name', '')}".rstrip() if "Layer" in facts else ""
    mean = f", {facts['Smoothed'].removeprefix(MEAN)}" if "Smoothed" in facts else ""
    return f"{of}{layer}, step {int(facts['Step']):,}{mean}, {facts['Software']}"
