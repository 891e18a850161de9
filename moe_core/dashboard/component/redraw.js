// New data within the same axes, drawn without a layout: on a canvas that lies over Plotly's own traces, in the looks that Plotly gave
// them. Plotly keeps all else, and learns of the data later, when somebody points at the chart or its frame changes: its layout takes
// ten times as long (docs/decisions.md).

import { Sheet } from "./sheet.js";

const NOT_FORM = ["x", "y", "z", "customdata", "text", "hovertemplate"]; // of a trace: its data, and what is said on hover

// Draws the data of a spec over a chart that Plotly laid out, if nothing but data and names beside lines has changed since. Returns
// whether it did.
export function redraw(chart, spec) {
  const { laid } = chart;
  if (!laid || !sameForm(laid, spec)) return false;
  const sheet = new Sheet(chart);
  const traces = spec.data.map((trace, nth) => sheet.trace(trace, nth));
  const { gone, come } = names(laid.layout.annotations, spec.layout.annotations), words = come.map((note) => sheet.words(note));
  if (![...traces, ...words].every(Boolean)) return false;
  sheet.open();
  for (const draw of traces) draw();
  sheet.shapes();
  for (const draw of words) draw();
  for (const note of chart.querySelectorAll(".annotation")) note.style.visibility = gone.has(Number(note.dataset.index)) ? "hidden" : "";
  chart.data = spec.data;
  chart.layout = spec.layout;
  return true;
}

// Called before Plotly lays a chart out: what is drawn from now on is compared with this. A copy, since Plotly writes into a layout.
export function layOut(chart, spec) {
  chart.laid = spec && { spec, layout: structuredClone(spec.layout), data: spec.data.map((trace) => structuredClone(form(trace))) };
  chart.laidAt = performance.now();
  chart.classList.remove("moescope-redrawn");
}

// Plotly changed its axes by itself, as when somebody zooms: it lays the chart out again before anything is drawn over it.
export function forget(chart) {
  chart.laid = null;
  chart.classList.remove("moescope-redrawn");
}

// Whether Plotly knows all that was drawn.
export function isKnown(chart) {
  return !chart.laid || chart.laid.spec === chart.spec;
}

// laid: as layOut() kept it.
function sameForm(laid, spec) {
  if (laid.data.length !== spec.data.length) return false;
  const [before, now] = [laid.layout, spec.layout].map(({ annotations: _, meta, ...layout }) => ({ ...layout, meta: { ...meta, step: 0 } }));
  return same(before, now) && laid.data.every((trace, nth) => same(trace, form(spec.data[nth])));
}

// A trace without its data. Bars may change their colours too.
function form(trace) {
  const rest = { ...trace };
  for (const name of NOT_FORM) delete rest[name];
  if (trace.type === "bar" && Array.isArray(trace.marker?.color)) rest.marker = { ...trace.marker, color: trace.marker.color.length };
  return rest;
}

function same(one, other) {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other) return false;
  const names = Object.keys(one);
  return names.length === Object.keys(other).length && names.every((name) => same(one[name], other[name]));
}

// Which of the names that Plotly drew are no longer there as they were, by their numbers, and which have come.
function names(before, after) {
  const left = [...after], gone = new Set();
  before.forEach((note, nth) => {
    const at = left.findIndex((other) => same(note, other));
    if (at < 0) gone.add(nth);
    else left.splice(at, 1);
  });
  return { gone, come: left };
}
