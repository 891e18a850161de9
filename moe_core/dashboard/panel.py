"""What the panel beside the charts shows, and what a person does with it: state, knobs, changes, buttons.

The panel is a view of the store. `panel` gives its contents at a step; `act` turns a knob, sends the trainer a command or
forks. Both are called by the live route, so that a turn reaches the store without a rerun of the page's script.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from moe_core.dashboard import going
from moe_core.dashboard.choosing import ALIVE, WORDS
from moe_core.dashboard.gate import LOOKING
from moe_core.dashboard.messages import Deed
from moe_core.diagnosis import Finding
from moe_core.figures.layers import short_names
from moe_core.figures.pages.live import heldout_tile, steps_a_second
from moe_core.figures.pages.tile import NONE, number, unbroken
from moe_core.figures.pages.words import balance_words, word_at
from moe_core.figures.reading import by_hand, gestures, held_out_at, value_at
from moe_core.runs import ENDED, NO_WORDS, Run, fork, is_alive, is_running, last_words, stop_later
from moe_core.runs.ranks import again_text, ranks_again
from moe_core.runs.source import At
from moe_core.schema import (
    AUTOBALANCE,
    BALANCE_STEPS,
    LOOKS_AHEAD,
    STAT,
    STRATEGIES,
    Description,
    Knob,
    KnobValues,
    change_text,
    duration,
    name_of,
    value_text,
)

SHORT = 16  # letters of a layer's name that is shown as it is
LISTED = 8  # changes in the list
LATER = (
    "weigh",
    "balance_over",
    "w_z",
    "capacity_factor",
    "w_sequence",
    "w_threshold",
    "off",
    "speed_limit",
)  # folded below the others


def panel(feed: Any, step: int | None = None, looks: bool = False) -> dict[str, Any]:
    """All that the panel shows, at a step (None being the last), in plain types. looks: to a viewer who turns nothing."""
    status, quiet = feed.status(), feed.quiet()
    colour, word = ("grey", f"No answer for {quiet} s") if quiet else WORDS.get(status.state, ("grey", "Unknown"))
    if status.state == "starting" and feed.last and not quiet:
        word = "Catching up…"  # a fork, or a run that is resumed, trains again what came after its last checkpoint
    begins = going.on(feed.path, status.state)
    if begins:
        colour, word = "grey", "Starting…"
    turns = [change for change in gestures(feed.knob_changes()) if step is None or (change.step or step + 1) <= step]
    if status.state not in ALIVE and step is None:
        step = feed.last  # so that turns which the trainer never took do not count
    values = feed.knobs if step is None else feed.knobs_at(step)
    declared = feed.description.knobs
    acting = shown(feed.description, values)
    changes = list_changes(turns)
    return {
        "state": status.state,
        "colour": colour,
        "word": word,
        "alive": status.state in ALIVE,
        "left": time_left(feed) if status.state == "training" and step is None else "",
        "layers": layer_names(feed.description),
        "obeys": [] if looks else list(feed.description.obeys),
        "looking": LOOKING if looks else "",
        "going": begins,
        "goal": goal_of(feed),
        "ranks": again_text(feed.deals, feed.run.facts),
        "knobs": [knob(name, declared[name], values, turns) for name in acting],
        "idle": [
            knob(name, declared[name], values) for name in declared if name not in acting and may_act(declared[name])
        ],
        "order": list(declared),
        "changes": changes[:LISTED],
        "earlier": max(0, len(changes) - LISTED),
        "marks": sorted({c.step for c in by_hand(feed) if c.step is not None})[-500:],
    }


def time_left(feed: Any) -> str:
    """How long a run with a goal still trains at the speed of its last steps: "4 min left"; "" where that is not known."""
    rate = steps_a_second(feed, feed.last) if goal_of(feed) > feed.last else 0.0
    return f"{duration((goal_of(feed) - feed.last) / rate)} left" if rate else ""


def goal_of(feed: Any) -> int:
    """How many steps a run is to have in all, as it was last started; 0 for no end, or where that is not known."""
    return int(feed.sessions[-1]["steps"]) if feed.sessions else feed.description.goal


def layer_names(description: Description) -> list[str]:
    """The layers' names for the chooser; of many, what sets each apart stands first, so that typing it finds it."""
    names = [layer.name for layer in description.layers]
    short = short_names(names)
    return [
        name if len(name) < SHORT or name == first else f"{first} · {name}"
        for name, first in zip(names, short, strict=True)
    ]


