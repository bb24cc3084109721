// Chat with the model served here: a search, and greedy decoding beside it if that is wanted.

import { Answer } from "./answer.js";
import { Speller, get } from "./api.js";
import { el, field, mayMove, select } from "./dom.js";
import { scale } from "./text.js";

const DRAWS = ["best_of_n", "speculative_rejection", "step_beam", "dvts"]; // methods that need a temperature
const NAMES = { width: "n", chunk: "k", depth: "d", n: "N", alpha: "α", beams: "beams" };

export class Playground {
  constructor(say) {
    this.say = say;
    this.speller = new Speller();
    this.messages = [];
    this.log = el("div", { class: "chat" });
    this.controls = el("div", { class: "controls" });
    this.prompt = el("textarea", { rows: 3, name: "prompt", required: true });
    this.send = el("button", { type: "submit", text: "Send" });
    const stop = () => this.abort?.abort();
    this.stop = el("button", { type: "button", text: "Stop", disabled: true, on: { click: stop } });
    this.clear = el("button", { type: "button", text: "New chat", on: { click: () => this.#clear() } });
    const buttons = el("div", { class: "buttons" }, this.send, this.stop, this.clear);
    const submit = (event) => this.#submit(event);
    const form = el("form", { class: "ask", on: { submit } }, field("message", this.prompt), buttons);
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    this.element = el("div", {}, this.controls, scale("reward", "low reward", "high reward"), this.log, form);
  }

  /** Learn which searches there are. */
  async open() {
    const { data } = await get("../v1/models");
    this.profiles = data.filter((entry) => entry.search);
    const methods = [...new Set(this.profiles.map((entry) => entry.search.method))];
    this.method = select(methods.map((name) => [name, name]), () => this.#settings());
    this.setting = select([], () => this.#chosen());
    this.limit = el("input", { type: "number", min: 1, value: 96, name: "max_tokens" });
    this.temperature = el("input", { type: "number", min: 0, max: 2, step: "any", value: 0, name: "temperature" });
    this.seed = el("input", { type: "number", min: 0, step: 1, value: 0, name: "seed" });
    this.beside = el("input", { type: "checkbox", name: "beside" });
    this.greedy = this.profiles.find((entry) => entry.search.method === "greedy");
    const named = [["method", this.method], ["settings", this.setting], ["most tokens", this.limit]];
    named.push(["temperature", this.temperature], ["seed", this.seed]);
    if (this.greedy) named.push(["greedy beside it", this.beside]);
    this.controls.replaceChildren(...named.map(([label, control]) => field(label, control)));
    const search = this.profiles.find((entry) => entry.search.method === "sla") ?? this.profiles[0];
    this.method.value = search.search.method;
    this.#settings();
  }

  #settings() {
    const fitting = this.profiles.filter((entry) => entry.search.method === this.method.value);
    const options = fitting.map((entry) => el("option", { value: entry.id, text: settingsOf(entry.search) }));
    this.setting.replaceChildren(...options);
    this.temperature.value = DRAWS.includes(this.method.value) ? 0.8 : 0;
    this.#chosen();
  }

  #chosen() {
    this.profile = this.profiles.find((entry) => entry.id === this.setting.value);
    if (this.greedy) this.beside.disabled = this.profile === this.greedy;
  }

  async #submit(event) {
    event.preventDefault();
    if (!this.profile || this.abort) return;
    const words = this.prompt.value.trim();
    if (!words) return;
    const messages = [...this.messages, { role: "user", content: words }];
    const answers = this.#answers();
    const number = this.log.childElementCount + 1;
    const turn = el("section", { class: "turn", "aria-label": `turn ${number}` });
    const columns = el("div", { class: "answers" }, ...answers.map((answer) => answer.element));
    turn.append(el("p", { class: "user", text: words }), columns);
    this.log.append(turn);
    turn.scrollIntoView({ block: "start", behavior: mayMove() ? "smooth" : "instant" });
    this.#busy(new AbortController());
    this.say(`${answers.map((answer) => answer.profile.search.profile).join(" and ")}: answering`);
    const { signal } = this.abort;
    const runs = answers.map((answer, place) => answer.run(messages, this.#sampling(place), signal));
    const ended = await Promise.allSettled(runs);
    this.#busy(null);
    const failed = ended.find((one) => one.status === "rejected");
    this.say(failed ? failed.reason.message : "the answer is complete", Boolean(failed));
    if (failed || !ended[0].value) return;
    this.messages = [...messages, { role: "assistant", content: ended[0].value }];
    this.prompt.value = "";
  }

  #answers() {
    const wanted = [this.profile];
    if (this.greedy && this.beside.checked && this.profile !== this.greedy) wanted.push(this.greedy);
    return wanted.map((profile) => new Answer(profile, this.speller));
  }

  /** Of the search; what stands beside it is greedy. */
  #sampling(place) {
    const limit = { max_tokens: Number(this.limit.value) };
    const temperature = Number(this.temperature.value);
    if (place > 0 || !temperature) return limit;
    return { ...limit, temperature, seed: Number(this.seed.value) };
  }

  #busy(abort) {
    this.abort = abort;
    this.send.disabled = this.clear.disabled = Boolean(abort);
    this.stop.disabled = !abort;
  }

  #clear() {
    this.messages = [];
    this.log.replaceChildren();
    this.say("a new chat");
    this.prompt.focus();
  }
}

/** `sla: n 2, k 10, d 2`: what tells the profiles of a method apart. */
function settingsOf(search) {
  const known = Object.entries(NAMES).filter(([name]) => (search.options[name] ?? null) !== null);
  const said = known.map(([name, letter]) => `${letter} ${search.options[name]}`).join(", ");
  return said ? `${search.profile}: ${said}` : search.profile;
}
