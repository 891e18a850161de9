// The panel beside the charts: the chooser of runs, the run's state, its buttons, knobs, layers and list of changes.
// Its contents come with the frames of the live route; turns go back over the same socket.

import { element, join } from "./link.js";
import { Knob } from "./knob.js";
import { Form } from "./form.js";
import { Chooser } from "./runs.js";
import { unfold } from "./sidebar.js";

const FEW = 4; // as FEW_LAYERS of figures/needs.py
const ENDED = "The program that trained this run has ended; to go on, start it again.";
const BUTTONS = [["pause", "Pause"], ["step", "Step"], ["fork", "Fork"], ["stop", "Stop"]];

export class Panel {
  constructor(parent, data, tell) {
    this.data = data;
    this.tell = tell;
    this.root = element("div", "moepanel", parent);
    this.where = element("button", "moescope-where", document.querySelector(".stApp")); // above a page whose panel is folded away: its state
    element("span", "moescope-dot", this.where);
    this.whereWords = element("span", "", this.where, data.run ? "" : "No run");
    this.where.onclick = unfold;
    this.chooser = new Chooser(this.root, data, (id) => tell("run", id));
    this.state = element("div", "moepanel-state", this.root);
    this.dot = element("span", "moescope-dot", this.state);
    this.word = element("b", "", this.state, data.run ? "" : "No run");
    this.step = element("span", "moepanel-right", this.state);
    const buttons = element("div", "moepanel-buttons", this.root);
    this.buttons = {};
    for (const [name, words] of BUTTONS) {
      const button = element("button", "moescope-button", buttons, words);
      button.disabled = true;
      button.onclick = () => this.press(name);
      this.buttons[name] = button;
    }
    this.looking = element("div", "moepanel-label", this.root);
    this.looking.hidden = true;
    this.form = new Form(this.root, this);
    const heading = element("div", "moepanel-heading moepanel-ruled", this.root);
    this.heading = element("span", "", heading, data.run ? "Knobs" : "Starting values");
    this.advice = element("span", "moepanel-right", heading, data.run ? "double-click resets" : "");
    this.list = element("div", "moepanel-knobs", this.root);
    this.more = element("details", "moepanel-more", this.root);
    element("summary", "moepanel-label", this.more, "More knobs");
    this.rest = element("div", "moepanel-knobs", this.more);
    this.knobs = new Map();
    this.asked = new Map(); // the knob that each deed turns, by the deed's number
    this.foot = element("div", "moepanel-foot", this.root);
    this.layers = element("div", "moepanel-layers", this.foot);
    this.changes = element("div", "moepanel-changes moepanel-ruled", this.foot);
    this.error = element("div", "moepanel-error", this.root);
    this.error.setAttribute("role", "alert");
    if (data.knobs) this.show(data.knobs, false);
    if (!data.run) return;
    setTimeout(() => this.shown || this.paint("grey", "Starting…"), 300); // only if no frame came by then, so that the word does not flicker
    this.link = join(data.run, this);
    if (this.link.header) this.take(this.link.header);
  }

  // The run's entry in the chooser: somebody may have given it another name.
  chosen(chosen) {
    this.chooser.show(chosen);
  }

  press(name) {
    const { link } = this;
    if (name === "fork") this.fork(link.step ?? link.header.last);
    else if (name === "pause" && !this.shown.alive) this.form.open("resume", link.header.last, this.shown.goal);
    else if (link.panel) this.ask({ command: name === "pause" && this.paused ? "resume" : name });
  }

  // Asks what a fork at a step should change: until it is made or given up, the knobs are the fork's.
  fork(step) {
    if (this.link.step && step === this.link.header.last) this.link.goTo({ step: null }); // so that the knobs are those of that step
    this.form.open("fork", step, this.shown.goal);
    unfold(); // on a narrow screen the panel is folded away
  }

  get turnable() {
    return this.shown.alive && !this.past && !this.shown.looking;
  }

