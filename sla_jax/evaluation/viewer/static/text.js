// A text with a colour for every token, and what is known of a token when it is pointed at or focused.
// Keys: left and right from token to token, Home and End. Tab goes past the whole text.

import { rewardLevel } from "./colour.js";
import { el, facts, short, visible } from "./dom.js";
import { spans } from "./spans.js";

/** One tip for the whole page: what stands in it belongs to the token that has it. */
const tip = el("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });

function showTip(token, content) {
  document.getElementById("main").append(tip);
  tip.replaceChildren(content);
  tip.hidden = false;
  const place = token.getBoundingClientRect();
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const below = place.bottom + tip.offsetHeight + 8 < window.innerHeight;
  tip.style.left = `${Math.max(8, Math.min(place.left, room)) + window.scrollX}px`;
  tip.style.top = `${(below ? place.bottom + 6 : place.top - tip.offsetHeight - 6) + window.scrollY}px`;
  token.setAttribute("aria-describedby", "tip");
}

export function hideTip() {
  tip.hidden = true;
  document.querySelectorAll("[aria-describedby=tip]").forEach((token) => token.removeAttribute("aria-describedby"));
}

document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());

/** Tokens that keys walk through. `on(index)`: the one that was reached; `details(index)`: what its tip says. */
export function walkable(box, tokens, details, on = () => {}) {
  const reach = (index, focus) => {
    tokens.forEach((token, place) => token.setAttribute("tabindex", place === index ? "0" : "-1"));
    if (focus) tokens[index].focus();
  };
  tokens.forEach((token, index) => {
    const show = () => (showTip(token, details(index)), on(index));
    token.addEventListener("pointerenter", show);
    token.addEventListener("focus", () => (reach(index, false), show()));
    for (const left of ["pointerleave", "blur"]) token.addEventListener(left, hideTip);
  });
  box.onkeydown = (event) => {
    const at = tokens.indexOf(document.activeElement);
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    reach(Math.max(0, Math.min(tokens.length - 1, steps[event.key])), true);
  };
  if (tokens.length) reach(0, false);
}

/**
 * Fill a box with a text coloured by its tokens' rewards.
 * `pieces`: the tokens' texts; `rewards`, `logprobs`: theirs, as far as they are known; `tops`: alternatives.
 */
export function rewarded(box, text, pieces, { rewards = [], logprobs = [], tops = [] } = {}) {
  const parts = spans(text, pieces);
  const tokens = parts.map(({ text: words, first, count }) => {
    const reward = count ? rewards[first + count - 1] : null;
    const level = rewardLevel(reward);
    const data = { reward: reward ?? "", level: level ?? "" };
    return el("span", { class: `token reward-${level ?? "none"}`, data, text: words });
  });
  const shown = tokens.map((token, place) => [token, place]).filter(([token]) => token.textContent);
  box.replaceChildren(...shown.map(([token]) => token));
  const details = (index) => {
    const { first, count } = parts[shown[index][1]];
    const last = first + Math.max(count, 1) - 1;
    const numbers = { reward: rewards[last], logprob: logprobs[last], top: tops[last] };
    return about(parts[shown[index][1]].text, numbers);
  };
  walkable(box, shown.map(([token]) => token), details);
}

/** What a tip says of one token. `top`: [{text, p}] or null. */
export function about(text, { reward, logprob, entropy, loss, predicted, top }) {
  const numbers = [
    ["reward", reward],
    ["log-probability", logprob],
    ["entropy (nats)", entropy],
    ["loss (nats)", loss],
  ].filter(([, value]) => typeof value === "number");
  const known = numbers.map(([name, value]) => [name, short(value)]);
  if (predicted !== undefined && predicted !== null) known.push(["predicted", visible(predicted)]);
  const rows = (top ?? []).map((one) => {
    return el("tr", {}, el("td", { text: visible(one.text) }), el("td", { text: short(one.p) }));
  });
  const caption = el("caption", { text: "most probable" });
  const table = rows.length ? el("table", {}, caption, el("tbody", {}, ...rows)) : null;
  return el("div", {}, el("strong", { text: visible(text) }), facts(known), table);
}

/** What the colours mean. */
export function scale(kind, low, high) {
  const steps = Array.from({ length: 11 }, (_, level) => el("span", { class: `swatch ${kind}-${level}` }));
  const swatches = el("span", { class: "swatches", "aria-hidden": "true" }, ...steps);
  return el("p", { class: "scale" }, el("span", { text: low }), swatches, el("span", { text: high }));
}
