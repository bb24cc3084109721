// A tree as SVG, grown round by round, and the details of the node that is pointed at or focused.
// Keys: left and right along a branch, up and down between siblings, Home and End, Enter keeps the details.

import { mean, rewardLevel } from "./colour.js";
import { el, facts, mayMove, short, svg } from "./dom.js";
import { layout } from "./layout.js";

const TOKEN = 15; // pixels of a token's width
const ROW = 30;
const LETTER = 6.8; // pixels of a letter, about
const MARK = { committed: "", alive: "", "given up": "○ ", dropped: "× " };
const SHOWN = { committed: "committed", alive: "alive", "given up": "given up", dropped: "discarded" };

export class TreeView {
  /** `textOf`: tokens → their text, or a promise of it. */
  constructor(textOf) {
    this.textOf = textOf;
    this.selected = 0;
    this.canvas = svg("svg", { class: "tree", role: "group", "aria-label": "search tree" });
    this.scroll = el("div", { class: "tree-scroll" }, this.canvas);
    this.summary = el("p", { class: "tree-summary", text: "no rounds yet" });
    this.details = el("div", { class: "details" });
    this.element = el("div", { class: "tree-view" }, this.summary, this.scroll, legend(), this.details);
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Draw what the tree is now. */
  update(tree) {
    const hadFocus = this.canvas.contains(document.activeElement);
    this.tree = tree;
    this.shapes = new Map();
    const { rows, height, width } = layout(tree);
    const size = { width: (width + 1) * TOKEN + 20, height: Math.max(1, height) * ROW + 10 };
    for (const [name, value] of Object.entries(size)) this.canvas.setAttribute(name, value);
    const edges = svg("g", { "aria-hidden": "true" });
    const nodes = svg("g");
    for (const node of tree.nodes.slice(1)) {
      edges.append(edge(node, rows));
      nodes.append(this.#shape(node, rows.get(node)));
    }
    this.canvas.replaceChildren(edges, nodes);
    this.summary.textContent = summaryOf(tree);
    if (!this.shapes.has(this.selected)) this.selected = tree.winner?.id ?? tree.nodes.at(-1).id;
    this.#rove();
    if (hadFocus) this.shapes.get(this.selected)?.focus({ preventScroll: true });
    else this.scroll.scrollTo({ left: size.width, behavior: mayMove() ? "smooth" : "instant" });
  }

  #shape(node, row) {
    const [x, y] = placeOf(node, row);
    const width = node.tokens.length * TOKEN - 4;
    const reward = mean(node.rewards);
    const level = rewardLevel(reward);
    const words = svg("text", { x: x + 4, y: y + 15 });
    const kind = `node ${node.state.replace(" ", "-")}${node === this.tree.winner ? " winner" : ""}`;
    const data = { id: node.id, state: node.state, reward: reward ?? "", level: level ?? "" };
    const box = svg("rect", { x, y, width, height: ROW - 8, rx: 4 });
    const show = () => this.#show(node);
    const on = { focus: show, pointerenter: show, click: () => this.#select(node) };
    const given = { class: `${kind} reward-${level ?? "none"}`, role: "button", tabindex: -1, data, on };
    const shape = svg("g", given, box, words);
    this.#spell(node, (text) => {
      const room = Math.max(1, Math.floor((width - 8) / LETTER));
      const line = MARK[node.state] + text.replaceAll("\n", "↵");
      words.textContent = line.length > room ? `${line.slice(0, room - 1)}…` : line;
      const numbers = `score ${short(node.score)}, reward ${short(reward)}`;
      shape.setAttribute("aria-label", `${SHOWN[node.state]}, ${numbers}: ${text}`);
    });
    this.shapes.set(node.id, shape);
    return shape;
  }

  #spell(node, then) {
    const text = this.textOf(node.tokens);
    if (typeof text === "string") return then(text);
    then(`${node.tokens.length} tokens`);
    text.then(then, () => {}); // the server is gone: the count stays
  }

  #show(node) {
    const words = el("p", { class: "details-text" });
    this.#spell(node, (text) => (words.textContent = text));
    const parts = [
      ["state", SHOWN[node.state]],
      ["score", short(node.score)],
      ["mean reward", short(mean(node.rewards))],
      ["mean log-probability", short(mean(node.logprobs))],
      ["mean entropy (nats)", short(mean(node.entropies))],
      ["round", node.round],
      ["rank", node.rank],
      ["tokens", `${node.start} to ${node.end}`],
      ["finish", node.finish],
    ];
    this.details.replaceChildren(words, facts(parts));
  }

  #select(node) {
    this.selected = node.id;
    this.#rove();
    this.shapes.get(node.id).focus();
  }

  #rove() {
    for (const [id, shape] of this.shapes) shape.setAttribute("tabindex", id === this.selected ? "0" : "-1");
  }

  #key(event) {
    const node = this.tree.nodes[this.selected];
    const next = nextOf(this.tree, node, event.key);
    if (!next) return;
    event.preventDefault();
    if (next !== this.tree.root) this.#select(next);
  }
}

function nextOf(tree, node, key) {
  const siblings = node.parent.children;
  const place = siblings.indexOf(node);
  if (key === "ArrowRight") return node.children.find((child) => child.state === "committed") ?? node.children[0];
  if (key === "ArrowLeft") return node.parent;
  if (key === "ArrowDown") return siblings[place + 1];
  if (key === "ArrowUp") return siblings[place - 1];
  if (key === "Home") return tree.nodes[1];
  if (key === "End") return tree.winner ?? tree.nodes.at(-1);
  return key === "Enter" || key === " " ? node : null;
}

function placeOf(node, row) {
  return [node.start * TOKEN + 10, row * ROW + 5];
}

function edge(node, rows) {
  const middle = (ROW - 8) / 2;
  const [x, y] = placeOf(node, rows.get(node));
  const from = node.start * TOKEN + 6;
  const top = rows.get(node.parent) * ROW + 5 + middle;
  return svg("path", { class: `edge ${node.state.replace(" ", "-")}`, d: `M${from} ${top} V${y + middle} H${x}` });
}

function summaryOf(tree) {
  const counts = Object.entries(tree.counts()).map(([state, count]) => `${count} ${SHOWN[state]}`);
  const lanes = tree.leaves.filter((leaf) => leaf.kept).length;
  const said = `${tree.committed} tokens committed, ${lanes} ${lanes === 1 ? "lane" : "lanes"} alive`;
  return `round ${tree.rounds}: ${said}; branches: ${counts.join(", ")}`;
}

function legend() {
  const states = Object.entries(SHOWN).map(([state, said]) =>
    el("li", { class: `state-${state.replace(" ", "-")}`, text: MARK[state] + said }),
  );
  return el("ul", { class: "legend", "aria-label": "borders of branches" }, ...states);
}
