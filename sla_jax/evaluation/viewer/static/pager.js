// Which row of a file is shown. Keys, anywhere on the page of this view: [ and ] for the one before and the next.

import { el, field } from "./dom.js";

export class Pager {
  constructor(on) {
    this.on = on;
    this.count = 0;
    const change = () => this.go(this.at);
    this.number = el("input", { type: "number", min: 1, value: 1, name: "row", on: { change } });
    this.total = el("span", { class: "total" });
    const step = (by) => ({ click: () => this.go(this.at + by) });
    this.element = el("div", { class: "pager", hidden: true });
    this.element.append(
      el("button", { type: "button", text: "Previous", "aria-keyshortcuts": "[", on: step(-1) }),
      field("row", this.number),
      this.total,
      el("button", { type: "button", text: "Next", "aria-keyshortcuts": "]", on: step(1) }),
    );
  }

  get at() {
    return Number(this.number.value);
  }

  /** So many rows, from the first on. */
  open(count) {
    this.count = count;
    this.number.max = count;
    this.total.textContent = `of ${count}`;
    this.element.hidden = false;
    this.go(1);
  }

  go(number) {
    if (!this.count) return;
    this.number.value = Math.max(1, Math.min(this.count, Math.round(number) || 1));
    this.on(this.at - 1);
  }

  /** Whether a key was for this. */
  key(event) {
    const by = { "[": -1, "]": 1 }[event.key];
    if (!by || event.target.matches("input, textarea, select")) return false;
    event.preventDefault();
    this.go(this.at + by);
    return true;
  }
}
