"""The runs as the chooser and the page of all runs list them: searched, filtered, sorted, forks below their parents.

A run has one name on every page: the one that somebody gave it, else its id.
"""

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_core.figures.pages.tile import number
from moe_core.runs import runs_folder
from moe_core.runs.overview import Entry, files_of, overview
from moe_core.runs.room import bytes_text
from moe_core.schema import AHEAD, Description, duration

LONGEST = 200  # characters of what is searched for
SHOWN = 500  # characters of a note in a list
NO_BREAK = "\u00a0"  # between a number and its unit, in which no line is to end
DEEPEST = 8  # how far a fork of a fork of a fork is moved in
WORDS = {  # a state's colour and word
    "starting": ("grey", "Starting…"),
    "training": ("green", "Training"),
    "paused": ("amber", "Paused"),
    "finished": ("grey", "Finished"),
    "stopped": ("grey", "Stopped"),
    "failed": ("red", "Failed"),
    "interrupted": ("red", "Interrupted"),
    "damaged": ("red", "Damaged"),
}
ALIVE = ("starting", "training", "paused")


class Wanted(NamedTuple):
    """Which runs are wanted, and in what order. "" leaves a filter open."""

    search: str = ""
    state: str = ""
    task: str = ""
    tag: str = ""
    sort: str = ""

    @classmethod
    def of(cls, words: Mapping[str, str]) -> "Wanted":
        """As a page asks for it. A word that is unknown finds nothing, an order that is unknown is the first."""
        return cls(**{name: words.get(name, "")[:LONGEST] for name in cls._fields})


def nan_last(value: float, sign: int = 1) -> tuple[bool, float]:
    return math.isnan(value), 0.0 if math.isnan(value) else sign * value


def by_headline(entry: Entry) -> tuple[bool, float]:
    description = entry.facts.description
    lower = not description or not description.metrics or description.metrics[0].lower
    return nan_last(entry.facts.held_out, 1 if lower else -1)


# The orders of the list, as they are called. What has no value comes last.
ORDERS: dict[str, Callable[[Entry], Any]] = {
    "newest": lambda entry: -entry.facts.created,
    "name": lambda entry: entry.name.casefold(),
    "steps": lambda entry: -entry.facts.step,
    "most even": lambda entry: nan_last(entry.facts.balance),
    "best held-out": by_headline,
    "largest": lambda entry: -entry.bytes,
}


def choose(entries: Sequence[Entry], wanted: Wanted) -> list[tuple[Entry, int]]:
    """The wanted runs in order, each with its depth: a fork comes below its parent, if that is wanted too."""
    order = ORDERS.get(wanted.sort, ORDERS["newest"])
    fitting = {entry.id: entry for entry in sorted(entries, key=order) if fits(entry, wanted)}
    forks: dict[str, list[Entry]] = {}
    for entry in fitting.values():
        parent = entry.facts.parent.run if entry.facts.parent else ""
        forks.setdefault(parent if parent in fitting and parent != entry.id else "", []).append(entry)
    placed: dict[str, tuple[Entry, int]] = {}
    waiting = [(entry, 0) for entry in reversed(forks.get("", []))]
    while waiting:
        entry, depth = waiting.pop()
        placed[entry.id] = entry, depth
        waiting += [(fork, min(depth + 1, DEEPEST)) for fork in reversed(forks.get(entry.id, []))]
    # Records of strangers may name each other as parents.
    rest = [(entry, 0) for id, entry in fitting.items() if id not in placed]
    return [*placed.values(), *rest]


def fits(entry: Entry, wanted: Wanted) -> bool:
    facts, notes = entry.facts, entry.notes
    if wanted.state and (facts.state not in ALIVE if wanted.state == "alive" else facts.state != wanted.state):
        return False
    if (wanted.task and wanted.task != task_of(entry)) or (wanted.tag and wanted.tag not in notes.tags):
        return False
    text = " ".join([entry.id, notes.name, notes.note, *notes.tags, task_of(entry), what(facts.description),
                     entry.apart, entry.sweep, f"lesson {entry.lesson}" if entry.lesson else "", facts.state])  # fmt: skip
    text = text.casefold()
    return all(word in text for word in wanted.search.casefold().split())


def task_of(entry: Entry) -> str:
    description = entry.facts.description
    return "" if description is None else description.task if description.origin == "trained" else description.origin