def list_changes(turned: list[Any]) -> list[dict[str, Any]]:
    """The entries of the list of changes, the newest first. Autobalance's changes between two turns by hand are one entry."""
    entries: list[dict[str, Any]] = []
    for own, run in groupby(turned, lambda change: change.who == AUTOBALANCE):
        changes = list(run)
        if not own:
            entries += [{"text": turn_text(c), "step": c.step} for c in changes]
            continue
        reached: dict[str, Any] = {}
        for c in changes:
            reached[c.name] = c._replace(previous=reached.get(c.name, c).previous)
        entries.append(
            {"text": f"{AUTOBALANCE}: {', '.join(map(turn_text, reached.values()))}", "step": changes[-1].step}
        )
    return entries[::-1]


def turn_text(change: Any) -> str:
    return f"{change.name} {change_text(change.previous, change.value)}"


def findings(feed: Any, layer: int, looks: bool = False) -> list[dict[str, Any]]:
    """What is wrong with a layer now, in plain types. For a run that has ended no remedy is offered, nor to one who only looks."""
    alive = feed.status().state in ALIVE
    offered = alive and not looks
    return [
        {
            "rule": f.rule,
            "what": f"{f.what} {since(f, feed.last)}",
            "more": [f.why, f.try_this] if alive else [f.why],
            "remedy": f.remedy if offered else None,
            "button": remedy_text(f.remedy) if offered and f.remedy else "",
        }
        for f in feed.findings(layer)
    ]


def since(finding: Finding, last: int) -> str:
    """Since when a finding holds. If it may have begun before what was read: for at least how long."""
    return f"Since step {finding.since:,}." if finding.known else f"For more than {last - finding.since:,} steps."


def remedy_text(remedy: dict[str, float | str]) -> str:
    """What the button does: "Turn noise to 1, w_importance and w_load to 0.1"."""
    names: dict[str, list[str]] = {}
    for name, value in remedy.items():
        names.setdefault(value_text(value), []).append(name)
    return "Turn " + ", ".join(f"{' and '.join(turned)} to {value}" for value, turned in names.items())


def shown(description: Description, values: KnobValues) -> list[str]:
    """The names of the knobs that act under the current strategy and have more than one value."""
    return [name for name, declared in description.knobs.items() if matters(declared, name_of(values))]


def matters(declared: Knob, strategy: str) -> bool:
    """Whether a knob acts under a strategy, and has more than one value."""
    return may_act(declared) and (declared.under is None or strategy in declared.under)


def may_act(declared: Knob) -> bool:
    """Whether a knob acts under some strategy, and has more than one value."""
    return declared.under != () and (declared.low == -math.inf or declared.high > declared.low)


def knob(name: str, declared: Knob, values: KnobValues, turned: Sequence[Any] = ()) -> dict[str, Any]:
    """One knob for the panel: its declaration, its value, and in `was` its value before the last deed, if that turned it."""
    value = getattr(values, name)
    fields = {
        "name": name,
        "label": declared.label or name,
        "help": declared.help,
        "unit": declared.unit,
        "value": value,
        "more": name in LATER,
        "start": declared.start,
        "was": None,
        "about": about(name, value),
        "under": None if declared.under is None else list(declared.under),
    }
    if name == "strategy":
        fields["abouts"] = {choice: about(name, choice) for choice in declared.choices}
    hand = [change for change in turned if change.who != AUTOBALANCE]
    if own := [change for change in hand if change.name == name and together(change, hand[-1])]:
        fields["was"] = own[-1].previous
    if isinstance(value, str):
        return fields | {"kind": "choice" if declared.choices else "word", "choices": list(declared.choices)}
    if not (math.isfinite(declared.low) and math.isfinite(declared.high)):
        return fields | {"kind": "word", "choices": [], "value": str(value), "start": str(declared.start)}  # no slider
    return fields | {
        "kind": "whole" if isinstance(value, int) else "number",
        "low": declared.low, "high": declared.high, "scale": declared.scale, "step": declared.step,
    }  # fmt: skip


def about(name: str, value: Any) -> list[str]:
    """What the strategy in force does, and its formula; [] for other knobs, and for a strategy of another version."""
    strategy = STRATEGIES.get(value) if name == "strategy" else None
    return [strategy.about, strategy.formula] if strategy else []


def together(change: Any, other: Any) -> bool:
    """Whether two changes were made by one deed: a remedy turns several knobs at once."""
    return bool((change.who, change.step) == (other.who, other.step))


