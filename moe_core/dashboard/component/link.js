// One socket a run, shared by the page's charts and the panel beside them. It sends the view (page, layer, step, sizes, zoom),
// receives frames (see moe_core/dashboard/live.py), and sends deeds: turns, commands and forks.

export const HERE = new URL("./", import.meta.url); // where the dashboard's files are: a proxy may have put them anywhere
const KINDS = { f4: Float32Array, f8: Float64Array, u1: Uint8Array };
const links = new Map();
const PINS = 8; // as SOME of figures/palette.py
let layerBefore = 1; // the layer that was shown last, of any run

// The link of a run, kept while anyone uses it. Layer and step are kept too, so that the next page shows the same.
export function join(run, user) {
  if (!links.has(run)) links.set(run, new Link(run));
  const link = links.get(run);
  layerBefore = link.layer;
  link.users.add(user);
  link.open();
  return link;
}

export function element(tag, name, parent, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Sets words of the page's link; null removes one. The browser's history gets no entry, so Back goes to the page before.
export function nameInLink(words) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(words)) {
    if (value === null) url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  if (url.href !== location.href) history.replaceState(history.state, "", url);
}

class Link {
  constructor(run) {
    this.run = run;
    this.users = new Set();
    this.view = null; // the page's charts: gives `asks()`, draws in `draw(header)`
    this.drawn = 0;
    this.nth = 0; // the number of deeds sent; `heard` below is the last that was answered
    this.panels = new Set(); // numbers of the deeds that the panel sent
    this.heard = 0;
    this.retry = 250;
    const named = new URLSearchParams(location.search);
    this.layer = whole(named.get("layer")) ?? layerBefore; // a fork opens at its parent's layer
    this.step = whole(named.get("step"));
    this.pinned = (named.get("pinned") ?? "").split(",").map(whole).filter(Boolean).slice(0, PINS); // experts, from 1
  }

  leave(user) {
    this.users.delete(user);
    if (this.users.size) return;
    // The next page's half may mount a moment later.
    setTimeout(() => {
      if (this.users.size) return;
      clearInterval(this.pulse);
      this.pulse = undefined;
      this.socket?.close();
      this.socket = undefined;
    }, 1000);
  }

  open() {
    this.pulse ??= setInterval(() => this.look(), 500);
    if (this.socket) return;
    const address = new URL(`live/${encodeURIComponent(this.run)}`, HERE);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.retry = 250;
      this.drawn = 0;
      this.say();
    };
    socket.onmessage = (message) => this.take(message.data, socket);
    socket.onclose = (event) => {
      if (this.socket !== socket) return;
      if ([4404, 4429].includes(event.code)) for (const user of this.users) user.refused?.(event.reason);
      this.socket = undefined;
      this.heard = this.nth; // deeds without an answer get none over a new socket
      this.lost ??= Date.now();
      setTimeout(() => this.users.size && this.open(), this.retry);
      this.retry = Math.min(2 * this.retry, 4000);
    };
  }

  get ready() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  // Sends the view: at the start, after each frame, and when a size, the theme, a zoom, the layer or the step changes.
  say() {
    if (!this.ready) return;
    const app = document.querySelector(".stApp"), theme = themeOf(app);
    if (app.dataset.moeTheme !== theme) app.dataset.moeTheme = theme;
    this.theme = theme;
    this.socket.send(JSON.stringify({
      theme, page: "", sizes: {}, span: null, ...this.view?.asks(),
      layer: this.layer - 1, step: this.step, drawn: this.drawn, took: this.took ?? 0, wide: innerWidth >= 1600,
    }));
  }

  // Sends a deed: {turn: {knob: value}, gesture}, {command} or {fork: step}. Returns its number, 0 if it could not be sent.
  ask(deed) {
    if (!this.ready) return 0;
    this.nth += 1;
    this.socket.send(JSON.stringify({ ...deed, nth: this.nth }));
    return this.nth;
  }

  goTo({ layer = this.layer, step = this.step }) {
    this.layer = layerBefore = layer;
    this.step = step;
    for (const user of this.users) user.went?.();
    this.mark();
    this.say();
  }

  // Pins an expert, so that it has a colour where not all can have one; one that is pinned is let go.
  pin(expert) {
    const others = this.pinned.filter((one) => one !== expert);
    this.pinned = others.length < this.pinned.length ? others : [...others, expert].slice(-PINS);
    this.mark();
    this.say();
  }

  // Writes layer, step and pins into the page's link, so that a copied link opens the same view.
  mark() {
    const named = new URLSearchParams(location.search).has("layer");
    nameInLink({ layer: this.layer > 1 || named ? this.layer : null, step: this.step, pinned: this.pinned.join(",") || null });
  }

  async take(buffer, socket) {
    const began = performance.now();
    let took = 0;
    window.moescopeBytes = (window.moescopeBytes ?? 0) + buffer.byteLength; // both for benchmarks/dashboard.py
    window.moescopeFrames = (window.moescopeFrames ?? 0) + 1;
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    this.lost = undefined;
    const hasWords = "tiles" in header; // numbers and words come with some of the frames
    this.header = { ...this.header, ...header };
    if (header.answer.nth) this.heard = Math.max(this.heard, header.answer.nth);
    if (header.panel) this.panel = header.panel;
    if (header.paper) this.paper = header.paper;
    try {
      if (hasWords) for (const user of this.users) user.take?.(header);
      const figures = {};
      for (const [name, spec] of Object.entries(header.figures)) figures[name] = () => revive(spec, buffer, 4 + length + header.from[name]);
      took = performance.now() - began;
      took += (await this.view?.draw(header, figures, hasWords)) ?? 0;
    } catch (error) {
      console.error("a frame could not be drawn:", error);
    } finally {
      this.took = Math.min(10_000, took);
      if (this.socket === socket) this.drawn = header.seq; // even if drawing failed, or the server would wait for ever
      this.say();
    }
  }

  look() {
    const silent = this.lost && !this.ready ? Date.now() - this.lost : 0;
    for (const user of this.users) user.silent?.(silent > 4000 ? Math.round(silent / 1000) : 0);
    if (this.theme && this.theme !== themeOf(document.querySelector(".stApp"))) this.say();
  }
}

// A whole number from 1 on, as a link may name it; null for anything else.
function whole(text) {
  return /^0*[1-9][0-9]{0,14}$/.test(text ?? "") ? Number(text) : null;
}

function themeOf(node) {
  const colour = getComputedStyle(node).backgroundColor.match(/[\d.]+/g)?.map(Number);
  return colour && colour[0] + colour[1] + colour[2] < 384 ? "dark" : "light";
}

// References into the buffer become typed arrays; a matrix becomes its rows, which is what Plotly wants.
function revive(value, buffer, start) {
  if (Array.isArray(value)) return value.map((inner) => revive(inner, buffer, start));
  if (value === null || typeof value !== "object") return value;
  if (value.$array) {
    const [kind, offset, ...shape] = value.$array;
    const size = shape.reduce((a, b) => a * b, 1);
    return split(new KINDS[kind](buffer, start + offset, size), shape);
  }
  for (const key of Object.keys(value)) value[key] = revive(value[key], buffer, start);
  return value;
}

function split(flat, shape) {
  if (shape.length === 1) return flat;
  const size = flat.length / shape[0];
  return Array.from({ length: shape[0] }, (_, row) => split(flat.subarray(row * size, (row + 1) * size), shape.slice(1)));
}
