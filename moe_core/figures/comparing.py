"""What the charts of a comparison share: their axis, what stands at the ends of lines, and the marks of what was turned."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.called import Called, square
from moe_core.figures.changes import STACKED, Name, and_earlier, change_names, grouped, mark_cursor, shared_name, turn
from moe_core.figures.lines import (
    LABEL_GAP,
    as_steps,
    end_label,
    last_of,
    over_steps,
    spread,
)
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    inner,
    print_as,
    upright,
)
from moe_core.figures.smooth import SINCE
from moe_core.figures.theme import LIGHT, Theme, faded

NARROW = 300  # px of a figure that has no room for names and values beside each other


class Curve(NamedTuple):
    """One run's history. name: its id; steps (n,) ascending, values (n,) or (n, E); turns: its knob changes, on these steps;
    comparable (n,) bool, None for all: which values compare with those of other strategies."""

    name: str
    steps: Array
    values: Array
    turns: tuple[Any, ...] = ()
    comparable: Array | None = None


class Shared(NamedTuple):
    """The x axis of all charts of a comparison, from 0 to the end of the longest run, or the part that is seen (span).

    aligned: by "step" or "fork"; offset: the step of the first run that stands at 0; cursor: the place on the axis that the page
    shows. without: the places of the runs that have no step on this axis; unforked: of those that are no fork, and begin at 0.
    """

    aligned: str = "step"
    offset: int = 0
    span: tuple[float, float] | None = None
    cursor: int | None = None
    without: tuple[int, ...] = ()
    unforked: tuple[int, ...] = ()

    def layout(
        self,
        name: str,
        title: str,
        subtitle: str,
        curves: Sequence[Curve],
        runs: Sequence[Called],
        y: Spec,
        theme: Theme,
        size: Size,
    ) -> Spec:
        last = latest(curves)
        layout = over_steps(name, title, subtitle, np.array([last] if last else []), self.span, y, theme, size)
        layout["meta"]["step"] = last
        # A run's colour is one expert's in the dark look, and another's in the light look.
        print_as(layout, zip(theme.runs, LIGHT.runs, strict=True))
        layout["margin"]["l"] += 12  # room for a sign and three digits; all charts of the page share one left edge
        if self.aligned == "fork":
            layout["xaxis"]["title"]["text"] = f"{SINCE}{self.from_their_start(runs)}"
            layout["meta"]["offset"] = self.offset  # the step that another chart points at is one of the first run
        mark_cursor(layout, self.cursor, theme)
        return layout

    @property
    def at(self) -> str:
        """A place on the axis, for the hover."""
        return "at step %{x:,d}" if self.aligned == "step" else "%{x:,d} steps after the fork"

    def missing(self, runs: Sequence[Called]) -> str:
        """ "A has no step after the fork"; "" if all runs have one."""
        labels = [runs[at].label for at in self.without]
        when = "yet" if self.aligned == "step" else "after the fork"
        return f"{' and '.join(labels)} {'have' if len(labels) > 1 else 'has'} no step {when}" if labels else ""

    def from_their_start(self, runs: Sequence[Called]) -> str:
        """What the axis counts for runs that are no fork: " (C: since its start)"; "" if there are none."""
        labels = [runs[at].label for at in self.unforked]
        return f" ({', '.join(labels)}: since {'their' if len(labels) > 1 else 'its'} start)" if labels else ""


BY_STEP = Shared()


def latest(curves: Sequence[Curve]) -> int | None:
    return max((end for curve in curves if (end := last_of(curve.steps)) is not None), default=None)


def run_ends(
    runs: Sequence[Called], ends: list[tuple[int, float, str]], named: int, layout: Spec, theme: Theme
) -> list[Spec]:
    """What the runs are called where their lines end: (run, px above the bottom, value as text). A narrow figure has room for
    letters and values, or for names."""
    ends = sorted(ends, key=lambda end: -end[1])
    _, height = inner(layout)
    size = layout["font"]["size"]
    places = spread([min(max(px, 0.0), float(height)) for _, px, _ in ends], max(LABEL_GAP, 1.25 * size))
    if 0 < named < NARROW:
        ends = [(at, px, "") for at, px, _ in ends]
    return [
        end_label(f"{square(at, theme)} <b>{runs[at].label}</b> {text}".rstrip(), y, height, theme, size, ink=True)
        for (at, _, text), y in zip(ends, places, strict=True)
    ]


def mark_turns(
    curves: Sequence[Curve], runs: Sequence[Called], layout: Spec, over: Shared, theme: Theme, labelled: bool
) -> list[Spec]:
    """Where each run's knobs were turned: a diamond of the hand's colour on the run's line, at the value recorded there.

    curves: as drawn. Turns within 3 px of a run's line share a diamond. A change that several runs share is named once, with all of
    them; only a named one has a line from top to bottom, so that four runs stay readable.
    """
    lo, hi = layout["xaxis"]["range"]
    per_step = inner(layout)[0] / (hi - lo)
    x, y, words = [], [], []
    turned: dict[int, dict[str, list[int]]] = {}
    for at, curve in enumerate(curves):
        columns: dict[int, list[tuple[int, Any]]] = {}
        rows = np.searchsorted(curve.steps, [change.step for change in curve.turns]).tolist()
        for row, change in zip(rows, curve.turns, strict=True):
            if row == len(curve.steps) or not np.isfinite(curve.values[row]) or not lo <= change.step <= hi:
                continue
            columns.setdefault(int(per_step * (change.step - lo) / 3), []).append((row, change))
            turned.setdefault(change.step, {}).setdefault(turn(change), []).append(at)
        for here in columns.values():
            row, last = here[-1]
            x.append(last.step)
            y.append(curve.values[row])
            words.append(turns_in_words([change for _, change in here], runs[at], over))
    layout["meta"] |= {"turned": True} if turned else {}
    if labelled:
        ends = [group[at] for group in grouped(sorted(turned), layout) for at in (0, -1)]
        names = change_names(layout, shared_names(turned, runs, layout, theme), theme, ends, rows=2)
        layout["annotations"] += names
        layout["shapes"] += [upright(name["x"], color=faded(theme.hand, 0.5), width=1) for name in names]
    if not x:
        return []
    edge = {"color": theme.ground, "width": 1.5}
    return [
        {
            "type": "scatter", "mode": "markers", "name": "turned", "x": as_steps(np.array(x)), "y": np.array(y, np.float32),
            "marker": {"symbol": "diamond", "size": 8, "color": theme.hand, "line": edge}, "hovertext": words,
            "hoverinfo": "text",
        }
    ]  # fmt: skip


def turns_in_words(changes: Sequence[Any], run: Called, over: Shared) -> str:
    """What hovering a diamond says: a line a change, of many the last ones."""
    lines = [
        f"{run.name} was turned {over.at.replace('%{x:,d}', f'{change.step:,}')}: {turn(change)}"
        for change in changes[-STACKED:]
    ]
    return "<br>".join(and_earlier(len(changes) - len(lines)) + lines)


def shared_names(
    turned: Mapping[int, Mapping[str, Sequence[int]]], runs: Sequence[Called], layout: Spec, theme: Theme
) -> list[Name]:
    """The names of the changes of several runs, each with what the runs that have it are called; of those that stand close together
    how many they are. turned: by step, for each change in words the places of these runs."""
    names = []
    for group in grouped(sorted(turned), layout):
        here = [(step, text, at) for step in group for text, at in sorted(turned[step].items())]
        if len(group) == 1:
            texts: dict[str, list[str]] = {}
            for _, text, at in here:
                texts.setdefault(those(at, runs, theme), []).append(text)
            names += [Name(group[0], f"{who} {', '.join(turns)}") for who, turns in texts.items()]
        else:
            every = sorted({one for _, _, at in here for one in at})
            each = [(step, f"{those(at, runs, theme)} {text}") for step, text, at in here]
            names.append(shared_name(f"{those(every, runs, theme)} {len(each)} changes", each))
    return names


def those(numbers: Sequence[int], runs: Sequence[Called], theme: Theme) -> str:
    return " ".join(f"{square(at, theme)} {runs[at].label}" for at in numbers)
