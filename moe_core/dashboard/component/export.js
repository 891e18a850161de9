// The link to the Export page: it has the words of this page's own link (run, layer, step and all that was chosen) and the
// names of the figures that are drawn here.

import { element } from "./link.js";

// data: the run or sweep, the figures, and the options chosen on the page. The address is brought up to date just before the link
// is used, and by link.aim() when other options are chosen: the page's own link has them only a moment later.
export function exportLink(parent, name, words, data) {
  const link = element("a", name, parent, words);
  const aim = () => {
    const asked = new URLSearchParams(location.search);
    for (const what of ["run", "sweep"]) if (data[what]) asked.set(what, data[what]);
    if (data.options?.with?.length) {
      asked.set("with", data.options.with.join(","));
      asked.set("align", data.options.align);
    } else if (data.options?.with) {
      asked.delete("with"); // the last was taken away
    }
    if (data.busiest && !asked.has("expert")) asked.set("expert", data.busiest[1]);
    asked.set("figures", data.figures.filter(isDrawn).join(","));
    link.href = `./export?${asked}`;
  };
  for (const event of ["pointerover", "pointerdown", "focus", "keydown"]) link.addEventListener(event, aim);
  link.aim = aim;
  aim();
  return link;
}

// False for a place that is hidden: the chart of knobs, while none was turned.
function isDrawn(figure) {
  return !document.querySelector(`[data-figure="${figure}"]`)?.parentElement.hidden;
}

// The link as a component of its own.
export class Export {
  constructor(parent, data) {
    this.data = data;
    this.link = exportLink(parent, "moe-export", "Export these figures", data);
  }

  choose(options) {
    this.data.options = options;
    this.link.aim();
  }

  close() {
    this.link.remove();
  }
}
