// The list of runs: searched, filtered and sorted by the server (moe_core/dashboard/choosing.py), drawn here as one table. The
// chooser shows it above the page, and the page of all runs has it with boxes to choose by. All text goes through textContent.

import { HERE, element } from "./link.js";

const TAIL = 8; // letters at the end of a name that are never cut

const FILTERS = [["state", "Any state"], ["task", "Any task"], ["tag", "Any tag"], ["sort", ""]];
const PACE = 80; // ms after the last letter until it is searched for
const COLUMNS = [["Name"], ["What sets it apart"], ["Steps", "moeruns-number"], ["CV", "moeruns-number"], ["Held-out", "moeruns-number"], ["Begun"]];
const HELP = {
  CV: "The coefficient of variation of the experts' load: 0 is even, below 0.4 is called balanced, above 1 collapsed. Mean over the last 50 steps and all layers.",
  "Held-out": "The headline of the last evaluation on the held-out split. † looks ahead, and does not compare with the others.",
};

export class RunTable {
  // open(id): a run's name was pressed. chosen: the ids whose boxes are ticked, and choose(ids), where there are boxes.
  constructor(parent, { open, current, chosen, choose }) {
    Object.assign(this, { open, current, choose, chosen: new Set(chosen ?? []), boxes: Boolean(choose) });
    this.root = element("div", "moeruns", parent);
    const bar = (this.bar = element("div", "moeruns-bar", this.root));
    this.search = element("input", "moeruns-search", bar);
    Object.assign(this.search, { type: "search", placeholder: "Search runs", autocomplete: "off", spellcheck: false, maxLength: 200 });
    this.search.setAttribute("aria-label", "Search runs");
    this.search.oninput = () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.load(), PACE);
    };
    this.search.onkeydown = (event) => this.key(event);
    this.filters = {};
    for (const [name, every] of FILTERS) {
      const select = element("select", "moeknob-select", bar);
      select.setAttribute("aria-label", { state: "State", task: "Task", tag: "Tag", sort: "Order" }[name]);
      if (every) element("option", "", select, every).value = "";
      select.onchange = () => this.load();
      this.filters[name] = select;
    }
    this.said = element("div", "moeruns-said", this.root);
    this.said.setAttribute("role", "status");
    const scroll = element("div", "moeruns-scroll", this.root);
    scroll.tabIndex = -1;
    const table = element("table", "", scroll), head = element("tr", "", element("thead", "", table));
    if (this.boxes) element("th", "", head).setAttribute("aria-label", "Chosen");
    for (const [words, name] of this.boxes ? [...COLUMNS, ["Size", "moeruns-number"]] : COLUMNS) {
      const heading = element("th", name, head, words);
      heading.scope = "col";
      heading.title = HELP[words] ?? "";
    }
    this.body = element("tbody", "", table);
    this.body.onkeydown = (event) => this.key(event);
  }

  // Asks for the list. An answer to an older question is not drawn.
  async load() {
    const words = new URLSearchParams({ search: this.search.value });
    for (const [name, select] of Object.entries(this.filters)) if (select.value) words.set(name, select.value);
    const asked = (this.asked = words);
    const listed = await fetch(new URL(`runs?${words}`, HERE)).then((answer) => answer.json()).catch(() => null);
    if (asked !== this.asked || !listed) return listed;
    this.fill(listed);
    this.draw(listed);
    return listed;
  }

  // The filters' words with how many runs each has; what was chosen stays.
  fill(listed) {
    for (const [name, select] of Object.entries(this.filters)) {
      const words = JSON.stringify(listed[name]);
      if (select.dataset.words === words) continue;
      select.dataset.words = words;
      const value = select.value;
      while (select.options.length > (name === "sort" ? 0 : 1)) select.lastChild.remove();
      for (const [key, text] of Object.entries(listed[name])) element("option", "", select, text).value = key;
      select.value = [...select.options].some((option) => option.value === value) ? value : select.options[0].value;
      select.hidden = name === "tag" && select.options.length === 1;
    }
  }

  draw({ rows, all, training, bytes, free }) {
    const some = rows.length < all ? `${rows.length} of ${all} runs` : `${all} run${all === 1 ? "" : "s"}`;
    this.said.textContent = `${some}, ${training ? `${training} not ended` : "none trains"}, ${bytes} on the disk${free && `, ${free} free`}`;
    // Only rows that changed are drawn again, so that a click or the focus on another is not lost.
    const before = new Map([...this.body.children].map((line) => [line.dataset.run, line]));
    const lines = rows.map((row) => {
      const drawn = JSON.stringify(row), old = before.get(row.id);
      return old?.drawn === drawn ? old : Object.assign(this.row(row), { drawn });
    });
    if (lines.length && lines.length === this.body.children.length && rows.every(({ id }, at) => this.body.children[at].dataset.run === id)) {
      lines.forEach((line, at) => line === this.body.children[at] || this.body.children[at].replaceWith(line));
      return;
    }
    this.body.replaceChildren(...lines);
    if (!rows.length) element("td", "moeruns-none", element("tr", "", this.body), all ? "No run is like that." : "There is no run yet.").colSpan = 8;
  }

  row(run) {
    const line = document.createElement("tr");
    line.dataset.run = run.id;
    if (run.id === this.current) line.setAttribute("aria-current", "true");
    if (this.boxes) this.box(run, element("td", "moeruns-box", line));
    const first = element("td", "moeruns-first", line);
    first.style.paddingInlineStart = `${16 * run.depth}px`;
    if (run.depth) element("span", "moeruns-fork", first, "⑂ ").title = "a fork of the run above it";
    const dot = element("span", "moescope-dot", first);
    dot.dataset.colour = run.colour;
    const name = element("button", "moeruns-name", first);
    cutInMiddle(element("bdi", "moeruns-cut", name), run.name);
    name.title = [run.name, run.name === run.id ? "" : run.id, run.note].filter(Boolean).join("\n");
    name.onclick = () => this.open(run.id);
    for (const tag of run.tags) element("bdi", "moeruns-tag", first, tag);
    element("div", "moeruns-what", first, [run.word, run.left, run.what].filter(Boolean).join(" · "));
    const apart = element("td", "moeruns-apart", line);
    element("bdi", "", apart, run.apart).title = run.apart;
    const wrong = run.problem || (run.state === "failed" || run.state === "paused" ? run.reason : "");
    if (wrong) element("div", "moeruns-wrong", apart, wrong).title = wrong;
    const steps = element("td", "moeruns-number", line, run.steps);
    steps.dataset.label = "Steps";
    if (run.done !== null) {
      const progress = element("progress", "", steps);
      progress.value = run.done;
      progress.setAttribute("aria-label", `${Math.floor(100 * run.done)} % of the steps are done`);
    }
    for (const [label, text] of [["CV", run.balance], ["Held-out", run.held]]) element("td", "moeruns-number", line, text).dataset.label = label;
    element("td", "moeruns-when", line, run.face).title = run.when;
    if (this.boxes) element("td", "moeruns-number", line, run.size);
    return line;
  }

  box(run, cell) {
    const box = element("input", "", cell);
    box.type = "checkbox";
    box.checked = this.chosen.has(run.id);
    box.setAttribute("aria-label", `Choose ${run.name}`);
    box.onchange = () => {
      if (box.checked) this.chosen.add(run.id);
      else this.chosen.delete(run.id);
      this.choose([...this.chosen]);
    };
  }

  tick(ids) {
    this.chosen = new Set(ids);
    for (const box of this.body.querySelectorAll(".moeruns-box input")) box.checked = this.chosen.has(box.closest("tr").dataset.run);
  }

  // Enter in the search opens the first run; the arrows go from it into the list and back.
  key(event) {
    const names = [...this.body.querySelectorAll(".moeruns-name")], at = names.indexOf(document.activeElement);
    if (event.key === "Enter" && at < 0 && event.target === this.search) {
      if (this.asked?.get("search") === this.search.value) names[0]?.click();
      else this.load().then(() => this.body.querySelector(".moeruns-name")?.click());
    } else if (event.key === "ArrowDown") (names[at + 1] ?? names[at])?.focus();
    else if (event.key === "ArrowUp") (at > 0 ? names[at - 1] : this.search).focus();
    else return;
    event.preventDefault();
  }
}

