"""The chart of a statistic that needs no drawing of its own: one line over the steps."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from moe_core.figures.changes import mark
from moe_core.figures.lines import as_steps, line, named_ends, over_steps
from moe_core.figures.needs import Need, stats
from moe_core.figures.pages.entry import Entry
from moe_core.figures.paper import Array, Figure, Size, Spec, nice_above, pens
from moe_core.figures.reading import common, over_time
from moe_core.figures.theme import LIGHT, Theme
from moe_core.runs.source import At, Source
from moe_core.schema import STAT


def plain_chart(
    stat: str,
    title: str,
    subtitle: str,
    *,
    axis: str,
    hover: str,
    top: float | None = None,
    form: str = ".2f",
    times: float = 1.0,
    unit: str = "",
    names_changes: bool = True,
    needs: tuple[Need, ...] = (),
) -> Entry:
    """A statistic, of the layer where each has its own, over the steps, from 0 up; its figure has the statistic's name.

    axis: the words beside the y axis; hover: a sentence with %{y} and %{x}; top: the upper end of the axis, None for a round
    number above the largest value; form: how the last value is written at the line's end, and unit what follows it. The values
    are drawn `times` what is recorded. names_changes: whether a page names the turns of knobs here, as on the topmost of a column.
    """

    def spec(
        steps: Array,
        values: Array,
        *,
        span: tuple[float, float] | None = None,
        cursor: int | None = None,
        changes: Iterable[Any] = (),
        label_changes: bool = names_changes,
        theme: Theme = LIGHT,
        size: Size = (420, 172),
    ) -> Spec:
        values = times * np.asarray(values, np.float32)
        upper = nice_above(float(values[np.isfinite(values)].max(initial=0.0))) if top is None else top
        y = {"title": axis, "range": [0.0, upper], "nticks": 5}
        layout = over_steps(stat, title, subtitle, steps, span, y, theme, size)
        data = [line(axis, as_steps(steps), values, hover, color=theme.ink, width=pens(size).line)]
        layout["annotations"] += named_ends([("", values, form)], upper, layout, theme, unit)
        mark(layout, changes, cursor, theme, labelled=label_changes)
        return {"data": data, "layout": layout}

    def read(source: Source, at: At) -> dict[str, Any]:
        steps, values = over_time(source, stat, at)
        return {"steps": steps, "values": values} | common(source, at)

    spec.__name__, spec.__doc__ = stat, f"{title}, of the values (n,) of n steps: {subtitle}."
    return Entry(title, Figure(spec), read, (stats(stat), *needs), layered=STAT[stat].shape != "")
