// What is asked before a run goes on, or a fork begins: up to which step, and of a fork what it changes. While a fork is asked
// for, the knobs below belong to it: `draft` keeps what was turned, and nothing is sent until the button is pressed.

import { element } from "./link.js";

export class Form {
  constructor(parent, panel) {
    this.panel = panel;
    this.root = element("form", "moepanel-form", parent);
    this.root.hidden = true;
    this.title = element("b", "", this.root);
    this.advice = element("p", "", this.root);
    this.ranks = element("p", "", this.root);
    const label = element("label", "", this.root, "Train to step ");
    this.field = element("input", "", label);
    Object.assign(this.field, { type: "text", inputMode: "numeric", placeholder: "until stopped", autocomplete: "off" });
    this.field.oninput = () => this.field.setCustomValidity("");
    const buttons = element("div", "moepanel-buttons", this.root);
    this.go = element("button", "moescope-button moescope-primary", buttons);
    const cancel = element("button", "moescope-button", buttons, "Cancel");
    cancel.type = "button";
    cancel.onclick = () => this.close();
    this.root.onsubmit = (event) => {
      event.preventDefault();
      this.send();
    };
    this.root.onkeydown = (event) => {
      if (event.key === "Escape") this.close(); // without braces it would give false, and no key would be typed
    };
  }

  // kind: "fork" or "resume"; step: the last that is kept; goal: how many steps the run was to have, 0 for no end.
  open(kind, step, goal) {
    const at = step.toLocaleString("en");
    this.kind = kind;
    this.step = step;
    this.draft = kind === "fork" ? new Draft(this.panel, () => this.advise()) : null;
    this.title.textContent = kind === "fork" ? `Fork at step ${at}` : `Go on from step ${at}`;
    this.ranks.textContent = this.panel.shown.ranks;
    this.go.textContent = kind === "fork" ? "Start the fork" : "Go on";
    this.field.value = goal > step ? goal : "";
    this.root.hidden = false;
    this.advise();
    this.panel.drafted();
    this.field.focus({ preventScroll: true });
    this.root.scrollIntoView({ block: "nearest" });
  }

  advise() {
    const changed = this.draft?.words() ?? [];
    this.advice.textContent = this.kind === "resume" ? "" : changed.length ? changed.join(", ") : "Turn the knobs below that it should change. With none turned it is a control: it does what its parent did.";
  }

  close() {
    this.kind = this.draft = null;
    this.root.hidden = true;
    this.panel.drafted();
  }

  send() {
    const text = this.field.value.replaceAll(/[\s,]/g, ""), valid = /^[0-9]{0,9}$/.test(text);
    this.field.setCustomValidity(valid ? "" : "A whole number of steps, or nothing to train until stopped");
    if (!this.root.reportValidity()) return;
    const steps = Number(text || 0);
    this.panel.ask(this.kind === "fork" ? { fork: this.step, turn: this.draft.changes, steps } : { go_on: true, steps });
  }
}

// What was turned for a fork that is not made yet. Its knobs are those that act under its own strategy, which may be another than
// its parent's; what was turned of one that acts no more is dropped.
class Draft {
  constructor(panel, turned) {
    this.panel = panel;
    this.turned = turned;
    this.changes = {};
  }

  get knobs() {
    const { knobs, idle, order } = this.panel.shown;
    const all = [...knobs, ...idle].sort((one, other) => order.indexOf(one.name) - order.indexOf(other.name));
    const strategy = this.changes.strategy ?? all.find(({ name }) => name === "strategy")?.value;
    return all.filter(({ under }) => !under || under.includes(strategy));
  }

  // A knob as the fork would have it: marked, with what its parent has, if it was turned.
  of(declared) {
    const { name, value, abouts } = declared;
    if (!(name in this.changes)) return { ...declared, was: null };
    const turned = { ...declared, value: this.changes[name], was: value };
    return abouts ? { ...turned, about: abouts[turned.value] } : turned;
  }

  turn(name, value) {
    const own = this.knobs.find((knob) => knob.name === name);
    if (value === own.value) delete this.changes[name];
    else this.changes[name] = value;
    const acting = new Set(this.knobs.map((knob) => knob.name));
    for (const one of Object.keys(this.changes)) if (!acting.has(one)) delete this.changes[one];
    this.panel.drafted();
    this.turned();
  }

  words() {
    const before = new Map(this.knobs.map(({ name, value }) => [name, value]));
    return Object.entries(this.changes).map(([name, value]) => `${name} ${before.get(name) || (before.get(name) === 0 ? 0 : "–")} → ${value === "" ? "–" : value}`);
  }
}
