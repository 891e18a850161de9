// Mounts a part of a page into the place that Streamlit gives it, and leaves it there while its data stay the same.

import { Export } from "./export.js";
import { nameInLink } from "./link.js";
import { View, loadPlotly } from "./live.js";
import { Panel } from "./panel.js";

const PARTS = { charts: View, panel: Panel, export: Export };
const mounted = new WeakMap();

export function mount({ parentElement, data, setTriggerValue }) {
  if (data.part !== "export") loadPlotly(); // also before there is a chart: it takes longest
  if (data.link) nameInLink(data.link.words);
  // How the panel begins is no part of it, and a choice redraws charts, it does not replace them.
  const key = JSON.stringify({ ...data, chosen: null, knobs: null, options: null, link: null });
  const before = mounted.get(parentElement);
  if (before?.key === key) {
    before.part.choose?.(data.options);
    return before.unmount;
  }
  before?.unmount();
  parentElement.replaceChildren();
  const part = new PARTS[data.part](parentElement, data, setTriggerValue);
  const unmount = () => {
    part.close();
    mounted.delete(parentElement);
  };
  mounted.set(parentElement, { key, unmount, part });
  return unmount;
}
