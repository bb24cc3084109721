// A row of `eval.py entropy` as cells on its text: one a token, or one for the tokens that share a character.

import { entropyLevel, mean } from "./colour.js";
import { el, short } from "./dom.js";
import { rowsOf } from "./files.js";
import { slicer } from "./spans.js";
import { about } from "./text.js";

const LISTS = ["tokens", "offsets", "entropy", "pred_tokens"];

/** A file → its rows. Throws an Error that names the line and the field. */
export function readRows(name, text) {
  return rowsOf(name, text).map((row, place) => {
    const where = `${name} line ${place + 1}`;
    if (typeof row?.text !== "string") throw new Error(`${where} has no text; entropies are made by eval.py entropy.`);
    const bad = LISTS.find((field) => !Array.isArray(row[field]) || row[field].length !== row.tokens?.length);
    if (bad) throw new Error(`${where}: ${bad} has to be a list, as long as tokens.`);
    return row;
  });
}

/**
 * What stands where: {begin, end, text, tokens: places in the row, entropy, wrong}; the texts, joined, are the row's up
 * to its last token. Tokens without text have no cell, and those that share a character share one.
 */
export function cellsOf(row) {
  const slice = slicer(row.text);
  const cells = [];
  let reach = 0;
  row.offsets.forEach(([begin, end], place) => {
    if (end > reach) cells.push({ begin: reach, end, text: slice(reach, end), tokens: [place] });
    else if (begin < end && cells.length) cells.at(-1).tokens.push(place);
    reach = Math.max(reach, end);
  });
  for (const cell of cells) {
    const known = cell.tokens.map((place) => row.entropy[place]).filter((value) => typeof value === "number");
    cell.entropy = known.length ? Math.max(...known) : null;
    cell.wrong = cell.tokens.some((place) => isWrong(row, place));
  }
  return cells;
}

/** Whether the most probable token was another one; not of a first token, of which nothing was predicted. */
export function isWrong(row, place) {
  if (row.correct) return row.correct[place] === false;
  const predicted = row.pred_tokens[place];
  return predicted !== null && predicted !== row.tokens[place];
}

/** The cells as elements: the darker, the less certain; underlined where the greedy prediction was wrong. */
export function heatOf(cells) {
  return cells.map((cell, place) => {
    const level = entropyLevel(cell.entropy);
    const data = { place, entropy: cell.entropy ?? "", level: level ?? "", begin: cell.begin, end: cell.end };
    const kind = `token heat-${level ?? "none"}${cell.wrong ? " greedy-wrong" : ""}`;
    return el("span", { class: kind, data, text: cell.text });
  });
}

/** What the tip of a cell says: of every token in it the prediction, entropy, reward and the most probable ones. */
export function aboutCell(row, cell) {
  return el("div", {}, ...cell.tokens.map((place) => about(nameOf(row, place, cell), detailsOf(row, place))));
}

function nameOf(row, place, cell) {
  const count = cell.tokens.length;
  return count > 1 ? `${cell.text} (part ${cell.tokens.indexOf(place) + 1} of ${count})` : cell.text;
}

function detailsOf(row, place) {
  return {
    entropy: row.entropy[place],
    loss: row.losses?.[place],
    reward: row.rewards?.[place],
    predicted: row.pred_tokens[place] === null ? null : String(row.pred_tokens[place]),
    top: (row.top?.[place] ?? []).map(([text, p]) => ({ text: String(text), p })),
  };
}

/** The row's own figures. */
export function figures(row) {
  const predicted = row.pred_tokens.map((_, place) => place).filter((place) => row.pred_tokens[place] !== null);
  const right = predicted.filter((place) => !isWrong(row, place)).length;
  return [
    ["tokens", row.tokens.length],
    ["mean entropy (nats)", short(mean(row.entropy))],
    ["loss (nats a token)", short(row.loss)],
    ["greedy right", predicted.length ? `${((100 * right) / predicted.length).toFixed(1)} %` : "–"],
    ["mean reward", row.rewards ? short(mean(row.rewards)) : null],
  ];
}
