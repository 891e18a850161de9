"""The light and the dark look: their colours by role, the experts' colours, the scales of heatmaps, and the fonts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
        """More than the ideal."""
        return self.diverging[5]

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs A to D side by side: ink, an olive, a blue, a rose of the experts', the furthest apart in every vision."""
        olive, blue, rose = {"light": (0, 1, 13), "dark": (4, 1, 3)}.get(self.name, (1, 2, 3))
        return self.ink, self.experts[olive], self.experts[blue], self.experts[rose]

    @property
    def under(self) -> str:
        """Less than the ideal."""
        return self.diverging[1] if self.name != "grey" else GREYS[3]

    @property
    def depth(self) -> str:
        """How the sequential scale reads."""
        return "pale 0 to deep 1" if self.name != "dark" else "dark 0 to bright 1"

    @property
    def signs(self) -> tuple[str, str, str]:
        """The colours of little, of the ideal and of much on the diverging scale, in words."""
        return {"light": ("blue", "pale", "orange"), "dark": ("blue", "dark", "orange")}.get(
            self.name, ("white", "grey", "black")
        )

    def dash_of(self, expert: int) -> str:
        """The dash of an expert's line, or of a run's: in grey it tells apart what has the same lightness."""
        if self.name != "grey":
            return "solid" if expert < NAMED else "dash"
        return GREY_DASHES[(expert % 4 + expert // 4) % 4]

    def hatch_of(self, expert: int) -> str:
        """The hatch of an expert's bar, "" for none."""
        hatched = expert >= NAMED if self.name != "grey" else expert // 4 % 2 == 1
        return "/" if hatched else ""


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

GREY_DASHES = ("solid", "8px,4px", "2px,3px", "10px,3px,2px,3px")
GREYS = (
    "#000000",
    "#3C3C3C",
    "#666666",
    "#949494",
)  # each 1.9 times as bright as the one before, with 0.05 for the paper's shine
# For a printer without colours. Of 16 experts each has its own pair of a grey and a dash.
GREY = Theme(
    "grey", "#FFFFFF", "#F4F4F4", "#000000", "#595959", "#E4E4E4", "#CCCCCC", "#595959", "#EEEEEE",
    "#161616", "#595959", "#161616", "#EEEEEE",
    experts=GREYS * 4,
    diverging=("#FFFFFF", "#E6E6E6", "#CCCCCC", "#B3B3B3", "#808080", "#4D4D4D", "#000000"),
    sequential=("#FFFFFF", "#DDDDDD", "#8C8C8C", "#1A1A1A"),
)  # fmt: skip

THEMES = {"light": LIGHT, "dark": DARK}  # of the pages
LOOKS = THEMES | {"grey": GREY}  # of exports


def paper_colours(theme: Theme) -> dict[str, str]:
    """This look's colours (as #RRGGBB), and the words for them, each with what it becomes in the light look: a printer gets light
    charts."""
    own, light = asdict(theme), asdict(LIGHT)
    pairs = ((own[name], light[name]) for name in own if name != "name")
    colours = [both for a, b in pairs for both in (zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)])]
    words = [(theme.depth, LIGHT.depth), (f"{theme.signs[1]} is fair", f"{LIGHT.signs[1]} is fair")]
    return {dark: pale for dark, pale in colours + words if dark != pale}


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
