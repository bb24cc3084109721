// One answer as it comes: its text in the colours of its rewards, its tree or its candidates, and what it cost.

import { chat } from "./api.js";
import { candidateTable, costPairs, progressLine } from "./candidates.js";
import { mean } from "./colour.js";
import { el, facts, short } from "./dom.js";
import { TreeView } from "./draw.js";
import { rewarded } from "./text.js";
import { Tree, roundOf } from "./tree.js";

const ALTERNATIVES = 5; // shown of every token

export class Answer {
  /** `profile`: an entry of /v1/models with its `search`; `speller`: tokens → text. */
  constructor(profile, speller) {
    this.profile = profile;
    this.text = "";
    this.pieces = [];
    this.known = { rewards: [], logprobs: [], tops: [] };
    this.candidates = [];
    this.most = 0; // lanes at the beginning
    this.words = el("div", { class: "answer-text" });
    this.state = el("p", { class: "answer-state", text: "waiting" });
    this.told = el("div", { class: "answer-told" });
    this.rounds = el("ol", { class: "progress" });
    this.element = el("article", { class: "answer", "aria-busy": "true", data: { profile: profile.search.profile } });
    this.element.append(el("h2", { text: profile.search.profile }), this.words, this.state, this.told);
    if (profile.search.traces) {
      this.tree = new Tree();
      this.view = new TreeView((tokens) => speller.text(tokens));
      this.element.append(this.view.element);
    } else if (!profile.search.streams) this.element.append(this.rounds);
  }

  /** Ask, and show what comes; the text when it has ended. Throws what the server refuses. */
  async run(messages, sampling, signal) {
    try {
      for await (const chunk of chat(this.#body(messages, sampling), signal)) this.#take(chunk);
    } catch (error) {
      const stopped = error.name === "AbortError";
      this.#end(stopped ? "stopped" : error.message, !stopped);
      if (!stopped) throw error;
    } finally {
      this.element.setAttribute("aria-busy", "false");
    }
    return this.text;
  }

  #body(messages, sampling) {
    const { streams, traces, rewards, top_logprobs: most } = this.profile.search;
    const tell = { return_cost: true, return_rewards: rewards, return_tree: traces, return_candidates: !streams };
    const beside = streams ? { top_logprobs: Math.min(ALTERNATIVES, most) } : {};
    return { model: this.profile.id, messages, stream: true, logprobs: true, ...beside, ...sampling, search: tell };
  }

  #take(chunk) {
    const [choice] = chunk.choices;
    if (!choice) return;
    this.text += choice.delta.content ?? "";
    for (const entry of choice.logprobs?.content ?? []) {
      this.pieces.push(entry.token);
      this.known.logprobs.push(entry.logprob);
      this.known.tops.push(entry.top_logprobs.map(({ token, logprob }) => ({ text: token, p: Math.exp(logprob) })));
    }
    if (chunk.search) this.#round(chunk.search);
    if (chunk.progress) this.#progress(chunk.progress);
    this.candidates.push(...(chunk.candidates ?? []));
    rewarded(this.words, this.text, this.pieces, this.known);
    this.state.textContent = `${this.pieces.length} tokens`;
    if (choice.finish_reason) this.#finish(choice.finish_reason, chunk.cost);
  }

  #round(search) {
    this.known.rewards.push(...search.rewards);
    if (!search.tree) return;
    this.tree.add(roundOf(search));
    this.view.update(this.tree);
  }

  #progress(progress) {
    this.most = Math.max(this.most, progress.lanes);
    this.rounds.append(progressLine({ ...progress, explored: progress.explored_tokens }, this.most));
  }

  #finish(reason, cost) {
    const reward = mean(this.known.rewards);
    this.told.append(facts([["mean reward", reward === null ? null : short(reward)], ...costPairs(cost)]));
    if (this.candidates.length) {
      const chosen = this.candidates.find((one) => one.text === this.text)?.candidate ?? null;
      this.told.append(candidateTable(this.candidates, chosen, (one, cell) => (cell.textContent = one.text)));
    }
    this.#end(`${this.pieces.length} tokens, ${reason}`);
  }

  #end(said, isWrong = false) {
    this.state.textContent = said;
    this.state.classList.toggle("wrong", isWrong);
  }
}
