// The scrubber below the charts: it goes to any recorded step, plays the run from there, and goes back to live.

import { element } from "./link.js";

const SPEEDS = [10, 30, 100, 300, 1000, 3000]; // steps a second

export class Scrubber {
  constructor(parent, link, point) {
    this.link = link;
    this.point_ = point;
    this.root = element("div", "moescope-scrubber", parent);
    this.live = element("button", "moescope-button moescope-live", this.root);
    element("span", "moescope-dot", this.live);
    const words = element("span", "", this.live);
    this.back = element("span", "moescope-spare", words); // left out where there is no room
    this.word = element("span", "", words, "Live");
    this.live.onclick = () => this.goTo(null);
    this.play = element("button", "moescope-button moescope-play", this.root, "▶");
    this.play.setAttribute("aria-label", "Play");
    this.play.onclick = () => (this.playing ? this.halt() : this.start());
    this.speed = element("select", "moescope-speed", this.root);
    this.speed.setAttribute("aria-label", "Steps a second");
    for (const speed of SPEEDS) element("option", "", this.speed, `${speed} steps/s`).value = speed;
    this.speed.value = 100;
    this.hint = element("span", "moescope-hint", this.root);
    this.hint.setAttribute("role", "status");
    this.track = element("div", "moescope-track", this.root);
    Object.entries({ role: "slider", tabindex: 0, "aria-label": "step", "aria-valuemin": 1 })
      .forEach(([name, value]) => this.track.setAttribute(name, value));
    this.rail = element("div", "moescope-rail", this.track);
    this.marks = element("div", "moescope-marks", this.track);
    this.ghost = element("div", "moescope-ghost", this.track);
    this.ghost.hidden = true;
    this.thumb = element("div", "moescope-thumb", this.track);
    const label = element("span", "moescope-step", this.root);
    this.label = element("span", "", label);
    this.recorded = element("span", "moescope-spare", label);
    this.last = 0;
    this.track.addEventListener("pointerdown", (event) => this.drag(event));
    this.track.addEventListener("keydown", (event) => this.key(event));
    this.track.addEventListener("pointermove", (event) => !this.dragging && this.point_(this.under(event)));
    this.track.addEventListener("pointerleave", () => this.point_(null));
  }

  under(event) {
    const box = this.track.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return Math.max(1, Math.round(share * this.last));
  }

  drag(event) {
    if (event.button || !this.last) return;
    event.preventDefault();
    this.track.focus();
    this.track.setPointerCapture(event.pointerId);
    this.dragging = true;
    this.halt();
    this.goTo(this.under(event));
    const move = (moved) => this.goTo(this.under(moved));
    this.track.addEventListener("pointermove", move);
    const end = () => {
      this.dragging = false;
      this.track.removeEventListener("pointermove", move);
    };
    this.track.addEventListener("pointerup", end, { once: true });
    this.track.addEventListener("pointercancel", end, { once: true });
  }

  key(event) {
    const at = this.link.step ?? this.last, page = Math.max(1, Math.round(this.last / 20));
    const to = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
      PageDown: at - page, PageUp: at + page, Home: 1, End: null,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.halt();
    this.goTo(to);
  }

  // A step, or null for live. The last step is live.
  goTo(step) {
    if (step === null) this.halt();
    const to = step === null || step >= this.last ? null : Math.max(1, step);
    if (to === this.link.step) return;
    this.link.goTo({ step: to });
    this.place();
  }

  start() {
    if (!this.last) return;
    if (this.link.step === null) this.goTo(1);
    let before = performance.now(), exact = this.link.step;
    const tick = (now) => {
      if (!this.playing) return;
      exact += (Number(this.speed.value) * (now - before)) / 1000;
      before = now;
      const step = Math.floor(exact);
      // One frame at a time: the next step is asked for after the last one was drawn.
      if (step >= this.last) this.goTo(null);
      else if (this.shown === this.link.step) this.goTo(step);
      requestAnimationFrame(tick);
    };
    this.playing = true;
    this.face();
    requestAnimationFrame(tick);
  }

  halt() {
    this.playing = false;
    this.face();
  }

  face() {
    this.play.textContent = this.playing ? "‖" : "▶";
    this.play.setAttribute("aria-label", this.playing ? "Halt" : "Play");
  }

  point(step) {
    this.ghost.hidden = step === null || !this.last;
    if (!this.ghost.hidden) this.ghost.style.left = `${(100 * step) / this.last}%`;
    this.place(step);
  }

  take(header) {
    this.last = header.last;
    this.shown = header.past ? header.step : this.link.step;
    this.reading = header.reading;
    this.reason = header.reason;
    if (this.link.step !== null && this.link.step >= this.last && this.last) this.goTo(null);
    this.place();
  }

  place(pointed = null) {
    const past = this.link.step !== null, at = this.link.step ?? this.last;
    const state = this.link.panel?.state ?? "";
    this.root.dataset.state = past ? "past" : state;
    this.live.classList.toggle("moescope-primary", past);
    const ended = !["starting", "training", "paused"].includes(state);
    put(this.back, past ? `Back to ${ended ? "the " : ""}` : "");
    put(this.word, past ? (ended ? "end" : "live") : ended ? "End" : "Live");
    put(this.hint, past ? "" : this.reading ? `Reading the record, ${Math.round(100 * (1 - this.reading))} %`
      : state === "starting" && this.last ? "Trains again what is recorded, then goes on."
      : state === "paused" ? (this.reason ? `Paused: ${this.reason}.` : "Paused. Knobs act on the next step.") : "");
    this.thumb.style.left = `${this.last ? (100 * at) / this.last : 100}%`;
    this.rail.style.setProperty("--at", `${this.last ? (100 * at) / this.last : 100}%`);
    put(this.label, pointed !== null ? `step ${pointed.toLocaleString("en")}`
      : past ? `Step ${at.toLocaleString("en")}` : at ? `step ${at.toLocaleString("en")}` : "no step yet");
    put(this.recorded, pointed === null && past ? ", as recorded" : "");
    this.track.setAttribute("aria-valuemax", this.last);
    this.track.setAttribute("aria-valuenow", at);
    this.track.setAttribute("aria-valuetext", past ? `step ${at}, as recorded` : `step ${at}, the last`);
    const marks = this.link.panel?.marks ?? [];
    while (this.marks.children.length > marks.length) this.marks.lastChild.remove();
    while (this.marks.children.length < marks.length) element("div", "moescope-turn", this.marks);
    marks.forEach((step, nth) => { this.marks.children[nth].style.left = `${(100 * step) / this.last}%`; });
  }

  close() {
    this.playing = false;
  }
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