def banner(feed: Any, layer: int, looks: bool = False) -> dict[str, Any] | None:
    """The line above the charts of a run that ended: how it ended, what is kept, and the step to fork from."""
    status, last = feed.status(), feed.last
    if status.state not in (*ENDED, "interrupted"):
        return None
    result = ", ".join(filter(None, (held_out_text(feed, last), balance_text(feed, layer, last))))
    done = ". ".join(filter(None, (work_of(feed), result)))
    text = {
        "finished": f"Finished: {done}.",
        "stopped": f"Stopped: {done}.",
        "failed": f"Failed after step {last:,}. Everything recorded until then is kept.",
        "interrupted": f"The trainer died after step {last:,}. Everything recorded until then is kept.",
    }[status.state]
    if problem := going.problem(feed.path, status.state):
        text, status = f"It could not go on. {text}", status._replace(reason=problem)
    return {
        "kind": status.state,
        "text": unbroken(text),
        "error": status.reason,
        "fork": last if "fork" in feed.description.obeys and not looks else 0,
    }


def held_out_text(feed: Any, last: int) -> str:
    """The headline on the held-out split; "" for a run that reports none, or never measured it."""
    if not feed.description.metrics:
        return ""
    loss = heldout_tile(feed, At(step=last))
    if loss.value == NONE:
        return ""
    mark = f" ({LOOKS_AHEAD})" if LOOKS_AHEAD in loss.lines else ""
    return f"{loss.label} {loss.value} {loss.unit}".strip() + mark


def balance_text(feed: Any, layer: int, last: int) -> str:
    """The balance of a layer over the last steps, as a number and in words; "" if it was not measured."""
    stat = feed.description.balance
    cv = value_at(feed, stat, layer, last, BALANCE_STEPS)
    if math.isnan(cv):
        return ""
    words = balance_words(word_at(feed, layer, last, BALANCE_STEPS), held_out_at(feed, layer, last))
    of = f" of layer {layer + 1}" if len(feed.description.layers) > 1 else ""
    mean = f"mean of the last {min(last, BALANCE_STEPS)} steps{of}" if last > 1 else f"step 1{of}"
    return f"{STAT[stat].label} {number(cv)} ({mean}), {words[:1].lower()}{words[1:]}"


def work_of(feed: Any) -> str:
    """How many steps a run has, how many of them are its parent's, and how long its last trainer took for its own."""
    begun = feed.sessions[-1] if feed.sessions else {"when": feed.run.facts["created"], "step": 0}
    own, inherited = feed.last - int(begun["step"]), min(feed.last, feed.parent.step) if feed.parent else 0
    took = duration(max(0.0, feed.heard - float(begun["when"])))
    if not begun["step"]:
        return f"{own:,} steps in {took}"
    parts = [f"{feed.last:,} steps"]
    parts += [f"{inherited:,} of them inherited"] if inherited else []
    parts += [f"{'' if begun['step'] == inherited else 'the last '}{own:,} in {took}"] if own else []
    return ", ".join(parts)


def act(run: Run, deed: Deed) -> dict[str, Any]:
    """Carry out a deed: turn knobs, send the trainer a command, fork, or go on with a run that has ended. Returns {} or, in "go", the id of the fork. ValueError
    says why it cannot be done."""
    if deed.fork:
        if deed.steps and deed.steps <= deed.fork:
            raise ValueError(
                f"a fork at step {deed.fork:,} trains to a step beyond it, got {deed.steps:,}; leave it empty to train until stopped"
            )
        ranks = ranks_again(run.deals, run.facts)
        return {"go": fork(run, deed.fork, deed.turn, steps=deed.steps, who="dashboard", ranks=ranks)}
    if deed.go_on:
        going.go_on(run, deed.steps)
    elif deed.turn:
        if not is_alive(run.path):
            raise ValueError("the run has ended, so its knobs can no longer be turned; resume it, or fork it, to go on")
        run.turn(f"dashboard/{deed.gesture}" if deed.gesture else "dashboard", deed.turn)
    elif deed.command == "stop":
        stop_later(run)  # a trainer that does not answer is killed
    else:
        run.command(deed.command, who="dashboard")
    return {}


def did_not_start(folder: Path) -> bool:
    """Whether a trainer ended before it made its record: its log says why, and its process runs no more."""
    if (folder / "run.db").exists():
        return False
    running = is_running(folder.name, folder.parent)
    return not (folder / "run.db").exists() and not running and last_words(folder) != NO_WORDS
