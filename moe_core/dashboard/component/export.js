// The way to the Export page, on what is looked at here: this page's own link names the run, the layer, the step and all
// that was chosen, and goes with the figures that stand here.

import { element } from "./link.js";

// data: the run or sweep, and the figures. The link is made anew whenever somebody is about to use it.
export function exportLink(parent, name, words, data) {
  const link = element("a", name, parent, words);
  const aim = () => {
    const asked = new URLSearchParams(location.search);
    for (const what of ["run", "sweep"]) if (data[what]) asked.set(what, data[what]);
    if (data.busiest && !asked.has("expert")) asked.set("expert", data.busiest[1]);
    asked.set("figures", data.figures.filter(stands).join(","));
    link.href = `./export?${asked}`;
  };
  for (const event of ["pointerover", "pointerdown", "focus", "keydown"]) link.addEventListener(event, aim);
  aim();
  return link;
}

// Knobs that were never turned have a place, and no chart in it.
function stands(figure) {
  return !document.querySelector(`[data-figure="${figure}"]`)?.parentElement.hidden;
}

// The link as a part of a page that stands by itself.
export class Export {
  constructor(parent, data) {
    this.link = exportLink(parent, "moe-export", "Export these figures", data);
  }

  close() {
    this.link.remove();
  }
}
