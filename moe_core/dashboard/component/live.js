// The charts of a page: tiles, charts and the scrubber, drawn from the frames of the live route.
// Text goes through textContent, never into HTML.

import { exportLink } from "./export.js";
import { HERE, element, join } from "./link.js";
import { Findings } from "./findings.js";
import { listen, oneStop } from "./modebar.js";
import { onPaper, onPrint, place, printing } from "./print.js";
import { forget, isKnown, layOut, redraw } from "./redraw.js";
import { Scrubber } from "./scrubber.js";
import { Smooth } from "./smooth.js";
import { leaveScrolling } from "./touch.js";

const REST = 1000; // ms after the last frame until Plotly is given what the canvas drew,
const POINTED = 400; // and the same while somebody points at the chart

let plotly;

// Loads plotly.js once, trying again until it is there: the server may be restarting.
export function loadPlotly() {
  plotly ??= new Promise((resolve) => {
    const load = () => {
      const script = document.createElement("script");
      script.src = new URL("plotly.min.js", HERE);
      script.onload = resolve;
      script.onerror = () => {
        script.remove();
        setTimeout(load, 1000);
      };
      document.head.append(script);
    };
    if (window.Plotly) resolve();
    else load();
  });
  return plotly;
}

export class View {
  constructor(parent, data, tell) {
    this.data = data;
    this.tell = tell;
    this.root = element("div", `moescope moescope-${data.page} moescope-${data.probe}`, parent);
    this.tiles = element("div", "moescope-tiles", this.root);
    this.notice = element("div", "moescope-notice", this.root);
    this.notice.setAttribute("role", "status");
    this.link = join(data.run, this);
    this.findings = new Findings(this.root, this.link);
    this.grid = element("div", "moescope-grid", this.root);
    this.charts = new Map();
    for (const name of data.figures) {
      const cell = element("div", "moescope-cell", this.grid);
      const chart = element("div", "moescope-chart", cell);
      chart.dataset.figure = name;
      element("div", "moescope-mark", cell).hidden = true;
      element("div", "moescope-undrawn", cell).setAttribute("role", "status");
      cell.hidden = name === "knobs";
      cell.addEventListener("pointermove", (event) => this.hover(chart, event));
      cell.addEventListener("pointerleave", () => this.point(null));
      for (const near of ["pointerenter", "focusin"]) cell.addEventListener(near, () => this.settle(chart));
      this.charts.set(name, chart);
    }
    this.span = null; // the steps that somebody zoomed to, on all charts over time
    this.scrubber = new Scrubber(this.root, this.link, (step) => this.point(step));
    this.smooth = new Smooth(this.scrubber.root, data.smooth, () => this.link.say());
    this.link.view = this;
    this.link.mark();
    this.resized = new ResizeObserver(() => this.link.say());
    this.scrolled = new IntersectionObserver(() => this.link.say(), { rootMargin: "200px" });
    for (const chart of this.charts.values()) for (const watch of [this.resized, this.scrolled]) watch.observe(chart);
    this.titled = document.createElement("div"); // of which run, layer and step a printed page is
    this.titled.className = "moescope-titled";
    this.root.prepend(this.titled);
    this.closing = new AbortController();
    onPrint((paper) => this.print(paper), this.closing.signal);
    this.link.say();
    // For a run started from this dashboard empty charts come at once; for others this notice is shown after a while.
    setTimeout(() => !this.header && !this.said && this.say("Waiting for the run's first numbers.", "starting"), 5000);
  }

  asks() {
    const sizes = {};
    for (const [name, chart] of this.charts) {
      const box = chart.getBoundingClientRect();
      const seen = box.bottom > -200 && box.top < innerHeight + 200;
      if (seen && box.width > 0) sizes[name] = [Math.round(box.width), Math.round(box.height)];
    }
    const { page, options, busiest } = this.data, pinned = this.link.pinned.join(",");
    return { page, sizes, span: this.span, options: { ...options, ...this.smooth.options, ...(busiest && { busiest }), ...(pinned && { pinned }) } };
  }

  choose(options) {
    if (options?.align !== this.data.options?.align) this.span = null; // the zoom was of the other axis
    this.data.options = options;
    this.smooth.mark(); // the page's script wrote the link, and knows of its own words only
    this.toExport?.aim();
    this.link.say();
  }

