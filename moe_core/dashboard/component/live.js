// The live component: tiles and charts of one page, drawn from the frames of the live route.
// Text goes through textContent, never into HTML. Shapes: see moe_core/dashboard/live.py.

const mounted = new WeakMap();
const KINDS = { f4: Float32Array, f8: Float64Array, u1: Uint8Array };
let plotly;

function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    if (window.Plotly) return resolve(window.Plotly);
    const script = document.createElement("script");
    script.src = "/moescope/plotly.min.js";
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("plotly.js cannot be loaded"));
    document.head.append(script);
  });
  return plotly;
}

export function mount({ parentElement, data }) {
  const key = JSON.stringify(data);
  const before = mounted.get(parentElement);
  if (before?.key === key) return before.unmount;
  before?.unmount();
  const view = new View(parentElement, data);
  const unmount = () => {
    view.close();
    mounted.delete(parentElement);
  };
  mounted.set(parentElement, { key, unmount });
  return unmount;
}

class View {
  constructor(parent, data) {
    this.data = data;
    this.root = document.createElement("div");
    this.root.className = `moescope moescope-${data.page} moescope-${data.task}`;
    parent.replaceChildren(this.root);
    this.tiles = element("div", "moescope-tiles", this.root);
    this.notice = element("div", "moescope-notice", this.root);
    this.notice.setAttribute("role", "status");
    this.grid = element("div", "moescope-grid", this.root);
    this.charts = new Map();
    for (const name of data.figures) {
      const chart = element("div", "moescope-chart", this.grid);
      chart.dataset.figure = name;
      this.charts.set(name, chart);
    }
    this.drawn = 0;
    this.closed = false;
    this.retry = 250;
    this.resized = new ResizeObserver(() => this.say());
    for (const chart of this.charts.values()) this.resized.observe(chart);
    this.pulse = setInterval(() => this.look(), 500);
    loadPlotly().then(() => this.connect(), (error) => this.tell(error.message));
  }

  theme() {
    const colour = getComputedStyle(this.root).getPropertyValue("--st-background-color").trim();
    const parts = colour.match(/^#(..)(..)(..)/)?.slice(1).map((hex) => parseInt(hex, 16)) ?? colour.match(/\d+/g)?.map(Number);
    return parts && parts[0] + parts[1] + parts[2] < 384 ? "dark" : "light";
  }

  connect() {
    if (this.closed) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/moescope/live/${encodeURIComponent(this.data.run)}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.retry = 250;
      this.tell("");
      this.say();
    };
    this.socket.onmessage = (message) => this.draw(message.data);
    this.socket.onclose = () => {
      if (this.closed) return;
      this.lost ??= Date.now();
      setTimeout(() => this.connect(), this.retry);
      this.retry = Math.min(2 * this.retry, 4000);
    };
  }

  // What is looked at: sent at the start, after each frame, and when a size, the theme or a zoom changes.
  say() {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    const sizes = {}, spans = {};
    for (const [name, chart] of this.charts) {
      const box = chart.getBoundingClientRect();
      const seen = box.bottom > -200 && box.top < innerHeight + 200;
      if (seen && box.width > 0) sizes[name] = [Math.round(box.width), Math.round(box.height)];
      const axis = chart._fullLayout?.xaxis;
      if (chart.dataset.zoomed && axis) spans[name] = axis.range.map(Number);
    }
    document.querySelector(".stApp").dataset.moeTheme = this.theme();
    this.said = this.theme() + JSON.stringify([sizes, spans]);
    this.socket.send(JSON.stringify({
      theme: this.theme(), page: this.data.page, layer: this.data.layer, sizes, spans, drawn: this.drawn,
      wide: innerWidth >= 1600,
    }));
  }

  look() {
    if (this.lost && this.socket?.readyState === WebSocket.OPEN) this.lost = undefined;
    if (this.lost && Date.now() - this.lost > 4000) {
      this.tell(`No news for ${Math.round((Date.now() - this.lost) / 1000)} s. The run goes on; trying to reach the dashboard again.`);
    }
    if (this.said !== undefined && !this.said.startsWith(this.theme())) this.say();
  }

  tell(text, state = "") {
    if (this.notice.textContent !== text) this.notice.textContent = text;
    this.notice.dataset.state = state;
  }

