// The choice over how many steps the lines of the charts are averaged, beside the scrubber. The server takes the mean, of every
// recorded step; the page's link names the choice, and with it the link to the Export page.

import { element, nameInLink } from "./link.js";

let before = 1; // chosen last, so that the next page shows the same

export class Smooth {
  constructor(parent, steps, changed) {
    const choices = [1, ...steps];
    this.root = element("label", "moescope-smooth", parent, "Smooth ");
    this.root.title = "Draw lines as the mean of so many steps, each step pale behind";
    this.root.hidden = true; // until there is a line that can be averaged
    this.select = element("select", "moescope-speed", this.root);
    for (const over of choices) element("option", "", this.select, over > 1 ? `${over} steps` : "off").value = over;
    const named = Number(new URLSearchParams(location.search).get("smooth"));
    this.over = choices.includes(named) ? named : before;
    this.select.value = this.over;
    this.mark();
    this.select.onchange = () => {
      this.over = Number(this.select.value);
      this.mark(true);
      changed();
    };
  }

  // Writes the choice into the page's link. What another page made of the word stays until something is chosen here.
  mark(chosen = false) {
    before = this.over;
    if (this.over > 1 || chosen) nameInLink({ smooth: this.over > 1 ? this.over : null });
  }

  get options() {
    return this.over > 1 ? { smooth: this.over } : {};
  }
}
