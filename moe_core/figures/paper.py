"""What every figure is drawn on and with: its layout, the sizes of its type and lines, its labels, and round axis ends.

A figure is written as a pure function from arrays to a plotly spec, `{"data": [...], "layout": {...}}` of plain types and
numpy arrays. `@figure` wraps it: called, it gives a `go.Figure`; its `.spec` is the raw function, which costs a hundredth.
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.theme import SANS, Theme

Array = np.ndarray[Any, Any]
Spec = dict[str, Any]
# (width, height) in CSS pixels of the whole chart. A third item, True, asks for the larger type of a window from 1600 px.
# Width and height in px; whether it is drawn as in a wide window; and the width of the whole figure, where margins take some of it.
Size = tuple[int, int] | tuple[int, int, bool] | tuple[int, int, bool, int]


def escape(text: object) -> str:
    """Users' text for a plotly label: no tags, no template, nothing that is not printed."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    # plotly replaces %{...} in a hover template before it reads the entities.
    return html.escape(plain, quote=False).replace("%{", "%&#123;")


def percent(share: float) -> str:
    """A share as a person reads it: "6.3 %"."""
    # Half up, as people round: 1/16 is 6.3 %.
    return f"{math.floor(1000 * share + 0.5 + 1e-9) / 10:.1f} %"


def at_step(step: int | None) -> str:
    """ " at step 1,200", the end of a hover's sentence; nothing of what has no step."""
    return "" if step is None else f" at step {step:,}"


class Pens(NamedTuple):
    """What grows with the window: sizes in px."""

    axis: int
    title: int
    left: int
    top: int
    bottom: int
    right: int
    line: float
    main: float


COMPACT = Pens(13, 16, 48, 52, 38, 104, 1.6, 2.2)
WIDE = Pens(15, 18, 56, 62, 46, 124, 2.0, 2.6)


def pens(size: Size) -> Pens:
    """The sizes for a chart; if size does not say, those of a wide window for a chart of 1000 px or more."""
    return WIDE if (size[2] if len(size) > 2 else size[0] >= 1000) else COMPACT


def base(
    name: str,
    title: str,
    subtitle: str,
    *,
    step: int | None,
    theme: Theme,
    size: Size,
    labels: bool = False,
    x: Spec | None = None,
    y: Spec | None = None,
    **layout: Any,
) -> Spec:
    """The layout that every figure starts from. `labels` leaves room at the right for the names of lines."""
    pen = pens(size)
    axis = plain_axis(pen, theme)
    plain: Spec = {
        "template": None,
        "width": size[0],
        "height": size[1],
        "paper_bgcolor": theme.ground,
        "plot_bgcolor": theme.ground,
        "font": {"family": SANS, "size": pen.axis, "color": theme.ink2},
        "title": title_of(title, subtitle, pen, theme),
        "margin": {
            "l": pen.left,
            "t": pen.top,
            "b": pen.bottom,
            "r": pen.right if labels else 8,
            "pad": 0,
            "autoexpand": False,
        },
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "font": {"family": SANS, "size": pen.axis, "color": theme.ink},
            "bgcolor": theme.ground,
            "bordercolor": theme.edge,
        },
        "dragmode": "zoom",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": theme.ink2, "activecolor": theme.ink},
        "uirevision": name,
        "meta": {"figure": name, "step": step} | ({"whole": size[3]} if len(size) > 3 else {}),
        "xaxis": axis | titled(x or {}, pen, theme, standoff=2),
        "yaxis": axis | {"showgrid": True} | titled(y or {}, pen, theme, standoff=4),
        "shapes": [],
        "annotations": [],
    }
    return plain | layout


def plain_axis(pen: Pens, theme: Theme) -> Spec:
    return {
        "showgrid": False,
        "gridcolor": theme.rule,
        "zeroline": False,
        "showline": False,
        # Ticks without colour keep the numbers off the plot.
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": {"family": SANS, "size": pen.axis, "color": theme.ink2},
        "fixedrange": False,
        "automargin": False,
    }


def title_of(title: str, subtitle: str, pen: Pens, theme: Theme) -> Spec:
    return {
        # plotly's own subtitle stands too far below; the second line of the title stands where it should.
        "text": f'{title}<br><span style="font-size:{pen.axis}px;font-weight:400;color:{theme.ink2}">{subtitle}</span>',
        "font": {"family": SANS, "size": pen.title, "color": theme.ink, "weight": 600},
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": pen.title + 2},
    }


def said_too(title: str, words: str) -> str:
    """The text of a title whose second line goes on with these words. It may hold squares of colour, so its end is the last one."""
    head, end, after = title.rpartition("</span>")
    return f"{head}{words}{end}{after}" if end else title