  // The form was opened or closed, or a knob of the fork was turned.
  drafted() {
    this.show(this.shown.knobs, this.turnable);
    this.head();
  }

  // Sends a deed. If it fails, the error is shown at its knob, else at the panel's foot.
  ask(deed, knob = "") {
    const nth = this.link?.ask(deed) ?? 0;
    if (nth) {
      this.link.panels.add(nth);
      this.asked.set(nth, knob);
    }
    return nth;
  }

  // What came of the last deed.
  answer({ nth, error }) {
    const mine = this.link.panels.has(nth) ? error : "";
    const at = this.knobs.has(this.asked.get(nth)) ? this.asked.get(nth) : "";
    put(this.error, at ? "" : mine);
    for (const [name, knob] of this.knobs) knob.fault(name === at ? mine : "");
  }

  paint(colour, word) {
    this.dot.dataset.colour = this.word.dataset.colour = this.where.firstChild.dataset.colour = colour;
    put(this.word, word);
    const last = this.link?.header?.last;
    put(this.whereWords, last ? `${word}, step ${last.toLocaleString("en")}` : word);
  }

  take(header) {
    const panel = this.link.panel;
    this.buttons.fork.disabled = !header.last || !panel.obeys.includes("fork");
    const to = panel.state === "starting" ? "to step" : "step"; // a resumed run first trains the steps after its last checkpoint again
    put(this.step, header.last ? `${to} ${header.last.toLocaleString("en")}${panel.left ? `, ${panel.left}` : ""}` : "no step yet");
    put(this.whereWords, header.last ? `${panel.word}, step ${header.last.toLocaleString("en")}` : panel.word);
    this.answer(header.answer);
    for (const knob of this.knobs.values()) knob.heard(this.link.heard);
    if (panel === this.shown && header.past === this.past) return;
    this.shown = panel;
    this.past = header.past;
    this.state.dataset.state = panel.state;
    this.paint(panel.colour, panel.word);
    this.paused = panel.state === "paused";
    const { pause, step, stop } = this.buttons;
    put(pause, this.paused || !panel.alive ? "Resume" : "Pause");
    pause.title = panel.alive ? "" : "Go on with this run";
    pause.classList.toggle("moescope-primary", this.paused);
    pause.disabled = panel.going;
    stop.disabled = !panel.alive;
    step.disabled = !this.paused;
    for (const [name, button] of Object.entries(this.buttons)) {
      if (panel.obeys.includes(name === "pause" && !panel.alive ? "resume" : name)) {
        if (name !== "pause") button.title = "";
        continue;
      }
      button.disabled = true;
      button.title = panel.looking || (panel.alive ? "The program that records this run does not obey this command." : ENDED);
    }
    if (this.form.kind === "resume" && (panel.alive || panel.going)) this.form.close();
    this.head();
    this.root.classList.toggle("moepanel-past", header.past);
    put(this.looking, panel.looking);
    this.looking.hidden = !panel.looking;
    this.show(panel.knobs, this.turnable);
    this.showLayers(panel.layers);
    this.showChanges(panel.changes, panel.earlier);
  }

  head() {
    const { past, step } = this.link.header, draft = this.form.draft;
    put(this.heading, draft ? "Knobs of the fork" : past ? `Knobs at step ${step.toLocaleString("en")}` : "Knobs");
    put(this.advice, draft ? "" : past ? "as recorded" : this.turnable ? "double-click resets" : "");
  }

  silent(seconds) {
    if (seconds) this.paint("grey", `No news for ${seconds} s`);
    else if (this.shown) this.paint(this.shown.colour, this.shown.word);
  }