// The chooser at the top of the panel: the name of the run, which opens the list above the page.
export class Chooser {
  constructor(parent, { run, chosen, looks }, open) {
    this.run = run;
    this.face = element("button", "moepanel-chooser", parent);
    this.face.setAttribute("aria-haspopup", "dialog");
    this.name = element("bdi", "moepanel-name moeruns-cut", this.face);
    this.when = element("span", "moepanel-when", this.face);
    this.box = element("div", "moeruns-over", parent);
    this.box.popover = "auto";
    this.box.setAttribute("role", "dialog");
    this.box.setAttribute("aria-label", "Choose a run");
    const go = (id) => {
      this.box.hidePopover();
      open(id);
    };
    this.table = new RunTable(this.box, { open: go, current: run });
    if (!looks) element("button", "moescope-button moescope-primary", this.table.bar, "New run").onclick = () => go("new");
    this.face.onclick = () => this.box.togglePopover();
    this.box.addEventListener("toggle", ({ newState }) => {
      this.face.setAttribute("aria-expanded", newState === "open");
      if (newState !== "open") return clearInterval(this.again);
      this.place();
      this.table.search.focus();
      this.table.load();
      this.again = setInterval(() => this.table.load(), 2000);
    });
    this.face.setAttribute("aria-expanded", "false");
    setTimeout(() => this.box.isConnected && this.table.load(), 1000); // the server has read the runs when somebody opens the list
    this.show(chosen);
  }

