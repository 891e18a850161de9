"""How sure the gate's choices are: the router margin, and the chosen experts' share of the scores.

Shapes: n steps. A value that was not measured is NaN, and the line has a gap there.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from moe_core.figures.changes import mark
from moe_core.figures.lines import as_steps, line, named_ends, over_steps
from moe_core.figures.paper import Array, Size, Spec, figure, nice_above, pens
from moe_core.figures.theme import LIGHT, Theme

SIZE = (420, 172)


@figure
def router_margin(
    steps: Array,
    margin: Array,
    margin_p10: Array | None = None,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = SIZE,
) -> Spec:
    """The weakest chosen score minus the strongest unchosen one: its mean and, where that was measured, its 10th percentile over
    tokens, (n,) each."""
    lines = [("mean", "mean", margin, "The mean margin was %{y:.3g} at step %{x:,d}", theme.ink)]
    if margin_p10 is not None:
        hover = "A tenth of the tokens had a margin below %{y:.3g} at step %{x:,d}"
        lines.insert(0, ("10th percentile", "10 %", margin_p10, hover, theme.ink2))
    known = np.concatenate([np.asarray(values, np.float32) for _, _, values, *_ in lines])
    top = nice_above(max(1e-3, float(known[np.isfinite(known)].max(initial=0.0))))
    subtitle = "score of the last expert chosen minus the first not chosen, over tokens; 0 is a tie"
    y = {"title": "margin", "range": [0.0, top], "nticks": 5}
    layout = over_steps("router_margin", "Router margin over time", subtitle, steps, span, y, theme, size)
    data = [
        line(name, as_steps(steps), np.asarray(values, np.float32), hover, color=colour, width=pens(size).line)
        for name, _, values, hover, colour in lines
    ]
    layout["annotations"] += named_ends([(end, values, ".2g") for _, end, values, *_ in lines], top, layout, theme)
    mark(layout, changes, cursor, theme)
    return {"data": data, "layout": layout}


@figure
def confidence(
    steps: Array,
    confidence: Array,
    even: Array,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = SIZE,
) -> Spec:
    """The chosen experts' mean share of the scores over all, (n,). even (n,): that of as many experts if all scores were alike."""
    subtitle = "the chosen experts' share of all scores, without noise; dotted: scores that are all alike"
    y = {"title": "share, %", "range": [0.0, 100.0], "nticks": 5}
    layout = over_steps("confidence", "Confidence over time", subtitle, steps, span, y, theme, size)
    percents, alike = np.asarray(confidence, np.float32) * 100, np.asarray(even, np.float32) * 100
    hover = "The chosen experts had %{y:.1f} % of the scores at step %{x:,d}"
    data = [line("confidence", as_steps(steps), percents, hover, color=theme.ink, width=pens(size).line)]
    if len(alike):
        hover = "Undecided scores would give %{y:.1f} % at step %{x:,d}"
        data.append(line("all alike", as_steps(steps), alike, hover, color=theme.ink2, width=1, dash="dot", shape="hv"))
    layout["annotations"] += named_ends([("", percents, ".0f")], 100.0, layout, theme, " %")
    mark(layout, changes, cursor, theme)
    return {"data": data, "layout": layout}
