// The findings above the charts: one line each, which unfolds to why and what to try, and a button that applies the remedy.
// A finding keeps its node while it lasts, so that neither the focus nor an unfolded text is lost.

import { element } from "./link.js";

const LINES = 2;

export class Findings {
  constructor(parent, link) {
    this.link = link;
    link.dismissed ??= new Set(); // "layer rule", until it has gone by itself
    this.root = element("div", "moescope-findings", parent);
    this.root.setAttribute("aria-live", "polite");
    this.root.setAttribute("aria-relevant", "additions"); // a new finding is said, its changing numbers are not
    this.rows = new Map();
    this.rest = null;
  }

  take({ findings, past }) {
    const { link } = this, name = ({ rule }) => `${link.layer} ${rule}`;
    const names = findings.map(name);
    if (!past) for (const gone of [...link.dismissed].filter((one) => one.startsWith(`${link.layer} `) && !names.includes(one))) link.dismissed.delete(gone);
    this.last = { findings, past };
    const left = findings.filter((one) => !link.dismissed.has(name(one))), shown = left.slice(0, LINES);
    for (const [key, row] of this.rows) {
      if (shown.some((one) => name(one) === key)) continue;
      row.root.remove();
      this.rows.delete(key);
    }
    for (const one of shown) {
      const key = name(one);
      if (!this.rows.has(key)) this.rows.set(key, this.row(key));
      this.fill(this.rows.get(key), one);
    }
    const more = left.length - shown.length;
    if (more && !this.rest) this.rest = element("div", "moescope-rest", this.root, " ");
    if (more) {
      put(this.rest, `and ${more} more`);
      this.rest.title = left.slice(LINES).map(({ what }) => what).join("\n");
      this.root.append(this.rest);
    } else {
      this.rest?.remove();
      this.rest = null;
    }
  }

  row(key) {
    const root = element("div", "moescope-finding", this.root);
    const details = element("details", "", root);
    const row = { root, what: element("summary", "", details, " ") };
    const more = element("div", "moescope-why", details);
    row.more = [element("p", "", more, " "), element("p", "", more, " ")];
    row.next = element("span", "moescope-next", root); // where there is no button: what to try, or to wait for
    row.button = element("button", "moescope-button moescope-primary", root, " ");
    row.button.onclick = () => {
      const gesture = `r${Math.random().toString(36).slice(2, 10)}`;
      if (this.link.ask({ turn: row.remedy, gesture })) row.button.disabled = true;
    };
    const away = element("button", "moescope-away", root, "×");
    away.setAttribute("aria-label", "Dismiss");
    away.title = "Dismiss until it comes again";
    away.onclick = () => {
      this.link.dismissed.add(key);
      this.take(this.last);
    };
    return row;
  }

  fill(row, { rule, what, more, remedy, button }) {
    row.root.dataset.rule = rule;
    put(row.what, what);
    row.what.title = [what, ...more].join("\n");
    row.more.forEach((node, at) => put(node, more[at] ?? ""));
    // Pressed, it waits for its effect; another remedy may be pressed again.
    if (JSON.stringify(remedy) !== JSON.stringify(row.remedy)) row.button.disabled = false;
    row.remedy = remedy;
    row.button.hidden = !remedy;
    row.next.textContent = remedy ? "" : more[1] ?? "";
    put(row.button, button);
  }
}

// Into the text node that is there: a change of text, not an addition.
function put(node, text) {
  if (node.firstChild.data !== text) node.firstChild.data = text;
}