  // The name that stands in the panel.
  show(chosen) {
    const { name, face, id } = chosen ?? { name: "New run", face: "", id: "" };
    cutInMiddle(this.name, name);
    this.when.textContent = face;
    this.face.title = name === id ? id : `${name}\n${id}`;
    this.face.setAttribute("aria-label", `Run: ${name}`);
  }

  place() {
    const { left, bottom } = this.face.getBoundingClientRect();
    const narrow = innerWidth < 700;
    Object.assign(this.box.style, { left: `${narrow ? 8 : Math.max(8, left)}px`, top: `${narrow ? 8 : bottom + 4}px` });
    this.box.style.maxWidth = `${innerWidth - (narrow ? 16 : Math.max(8, left) + 8)}px`;
    this.box.style.maxHeight = `${innerHeight - (narrow ? 16 : bottom + 12)}px`;
  }

  close() {
    clearInterval(this.again);
  }
}

// The page of all runs: the list with a box for each, kept up to date.
export class AllRuns {
  constructor(parent, data, tell, keep) {
    this.root = element("div", "moeruns-page", parent);
    const open = (id) => tell("run", id), choose = (ids) => keep("chosen", { ids, nth: ++this.nth });
    this.nth = data.chosen.nth;
    this.table = new RunTable(this.root, { open, chosen: [], choose });
    this.chosen(data.chosen);
    this.again = setInterval(() => document.hidden || this.table.load(), 2000);
  }

  // Which runs are chosen, as the page's script has it: those that were deleted are not. What it says of boxes as they stood
  // before the last was ticked is not taken.
  chosen({ ids, nth }) {
    if (nth !== this.nth) return;
    this.root.classList.toggle("moeruns-beside", ids.length > 0);
    this.table.tick(ids);
    this.table.load();
  }

  close() {
    clearInterval(this.again);
  }
}

// A name that has no room loses letters before its end: runs of one series often differ there only.
function cutInMiddle(node, name) {
  const letters = [...name], kept = letters.length > 2 * TAIL ? TAIL : 0;
  node.replaceChildren();
  element("span", "", node, letters.slice(0, letters.length - kept).join(""));
  if (kept) element("span", "", node, letters.slice(-kept).join(""));
}
