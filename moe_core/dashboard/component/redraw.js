// Draws new data on a canvas over Plotly's own traces, in the looks that Plotly gave them, as long as the axes and all else stay as they
// are. Plotly learns of the data later: its layout takes ten times as long (docs/decisions.md).

import { Sheet, same } from "./sheet.js";

const NOT_FORM = ["x", "y", "z", "customdata", "text", "hovertemplate"]; // of a trace: its data, and what is said on hover

// Draws the data, marks and names of a spec over a chart that Plotly laid out, if nothing else has changed since. Returns whether it did.
export function redraw(chart, spec) {
  const { laid } = chart;
  if (!laid || !sameForm(laid, spec)) return false;
  const sheet = new Sheet(chart);
  const traces = spec.data.map((trace, nth) => sheet.trace(trace, nth));
  const names = changes(laid.layout.annotations, spec.layout.annotations);
  const above = spec.layout.shapes.filter(({ layer }) => layer !== "below");
  const strips = changes(below(laid.layout.shapes), below(spec.layout.shapes)); // those that stay are Plotly's own
  const notes = names.added.map((note) => sheet.words(note));
  const draws = [...strips.added.map((shape) => sheet.shape(shape)), ...traces, ...above.map((shape) => sheet.shape(shape)), ...notes];
  if (!draws.every(Boolean)) return false;
  const drawn = { laid, spec, dense: devicePixelRatio, notes: names.added.map((note, nth) => ({ note, left: notes[nth].left })) };
  const from = since(chart, sheet, drawn);
  chart.drawn = null; // should a draw fail, nothing is known of what the sheet has
  if (from !== Infinity) sheet.draw(draws, from || 0);
  chart.drawn = drawn;
  hide(chart, ".annotation", names.removed);
  hide(chart, ".shapelayer [data-index]", strips.removed);
  chart.data = spec.data;
  chart.layout = spec.layout;
  return true;
}

// Of shapes those that lie below the traces, each at its own place in the list.
function below(shapes) {
  return shapes.map((shape) => (shape.layer === "below" ? shape : null));
}

// Hides those of Plotly's marks or names that are at one of these places in its list, and shows the others.
function hide(chart, selector, places) {
  for (const one of chart.querySelectorAll(selector)) one.style.visibility = places.has(Number(one.dataset.index)) ? "hidden" : "";
}

// From which px on the chart looks other than it was drawn last on the same sheet; 0 if all of it may.
function since(chart, sheet, { laid, spec, dense, notes }) {
  const before = chart.drawn;
  if (!before || before.laid !== laid || before.dense !== dense || !same(before.spec.layout.shapes, spec.layout.shapes)) return 0;
  const moved = changes(before.notes, notes), names = [...moved.added, ...[...moved.removed].map((nth) => before.notes[nth])];
  return Math.min(...names.map(({ left }) => left), ...spec.data.map((trace, nth) => sheet.since(before.spec.data[nth], trace, nth)));
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
  const [before, now] = [laid.layout, spec.layout].map(({ annotations: _a, shapes: _s, meta, ...layout }) => ({ ...layout, meta: { ...meta, step: 0 } }));
  return same(before, now) && laid.data.every((trace, nth) => same(trace, form(spec.data[nth])));
}

// A trace without its data. Bars may change their colours too.
function form(trace) {
  const rest = { ...trace };
  for (const name of NOT_FORM) delete rest[name];
  if (trace.type === "bar" && Array.isArray(trace.marker?.color)) rest.marker = { ...trace.marker, color: trace.marker.color.length };
  return rest;
}

// Of marks or names: those that Plotly drew and that are gone or have changed, by their place in the list, and those that are new.
function changes(before, after) {
  const added = after.filter(Boolean), removed = new Set();
  before.forEach((one, nth) => {
    if (!one) return;
    const at = added.findIndex((other) => same(one, other));
    if (at < 0) removed.add(nth);
    else added.splice(at, 1);
  });
  return { removed, added };
}
