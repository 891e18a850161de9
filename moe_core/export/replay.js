// Plays a recorded run, which is in REPLAY (see moe_core/export/replay.py). Text goes through textContent, never into HTML.
"use strict";

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const R = REPLAY;
let E = R.experts[R.layer]; // of the layer that is shown
const steps = new Float64Array(bytes(R.steps));
const rows = R.rows.map((one) => Object.fromEntries(Object.entries(one).map(([name, text]) =>
  [name, ["selection_share", "load", "importance"].includes(name) ? new Uint16Array(bytes(text)) : new Float32Array(bytes(text))])));
const loss = { x: new Float64Array(bytes(R.loss.x)), y: new Float32Array(bytes(R.loss.y)) };
const last = steps.length - 1;
const state = { at: last, layer: R.layer, playing: false, speed: 1, theme: "light" };

function make(tag, parent, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

// The frame
const tiles = make("div", document.body, "tiles");
const main = make("div", document.body, "main");
const knobs = make("section", main, "knobs");
make("h2", knobs, "", "Knobs");
const table = make("table", knobs);
const charts = {};
for (const name of ["selection_share", "balance_now", "balance", "loss"]) {
  charts[name] = make("div", main, "chart");
  charts[name].dataset.figure = name;
}
const routing = make("section", main, "routing");
const bar = make("div", document.body, "bar");
const play = make("button", bar, "main-act", "Play");
const slider = make("input", bar);
Object.assign(slider, { type: "range", min: 0, max: last, value: last, step: 1 });
slider.setAttribute("aria-label", "step");
const output = make("output", bar);
const speed = make("select", bar);
speed.setAttribute("aria-label", "speed");
for (const times of [0.25, 0.5, 1, 2, 4, 8]) {
  const option = make("option", speed, "", `${times} ×`);
  option.value = times;
  option.selected = times === 1;
}
if (R.layers > 1) {
  const layer = make("select", bar);
  layer.setAttribute("aria-label", "layer");
  for (let i = 0; i < R.layers; i++) Object.assign(make("option", layer, "", `layer ${i + 1}`), { value: i, selected: i === state.layer });
  layer.onchange = () => { state.layer = Number(layer.value); E = R.experts[state.layer]; draw(); };
}

// The state at a row
const row = (name) => rows[state.layer][name].subarray(state.at * E, (state.at + 1) * E);
const number = (name) => rows[state.layer][name][state.at];
const upTo = (sorted, step) => { let lo = 0, hi = sorted.length; while (lo < hi) { const m = (lo + hi) >> 1; if (sorted[m] <= step) lo = m + 1; else hi = m; } return lo; };
const percents = (parts) => Array.from(parts, (v) => v / 655.35);
const fixed = (v, digits) => Number.isFinite(v) ? v.toFixed(digits).replace("-", "−") : "–";

// The experts of the layer that are switched off, from 0
const offAt = (step) => new Set(R.off.filter(([layer, , first, end]) => layer === state.layer && first <= step && step < end).map(([, e]) => e));
const wordOf = (cv) => (cv < R.words[0] ? "Balanced" : cv <= R.words[1] ? "Uneven" : "Collapsed");
const alone = (cv, step) => cv < R.words[0] && (E - offAt(step).size === 1 ? R.words[3] : number("untaught") && R.words[2]);

// The word for the balance and the line below it, as in figures/pages/live.py
function balanceWords(cv, step) {
  const held = R.held_out[state.layer], n = upTo(held.steps, step), word = wordOf(cv);
  if (alone(cv, step)) return [alone(cv, step), n ? `${held.where[n - 1]} ${fixed(held.cv[n - 1], 2)}` : ""];
  if (!n) return [`${word} in training`, "not measured without noise"];
  const [at, other, where] = [held.steps[n - 1], held.cv[n - 1], held.where[n - 1]];
  const since = !R.knobs.some((one) => one.hand && one.step > at && one.step <= step);
  const both = since && wordOf(other) === word;
  return [both ? word : `${word} in training`, `${where} ${fixed(other, 2)}, ${since ? wordOf(other).toLowerCase() : `step ${at.toLocaleString("en")}`}`];
}

function drawTiles(step) {
  const cv = number("cv_load"), [word, line] = balanceWords(cv, step), on = E - offAt(step).size;
  const of = on < E ? `of ${on} on` : `of ${E}`;
  const list = [
    ["cv_load", `CV(load), this step${on < E ? `, ${on} of ${E} on` : ""}`, fixed(cv, 2), word, line],
    ["cv_importance", "CV(importance)", fixed(number("cv_importance"), 2), "", "even is 0"],
    ["max_over_mean_load", "Max / mean load", fixed(number("max_over_mean_load"), 2), "×", ""],
    ["dead_experts", "Dead experts", fixed(number("dead_experts"), 0), of, `${fixed(number("effective_experts"), 1)} effective`],
  ];
  if (R.metric) {
    const { label, unit, steps, values, ahead } = R.metric, seen = upTo(steps, step);
    list.push(["heldout", label, seen ? fixed(values[seen - 1], 3) : "–", unit, seen ? ahead[seen - 1] || `at step ${steps[seen - 1].toLocaleString("en")}` : "not measured yet"]);
  }
  list.forEach(([name, label, value, unit, line], i) => {
    let tile = tiles.children[i];
    if (!tile) {
      tile = make("div", tiles, "tile");
      make("div", tile, "label", label);
      const place = make("div", tile, "value");
      make("span", place).dataset.stat = name;
      make("small", place);
      make("div", tile, "line");
    }
    tile.querySelector(".label").textContent = label;
    tile.querySelector("span").textContent = value;
    tile.querySelector("small").textContent = unit;
    tile.querySelector(".line").textContent = line;
  });
}

function drawKnobs(step) {
  const now = new Map();
  for (const one of R.knobs) if (one.step <= step) now.set(one.name, one);
  table.replaceChildren();
  for (const one of now.values()) {
    // A change stays marked for a while, as on the charts.
    const line = make("tr", table, one.step > 0 && step - one.step <= 0.03 * steps[last] ? "turned" : "");
    line.dataset.knob = one.name;
    make("td", line, "", one.label);
    make("td", line, "", one.value);
  }
}

const SPEC = {
  selection_share(spec, step, count) {
    if (spec.data[0].type === "heatmap") {
      for (const map of spec.data) {
        const shown = upTo(map.x, step);
        map.z = map.z.map((line) => line.map((v, i) => (i < shown ? v : null)));
      }
      return;
    }
    const all = rows[state.layer].selection_share, x = lineSteps(count), off = x.map((i) => offAt(steps[i]));
    spec.data.forEach((trace, e) => {
      if (e >= E) { // experts that were off, and the ideal where it changed
        const held = upTo(trace.x, step);
        Object.assign(trace, { x: trace.x.slice(0, held), y: trace.y.slice(0, held) });
        return;
      }
      trace.x = x.map((i) => steps[i]);
      trace.y = x.map((i, at) => (off[at].has(e) ? null : all[i * E + e] / 655.35));
    });
    spec.layout.annotations = [];
  },
  balance_now(spec, step) {
    const load = percents(row("load")), importance = percents(row("importance"));
    const said = (text) => text?.replace(/ at step [\d,]+/, ` at step ${step.toLocaleString("en")}`);
    for (const trace of spec.data) if (trace.hovertemplate) trace.hovertemplate = said(trace.hovertemplate);
    const off = offAt(step), on = E - off.size, look = R.themes[state.theme];
    if (spec.data.length > 1) {
      const known = (share) => share.map((v, e) => (off.has(e) ? null : v));
      spec.data.length = 3;
      spec.data[0].y = known(load);
      spec.data[1].y = spec.data[2].y = known(importance);
      const line = spec.layout.shapes.find((shape) => shape.type === "line"), ideal = 100 / on;
      const band = (e) => ({ type: "rect", xref: "x", yref: "paper", x0: e + 0.625, x1: e + 1.375, y0: 0, y1: 1, layer: "below", line: { width: 0 }, fillcolor: look.rule });
      spec.layout.shapes = [{ ...line, y0: ideal, y1: ideal }, ...[...off].map(band)];
      const font = { color: look.ink2, size: spec.layout.font.size, family: spec.layout.font.family };
      spec.layout.annotations = [...off].map((e) => ({ text: "off", x: e + 1, y: 0, xref: "x", yref: "paper", xanchor: "center", yanchor: "bottom", showarrow: false, font }));
      spec.layout.title.text = spec.layout.title.text.replace(/ideal [\d.]+ %( of \d+ on)?/, `ideal ${ideal.toFixed(1)} %${on < E ? ` of ${on} on` : ""}`);
      let top = 200 / on;
      while (top < Math.max(...load)) top *= 2;
      spec.layout.yaxis.range = [0, Math.min(top, E > 1 ? 100 : 200)];
      return;
    }
    const order = Array.from(load.keys()).filter((e) => !off.has(e)).sort((a, b) => load[b] - load[a]);
    const ratio = order.map((e) => load[e] * on / 100);
    Object.assign(spec.data[0], { x: ratio.map((_, i) => i + 1), y: ratio.map((r) => r - 1), customdata: ratio.map((r, i) => [order[i] + 1, r]) });
    spec.data[0].marker.color = ratio.map((r) => (r >= 1 ? look.over : look.under));
    let top = 2;
    while (top < ratio[0]) top *= 2;
    spec.layout.yaxis.range = [0, top];
    spec.layout.annotations = [];
  },
  balance(spec, step, count) {
    const x = lineSteps(count), xs = x.map((i) => steps[i]);
    ["cv_importance", "cv_load"].forEach((name, t) => {
      const all = rows[state.layer][name];
      const true_ = x.map((i) => all[i]);
      Object.assign(spec.data[t], { x: xs, y: true_.map((v) => Math.max(v, 0.02)), customdata: true_ });
    });
    spec.layout.annotations = ends(spec.layout, [["importance", number("cv_importance")], ["load", number("cv_load")]]);
  },
  loss(spec, step) {
    const n = upTo(loss.x, step), [training, ...heldOut] = spec.data;
    Object.assign(training, { x: loss.x.subarray(0, n), y: loss.y.subarray(0, n) });
    for (const trace of heldOut) {
      const held = upTo(trace.x, step);
      Object.assign(trace, { x: trace.x.slice(0, held), y: trace.y.slice(0, held) });
    }
  },
};

// At most about 800 rows for a line: of each stretch of steps the least and the most balanced row, so that no collapse is lost.
function lineSteps(count) {
  if (count <= 800) return Array.from({ length: count }, (_, i) => i);
  const cv = rows[state.layer].cv_load, width = 2 ** Math.ceil(Math.log2(count / 400)), kept = [];
  for (let from = 0; from < count; from += width) {
    let low = from, high = from;
    for (let i = from; i < Math.min(from + width, count); i++) {
      if (cv[i] < cv[low]) low = i;
      if (cv[i] > cv[high]) high = i;
    }
    kept.push(Math.min(low, high));
    if (low !== high) kept.push(Math.max(low, high));
  }
  if (kept[kept.length - 1] !== count - 1) kept.push(count - 1);
  return kept;
}

function ends(layout, named) {
  const [lo, hi] = layout.yaxis.range, height = layout.height - layout.margin.t - layout.margin.b;
  const list = named.filter(([, v]) => Number.isFinite(v)).map(([name, v]) => ({ text: `${name} ${v.toFixed(2)}`, y: (Math.log10(Math.max(v, 0.02)) - lo) / (hi - lo) }));
  list.sort((a, b) => b.y - a.y);
  if (list.length === 2 && (list[0].y - list[1].y) * height < 16) list[1].y = list[0].y - 16 / height;
  return list.map(({ text, y }) => ({ text, x: 1, y, xref: "paper", yref: "paper", xanchor: "left", yanchor: "middle", xshift: 6, showarrow: false, font: { color: layout.font.color, size: layout.font.size, family: layout.font.family } }));
}

const copy = (value) => (Array.isArray(value) ? value.map(copy) : value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, copy(v)])) : value);

