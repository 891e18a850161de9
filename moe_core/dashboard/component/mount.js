// Mounts a part of a page into the place that Streamlit gives it, and leaves it there while its data stay the same.

import { Export } from "./export.js";
import { nameInLink } from "./link.js";
import { View, loadPlotly } from "./live.js";
import { Panel } from "./panel.js";
import { AllRuns } from "./runs.js";
import { fold, isFolded } from "./sidebar.js";

const PARTS = { charts: View, panel: Panel, export: Export, runs: AllRuns };
const mounted = new WeakMap();
let page;

// Below 900 px the sidebar takes the charts' room, or lies over them. So it is folded away when a page is opened.
function open(opened) {
  if (opened !== page && innerWidth < 900 && !isFolded()) fold();
  page = opened;
}

export function mount({ parentElement, data, setTriggerValue, setStateValue }) {
  if (data.part === "charts" || data.part === "panel") loadPlotly(); // started before there is a chart, since it takes longest
  // The panel's starting values and the page's options do not make it another part: new options redraw the charts in place.
  const { chosen, knobs, options, link, ...rest } = data;
  if (link) {
    open(link.page);
    nameInLink(link.words);
  }
  const key = JSON.stringify(rest);
  const before = mounted.get(parentElement);
  if (before?.key === key) {
    before.part.choose?.(options);
    before.part.chosen?.(chosen);
    return before.unmount;
  }
  before?.unmount();
  parentElement.replaceChildren();
  const part = new PARTS[data.part](parentElement, data, setTriggerValue, setStateValue);
  const unmount = () => {
    part.close();
    mounted.delete(parentElement);
  };
  mounted.set(parentElement, { key, unmount, part });
  return unmount;
}
