// How uncertain a model was of a text: a heat map.

import { el, facts } from "./dom.js";
import { FileChoice } from "./files.js";
import { aboutCell, cellsOf, figures, heatOf, readRows } from "./heat.js";
import { Pager } from "./pager.js";
import { scale, walkable } from "./text.js";

const HINT =
  "Underlined: the most probable token was another one. Arrow keys go from token to token, [ and ] from row to row.";

export class EntropyViewer {
  constructor(listed, say) {
    this.say = say;
    const failed = (error) => say(error.message, true);
    const choice = new FileChoice("entropies", listed, (name, text) => this.show(name, text), failed);
    this.pager = new Pager((place) => this.#draw(place));
    this.told = el("div", {});
    this.paper = el("div", { class: "heat-text" });
    const hint = el("p", { class: "hint", text: HINT });
    const legend = scale("heat", "certain", "uncertain");
    this.element = el("div", {}, choice.element, this.pager.element, legend, hint, this.told, this.paper);
    this.element.addEventListener("keydown", (event) => this.pager.key(event));
  }

  /** Show a file from its first row. Throws an Error for one that has no entropies. */
  show(name, text) {
    this.rows = readRows(name, text);
    this.pager.open(this.rows.length);
    this.say(`${name}: ${this.rows.length} rows`);
  }

  #draw(place) {
    const row = this.rows[place];
    const cells = cellsOf(row);
    const tokens = heatOf(cells);
    this.told.replaceChildren(facts(figures(row)));
    this.paper.replaceChildren(...tokens);
    walkable(this.paper, tokens, (index) => aboutCell(row, cells[index]));
  }
}
