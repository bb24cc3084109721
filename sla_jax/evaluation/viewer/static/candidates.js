// Whole answers that a search chose from, the best first, and how far such a search is.

import { el, short } from "./dom.js";

const FATE = { stop: "ended", length: "full length", rejected: "given up" };

/** A table of candidates {candidate, score, finish, round, n_tokens, step_scores}; `words(one, cell)` fills a cell. */
export function candidateTable(candidates, chosen, words) {
  const names = ["candidate", "score", "fate", "phase", "tokens", "text"];
  const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col", text: name })));
  const rows = [...candidates].sort(better).map((one) => rowOf(one, one.candidate === chosen, words));
  const caption = el("caption", { text: "candidates" });
  const table = el("table", { class: "candidates" }, caption, el("thead", {}, head), el("tbody", {}, ...rows));
  return el("div", { class: "table-scroll", tabindex: 0, role: "group", "aria-label": "candidates" }, table);
}

function better(one, other) {
  return (other.score ?? -Infinity) - (one.score ?? -Infinity) || one.candidate - other.candidate;
}

function rowOf(one, isChosen, words) {
  const steps = (one.step_scores ?? []).map((score) => short(score, 2)).join(" ");
  const text = el("td", { class: "candidate-text" });
  words(one, text);
  return el(
    "tr",
    { class: `fate-${isChosen ? "chosen" : one.finish}`, data: { candidate: one.candidate } },
    el("th", { scope: "row", text: isChosen ? `${one.candidate} ★` : String(one.candidate) }),
    el("td", { class: "number", text: short(one.score), title: steps ? `steps: ${steps}` : null }),
    el("td", { text: isChosen ? "chosen" : FATE[one.finish] }),
    el("td", { class: "number", text: String(one.round) }),
    el("td", { class: "number", text: String(one.n_tokens) }),
    text,
  );
}

/** A line of progress: how many of the lanes are alive, and how much was read. */
export function progressLine(progress, most) {
  const said = `phase ${progress.phase}: ${progress.alive} of ${most} candidates alive, ${progress.tokens} tokens`;
  const counts = `${progress.explored} tokens explored, ${progress.steps} steps`;
  const bar = el("meter", { min: 0, max: Math.max(most, 1), value: progress.alive, "aria-label": "candidates alive" });
  return el("li", {}, bar, el("span", { text: ` ${said}; ${counts}` }));
}

/** A line of cost, by the names of docs/decoding.md. */
export function costPairs(cost) {
  if (!cost) return [];
  const perToken = cost.committed_tokens ? short(cost.lane_steps / cost.committed_tokens, 1) : null;
  return [
    ["tokens", cost.committed_tokens],
    ["explored", cost.explored_tokens],
    ["discarded", cost.explored_tokens - cost.committed_tokens],
    ["steps", cost.steps],
    ["lane-steps", cost.lane_steps],
    ["lane-steps a token", perToken],
    ["seconds", short(cost.seconds, 2)],
  ];
}