  refused(reason) {
    this.say(reason);
  }

  silent(seconds) {
    if (seconds && this.header) this.say(`No news for ${seconds} s. The run goes on; trying to reach the dashboard again.`);
    else if (this.link.ready && this.header) this.banner(this.header);
  }

  async draw(header, figures, hasWords) {
    if (hasWords) this.drawWords(header);
    await loadPlotly();
    return this.drawFigures(figures);
  }

  drawWords(header) {
    this.header = header;
    this.data.busiest = header.busiest; // kept, and sent back: on a balanced run the busiest changes every few steps
    this.drawTiles(header.tiles);
    this.banner(header);
    this.findings.take(header);
    // The chart of knobs appears below the others once a knob was turned.
    const knobs = this.charts.get("knobs");
    if (knobs) knobs.parentElement.hidden = !header.turned;
    this.scrubber.take(header);
    this.root.dataset.state = header.past ? "past" : this.link.panel?.state ?? "";
  }

  // Draws what changed, and says how many ms that kept the page busy. Charts with no more than new data are all drawn at once. Of the
  // others there is one an animation frame: long tasks would make the knobs stutter.
  async drawFigures(figures) {
    let busy = 0;
    const timed = async (draw) => {
      await new Promise(requestAnimationFrame);
      const began = performance.now();
      if (!this.closed) await draw();
      await new Promise(setTimeout); // after the browser has painted it
      busy += performance.now() - began;
    };
    // A frame that was on its way when the page changed may hold the last page's charts.
    let rest = Object.entries(figures).filter(([name]) => this.charts.has(name)).map(([name, spec]) => [this.charts.get(name), spec]);
    if (rest.length) await timed(() => {
      rest = rest.map(([chart, spec]) => [chart, this.specOf(chart, spec)]).filter(([chart, spec]) => !this.redraw(chart, spec));
    });
    for (const [chart, spec] of rest) await timed(() => this.drawOrSay(chart, spec));
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.settleAll(), REST);
    return busy;
  }

  // A chart's spec out of a frame; if it cannot be read, the reason.
  specOf(chart, spec) {
    try {
      return this.prepare(chart, spec());
    } catch (error) {
      console.error(`${chart.dataset.figure} could not be read:`, error);
      return { problem: `${chart.dataset.figure} cannot be drawn: ${error.message}` };
    }
  }

  // Whether new data alone were drawn. Where somebody points, Plotly has to know them too, soon.
  redraw(chart, spec) {
    if (spec.problem || printing.matches || (chart.parentElement.matches(":hover, :focus-within") && performance.now() - chart.laidAt > POINTED)) return false;
    try {
      if (!redraw(chart, spec)) return false;
    } catch (error) {
      console.error(`${chart.dataset.figure} is left to Plotly:`, error);
      return false;
    }
    chart.spec = spec;
    return true;
  }

  // Tells Plotly what was drawn without it.
  async settle(chart) {
    if (!this.closed && !isKnown(chart)) await this.drawOrSay(chart, chart.spec);
  }

  async settleAll() {
    for (const chart of this.charts.values()) {
      await new Promise(requestAnimationFrame);
      await this.settle(chart);
    }
  }

  // Draws a chart or, if that fails, shows the reason in its place; the other charts are drawn as usual.
  async drawOrSay(chart, spec) {
    let { problem = "" } = spec;
    try {
      if (problem) forget(chart);
      else await this.drawChart(chart, spec);
    } catch (error) {
      console.error(`${chart.dataset.figure} could not be drawn:`, error);
      problem = `${chart.dataset.figure} cannot be drawn: ${error.message}`;
    }
    chart.style.visibility = problem ? "hidden" : "";
    chart.parentElement.querySelector(".moescope-undrawn").textContent = problem;
  }

  // What a spec lacks that only the page knows: its size, the room for its second line, and where somebody zoomed to.
  prepare(chart, spec) {
    if (spec.problem) return spec;
    const box = chart.getBoundingClientRect();
    spec.layout.width = Math.round(box.width);
    spec.layout.height = Math.round(box.height);
    if (spec.layout.meta?.smooth) this.smooth.root.hidden = false;
    breakSubtitle(spec.layout);
    // The server's frame may have been on its way when somebody zoomed.
    if (this.span && overTime(spec.layout)) spec.layout.xaxis.range = [...this.span];
    // We set the x range ourselves; Plotly keeps what else a person changed (hover, legend, y).
    if (overTime(spec.layout)) spec.layout.xaxis.uirevision = JSON.stringify(this.span);
    return spec;
  }

  async drawChart(chart, spec) {
    const first = !chart._fullLayout;
    await this.paint(chart, spec, printing.matches);
    oneStop(chart, plainTitle(spec.layout));
    chart.classList.toggle("moescope-picks", spec.layout.meta.pick === "pinned");
    if (!first) return;
    listen(chart);
    leaveScrolling(chart);
    chart.on("plotly_relayouting", () => forget(chart));
    chart.on("plotly_relayout", (change) => {
      forget(chart);
      this.zoom(chart, change);
    });
    chart.on("plotly_click", ({ points: [point] }) => this.pick(chart.layout.meta, point));
    chart.on("plotly_doubleclick", () => this.zoom(chart, { "xaxis.autorange": true }));
  }

  paint(chart, spec, paper) {
    const config = {
      displaylogo: false, responsive: false, doubleClick: "reset",
      modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
      toImageButtonOptions: { format: "png", scale: 2, filename: chart.dataset.figure },
      modeBarButtonsToAdd: [saveSvg],
    };
    const { data, layout } = paper ? onPaper(spec, this.link.paper ?? {}) : spec, { width, height } = layout;
    layOut(chart, paper ? null : spec);
    const drawn = window.Plotly.react(chart, data, layout, config);
    chart.spec = spec;
    // So that a printer may make the chart smaller as a whole.
    chart.style.setProperty("--wide", `${width}px`);
    chart.style.setProperty("--shape", `${width} / ${height}`);
    for (const part of chart.querySelectorAll(".main-svg")) part.setAttribute("viewBox", `0 0 ${width} ${height}`);
    return drawn;
  }

  print(paper) {
    if (!printing.matches) place(this.grid);
    const name = document.querySelector(".moepanel-name")?.textContent ?? this.link.run, layers = this.link.panel?.layers ?? [];
    const words = [`MoEscope, ${this.data.page} page`, name, name === this.link.run ? "" : this.link.run, layers.length > 1 ? layers[this.link.layer - 1] : "", `step ${(this.header?.step ?? 0).toLocaleString("en")}`];
    this.titled.textContent = words.filter(Boolean).join(" · ");
    for (const chart of this.charts.values()) if (chart.spec) this.paint(chart, chart.spec, paper);
  }

  // What a click on a chart chooses: a layer, or another option of the page. It is the point's first number, or its place.
  pick({ pick, from }, point) {
    const value = [from ? point[from] : point.customdata].flat()[0];
    if (pick === "layer") value > 0 && this.link.goTo({ layer: value });
    else if (pick === "pinned") value > 0 && this.link.pin(value);
    else if (pick) this.tell("picked", { [pick]: value });
  }

  // A zoom of one chart over time is a zoom of all; each is drawn again with as many points as the visible range needs.
  zoom(chart, change) {
    if (!overTime(chart._fullLayout)) return;
    if (change["xaxis.autorange"] || "xaxis.showspikes" in change) this.span = null;
    else if ("xaxis.range[0]" in change || "xaxis.range" in change) {
      const [low, high] = chart._fullLayout.xaxis.range.map(Number);
      this.span = high > low ? [low, high] : null;
    } else return;
    this.link.say();
  }

  // The step below the pointer, marked on every chart over time.
  hover(chart, event) {
    const layout = chart._fullLayout;
    if (!overTime(layout)) return this.point(null);
    const box = chart.getBoundingClientRect();
    const x = event.clientX - box.left - layout.xaxis._offset;
    const inside = x >= 0 && x <= layout.xaxis._length && event.clientY - box.top > layout.yaxis._offset;
    const step = inside ? Math.round(layout.xaxis.p2d(x)) + offset(layout) : null;
    this.point(step >= 1 && step <= this.header?.last ? step : null);
  }

  point(step) {
    if (step === this.pointed) return;
    this.pointed = step;
    this.scrubber?.point(step);
    for (const chart of this.charts.values()) {
      const mark = chart.nextElementSibling, layout = chart._fullLayout;
      const x = step !== null && overTime(layout) ? layout.xaxis.d2p(step - offset(layout)) : -1;
      mark.hidden = !(x >= 0 && x <= layout.xaxis._length);
      if (mark.hidden) continue;
      mark.style.transform = `translateX(${layout.xaxis._offset + x}px)`;
      mark.style.top = `${layout._size.t}px`; // of all the plots, where a chart has several
      mark.style.height = `${layout._size.h}px`;
    }
  }

  drawTiles(tiles) {
    this.tiles.hidden = !tiles.length;
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
      // The explanation of the number, and the lines that a narrow tile cuts, in full.
      place.title = [tile.label, tile.help, tile.value.length > 8 ? tile.value : "", tile.more, ...tile.lines].filter(Boolean).join("\n");
    });
  }

  // The notice above the charts: how a run ended, or a problem. Passing states (paused, a past step) are shown at the scrubber.
  banner({ banner, problem, answer }) {
    const wrong = problem || (this.link.panels.has(answer.nth) ? "" : answer.error); // the panel shows the errors of its own deeds
    this.say(wrong || banner?.text || "", wrong ? "problem" : banner?.kind ?? "", banner);
  }

  say(text, kind = "problem", banner = null) {
    const words = JSON.stringify([text, kind, banner]);
    if (this.said === words) return;
    this.said = words;
    this.notice.replaceChildren();
    this.notice.dataset.state = kind;
    if (!text) return;
    element("span", "moescope-said", this.notice, text);
    if (banner?.error) {
      const more = element("details", "", this.notice);
      element("summary", "", more, "Show error");
      element("code", "", more, banner.error);
    }
    if (banner && this.data.export) {
      this.toExport = exportLink(this.notice, "moescope-button", "Export", this.data);
    }
    if (banner?.fork) {
      const fork = element("button", "moescope-button moescope-primary", this.notice, `Fork at ${banner.fork.toLocaleString("en")}`);
      fork.onclick = () => [...this.link.users].find((user) => user.fork)?.fork(banner.fork);
    }
  }

  take(header) {
    if (header.answer.go && header.answer.nth !== this.gone) {
      this.gone = header.answer.nth;
      this.tell("run", header.answer.go);
    }
  }

  close() {
    this.closed = true;
    clearTimeout(this.resting);
    this.closing.abort();
    this.resized.disconnect();
    this.scrolled.disconnect();
    this.scrubber.close();
    if (this.link.view === this) this.link.view = null;
    this.link.leave(this);
    for (const chart of this.charts.values()) window.Plotly?.purge(chart);
    this.root.remove();
  }
}

