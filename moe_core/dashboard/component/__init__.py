"""The live component: a page's tiles and charts, drawn in the browser from the frames of the live route."""

import streamlit as st

# Inline script travels with every update, so it only loads the module that the route serves.
LOADER = """
// A bare path does not resolve here: Streamlit loads this text from a blob, which has no directory.
const module = import(new URL("/moescope/live.js", window.location.origin).href);
export default function (component) {
  let unmount;
  let gone = false;
  if (!document.getElementById("moescope-css")) {
    const link = document.createElement("link");
    Object.assign(link, { id: "moescope-css", rel: "stylesheet", href: "/moescope/live.css" });
    document.head.append(link);
  }
  module.then(({ mount }) => { if (!gone) unmount = mount(component); });
  return () => { gone = true; unmount?.(); };
}
"""

_render = st.components.v2.component("moescope", html="<div></div>", js=LOADER, isolate_styles=False)


def live(page: str, run: str, task: str, layer: int, figures: list[str]) -> None:
    """Mount a page's tiles and charts. They keep their place, zoom included, until one of the arguments changes."""
    _render(
        key=f"live-{page}-{run}-{layer}",
        data={"page": page, "run": run, "task": task, "layer": layer, "figures": figures},
    )
