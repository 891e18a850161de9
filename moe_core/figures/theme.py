"""Colours, fonts and the parts that every figure shares. A figure is a function; this is its paper and its pens.

A figure is written as a pure function from arrays to a plotly spec, `{"data": [...], "layout": {...}}` of plain types and
numpy arrays. `@figure` wraps it: called, it gives a `go.Figure`; its `.spec` is the raw function, which costs a hundredth.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Spec = dict[str, Any]
# (width, height) in CSS pixels of the whole chart. A third item, True, asks for the larger type of a window from 1600 px.
Size = tuple[int, int] | tuple[int, int, bool]

SANS = '"Source Sans", "Source Sans 3", "Source Sans Pro", sans-serif'
MONO = '"Source Code", "Source Code Pro", monospace'
NAMED = 16  # experts with a colour of their own
LINES = 20  # up to here colours repeat, dashed or hatched; above, colour names no expert
DIVERGING_STOPS = (0.0, 0.17, 0.33, 0.5, 0.67, 0.83, 1.0)
SEQUENTIAL_STOPS = (0.0, 0.02, 0.5, 1.0)
FRACTIONS = ("⅛", "¼", "½", "<b>1 ideal</b>", "2 ×", "4 ×", "8 ×")


@dataclass(frozen=True)
class Theme:
    """All colours of the light or the dark look, by their role."""

    name: str
    ground: str
    side: str
    ink: str
    ink2: str
    rule: str
    edge: str
    hand: str
    tint: str
    running: str
    paused: str
    failed: str
    banner: str
    experts: tuple[str, ...]
    diverging: tuple[str, ...]
    sequential: tuple[str, ...]

    @property
    def over(self) -> str:
        """More load than ideal."""
        return self.diverging[5]

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs A to D side by side: ink, an olive, a blue, a rose of the experts', the furthest apart in every vision."""
        olive, blue, rose = (0, 1, 13) if self.name == "light" else (4, 1, 3)
        return self.ink, self.experts[olive], self.experts[blue], self.experts[rose]

    @property
    def under(self) -> str:
        """Less load than ideal."""
        return self.diverging[1]

    @property
    def depth(self) -> str:
        """How the sequential scale reads."""
        return "pale 0 to deep 1" if self.name == "light" else "dark 0 to bright 1"


LIGHT = Theme(
    "light", "#FFFFFF", "#F5F6F8", "#161A20", "#525B68", "#E2E5EA", "#C9CED6", "#0B62D0", "#E6EFFB",
    "#1A7431", "#8A5A00", "#B42318", "#FDECEA",
    experts=("#6E7308", "#5F81FF", "#0E4A42", "#E86690", "#4B3F00", "#008062", "#5225A7", "#B1901B",
             "#6C6AAB", "#20A595", "#75935C", "#780335", "#A787BF", "#A2447B", "#5D255F", "#466736"),
    diverging=("#0B3C7D", "#3B78C3", "#A3C4EA", "#F3F4F6", "#F2B58A", "#CF6A1E", "#7F2F00"),
    sequential=("#FFFFFF", "#C6DBEF", "#5B96CF", "#0B2F5C"),
)  # fmt: skip

DARK = Theme(
    "dark", "#11151A", "#191E25", "#E8EBEF", "#A3ADBA", "#2A313A", "#414B57", "#6CB0FF", "#172A42",
    "#5FD07F", "#F0B848", "#FF8A80", "#3A1B1A",
    experts=("#6D6513", "#707DFF", "#39FFE4", "#FA6F92", "#A99A05", "#047461", "#6F4CC8", "#EDE516",
             "#CCC0FE", "#32AA92", "#779258", "#FEBBC6", "#876A9E", "#B84C6C", "#CA81C0", "#CADC92"),
    diverging=("#8CC4FF", "#4F93E0", "#2F5A8F", "#20252C", "#8A4B22", "#DB7A35", "#FFB27A"),
    sequential=("#11151A", "#23405E", "#3F86C9", "#D6EAFF"),
)  # fmt: skip

THEMES = {"light": LIGHT, "dark": DARK}


def expert_colour(expert: int, theme: Theme) -> str:
    """The colour of an expert, counted from 0, the same on every chart. From the 17th on the colours come again."""
    return theme.experts[expert % NAMED]


def scale(colours: Sequence[str], stops: Sequence[float]) -> list[list[Any]]:
    """A plotly colorscale."""
    return [[stop, colour] for stop, colour in zip(stops, colours, strict=True)]


def luminance(colour: str) -> float:
    """Relative luminance of "#RRGGBB", 0 black to 1 white (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def letter_colour(cell: str) -> str:
    """White or near black, whichever reads better on a cell of this colour; at least 4.5:1 on any."""
    bright = luminance(cell) + 0.05
    return "#FFFFFF" if 1.05 / bright >= bright / (luminance("#0B0E12") + 0.05) else "#0B0E12"


def faded(colour: str, alpha: float) -> str:
    """The colour at an opacity from 0 to 1."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha:g})"


def escape(text: object) -> str:
    """Users' text for a plotly label: no tags, no template, nothing that is not printed."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    # plotly replaces %{...} in a hover template before it reads the entities.
    return html.escape(plain, quote=False).replace("%{", "%&#123;")


def percent(share: float) -> str:
    """A share as a person reads it: "6.3 %"."""
    # Half up, as people round: 1/16 is 6.3 %.
    return f"{math.floor(1000 * share + 0.5 + 1e-9) / 10:.1f} %"


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
    """The sizes for a chart; where nobody says, a chart of 1000 px stands in a wide window."""
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
    font = {"family": SANS, "size": pen.axis, "color": theme.ink2}
    axis = {
        "showgrid": False,
        "gridcolor": theme.rule,
        "zeroline": False,
        "showline": False,
        # Ticks without colour keep the numbers off the plot.
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": font,
        "fixedrange": False,
        "automargin": False,
    }
    plain: Spec = {
        "template": None,
        "width": size[0],
        "height": size[1],
        "paper_bgcolor": theme.ground,
        "plot_bgcolor": theme.ground,
        "font": {"family": SANS, "size": pen.axis, "color": theme.ink2},
        "title": {
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
        },
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
        "meta": {"figure": name, "step": step},
        "xaxis": axis | titled(x or {}, pen, theme, standoff=2),
        "yaxis": axis | {"showgrid": True} | titled(y or {}, pen, theme, standoff=4),
        "shapes": [],
        "annotations": [],
    }
    return plain | layout


def titled(axis: Spec, pen: Pens, theme: Theme, standoff: int) -> Spec:
    """An axis whose title, given as text, has the chart's font."""
    if isinstance(axis.get("title"), str):
        font = {"family": SANS, "size": pen.axis, "color": theme.ink2}
        return axis | {"title": {"text": axis["title"], "font": font, "standoff": standoff}}
    return axis


def inner(layout: Spec) -> tuple[int, int]:
    """Width and height in px of the area inside the axes."""
    margin = layout["margin"]
    return (
        max(1, layout["width"] - margin["l"] - margin["r"]),
        max(1, layout["height"] - margin["t"] - margin["b"]),
    )


def note(text: str, x: Any, y: Any, **given: Any) -> Spec:
    """A label without an arrow."""
    return {"text": text, "x": x, "y": y, "showarrow": False, "align": "left", "captureevents": False} | given


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
    """The first round number at or above a positive value: an axis that ends there stands still for a while."""
    if not (value > 0 and math.isfinite(value)):
        return 1.0
    tens = 10.0 ** math.floor(math.log10(value))
    return next(tens * rung for rung in rungs if tens * rung >= value * (1 - 1e-9))


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