  show(all, alive) {
    const { only } = this.data, draft = this.form?.draft;
    const acting = draft ? draft.knobs : all;
    const knobs = only.length ? acting.filter((declared) => only.includes(declared.name)) : acting;
    for (const name of [...this.knobs.keys()]) {
      if (knobs.some((declared) => declared.name === name)) continue;
      this.knobs.get(name).root.remove();
      this.knobs.delete(name);
    }
    const after = new Map([[this.list, null], [this.rest, null]]);
    for (const stored of knobs) {
      const declared = draft ? draft.of(stored) : stored;
      const list = declared.more ? this.rest : this.list;
      if (!this.knobs.has(declared.name)) {
        const turn = (value, gesture) => {
          const { draft } = this.form;
          if (!draft) return this.ask({ turn: { [declared.name]: value }, gesture }, declared.name);
          draft.turn(declared.name, value);
          return 0; // nothing was sent
        };
        this.knobs.set(declared.name, new Knob(list, declared, turn));
      }
      const knob = this.knobs.get(declared.name), before = after.get(list);
      if (knob.root.previousElementSibling !== before) {
        if (before) before.after(knob.root);
        else list.prepend(knob.root);
      }
      after.set(list, knob.root);
      knob.take(declared, alive || Boolean(draft));
    }
    this.more.hidden = !this.rest.childElementCount;
    if (!this.unfolded && knobs.some((declared) => declared.more && (declared.was !== null || declared.value !== declared.start))) {
      this.unfolded = this.more.open = true; // so that a turned knob is not hidden; if it is folded again, it stays folded
    }
  }

  // Which layer: up to FEW a button each, else a list of their names between two buttons.
  showLayers(names) {
    const count = names.length, layer = Math.min(this.link.layer, count);
    if (this.layers.childElementCount === 0 && count > 1) {
      element("span", "moepanel-label", this.layers, "Layer");
      if (count > FEW) this.listLayers(names);
      else this.numberLayers(count);
    }
    for (const radio of this.layers.querySelectorAll("input")) radio.checked = Number(radio.value) === layer;
    if (!this.listed) return;
    this.listed.value = layer;
    this.layers.title = names[layer - 1];
    const [before, after] = this.layers.querySelectorAll("button");
    before.disabled = layer === 1;
    after.disabled = layer === count;
  }

  numberLayers(count) {
    const group = element("span", "moepanel-segments", this.layers);
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-label", "Layer");
    for (let layer = 1; layer <= count; layer++) {
      const label = element("label", "", group, String(layer));
      const radio = element("input", "", label);
      Object.assign(radio, { type: "radio", name: `layer-${this.data.run}`, value: layer });
      radio.onchange = () => this.goToLayer(layer);
    }
  }

  listLayers(names) {
    const step = (words, face, by) => {
      const button = element("button", "moescope-button", this.layers, face);
      button.setAttribute("aria-label", words);
      button.onclick = () => this.goToLayer(this.link.layer + by);
    };
    this.layers.classList.add("moepanel-many");
    step("Previous layer", "‹", -1);
    this.listed = element("select", "moeknob-select", this.layers);
    this.listed.setAttribute("aria-label", "Layer");
    names.forEach((name, at) => (element("option", "", this.listed, name).value = at + 1));
    this.listed.onchange = () => this.goToLayer(Number(this.listed.value));
    step("Next layer", "›", 1);
  }

  goToLayer(layer) {
    this.link.goTo({ layer: Math.min(Math.max(layer, 1), this.shown.layers.length) });
    if (this.data.only.length) this.tell("picked", { layer: this.link.layer });
  }

  // Somebody went to another layer: here, or by a click on a chart.
  went() {
    if (this.shown) this.showLayers(this.shown.layers);
  }

  showChanges(changes, earlier) {
    this.changes.replaceChildren();
    if (changes.length) element("div", "moepanel-heading", this.changes, "Changes");
    for (const { text, step } of changes) {
      const row = element("div", "moepanel-change", this.changes);
      element("span", "", row, text).title = text;
      element("span", "moepanel-right", row, step === null ? (this.shown.alive ? "waiting" : "not acted") : `step ${step.toLocaleString("en")}`);
    }
    if (earlier) element("div", "moepanel-change moepanel-earlier", this.changes, `and ${earlier.toLocaleString("en")} earlier`);
  }

  close() {
    this.chooser.close();
    this.link?.leave(this);
    this.where.remove();
    this.root.remove();
  }
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
