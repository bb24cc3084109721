// Making elements. Text is always set as text: nothing that a model says is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (`class`, `text`, `on`: listeners, `data`, anything else an attribute) and children. */
export function el(name, given = {}, ...children) {
  return fill(document.createElement(name), given, children);
}

/** The same for SVG. */
export function svg(name, given = {}, ...children) {
  return fill(document.createElementNS(SVG, name), given, children);
}

function fill(node, given, children) {
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "class") node.setAttribute("class", value);
    else if (key === "data") Object.assign(node.dataset, value);
    else if (key === "on") for (const [event, heard] of Object.entries(value)) node.addEventListener(event, heard);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A labelled control: the label names it, also for who cannot see it. */
export function field(label, control) {
  return el("label", { class: "field" }, el("span", { text: label }), control);
}

/** A select of [value, shown] pairs. */
export function select(pairs, on) {
  const options = pairs.map(([value, shown]) => el("option", { value, text: shown }));
  return el("select", { on: { change: on } }, ...options);
}

/** A list of names and values. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  const rows = known.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: String(value) })));
  return el("dl", { class: "facts" }, ...rows);
}

/** A number short enough to read; a dash for none. */
export function short(value, digits = 3) {
  return typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** White space that can be seen, for tokens that are looked at one by one. */
export function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

/** Whether things may glide. */
export function mayMove() {
  return !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
}
