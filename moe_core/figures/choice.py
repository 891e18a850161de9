"""How sure the gate's choices are: the router margin, the chosen experts' share of the scores, and what a bias changes.

Shapes: n steps. A value that was not measured is NaN, and the line has a gap there.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from moe_core.figures.lines import as_steps, end_labels, line, mark, over_steps
from moe_core.figures.paper import Array, Size, Spec, figure, inner, nice_above, pens
from moe_core.figures.theme import LIGHT, Theme

SIZE = (420, 172)


@figure
def router_margin(
    steps: Array,
    margin: Array,
    margin_p10: Array,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = SIZE,
) -> Spec:
    """The weakest chosen score minus the strongest unchosen one: its mean and its 10th percentile over tokens, (n,) each."""
    known = np.concatenate([np.asarray(values, np.float32) for values in (margin, margin_p10)])
    top = nice_above(max(1e-3, float(known[np.isfinite(known)].max(initial=0.0))))
    subtitle = "score of the last expert chosen minus the first not chosen, over tokens; 0 is a tie"
    y = {"title": "margin", "range": [0.0, top], "nticks": 5}
    layout = over_steps("router_margin", "Router margin over time", subtitle, steps, span, y, theme, size)
    drawn = (
        (
            "10th percentile",
            margin_p10,
            "A tenth of the tokens had a margin below %{y:.3g} at step %{x:,d}",
            theme.ink2,
        ),
        ("mean", margin, "The mean margin was %{y:.3g} at step %{x:,d}", theme.ink),
    )
    data = [line(name, as_steps(steps), np.asarray(v, np.float32), hover, color=colour, width=pens(size).line) for name, v, hover, colour in drawn]  # fmt: skip
    ends = [("10 %", margin_p10, ".2g"), ("mean", margin, ".2g")]
    layout["annotations"] += named_ends(ends, top, layout, theme)
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


@figure
def bias_effect(
    steps: Array,
    overlap: Array,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = SIZE,
) -> Spec:
    """The mean overlap |A and B| / |A or B| of the experts chosen with the bias and without it, (n,)."""
    subtitle = "experts chosen both with and without it, of those chosen either way; 1: it changes nothing"
    y = {"title": "overlap", "range": [0.0, 1.0], "nticks": 5}
    layout = over_steps("bias_effect", "What the bias changes", subtitle, steps, span, y, theme, size)
    overlap = np.asarray(overlap, np.float32)
    hover = "With and without the bias the choices overlapped by %{y:.3f} at step %{x:,d}"
    data = [line("overlap", as_steps(steps), overlap, hover, color=theme.ink, width=pens(size).line)]
    layout["annotations"] += named_ends([("", overlap, ".2f")], 1.0, layout, theme)
    mark(layout, changes, cursor, theme)
    return {"data": data, "layout": layout}


def named_ends(
    lines: Sequence[tuple[str, Array, str]], top: float, layout: Spec, theme: Theme, unit: str = ""
) -> list[Spec]:
    """The last value of each line (name, values, format) at its end, where it was measured. top: the axis' upper end."""
    _, height = inner(layout)
    ends = [
        (height * float(values[-1]) / top, f"{name} {float(values[-1]):{form}}{unit}".strip())
        for name, values, form in lines
        if len(values) and np.isfinite(values[-1])
    ]
    return end_labels(sorted(ends, reverse=True), layout, theme, ink=True)
