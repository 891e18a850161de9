// One knob: its name left, its value right, the ends of its range below. Values take effect while it is dragged.

import { element } from "./link.js";
import { valueText } from "./numbers.js";

const PACE = 50; // ms between two turns of a drag: 20 a second
const DECADES = 1e-3; // the least value above 0 of a logarithmic scale with a 0, as a part of its upper end
const AGAIN = 400; // ms within which a second press belongs to the first

export class Knob {
  constructor(parent, declared, turn) {
    this.declared = declared;
    this.turn_ = turn;
    this.sent = 0;
    this.root = element("div", "moeknob", parent);
    this.root.title = declared.help;
    const head = element("div", "moeknob-head", this.root);
    element("span", "moeknob-label", head, declared.label);
    if (declared.kind === "choice") return this.choice(head);
    this.field = element("input", "moeknob-value", head);
    Object.assign(this.field, { type: "text", spellcheck: false, autocomplete: "off" });
    this.field.setAttribute("aria-label", declared.kind === "word" ? declared.label : `${declared.label}, value`);
    if (declared.kind !== "word") this.field.inputMode = "decimal";
    this.field.onchange = () => this.typed();
    this.field.onfocus = () => this.field.select();
    this.field.onkeydown = (event) => {
      if (event.key === "Enter") this.field.blur();
      if (event.key === "Escape") {
        this.field.value = this.shown;
        this.field.blur();
      }
    };
    if (declared.kind === "word") {
      this.field.placeholder = "none";
      return this.root.classList.add("moeknob-word");
    }
    this.track = element("div", "moeknob-track", this.root);
    this.rail = element("div", "moeknob-rail", this.track);
    this.mark = element("div", "moeknob-mark", this.track);
    this.thumb = element("div", "moeknob-thumb", this.track);
    Object.entries({ role: "slider", "aria-label": declared.label, "aria-valuemin": declared.low, "aria-valuemax": declared.high })
      .forEach(([name, value]) => this.thumb.setAttribute(name, value));
    const ends = element("div", "moeknob-ends", this.root);
    element("span", "", ends, end(declared.low, declared));
    this.was = element("span", "moeknob-was", ends);
    this.high = element("span", "", ends, end(declared.high, declared));
    this.track.addEventListener("pointerdown", (event) => this.drag(event));
    this.track.addEventListener("dblclick", () => this.alive && this.turn(this.declared.start, this.gesture));
    this.thumb.addEventListener("keydown", (event) => this.key(event));
  }

  choice(head) {
    this.select = element("select", "moeknob-select", head);
    this.select.setAttribute("aria-label", this.declared.label);
    for (const word of this.declared.choices) element("option", "", this.select, word || "–").value = word;
    this.select.onchange = () => this.turn(this.select.value, "");
    this.about = element("div", "moeknob-about", this.root);
  }

  // What the chosen strategy does, and its formula.
  tell(about) {
    if (this.told === about.join()) return;
    this.told = about.join();
    this.about.replaceChildren();
    const [words, formula] = about;
    if (words) element("span", "", this.about, words);
    if (formula) element("code", "", this.about, formula);
  }

  // An error of this knob's last turn, or "".
  fault(text) {
    if (!this.failed && !text) return;
    this.failed ??= element("div", "moeknob-fault", this.root);
    this.failed.setAttribute("role", "alert");
    if (this.failed.textContent !== text) this.failed.textContent = text;
  }

