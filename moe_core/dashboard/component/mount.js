// Mounts a part of a page into the place that Streamlit gives it, and leaves it there while its data stay the same.

import { Export } from "./export.js";
import { nameInLink } from "./link.js";
import { View, loadPlotly } from "./live.js";
import { Panel } from "./panel.js";
import { AllRuns } from "./runs.js";

const PARTS = { charts: View, panel: Panel, export: Export, runs: AllRuns };
const mounted = new WeakMap();
let begun = false;

// Below 900 px the sidebar would take the charts' room, so it begins folded away, as Streamlit has it below 768 px.
function begin() {
  if (!begun && innerWidth < 900 && innerWidth > 768) document.querySelector("[data-testid=stSidebarCollapseButton] button")?.click();
  begun = true;
}

export function mount({ parentElement, data, setTriggerValue, setStateValue }) {
  begin();
  if (data.part === "charts" || data.part === "panel") loadPlotly(); // started before there is a chart, since it takes longest
  // The panel's starting values and the page's options do not make it another part: new options redraw the charts in place.
  const { chosen, knobs, options, link, ...rest } = data;
  if (link) nameInLink(link.words);
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
