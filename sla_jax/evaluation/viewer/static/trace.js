// A recorded search (docs/traces.md), round by round under a slider.

import { candidateTable, costPairs, progressLine } from "./candidates.js";
import { el, facts, field, mayMove, short } from "./dom.js";
import { TreeView } from "./draw.js";
import { FileChoice, rowsOf } from "./files.js";
import { textUpTo } from "./spans.js";
import { rewarded, scale } from "./text.js";
import { Tree } from "./tree.js";

const PACE = 700; // milliseconds of a round when it plays

export class TraceViewer {
  constructor(listed, say) {
    this.say = say;
    const failed = (error) => say(error.message, true);
    const choice = new FileChoice("trace", listed, (name, text) => this.show(name, text), failed);
    this.shown = el("div", { class: "trace" });
    this.element = el("div", {}, choice.element, this.shown);
  }

  /** Show a file from its beginning. Throws an Error for one that is no trace. */
  show(name, text) {
    this.#pause();
    const trace = readTrace(name, text);
    this.trace = trace;
    const input = () => this.#draw();
    const most = trace.rounds.length;
    this.slider = el("input", { type: "range", min: 0, max: most, value: 0, step: 1, name: "round", on: { input } });
    const click = () => (this.timer ? this.#pause() : this.#play());
    this.play = el("button", { type: "button", text: "Play", on: { click } });
    this.words = el("div", { class: "answer-text" });
    this.told = el("div", {});
    this.body = el("div", {});
    this.view = new TreeView((tokens) => textOf(trace, tokens));
    const time = el("div", { class: "time" }, this.play, field("round", this.slider));
    const head = [el("h2", { text: name }), ...headOf(trace.header), time, this.told];
    this.shown.replaceChildren(...head, scale("reward", "low reward", "high reward"), this.words, this.body);
    if (trace.isTree) this.body.append(this.view.element);
    this.#draw();
    this.say(`${name}: ${trace.rounds.length} rounds`);
  }

  #draw() {
    const { end, isTree } = this.trace;
    const seen = this.trace.rounds.slice(0, Number(this.slider.value));
    this.slider.setAttribute("aria-valuetext", `${seen.length} of ${this.trace.rounds.length} rounds`);
    const done = seen.length === this.trace.rounds.length;
    const ending = done ? [["finish", end.finish_reason], ...costPairs(end.cost)] : [];
    this.told.replaceChildren(facts(countsOf(seen.at(-1))), facts(ending));
    const known = isTree ? this.#grow(seen) : this.#candidates(seen);
    const count = seen.reduce((sum, round) => sum + round.tokens.length, 0);
    const pieces = this.trace.rounds.flatMap((round) => round.tokens).map((token) => end.pieces[token]);
    rewarded(this.words, textUpTo(end.text, pieces, count), pieces.slice(0, count), known);
  }

  /** The tree after so many rounds; the rewards and log-probabilities of what was committed. */
  #grow(seen) {
    const tree = new Tree();
    for (const round of seen) tree.add(round);
    this.view.update(tree);
    const path = [];
    for (let node = tree.winner; node; node = node.parent) path.unshift(node);
    const all = (name) => path.flatMap((node) => node[name] ?? []);
    return { rewards: all("rewards"), logprobs: all("logprobs") };
  }

  #candidates(seen) {
    const most = Math.max(0, ...this.trace.rounds.map((round) => round.lanes));
    const lines = seen.map((round) => progressLine({ ...round, tokens: round.steps }, most));
    const found = seen.flatMap((round) => round.candidates).map((one) => ({ ...one, n_tokens: one.tokens.length }));
    const chosen = seen.at(-1)?.chosen ?? null;
    const { header, end } = this.trace;
    const words = (one, cell) => {
      const pieces = one.tokens.map((token) => (header.end_tokens.includes(token) ? "" : end.pieces[token]));
      rewarded(cell, pieces.join(""), pieces, one);
    };
    this.body.replaceChildren(el("ol", { class: "progress" }, ...lines), candidateTable(found, chosen, words));
    return found.find((one) => one.candidate === chosen) ?? {};
  }

  #play() {
    if (this.slider.value === this.slider.max) this.slider.value = 0;
    this.play.textContent = "Pause";
    this.timer = setInterval(() => this.#step(), mayMove() ? PACE : 2 * PACE);
    this.#step();
  }

  #step() {
    this.slider.value = Number(this.slider.value) + 1;
    this.#draw();
    if (this.slider.value === this.slider.max) this.#pause();
  }

  #pause() {
    clearInterval(this.timer);
    this.timer = null;
    if (this.play) this.play.textContent = "Play";
  }
}

function headOf(header) {
  const options = Object.entries(header.search).map(([option, value]) => `${option} ${value}`);
  const asked = [
    ["checkpoint", header.checkpoint],
    ["method", header.method],
    ["options", options.join(", ")],
    ["recorded on", `${header.backend}, ${header.dtype}`],
  ];
  const prompt = el("pre", { text: header.text, tabindex: 0 });
  return [facts(asked), el("details", {}, el("summary", { text: "prompt" }), prompt)];
}

function countsOf(round) {
  if (!round) return [["round", "none yet"]];
  const names = { alive: "alive", steps: "steps", lane_steps: "lane-steps", explored: "explored" };
  const counts = Object.entries(names).map(([name, said]) => [said, round[name]]);
  return [["round", round.round], ["score", short(round.score)], ...counts];
}

/** A file → {header, rounds, end, isTree}. Throws an Error that says what is wrong. */
export function readTrace(name, text) {
  const lines = rowsOf(name, text).map((line) => numbered(line));
  const [header] = lines;
  const end = lines.at(-1);
  if (header?.kind !== "header") throw new Error(`${name} is no trace: its first line is not a header.`);
  if (header.format !== 1) throw new Error(`${name} has format ${header.format}; this page reads 1.`);
  if (end.kind !== "end") throw new Error(`${name} was cut off: its last line is a ${end.kind} and not the end.`);
  return { header, rounds: lines.slice(1, -1), end, isTree: header.anchor !== null };
}

const SPELLED = new Map([["NaN", NaN], ["Infinity", Infinity], ["-Infinity", -Infinity]]);
const FLOATS = new Set(["anchor", "score", "margin", "logprobs", "rewards", "entropies", "step_scores"]);

/** A line with numbers for the names of those that JSON has no number for. */
function numbered(value, name = "") {
  if (Array.isArray(value)) return value.map((item) => numbered(item, name));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, numbered(item, key)]));
  }
  return FLOATS.has(name) && SPELLED.has(value) ? SPELLED.get(value) : value;
}

function textOf(trace, tokens) {
  return tokens.map((token) => trace.end.pieces[token] ?? "").join("");
}
