"""The colours of experts in the views of the probe's tokens. A cell has no dash or hatch, so where there are more experts than
colours only some have one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.paper import Array, Spec, lettered
from moe_core.figures.theme import LIGHT, LINES, NAMED, Theme, expert_colour, faded, letter_colour

PINNED = r"[1-9][0-9]{0,3}(,[1-9][0-9]{0,3}){0,7}"  # experts from 1, as a link and the command line name them
SOME = 8  # experts that have a colour where not all can have one


def picks(layout: Spec, E: int, of: str = "customdata") -> None:
    """A click on a point pins its expert, where not all have a colour. of: what of the point is the expert, from 1."""
    if E > NAMED:
        layout["meta"] |= {"pick": "pinned", "from": of}


class Palette(NamedTuple):
    """The colour of each expert's cells and of the letters on them; words: what the subtitle says of it; printed: the colour of the
    letters on paper, where the cells have those of the light look; short: the words without those on the rest."""

    cells: list[str]
    letters: list[str]
    words: str
    printed: list[str]
    short: str = ""

    def inked(self, trace: Spec, first: Sequence[int], theme: Theme) -> Spec:
        """A trace of letters, each in the colour that reads on the cell of its expert, in ink where that is none (E)."""
        shown, printed = [*self.letters, theme.ink], [*self.printed, LIGHT.ink]
        return lettered(trace, [shown[e] for e in first], [printed[e] for e in first])

    @property
    def scale(self) -> Spec:
        """A heatmap's colours when its values are experts from 0."""
        E = len(self.cells)
        stops: list[list[Any]] = []
        for e, colour in enumerate(self.cells):
            stops += [[e / E, colour], [(e + 1) / E, colour]]
        return {"colorscale": stops, "zmin": -0.5, "zmax": E - 0.5, "showscale": False}


def palette_of(first_N: Array, E: int, theme: Theme, pinned: Sequence[int] = ()) -> Palette:
    """Up to 16 experts have a colour each. Of more it is those that are pinned or, if none is, the eight that most tokens go to
    first, and the others are grey.

    first_N (N,): each token's first expert; pinned: from 0.
    """
    if E <= NAMED:
        cells, light = ([expert_colour(e, look) for e in range(E)] for look in (theme, LIGHT))
        return Palette(cells, [letter_colour(cell) for cell in cells], "", [letter_colour(cell) for cell in light])
    counts = np.bincount(first_N[first_N < E], minlength=E)
    busiest = [e for e in np.argsort(-counts, kind="stable").tolist() if counts[e]]
    # On Live up to 20 experts have lines, with the colours of 1 to 16: each keeps its own where that is free.
    slots: dict[int, int] = {}
    among = NAMED if E <= LINES else SOME
    for e in sorted((pinned or busiest)[:SOME]):
        slots[e] = next(slot % among for slot in range(e, e + among) if slot % among not in slots.values())
    cells = [theme.experts[slots[e]] if e in slots else faded(theme.ink2, 0.35) for e in range(E)]
    letters, printed = (
        [letter_colour(look.experts[slots[e]]) if e in slots else look.ink for e in range(E)] for look in (theme, LIGHT)
    )
    names = " ".join(f'<span style="color:{cells[e]}">■</span>\u00a0{e + 1}' for e in slots)
    which = "pinned" if pinned else "busiest"
    words = f"; in colour the {which} {names}" if slots else ""
    return Palette(cells, letters, f"{words}, the rest grey" if slots else "", printed, words)