  async draw(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const start = 4 + length;
    this.lost = undefined;
    this.drawTiles(header.tiles);
    this.tell(banner(header), header.state);
    try {
      for (const [name, spec] of Object.entries(header.figures)) {
        await new Promise(requestAnimationFrame); // one chart a frame: long tasks would make the sliders stutter
        if (this.closed) return;
        await this.drawChart(this.charts.get(name), revive(spec, buffer, start));
      }
    } catch (error) {
      console.error("a chart could not be drawn:", error);
    } finally {
      this.drawn = header.seq; // said even then, or the server would wait for ever
      this.say();
    }
  }

  async drawChart(chart, spec) {
    if (chart.dataset.zoomed && spec.layout.xaxis) spec.layout.xaxis.range = [...chart._fullLayout.xaxis.range];
    const box = chart.getBoundingClientRect();
    spec.layout.width = Math.round(box.width);
    spec.layout.height = Math.round(box.height);
    const config = {
      displaylogo: false, responsive: false, doubleClick: "reset",
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      toImageButtonOptions: { format: "png", scale: 2, filename: chart.dataset.figure },
      modeBarButtonsToAdd: [saveSvg],
    };
    const first = !chart._fullLayout;
    await window.Plotly.react(chart, spec.data, spec.layout, config);
    if (!first) return;
    chart.on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change || "xaxis.range" in change) chart.dataset.zoomed = "yes";
      if (change["xaxis.autorange"] || "xaxis.showspikes" in change) delete chart.dataset.zoomed;
      this.say();
    });
    chart.on("plotly_doubleclick", () => {
      delete chart.dataset.zoomed;
      this.say();
    });
  }

  drawTiles(tiles) {
    tiles.forEach((tile, at) => {
      let place = this.tiles.children[at];
      if (!place) {
        place = element("div", at ? "moescope-tile" : "moescope-tile moescope-hero", this.tiles);
        for (const part of ["label", "number", "word", "line", "line", "hand"]) element("div", `moescope-${part}`, place);
        const number = place.querySelector(".moescope-number");
        element("span", "moescope-value", number).dataset.stat = tile.name;
        element("span", "moescope-unit", number);
      }
      const put = (selector, text, nth = 0) => {
        const part = place.querySelectorAll(selector)[nth];
        if (part.textContent !== text) part.textContent = text;
      };
      put(".moescope-label", tile.label);
      put(".moescope-value", tile.value);
      put(".moescope-unit", tile.unit);
      put(".moescope-word", tile.word);
      put(".moescope-line", tile.lines[0] ?? "", 0);
      put(".moescope-line", tile.lines[1] ?? "", 1);
      put(".moescope-hand", tile.hand_line);
    });
  }

  close() {
    this.closed = true;
    clearInterval(this.pulse);
    this.resized.disconnect();
    this.socket?.close();
    for (const chart of this.charts.values()) window.Plotly?.purge(chart);
  }
}

function banner({ state, reason, step }) {
  const at = `step ${step.toLocaleString("en")}`;
  return {
    paused: `Paused at ${at}. ${reason || "Knobs act on the next step."}`,
    finished: `Finished at ${at}. Everything recorded is kept.`,
    stopped: `Stopped at ${at}. Everything recorded is kept.`,
    failed: `Failed at ${at}: ${reason} Everything recorded until then is kept.`,
    interrupted: `The trainer died after ${at}. Everything recorded until then is kept.`,
  }[state] ?? reason;
}

function element(tag, name, parent) {
  const made = document.createElement(tag);
  made.className = name;
  parent.append(made);
  return made;
}

// References into the buffer become typed arrays; a matrix becomes its rows, which is what Plotly wants.
function revive(value, buffer, start) {
  if (Array.isArray(value)) return value.map((inner) => revive(inner, buffer, start));
  if (value === null || typeof value !== "object") return value;
  if (value.$array) {
    const [kind, offset, ...shape] = value.$array;
    const size = shape.reduce((a, b) => a * b, 1);
    const flat = new KINDS[kind](buffer, start + offset, size);
    return split(flat, shape);
  }
  for (const key of Object.keys(value)) value[key] = revive(value[key], buffer, start);
  return value;
}

function split(flat, shape) {
  if (shape.length === 1) return flat;
  const size = flat.length / shape[0];
  return Array.from({ length: shape[0] }, (_, row) => split(flat.subarray(row * size, (row + 1) * size), shape.slice(1)));
}

const saveSvg = {
  name: "Download plot as SVG",
  title: "Download plot as SVG",
  icon: { width: 24, height: 24, path: "M5 20h14v-2H5v2zM19 9h-4V3H9v6H5l7 7 7-7z" },
  click: (chart) => window.Plotly.downloadImage(chart, { format: "svg", filename: chart.dataset.figure }),
};