async function drawChart(name, step) {
  const spec = copy(R.specs[state.theme][state.layer][name]), place = charts[name];
  spec.layout.width = place.clientWidth;
  const changes = spec.layout.annotations.filter((one) => one.xref === "x");
  SPEC[name](spec, step, state.at + 1);
  // A line where a knob was turned appears when it is turned.
  spec.layout.shapes = spec.layout.shapes.filter((shape) => name === "balance_now" || shape.xref !== "x" || shape.x0 <= step);
  for (const shape of spec.layout.shapes) if (name !== "balance_now" && shape.type === "rect") shape.x1 = Math.min(shape.x1, step);
  if (name !== "balance_now") spec.layout.annotations = [...spec.layout.annotations.filter((one) => one.xref !== "x"), ...changes.filter((one) => one.x <= step)];
  spec.layout.meta.step = step;
  await Plotly.react(place, spec.data, spec.layout, { displaylogo: false, doubleClick: "reset", modeBarButtonsToRemove: ["sendChartToCloud"] });
}

// The routing: which expert comes first for each byte, image, row or point of the probe
const picture = R.probe.steps.length ? (make("h2", routing, "", "Routing of the probe"), make("canvas", routing)) : null;
const caption = picture && make("p", routing, "line");

function drawRouting(step) {
  if (!picture) return;
  const shot = Math.max(0, upTo(R.probe.steps, step) - 1), n = R.probe.count;
  const first = new Uint16Array(bytes(R.probe.first[shot])).subarray(state.layer * n, (state.layer + 1) * n);
  const look = R.themes[state.theme], colour = (e) => (e >= E ? look.ground : E > 20 ? look.ink2 : look.experts[e % look.experts.length]);
  const flat = R.kind === "points", across = flat ? 0 : R.kind === "bytes" ? 64 : 32, w = 960 / across;
  const h = w * (R.kind === "bytes" ? 1.4 : R.kind === "images" ? R.probe.height / R.probe.width : 1);
  picture.width = flat ? 640 : 960;
  picture.height = flat ? 640 : Math.ceil(n / across) * h;
  picture.style.maxWidth = `${picture.width}px`;
  const pen = picture.getContext("2d");
  pen.fillStyle = look.ground;
  pen.fillRect(0, 0, picture.width, picture.height);
  const before = R.probe.steps[shot] > step;
  if (R.kind === "bytes") {
    pen.font = "12px 'Source Code', monospace";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let i = 0; i < n && !before; i++) {
      const x = (i % across) * w, y = Math.floor(i / across) * h, code = R.probe.tokens[i];
      pen.fillStyle = colour(first[i]);
      pen.fillRect(x, y, w - 1, h - 2);
      pen.fillStyle = light(pen.fillStyle) ? "#0B0E12" : "#FFFFFF";
      pen.fillText(code === 10 ? "¶" : code === 32 ? "·" : code > 32 && code < 127 ? String.fromCharCode(code) : "□", x + w / 2, y + h / 2);
    }
  } else if (R.kind === "images") {
    const pixels = new Uint8Array(bytes(R.probe.images)), { width, height } = R.probe, cell = (w - 4) / width;
    for (let i = 0; i < n && !before; i++) {
      const x = (i % across) * w, y = Math.floor(i / across) * h;
      pen.fillStyle = colour(first[i]);
      pen.fillRect(x, y, w - 1, h - 1);
      for (let p = 0; p < width * height; p++) {
        const v = pixels[i * width * height + p];
        pen.fillStyle = `rgba(255,255,255,${v / 16})`;
        if (v) pen.fillRect(x + 2 + (p % width) * cell, y + 2 + Math.floor(p / width) * cell, cell, cell);
      }
    }
  } else if (R.kind === "rows") {
    pen.font = "12px 'Source Sans', sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let i = 0; i < n && !before; i++) {
      const x = (i % across) * w, y = Math.floor(i / across) * h;
      pen.fillStyle = colour(first[i]);
      pen.fillRect(x, y, w - 1, h - 1);
      pen.fillStyle = light(pen.fillStyle) ? "#0B0E12" : "#FFFFFF";
      pen.fillText(i, x + w / 2, y + h / 2);
    }
    picture.onpointermove = (event) => {
      const box = picture.getBoundingClientRect(), zoom = picture.width / box.width;
      const i = Math.floor((event.clientY - box.top) * zoom / h) * across + Math.floor((event.clientX - box.left) * zoom / w);
      picture.title = i >= 0 && i < n && !before ? `${R.probe.rows[i]}${first[i] < E ? `; first expert ${first[i] + 1}` : ""}` : "";
    };
  } else {
    const s = R.probe.side, [x0, x1, y0, y1] = R.probe.extent, size = picture.width;
    const map = R.probe.regions.length && new Uint16Array(bytes(R.probe.regions[shot])).subarray(state.layer * s * s, (state.layer + 1) * s * s);
    pen.globalAlpha = 0.25;
    for (let i = 0; map && i < s * s && !before; i++) {
      pen.fillStyle = colour(map[i]);
      pen.fillRect((i % s) * size / s, size - (Math.floor(i / s) + 1) * size / s, size / s, size / s);
    }
    pen.globalAlpha = 1;
    R.probe.points.forEach(([x, y], i) => {
      if (before) return;
      pen.fillStyle = colour(first[i]);
      pen.strokeStyle = look.ground;
      pen.beginPath();
      pen.arc((x - x0) / (x1 - x0) * size, size - (y - y0) / (y1 - y0) * size, 4.5, 0, 7);
      pen.fill();
      pen.stroke();
    });
  }
  caption.textContent = before ? "No snapshot of the probe had been taken yet." :
    `Colour: the first expert of each ${R.kind.slice(0, -1)}, as recorded at step ${R.probe.steps[shot].toLocaleString("en")}.`;
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", caption.textContent);
}