def titled(axis: Spec, pen: Pens, theme: Theme, standoff: int) -> Spec:
    """An axis whose title, given as text, has the chart's font."""
    if isinstance(axis.get("title"), str):
        font = {"family": SANS, "size": pen.axis, "color": theme.ink2}
        return axis | {"title": {"text": axis["title"], "font": font, "standoff": standoff}}
    return axis


def axis_title(text: str, layout: Spec, standoff: int = 2) -> Spec:
    """The title of an axis, for what is known only once there is a layout. standoff: px between it and the ticks."""
    return {"text": text, "standoff": standoff, "font": layout["font"]}


def inner(layout: Spec) -> tuple[int, int]:
    """Width and height in px of the area inside the axes."""
    margin = layout["margin"]
    return (
        max(1, layout["width"] - margin["l"] - margin["r"]),
        max(1, layout["height"] - margin["t"] - margin["b"]),
    )


# Of Source Sans, in sizes of the type: a little more than its digits have, and than its letters have on average, so that what is
# reckoned with them finds room in other typefaces too (tests/export/test_fonts.py).
LETTER, BLANK = 0.53, 0.2


def ems(text: str) -> float:
    """Width of a line of a label, in sizes of its type."""
    return LETTER * len(text) - (LETTER - BLANK) * text.count(" ")


def letters_beside(size: Size, most: int) -> int:
    """How many letters of a row's name find room left of a chart: `most`, of a narrow chart what takes a quarter of it."""
    return max(4, min(most, size[0] // 28))


def note(text: str, x: Any, y: Any, **given: Any) -> Spec:
    """A label without an arrow."""
    return {"text": text, "x": x, "y": y, "showarrow": False, "align": "left", "captureevents": False} | given


def label_font(layout: Spec, colour: str) -> Spec:
    """The font of a label within the plot, as large as the axes' own."""
    return {"color": colour, "size": layout["font"]["size"], "family": SANS}


def lettered(trace: Spec, colours: list[str], printed: list[str]) -> Spec:
    """A trace of letters in these colours. printed: those on paper, where the cells below them have the light look's colours."""
    inked = trace | {"textfont": trace["textfont"] | {"color": colours}}
    return inked if printed == colours else inked | {"meta": {"printed": printed}}


def print_as(layout: Spec, colours: Iterable[tuple[str, str]]) -> None:
    """Of these colours of this figure, each gets the other on paper, whatever it becomes in other figures."""
    if paper := {shown: printed for shown, printed in colours if shown != printed}:
        layout["meta"]["paper"] = paper


DASHED = "8px,6px"  # of an ideal


def level(y: float, **pen: Any) -> Spec:
    """A line across the whole chart at a value."""
    return {"type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": pen}


def upright(x: float, **pen: Any) -> Spec:
    """A line from bottom to top at a value."""
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": pen}


def ideal_line(layout: Spec, y: float, theme: Theme) -> None:
    """The dashed line of the ideal, across the whole chart."""
    layout["shapes"].append(level(y, color=theme.ink2, width=1.5, dash=DASHED))


LADDER = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def nice_above(value: float, rungs: Sequence[float] = LADDER) -> float:
    """The first round number at or above a positive value: an axis that ends there does not move with every step."""
    if not (value > 0 and math.isfinite(value)):
        return 1.0
    tens = 10.0 ** math.floor(math.log10(value))
    return next(tens * rung for rung in rungs if tens * rung >= value * (1 - 1e-9))


def every_nth(count: int, px: float, room: float, rungs: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256)) -> int:
    """Every how-manieth of `count` numbers, px apart, is written so that each finds room at `room` px."""
    return next((n for n in rungs if px * n >= room), count)


def doubled(top: float, value: float) -> float:
    """`top`, doubled until `value` fits below it."""
    while math.isfinite(value) and value > top > 0:
        top *= 2
    return top


class Figure:
    """A spec function that, called, gives a `go.Figure`. `.spec` is the function itself, `.name` its name."""

    def __init__(self, spec: Callable[..., Spec]) -> None:
        self.spec = spec
        self.name = spec.__name__
        self.__name__ = spec.__name__
        self.__doc__ = spec.__doc__

    def __call__(self, *args: Any, **given: Any) -> Any:
        """A `plotly.graph_objects.Figure` of the same arguments."""
        # plotly's classes take a quarter of a second to import, and the live route never needs them.
        import plotly.graph_objects as go

        spec = self.spec(*args, **given)
        return go.Figure(data=spec["data"], layout=spec["layout"])


def figure(spec: Callable[..., Spec]) -> Figure:
    """Makes a figure of a spec function."""
    return Figure(spec)
