// One knob: its name left, its value right, the ends of its range below. Dragging it acts while it is dragged.

import { element } from "./link.js";
import { valueText } from "./numbers.js";

const PACE = 50; // ms between two turns of a drag: 20 a second
const DECADES = 1e-3; // where a logarithmic scale with a 0 begins, of its upper end
const AGAIN = 400; // ms within which a second press belongs to the first

export class Knob {
  constructor(parent, told, turn) {
    this.told = told;
    this.turn_ = turn;
    this.sent = 0;
    this.root = element("div", "moeknob", parent);
    this.root.title = told.help;
    const head = element("div", "moeknob-head", this.root);
    element("span", "moeknob-label", head, told.label);
    if (told.kind === "choice") return this.choice(head);
    this.field = element("input", "moeknob-value", head);
    Object.assign(this.field, { type: "text", spellcheck: false, autocomplete: "off" });
    this.field.setAttribute("aria-label", told.kind === "word" ? told.label : `${told.label}, value`);
    if (told.kind !== "word") this.field.inputMode = "decimal";
    this.field.onchange = () => this.typed();
    this.field.onfocus = () => this.field.select();
    this.field.onkeydown = (event) => {
      if (event.key === "Enter") this.field.blur();
      if (event.key === "Escape") {
        this.field.value = this.shown;
        this.field.blur();
      }
    };
    if (told.kind === "word") {
      this.field.placeholder = "none";
      return this.root.classList.add("moeknob-word");
    }
    this.track = element("div", "moeknob-track", this.root);
    this.rail = element("div", "moeknob-rail", this.track);
    this.mark = element("div", "moeknob-mark", this.track);
    this.thumb = element("div", "moeknob-thumb", this.track);
    Object.entries({ role: "slider", "aria-label": told.label, "aria-valuemin": told.low, "aria-valuemax": told.high })
      .forEach(([name, value]) => this.thumb.setAttribute(name, value));
    const ends = element("div", "moeknob-ends", this.root);
    element("span", "", ends, end(told.low, told));
    this.was = element("span", "moeknob-was", ends);
    this.high = element("span", "", ends, end(told.high, told));
    this.track.addEventListener("pointerdown", (event) => this.drag(event));
    this.track.addEventListener("dblclick", () => this.alive && this.turn(this.told.start, this.gesture));
    this.thumb.addEventListener("keydown", (event) => this.key(event));
  }

  choice(head) {
    this.select = element("select", "moeknob-select", head);
    this.select.setAttribute("aria-label", this.told.label);
    for (const word of this.told.choices) element("option", "", this.select, word || "–").value = word;
    this.select.onchange = () => this.turn(this.select.value, "");
  }

  // How the store says that the knob stands. While a hand is on it, or a turn is on its way, the hand is right.
  take(told, alive) {
    this.told = told;
    this.alive = alive;
    this.root.classList.toggle("moeknob-turned", told.was !== null);
    this.root.classList.toggle("moeknob-still", !alive);
    if (this.select) this.select.disabled = !alive;
    if (this.field) this.field.readOnly = !alive;
    if (this.thumb) {
      this.thumb.tabIndex = alive ? 0 : -1;
      this.thumb.setAttribute("aria-disabled", !alive);
      this.was.textContent = told.was === null ? "" : `was ${words(told.was, told)}`;
      this.mark.hidden = told.was === null;
      if (told.was !== null) this.mark.style.left = `${100 * place(told.was, told)}%`;
      if (this.high.textContent !== end(told.high, told)) this.high.textContent = end(told.high, told);
      this.thumb.setAttribute("aria-valuemax", told.high);
    }
    if (!this.holding && !this.waiting && this.queued === undefined) this.show(told.value);
  }

  // Deeds up to this number are done: from here on the store is right again.
  heard(nth) {
    if (this.waiting && nth >= this.sent) {
      this.waiting = false;
      if (!this.holding && this.queued === undefined) this.show(this.told.value);
    }
  }

  show(value) {
    this.value = value;
    if (this.select) {
      this.select.value = value;
      return;
    }
    this.shown = words(value, this.told);
    if (document.activeElement !== this.field) this.field.value = this.shown;
    if (!this.track) return;
    const at = `${100 * place(value, this.told)}%`;
    this.thumb.style.left = at;
    this.rail.style.setProperty("--at", at);
    this.thumb.setAttribute("aria-valuenow", value);
    this.thumb.setAttribute("aria-valuetext", this.shown + (this.told.unit ? ` ${this.told.unit}` : ""));
  }

  // Turn it: shown at once, sent at most 20 times a second, the last value always.
  turn(value, gesture) {
    if (!this.alive || (value === this.value && this.queued === undefined)) return;
    this.show(value);
    this.queued = value;
    this.now = gesture;
    if (!this.timer) this.send();
  }

