"""Experts that a person switched off: left out of the ideal, drawn grey, and named. In shares by expert they are NaN.

Shapes: n steps, E experts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.lines import as_steps, line
from moe_core.figures.paper import DASHED, Array, Spec, at_step, ideal_line, inner, label_font, note, percent
from moe_core.figures.theme import SANS, Theme

NAMED_OFF = 3  # experts that are named; of more it is said how many


def on_nE(share_nE: Array) -> Array:
    """(n, E) bool: the experts that are on. In a row without any number all count as on."""
    known = np.isfinite(np.asarray(share_nE, np.float64))
    return np.asarray(known | ~known.any(axis=-1, keepdims=True))


def ideal_of(share_nE: Array) -> Array:
    """(n,) the share of each expert if all that are on had the same."""
    return np.asarray(1.0 / on_nE(share_nE).sum(axis=-1))


def ideal_words(on_E: Array) -> str:
    """ "1/16 = 6.3 %", and of how many where some are off."""
    on, E = int(on_E.sum()), len(on_E)
    return f"1/{on} = {percent(1 / on)}" + (f" of the {on} on" if on < E else "")


def out_of(on: int, E: int) -> str:
    """ "of 16", and where some are off "of 14 on"."""
    return f"of {on}" if on == E else f"of {on} on"


def off_words(on_E: Array) -> str:
    """ "4 off", "4, 11 off", "5 experts off"; nothing where all are on."""
    off = [str(e + 1) for e in np.flatnonzero(~on_E).tolist()]
    named = ", ".join(off) if len(off) <= NAMED_OFF else f"{len(off)} experts"
    return f"{named} off" if off else ""


def draw_ideal(layout: Spec, steps: Array, share_nE: Array, theme: Theme) -> list[Spec]:
    """The dashed line of the ideal in percent: across the chart, or in steps where experts were switched off or on."""
    ideal_n = 100 * ideal_of(share_nE)
    if not len(ideal_n) or (ideal_n == ideal_n[0]).all():
        ideal_line(layout, float(ideal_n[0]) if len(ideal_n) else 100 / share_nE.shape[1], theme)
        return []
    pen = {"color": theme.ink2, "width": 1.5, "dash": DASHED, "shape": "hv"}
    return [
        line("ideal", as_steps(steps), ideal_n.astype(np.float32), "The ideal was %{y:.1f} % at step %{x:,d}", **pen)
    ]


def off_lines(steps: Array, share_nE: Array, theme: Theme, of: Sequence[int] | None = None) -> list[Spec]:
    """A grey line at 0 for each expert, or those named, and the steps in which it was off."""
    off_nE = ~on_nE(share_nE)
    return [
        line(
            f"off, expert {e + 1}", as_steps(steps), np.where(off_nE[:, e], np.float32(0), np.float32(np.nan)),
            f"Expert {e + 1} was switched off at step %{{x:,d}}", color=theme.edge, width=3,
        )
        for e in np.flatnonzero(off_nE.any(axis=0)).tolist()
        if of is None or e in of
    ]  # fmt: skip


def off_bands(layout: Spec, on_E: Array, step: int | None, theme: Theme) -> list[Spec]:
    """A grey band with the word "off" where the bar of an expert would stand."""
    off = np.flatnonzero(~on_E) + 1
    if not len(off):
        return []
    layout["shapes"] += [
        {"type": "rect", "xref": "x", "yref": "paper", "x0": e - 0.375, "x1": e + 0.375, "y0": 0, "y1": 1, "layer": "below",
         "line": {"width": 0, "color": theme.rule}, "fillcolor": theme.rule}
        for e in off.tolist()
    ]  # fmt: skip
    size = layout["font"]["size"]
    room = inner(layout)[0] / len(on_E)
    turned = {"textangle": -90, "yshift": 6} if room < 2.2 * size else {"yshift": 4}
    if room > size:  # a narrower band is grey without the word
        font = label_font(layout, theme.ink2)
        place = {"xref": "x", "yref": "paper", "xanchor": "center", "yanchor": "bottom", "font": font}
        layout["annotations"] += [note("off", float(e), 0, **place, **turned) for e in off.tolist()]
    middle = float(np.mean(layout["yaxis"]["range"]))
    return [
        {
            "type": "scatter", "mode": "markers", "name": "off", "x": off.astype(np.int32),
            "y": np.full(len(off), middle, np.float32), "marker": {"size": 12, "opacity": 0, "color": theme.rule},
            "hovertemplate": f"Expert %{{x}} is switched off{at_step(step)}<extra></extra>",
        }
    ]  # fmt: skip


def off_map(trace: Spec, x: Array, off_En: Array, theme: Theme) -> list[Spec]:
    """Below a heatmap whose rows are experts: grey where one was off. trace: the heatmap, which has a gap there."""
    if not off_En.any():
        return []
    hover = "Expert %{y} was switched off at step %{x:,d}<extra></extra>"
    return [
        {
            "type": "heatmap", "name": "off", "x": as_steps(x), "y": trace["y"], "showscale": False, "zmin": 0, "zmax": 1,
            "z": np.where(off_En, np.float32(1), np.float32(np.nan)), "hovertemplate": hover,
            "colorscale": [[0, theme.edge], [1, theme.edge]],
        }
    ]  # fmt: skip


def bars_off(layout: Spec, order: Sequence[int] | Array, on_E: Array, theme: Theme) -> list[Any]:
    """Marks for ranked rows from 1 on, in the order given: "off" beside the name of an expert that is."""
    font = {"color": theme.ink2, "size": layout["font"]["size"], "family": SANS}
    place = {"xref": "x", "yref": "y", "xanchor": "left", "yanchor": "middle", "xshift": 4, "font": font}
    return [note("off", 0.0, row, **place) for row, e in enumerate(order, 1) if not on_E[e]]