function overTime(layout) {
  return layout?.xaxis?.title?.text === "step" || layout?.meta?.strip === true || layout?.meta?.offset !== undefined;
}

const pen = document.createElement("canvas").getContext("2d");

// Breaks the second line of a chart's title where the chart is narrower, and makes room for it.
function breakSubtitle(layout) {
  const [, head, text, tail] = layout.title?.text?.match(/^(.*?<br><span [^>]*>)(.*)(<\/span>)$/) ?? [];
  if (!text) return;
  const more = layout.meta.pick === "pinned" ? "; a click pins an expert or lets it go" : "";
  pen.font = `${layout.font.size}px ${layout.font.family}`;
  const lines = [""];
  for (const word of (text + more).replaceAll(" %", "\u00a0%").split(/ (?![^<]*>)/)) { // not at a blank within a tag
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (lines.at(-1) && pen.measureText(longer.replace(/<[^>]*>/g, "")).width > layout.width - 4) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  layout.title.text = head + lines.join("<br>") + tail;
  layout.margin.t += Math.round((lines.length - 1) * 1.3 * layout.title.font.size); // 1.3: Plotly's line
}

// The title of a chart without its second line and tags.
function plainTitle(layout) {
  return (layout.title?.text ?? "").split("<br>")[0].replace(/<[^>]*>/g, "") || layout.meta.figure;
}

// The step that is 0 on the axis: in a chart over the steps since a fork, the step of the fork.
function offset(layout) {
  return layout.meta.offset ?? 0;
}

const saveSvg = {
  name: "Download plot as SVG",
  title: "Download plot as SVG",
  icon: { width: 24, height: 24, path: "M5 20h14v-2H5v2zM19 9h-4V3H9v6H5l7 7 7-7z" },
  click: (chart) => window.Plotly.downloadImage(chart, { format: "svg", filename: chart.dataset.figure }),
};
