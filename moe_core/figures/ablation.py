"""What the model loses without each expert, and whether that goes with how busy it is.

Shapes: E experts.
"""

import numpy as np

from moe_core.figures.bars import coloured
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    axis_title,
    base,
    every_nth,
    figure,
    inner,
    label_font,
    level,
    nice_above,
    note,
    percent,
)
from moe_core.figures.theme import LIGHT, LINES, Theme

NOT_YET = "not measured yet: python -m moe_core ablate"


@figure
def ablation(
    rise_E: Array, share_E: Array, *, step: int | None = None, theme: Theme = LIGHT, size: Size = (520, 280)
) -> Spec:
    """Rise of the held-out loss without each expert, the busiest first: where bars fall to the right, the experts that are selected most
    are needed most.

    rise_E (E,): in nats, NaN where there is none; share_E (E,): each expert's share of the selections.
    """
    rise_E, share_E = np.asarray(rise_E, np.float64), np.asarray(share_E, np.float64)
    E, known = len(rise_E), np.isfinite(rise_E)
    order = np.argsort(-share_E, kind="stable")
    together = rank_correlation(rise_E[known], share_E[known])
    says = "" if np.isnan(together) else f"; rank correlation of the two {together:+.2f}"
    layout = base(
        "ablation",
        "Loss without each expert",
        f"rise in held-out loss, nats; the busiest expert first{says}",
        step=step,
        theme=theme,
        size=size,
        y={"title": "rise, nats", "range": reach(rise_E[known]), "nticks": 6},
        bargap=0.25,
    )
    ranks = list(range(1, E + 1, every_nth(E, inner(layout)[0] / E, 26)))
    layout["xaxis"] |= {
        "title": axis_title("expert, from most to fewest selections", layout),
        "range": [0.5, E + 0.5],
        "tickvals": ranks,
        "ticktext": [str(order[rank - 1] + 1) for rank in ranks],
    }
    marker = coloured(E, theme)
    if E <= LINES:
        marker["color"] = [marker["color"][e] for e in order]
        marker["pattern"] |= {"shape": [marker["pattern"]["shape"][e] for e in order]}
    else:
        marker = {"color": theme.ink2, "line": {"width": 0}}
    bars = {
        "type": "bar",
        "name": "rise",
        "x": np.arange(1, E + 1, dtype=np.int32),
        "y": rise_E[order].astype(np.float32),
        "customdata": [[int(e) + 1, percent(share_E[e]) if np.isfinite(share_E[e]) else "–"] for e in order],
        "marker": marker,
        "hovertemplate": "Without expert %{customdata[0]} the loss is %{y:+.4f} nats higher; it has %{customdata[1]} of the selections<extra></extra>",
    }
    layout["shapes"].append(level(0, color=theme.ink2, width=1))
    if not known.any():
        font = label_font(layout, theme.ink2)
        layout["annotations"].append(note(NOT_YET, 0.5, 0.5, xref="paper", yref="paper", xanchor="center", font=font))
    return {"data": [bars], "layout": layout}


def reach(rise: Array) -> list[float]:
    """The range of the y axis: from 0, or below where leaving an expert out helped, to a round number above the bars."""
    high = nice_above(float(rise.max())) if len(rise) and rise.max() > 0 else 0.01
    low = -nice_above(-float(rise.min())) if len(rise) and rise.min() < 0 else 0.0
    return [low, high]


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's: 1 if both rise together, -1 if one falls as the other rises; NaN of fewer than three or of equal values."""
    if len(a) < 3:
        return float("nan")
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return float("nan")
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _ranks(values: Array) -> Array:
    """Ranks from 0; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count + 1) / 2)[place])
