"""The components of a page, drawn in the browser from the frames of the live route: the charts, and the panel beside them.

Each is mounted with plain data and keeps its place until that data changes. Their scripts are files that the route
serves; what Streamlit carries is only a loader.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import streamlit as st

from moe_core.dashboard.links import WORDS, fits
from moe_core.figures.smooth import SMOOTH

# Inline script travels with every update, so it only loads the module that the route serves.
LOADER = """
// A bare path does not resolve here: Streamlit loads this text from a blob, which has no directory. A page's path has one
// part below the dashboard's own, which a proxy may have put anywhere.
const at = (name) => new URL(`./moescope/${name}`, document.baseURI).href;

// A server that was killed just now is back soon. Some browsers remember what an address failed to give, hence a new one.
async function fetched() {
  for (let again = 0; ; again++) {
    try {
      return await import(at(again ? `mount.js?again=${again}` : "mount.js"));
    } catch (error) {
      if (error instanceof SyntaxError) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function dress() {
  for (const name of ["live.css", "runs.css"]) {
    const id = `moescope-${name}`;
    if (document.getElementById(id)) continue;
    const link = document.createElement("link");
    Object.assign(link, { id, rel: "stylesheet", href: at(name) });
    link.onerror = () => setTimeout(() => { link.remove(); dress(); }, 1000);
    document.head.append(link);
  }
}

const module = fetched();
export default function (component) {
  let unmount;
  let gone = false;
  dress();
  module.then(({ mount }) => { if (!gone) unmount = mount(component); });
  return () => { gone = true; unmount?.(); };
}
"""

_render = st.components.v2.component("moescope", html="<div></div>", js=LOADER, isolate_styles=False)


GoTo = Callable[[str], None]


def live(page: str, run: str, probe: str, figures: list[str], go_to: GoTo, **data: Any) -> None:
    """A page's tiles, charts and scrubber. They keep their place, zoom included, until one of the arguments changes.

    options=: what was chosen in the page's own widgets; a change of it redraws them in place. A click on a chart that offers a
    choice writes it into the link.
    """
    mount(f"live-{page}", go_to, part="charts", page=page, run=run, probe=probe, figures=figures, smooth=SMOOTH, **data)


def panel(run: str | None, go_to: GoTo, link: dict[str, str | None], only: tuple[str, ...] = (), **data: Any) -> None:
    """The run chooser, and of a run its state, buttons, knobs, layers and changes.

    link: the words that the page's link must have; None for a word that it must not have. Streamlit drops them when
    another page is opened. If the script set them, each would be a step of its own in the browser's history.
    only: the knobs to show, if not all that matter; the layer that is chosen then comes to the page's script too.
    """
    words = {
        "page": st.context.url,
        "words": link,
    }  # the page's address makes the value new on each page, so that it is sent to the browser
    mount("panel", go_to, part="panel", run=run, only=list(only), link=words, **data)


def export_link(figures: Sequence[str], options: dict[str, Any] | None = None, **what: str) -> None:
    """A link to the Export page with these figures of a run= or a sweep=, and with all that this page's link names.

    options: as for live(): which runs are compared, also while this page's link does not name them yet.
    """
    mount("export-link", lambda run: None, part="export", figures=list(figures), options=options, **what)


class Chosen(NamedTuple):
    """The runs that are chosen in the list of all runs, and how often a box was ticked before that was said."""

    ids: Sequence[str] = ()
    nth: int = 0


def runs(chosen: Chosen, go_to: GoTo, choose: Callable[[Chosen], None]) -> None:
    """The list of all runs, with a box for each by which it is chosen."""

    def ticked() -> None:
        match st.session_state["runs"].chosen:
            case {"ids": list(ids), "nth": int(nth)} if all(isinstance(id, str) and fits("run", id) for id in ids):
                choose(Chosen(ids, nth))

    mount("runs", go_to, ticked, part="runs", chosen={"ids": list(chosen.ids), "nth": chosen.nth})


def mount(key: str, go_to: GoTo, ticked: Callable[[], None] = lambda: None, **data: Any) -> None:
    # Values from a page are checked like the words of its link, since go_to opens a run by them.
    def chosen() -> None:
        run = st.session_state[key].run
        if isinstance(run, str) and fits("run", run):
            go_to(run)

    def picked() -> None:
        choices = st.session_state[key].picked
        for name, value in choices.items() if isinstance(choices, dict) else ():
            if name in WORDS and fits(name, str(value)):
                st.query_params[name] = str(value)

    _render(key=key, data=data, on_run_change=chosen, on_picked_change=picked, on_chosen_change=ticked)