  // Takes the knob's value from the store. While it is dragged, or a turn was sent and not answered, the person's value is shown.
  take(declared, alive) {
    this.declared = declared;
    this.alive = alive;
    this.root.classList.toggle("moeknob-turned", declared.was !== null);
    this.root.classList.toggle("moeknob-still", !alive);
    if (this.select) this.select.disabled = !alive;
    if (this.about) this.tell(declared.about ?? []);
    if (this.field) this.field.readOnly = !alive;
    if (this.thumb) {
      this.thumb.tabIndex = alive ? 0 : -1;
      this.thumb.setAttribute("aria-disabled", !alive);
      this.was.textContent = declared.was === null ? "" : `was ${words(declared.was, declared)}`;
      this.mark.hidden = declared.was === null;
      if (declared.was !== null) this.mark.style.left = `${100 * place(declared.was, declared)}%`;
      if (this.high.textContent !== end(declared.high, declared)) this.high.textContent = end(declared.high, declared);
      this.thumb.setAttribute("aria-valuemax", declared.high);
    }
    if (!this.holding && !this.waiting && this.queued === undefined) this.show(declared.value);
  }

  // Deeds up to this number were answered; after those of this knob the store's value is shown again.
  heard(nth) {
    if (this.waiting && nth >= this.sent) {
      this.waiting = false;
      if (!this.holding && this.queued === undefined) this.show(this.declared.value);
    }
  }

  show(value) {
    this.value = value;
    if (this.select) {
      this.select.value = value;
      return;
    }
    this.shown = words(value, this.declared);
    if (document.activeElement !== this.field) this.field.value = this.shown;
    if (!this.track) return;
    const at = `${100 * place(value, this.declared)}%`;
    this.thumb.style.left = at;
    this.rail.style.setProperty("--at", at);
    this.thumb.setAttribute("aria-valuenow", value);
    this.thumb.setAttribute("aria-valuetext", this.shown + (this.declared.unit ? ` ${this.declared.unit}` : ""));
  }

  // Turns the knob: the value is shown at once and sent at most 20 times a second; the last value is always sent.
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
    else this.show(this.declared.value); // not connected, so the turn was not sent
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
    const grip = event.clientX - (box.left + box.width * place(this.value, this.declared));
    const offset = Math.abs(grip) < 12 ? grip : 0; // so that the thumb does not jump to the pointer
    const to = (moved) => this.turn(valueAt((moved.clientX - offset - box.left) / box.width, this.declared), this.gesture);
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

  // A press of a key is one turn, also if the key is held down.
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { low, high, start } = this.declared, fine = event.shiftKey;
    const ways = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    let to;
    if (event.key in ways) to = beside(this.value, ways[event.key], fine, this.declared);
    else to = { Home: low, End: high, Delete: start, Backspace: start }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (!event.repeat || !this.gesture) this.gesture = name();
    this.turn(to, this.gesture);
  }

  typed() {
    const text = this.field.value.trim();
    const value = this.declared.kind === "word" ? text : Number(text.replace(",", "."));
    if (this.declared.kind !== "word" && (text === "" || !Number.isFinite(value))) this.field.value = this.shown;
    else this.turn(value, "");
  }
}

// The place of a value on its scale, from 0 to 1, and back.
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

// The next value in a direction. A small step may round back to the same value, so it steps until the value changes.
function beside(value, way, fine, declared) {
  if (declared.scale === "linear") {
    const grain = declared.kind === "whole" ? 1 : (declared.step ?? (declared.high - declared.low) / 80) / (fine ? 5 : 1);
    return Math.min(declared.high, Math.max(declared.low, Number((value + way * grain).toPrecision(10))));
  }
  const grain = fine ? 0.004 : 0.02, first = declared.scale === "log0" ? declared.high * DECADES : declared.low;
  if (value < first) return way > 0 ? first : value;
  for (let many = 1; many < 60; many++) {
    const at = place(value, declared) + way * grain * many;
    if (at < -1e-9) return declared.low;
    const to = Math.min(declared.high, Math.max(declared.low, Number((first * (declared.high / first) ** at).toPrecision(fine ? 3 : 2))));
    if (to !== value || at >= 1) return to;
  }
  return value;
}

// 1.00, 0.10, 2, 3e-3, 0: as on the charts, with at least two places where the scale has them.
function words(value, { kind }) {
  if (typeof value === "string") return value.replace(/,+$/, "") || (kind === "word" ? "" : "none"); // as value_text() in schema/settings.py
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
