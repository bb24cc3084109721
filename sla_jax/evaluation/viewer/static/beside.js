// Two models on the same texts, aligned by characters: what one has as a token and the other as several stand together.
// Keys: left and right from token to token, up and down to the other model, [ and ] from row to row.

import { mean } from "./colour.js";
import { el, facts, short } from "./dom.js";
import { FileChoice } from "./files.js";
import { aboutCell, cellsOf, figures, heatOf, readRows } from "./heat.js";
import { Pager } from "./pager.js";
import { scale, walkable } from "./text.js";

const SIDES = ["first", "second"];
const HINT =
  "Arrow keys: left and right from token to token, up and down to the other model; [ and ] from row to row.";

export class BesideViewer {
  constructor(listed, say) {
    this.say = say;
    this.files = [null, null];
    this.pager = new Pager((place) => this.#draw(place));
    const failed = (error) => say(error.message, true);
    const choices = SIDES.map((side, at) => {
      return new FileChoice(`${side} model`, listed, (name, text) => this.show(at, name, text), failed);
    });
    this.papers = SIDES.map((side) => el("div", { class: "heat-text", role: "group", "aria-label": `${side} model` }));
    this.heads = SIDES.map(() => el("div", {}));
    this.told = el("p", { class: "aligned", "aria-live": "polite" });
    const columns = SIDES.map((_, at) => {
      return el("section", { class: "side" }, choices[at].element, this.heads[at], this.papers[at]);
    });
    const legend = scale("heat", "certain", "uncertain");
    const sides = el("div", { class: "sides" }, ...columns);
    this.element = el("div", {}, this.pager.element, legend, el("p", { class: "hint", text: HINT }), this.told, sides);
    this.element.addEventListener("keydown", (event) => this.pager.key(event) || this.#across(event));
  }

  /** Take a file for one side; with both there, begin. Throws an Error for a file without entropies. */
  show(at, name, text) {
    this.files[at] = { name, rows: readRows(name, text) };
    if (this.files.includes(null)) return this.say(`${name}: now choose the other one`);
    this.pairs = pairsOf(...this.files.map((one) => one.rows));
    if (!this.pairs.length) throw new Error("the two files have no text in common; they have to be of the same texts.");
    this.pager.open(this.pairs.length);
    const left = this.files.map((one) => `${one.name}: ${one.rows.length - this.pairs.length} rows without a partner`);
    return this.say(`${this.pairs.length} texts in common; ${left.join(", ")}`);
  }

  #draw(place) {
    this.told.textContent = "";
    this.sides = this.pairs[place].map((row) => ({ row, cells: cellsOf(row) }));
    this.sides.forEach((side, at) => {
      side.tokens = heatOf(side.cells);
      this.heads[at].replaceChildren(el("h2", { text: this.files[at].name }), facts(figures(side.row)));
      this.papers[at].replaceChildren(...side.tokens);
      const details = (index) => aboutCell(side.row, side.cells[index]);
      walkable(this.papers[at], side.tokens, details, (index) => this.#align(at, index));
    });
  }

  /** Mark what stands on the same characters on the other side, and say how the two compare there. */
  #align(at, index) {
    const { cells } = this.sides[at];
    const other = this.sides[1 - at];
    const same = overlapping(cells[index], other.cells);
    for (const side of this.sides) side.tokens.forEach((token) => token.classList.remove("aligned-here"));
    this.sides[at].tokens[index].classList.add("aligned-here");
    for (const place of same) other.tokens[place].classList.add("aligned-here");
    if (same.length) other.tokens[same[0]].scrollIntoView({ block: "nearest", inline: "nearest" });
    const there = mean(same.map((place) => other.cells[place].entropy));
    const entropies = at === 0 ? [cells[index].entropy, there] : [there, cells[index].entropy];
    const [first, second] = entropies;
    const difference = typeof first === "number" && typeof second === "number" ? second - first : null;
    const said = [`first ${short(first)}`, `second ${short(second)}`, `second − first ${short(difference)} nats`];
    this.told.textContent = `entropy: ${said.join(", ")}`;
  }

  #across(event) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    const at = this.sides?.findIndex((side) => side.tokens.includes(document.activeElement)) ?? -1;
    if (at < 0) return;
    event.preventDefault();
    const cell = this.sides[at].cells[this.sides[at].tokens.indexOf(document.activeElement)];
    const [place] = overlapping(cell, this.sides[1 - at].cells);
    if (place !== undefined) this.sides[1 - at].tokens[place].focus();
  }
}

/** Places of the cells that share a character with one. */
export function overlapping(cell, cells) {
  return cells.flatMap((other, place) => (other.begin < cell.end && cell.begin < other.end ? [place] : []));
}

/** Rows of the same text, in the first file's order; of a text that is there twice, the first with the first. */
export function pairsOf(first, second) {
  const waiting = new Map();
  for (const row of second) waiting.set(row.text, [...(waiting.get(row.text) ?? []), row]);
  return first.flatMap((row) => {
    const partner = waiting.get(row.text)?.shift();
    return partner ? [[row, partner]] : [];
  });
}