def listed(words: Mapping[str, str], runs: Path | None = None) -> dict[str, Any]:
    """The wanted runs as a page draws them, and what all runs could be filtered by, in plain types."""
    entries = overview(runs)
    states = Counter(entry.facts.state for entry in entries)
    names = {entry.id: entry.name for entry in entries}
    alive = sum(states[state] for state in ALIVE)
    by_state = {state: f"{WORDS[state][1].rstrip('…')} {many}" for state, many in states.items() if state in WORDS}
    return {
        "rows": [row(entry, depth, names) for entry, depth in choose(entries, Wanted.of(words))],
        "all": len(entries),
        "training": alive,
        "free": free_text(runs_folder(runs)),
        "bytes": bytes_text(sum(entry.bytes for entry in entries)),
        "state": ({"alive": f"Not ended {alive}"} if alive else {}) | by_state,
        "task": counted(task_of(entry) for entry in entries),
        "tag": counted(tag for entry in entries for tag in entry.notes.tags),
        "sort": {name: f"{name[0].upper()}{name[1:]} first" if name != "name" else "By name" for name in ORDERS},
    }


def free_text(folder: Path) -> str:
    """How much room the disk has; "" if it does not say."""
    try:
        return bytes_text(shutil.disk_usage(folder).free)
    except OSError:
        return ""


def counted(names: Any) -> dict[str, str]:
    return {name: f"{name} {many}" for name, many in sorted(Counter(names).items()) if name}


def row(entry: Entry, depth: int, names: Mapping[str, str]) -> dict[str, Any]:
    """One run in plain types; every text is shown as text."""
    facts, notes = entry.facts, entry.notes
    colour, word = WORDS.get(facts.state, ("grey", "Unknown"))
    return chooser_entry(entry.id, facts.description, facts.created, notes.name, facts.ranks) | {
        "depth": depth,
        "note": notes.note[:SHOWN],
        "tags": list(notes.tags),
        "state": facts.state,
        "colour": colour,
        "word": word,
        "apart": apart_text(entry, names),
        "problem": (facts.problem or notes.problem)[:SHOWN],
        "reason": facts.reason[:SHOWN],
        "steps": f"{facts.step:,}" + (f" of {facts.goal:,}" if facts.goal and facts.step < facts.goal else ""),
        "done": facts.step / facts.goal if facts.goal and facts.state in ALIVE else None,
        "left": "" if facts.left is None else f"{duration(facts.left)} left",
        "balance": number(facts.balance),
        "held": held_out_text(entry),
        "size": bytes_text(entry.bytes),
    }


def apart_text(entry: Entry, names: Mapping[str, str]) -> str:
    """What sets a run apart, with whose it is: a fork's parent, a sweep's or a lesson's."""
    parent = entry.facts.parent
    whose = f"sweep {entry.sweep}" if entry.sweep else f"lesson {entry.lesson}" if entry.lesson else ""
    if parent:
        whose = f"fork of {names.get(parent.run, f'{parent.run} (deleted)')}"
    return ": ".join(filter(None, (whose, entry.apart)))


def held_out_text(entry: Entry) -> str:
    """The headline of the last evaluation with its unit: "2.41 bits/byte", "93.1 %"; a dash where there is none."""
    facts = entry.facts
    if facts.description is None or not facts.description.metrics or math.isnan(facts.held_out):
        return number(math.nan)
    metric, value = facts.description.metrics[0], facts.held_out
    mark = AHEAD if facts.ahead else ""
    if metric.unit == "" and not metric.lower and 0 <= value <= 1:
        return f"{number(100 * value, 1)}{NO_BREAK}%{mark}"
    return f"{number(value)}{NO_BREAK}{metric.unit}".rstrip() + mark


def chooser_entry(
    id: str, description: Description | None, created: float, name: str = "", ranks: int = 1
) -> dict[str, Any]:
    """A run for the chooser: its name, what it is ("text · 16 experts"), and when it began ("24 Nov 08:46"); face is the day,
    or the time if that is today."""
    began = time.localtime(created)
    day, hour = f"{began.tm_mday} {time.strftime('%b', began)}", time.strftime("%H:%M", began)
    face = hour if began[:3] == time.localtime()[:3] else day
    return {"id": id, "name": name or id, "what": what(description, ranks), "when": f"{day} {hour}", "face": face}


def what(description: Description | None, ranks: int = 1) -> str:
    """What a run is, in a few words: the task, or the person's own files, how many experts a layer has, and on how many ranks it trains."""
    if description is None:
        return ""
    own = ", ".join(files_of(description))
    least, most = min(description.experts), max(description.experts)
    layers = f", {len(description.layers)} layers" if len(description.layers) > 1 else ""
    kind = own or (description.task if description.origin == "trained" else description.origin)
    several = f", {ranks} ranks" if ranks > 1 else ""
    experts = "1 expert" if most == 1 else f"{most if least == most else f'{least} to {most}'} experts"
    return f"{kind} · {experts}{layers}{several}"