function light(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140;
}

// Drawing, playing
let busy = false, again = false;
async function draw() {
  if (busy) { again = true; return; }
  busy = true;
  do {
    again = false;
    const step = steps[state.at];
    slider.value = state.at;
    output.textContent = `step ${step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    drawTiles(step);
    drawKnobs(step);
    drawRouting(step);
    for (const name of Object.keys(charts)) await drawChart(name, step);
    document.body.dataset.step = step;
  } while (again);
  busy = false;
}

function go(at) {
  state.at = Math.min(Math.max(Math.round(at), 0), last);
  return draw();
}

const WHOLE = 30; // seconds for the whole run at 1 ×
let begun, from;
function tick(now) {
  if (!state.playing) return;
  const at = from + ((now - begun) / 1000) * state.speed * last / WHOLE;
  go(at);
  if (at >= last) return pause();
  requestAnimationFrame(tick);
}

function start() {
  if (state.at >= last) state.at = 0;
  Object.assign(state, { playing: true });
  [begun, from] = [performance.now(), state.at];
  play.textContent = "Pause";
  requestAnimationFrame(tick);
}

function pause() {
  state.playing = false;
  play.textContent = "Play";
}

play.onclick = () => (state.playing ? pause() : start());
slider.oninput = () => { pause(); go(Number(slider.value)); };
speed.onchange = () => {
  state.speed = Number(speed.value);
  [begun, from] = [performance.now(), state.at];
};
document.addEventListener("keydown", (event) => {
  if (["SELECT", "BUTTON"].includes(event.target.tagName) && event.key !== "Escape") return;
  const far = Math.max(1, Math.round(last / 100));
  const act = {
    " ": () => (state.playing ? pause() : start()), ArrowLeft: () => go(state.at - (event.shiftKey ? far : 1)),
    ArrowRight: () => go(state.at + (event.shiftKey ? far : 1)), Home: () => go(0), End: () => go(last),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  if (event.key !== " ") pause();
  act();
});
const dark = matchMedia("(prefers-color-scheme: dark)");
function dress() {
  state.theme = dark.matches ? "dark" : "light";
  document.documentElement.className = state.theme;
  draw();
}
dark.addEventListener("change", dress);
addEventListener("resize", draw);
document.fonts.ready.then(dress);
