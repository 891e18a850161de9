"""The frame that every page shares: the choice of the run, the panel beside the charts, and the charts themselves.

A page is one call: `page("routing")`. Its figures and tiles are those of figures/pages/routing.py that the run has what they
need for, in their order; component/live.css places them on the page.
A page of another kind calls `frame()`, which draws the panel and returns the run, and then draws what it likes:
`frame(choose=False)` needs no run and draws no cards.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import streamlit as st

from moe_core.dashboard import cards, component, links, starting
from moe_core.dashboard.choosing import chooser_entry
from moe_core.dashboard.faults import as_html
from moe_core.dashboard.gate import looks
from moe_core.dashboard.links import NEW
from moe_core.dashboard.panel import knob
from moe_core.dashboard.style import CSS
from moe_core.figures.catalog import on_page
from moe_core.runs import Run, StoreError, open_run, read_notes, reap
from moe_core.runs.overview import overview
from moe_core.schema import Config, Knobs, describe


class First(NamedTuple):
    """The settings with which this page starts a run, and the names of the knobs that its panel shows."""

    config: Config
    knobs: Knobs
    names: tuple[str, ...]


OF_PROBE = ("routing", "experts")  # the pages that mostly show where the probe's tokens go
CARD = First(Config(), cards.STARTING, ("noise", "k", "w_importance", "w_load", "lr"))


def style() -> None:
    st.html(f"<style>{CSS}</style>")


def page(name: str, options: Callable[[Run], dict[str, Any]] = lambda run: {}) -> None:
    """A page of live charts.

    options: draws the page's own widgets (an expert, runs to compare) and returns what was chosen in them.
    """
    wanted = links.word("run") or st.session_state.get("run") or NEW
    run = frame()
    if run is not None:
        if name in OF_PROBE and run.description.origin == "watched" and run.description.probe == "none":
            st.caption("No probe: give `watch(probe=…)` to see where tokens go.")
        charts(name, run.id, run.description.probe, on_page(run, name), options(run))
        run.close()
    elif begun := starting.unstarted(wanted):
        charts(name, wanted, begun.description.probe, on_page(begun, name), {})
        cards.wait(wanted, silent=True)  # the page's own widgets need the run, so they come later


def charts(name: str, run: str, probe: str, figures: list[str], options: dict[str, Any], export: bool = True) -> None:
    """A page's tiles, charts and scrubber. export: the line that says how a run ended has a link to the Export page."""
    component.live(name, run, probe, figures, go_to, export=export, options=options)


def frame(
    choose: bool = True,
    wanted: str | None = None,
    first: First = CARD,
    only: tuple[str, ...] = (),
    lesson: int | None = None,
    named: bool = True,
) -> Run | None:
    """The panel in the sidebar, and the run that it shows; close it when it has been read.

    choose: without a run, draw the cards that start one. Returns None then, and while a trainer starts.
    wanted: the run, if it is not the link's; NEW for none. first: the settings that the panel shows without a run.
    only: the knobs that the panel shows, if not all that act in the run. lesson: the number of the lesson that is open.
    named: whether the page's link names the run and the lesson; that of one who follows a class does not.
    """
    reap()
    wanted = wanted or links.word("run") or st.session_state.get("run")
    here: dict[str, str | None] = {"lesson": str(lesson) if lesson and named else None}
    if wanted and wanted != NEW and starting.is_starting(wanted):
        st.session_state["run"] = wanted
        begun = starting.unstarted(wanted)
        chosen = chooser_entry(wanted, begun.description if begun else None, time.time())
        with st.sidebar:
            component.panel(
                wanted,
                go_to,
                here | {"run": wanted if named else None},
                only,
                knobs=starting_values(first) if begun else [],
                chosen=chosen,
                looks=looks(),
            )
        if not begun:
            cards.wait(wanted)
        return None
    run = run_of_link(wanted)
    with st.sidebar:
        if run is None:
            none = {"run": None} if lesson else {}
            component.panel(None, go_to, here | none, only, knobs=starting_values(first), chosen=None, looks=looks())
        else:
            component.panel(
                run.id, go_to, here | {"run": run.id if named else None}, only, chosen=entry_of(run), looks=looks()
            )
            own_data(run)
    if run is not None:
        st.session_state["run"] = run.id
    elif choose:
        cards.cards()
    return run


def own_data(run: Run) -> None:
    """How the person's own files were read, folded below the panel."""
    taken = run.facts.get("taken")
    if isinstance(taken, list) and taken:
        with st.expander("How your data were read"):
            lines = "".join(f"<li>{as_html(str(words)[:1000])}</li>" for words in taken[:80])
            st.html(f"<ul class='moe-taken'>{lines}</ul>")


def run_of_link(wanted: str | None) -> Run | None:
    """The run that the link names, else the newest; None for the start cards. If it cannot be opened, the page says why."""
    if wanted == NEW:
        return None
    try:
        if wanted is not None:
            return open_run(wanted)
        newest = next((entry for entry in overview() if not entry.facts.problem), None)
        return open_run(newest.id) if newest else None
    except StoreError as error:
        st.session_state.pop("run", None)
        st.error(str(error))
        return None


def entry_of(run: Run) -> dict[str, Any]:
    """The chooser's entry of the run that is shown."""
    return chooser_entry(run.id, run.description, run.facts["created"], read_notes(run.path).name)


def go_to(run: str) -> None:
    """Show another run: one chosen in the panel, or a fork that was just made."""
    st.session_state["run"] = run
    for name in list(st.query_params):
        if name not in st.session_state:  # a word that is a widget's key belongs to the widget, and stays with it
            del st.query_params[name]
    st.query_params["run"] = run


def starting_values(first: First) -> list[dict[str, object]]:
    """The knobs as a run would start with them, for the panel of no run."""
    declared = describe(first.config, first.knobs).knobs
    return [knob(name, declared[name], first.knobs) for name in first.names]