  send() {
    this.timer = undefined;
    if (this.queued === undefined) return;
    const nth = this.turn_(this.queued, this.now);
    if (nth) [this.sent, this.waiting] = [nth, true];
    else this.show(this.told.value); // not connected: nothing was turned
    this.queued = undefined;
    this.timer = setTimeout(() => this.send(), PACE);
  }

  drag(event) {
    if (!this.alive || event.button) return;
    event.preventDefault();
    this.thumb.focus();
    this.track.setPointerCapture(event.pointerId);
    if (event.timeStamp - (this.pressed ?? -Infinity) > AGAIN) this.gesture = name();
    this.pressed = event.timeStamp;
    this.holding = true;
    const box = this.track.getBoundingClientRect();
    const grip = event.clientX - (box.left + box.width * place(this.value, this.told));
    const offset = Math.abs(grip) < 12 ? grip : 0; // the thumb is held where it was taken
    const to = (moved) => this.turn(valueAt((moved.clientX - offset - box.left) / box.width, this.told), this.gesture);
    if (!offset && Math.abs(grip) >= 12) to(event);
    this.track.addEventListener("pointermove", to);
    const end = () => {
      this.holding = false;
      this.track.removeEventListener("pointermove", to);
      this.track.removeEventListener("pointerup", end);
      this.track.removeEventListener("pointercancel", end);
    };
    this.track.addEventListener("pointerup", end);
    this.track.addEventListener("pointercancel", end);
  }

  // A key is a turn; a key that is held down is one.
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { low, high, start } = this.told, fine = event.shiftKey;
    const ways = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    let to;
    if (event.key in ways) to = beside(this.value, ways[event.key], fine, this.told);
    else to = { Home: low, End: high, Delete: start, Backspace: start }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (!event.repeat || !this.gesture) this.gesture = name();
    this.turn(to, this.gesture);
  }

  typed() {
    const text = this.field.value.trim();
    const value = this.told.kind === "word" ? text : Number(text.replace(",", "."));
    if (this.told.kind !== "word" && (text === "" || !Number.isFinite(value))) this.field.value = this.shown;
    else this.turn(value, "");
  }
}

// Where a value lies on its scale, from 0 to 1, and back.
function place(value, { low, high, scale }) {
  if (scale === "linear") return (value - low) / (high - low || 1);
  const first = scale === "log0" ? high * DECADES : low;
  return value < first ? 0 : Math.log(value / first) / Math.log(high / first);
}

function valueAt(share, { low, high, scale, step, kind }) {
  const at = Math.min(1, Math.max(0, share));
  if (scale === "linear") {
    const grain = step ?? (high - low) / 200;
    const value = Number((low + Math.round((at * (high - low)) / grain) * grain).toPrecision(10));
    return kind === "whole" ? Math.round(value) : Math.min(high, value);
  }
  const first = scale === "log0" ? high * DECADES : low;
  if (scale === "log0" && at < 0.01) return 0;
  return Math.min(high, Math.max(low, Number((first * (high / first) ** at).toPrecision(2))));
}

// The next value in a direction. Small steps of a scale may round to where they came from, so it goes on until it moves.
function beside(value, way, fine, told) {
  if (told.scale === "linear") {
    const grain = told.kind === "whole" ? 1 : (told.step ?? (told.high - told.low) / 80) / (fine ? 5 : 1);
    return Math.min(told.high, Math.max(told.low, Number((value + way * grain).toPrecision(10))));
  }
  const grain = fine ? 0.004 : 0.02, first = told.scale === "log0" ? told.high * DECADES : told.low;
  if (value < first) return way > 0 ? first : value;
  for (let many = 1; many < 60; many++) {
    const at = place(value, told) + way * grain * many;
    if (at < -1e-9) return told.low;
    const to = Math.min(told.high, Math.max(told.low, Number((first * (told.high / first) ** at).toPrecision(fine ? 3 : 2))));
    if (to !== value || at >= 1) return to;
  }
  return value;
}

// 1.00, 0.10, 2, 3e-3, 0: as on the charts, with at least two places where the scale has them.
function words(value, { kind }) {
  if (typeof value === "string") return value || (kind === "word" ? "" : "–");
  const text = valueText(value), size = Math.abs(value);
  if (kind === "whole" || size < 0.1 || size >= 10 || (Number.isInteger(value) && size > 4)) return text;
  return text.length < 4 ? Number(text).toFixed(2) : text;
}

// The end of a range: 4, 1, 1e-5, 1e-1.
function end(value, { scale }) {
  return scale === "log" ? value.toExponential().replace("e+", "e") : String(value);
}

function name() {
  return Math.random().toString(36).slice(2, 10);
}
