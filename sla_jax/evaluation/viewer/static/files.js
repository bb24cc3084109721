// Choosing a recorded file: one of the viewer's folder, or one of this computer, which is read here and sent nowhere.

import { file } from "./api.js";
import { el, field, select } from "./dom.js";

/** A control that calls `on(name, text)` for every file that is chosen, `failed(error)` for one that cannot be had. */
export class FileChoice {
  constructor(label, listed, on, failed) {
    this.on = on;
    this.failed = failed;
    const shown = listed.map(({ path, bytes }) => [path, `${path} (${sizeOf(bytes)})`]);
    this.choice = select([["", listed.length ? "choose…" : "no files here"], ...shown], () => this.#listed());
    this.own = el("input", { type: "file", accept: ".jsonl,application/x-ndjson", on: { change: () => this.#own() } });
    this.element = el("div", { class: "file-choice", role: "group", "aria-label": label });
    this.element.append(field(label, this.choice), field("or of this computer", this.own));
  }

  async #listed() {
    const name = this.choice.value;
    if (!name) return;
    this.own.value = "";
    await this.#give(name, () => file(name));
  }

  async #own() {
    const [own] = this.own.files;
    if (!own) return;
    this.choice.value = "";
    await this.#give(own.name, () => own.text());
  }

  async #give(name, read) {
    try {
      this.on(name, await read());
    } catch (error) {
      this.failed(error);
    }
  }
}

/** JSON lines → objects. Throws an Error that names the line. */
export function rowsOf(name, text) {
  const lines = text.replace(/^\ufeff/, "").split(/\r\n|\r|\n/);
  return lines.flatMap((line, place) => {
    if (!line.trim()) return [];
    try {
      return [JSON.parse(line)];
    } catch {
      throw new Error(`${name} line ${place + 1} is cut off or damaged: it is no JSON.`);
    }
  });
}

function sizeOf(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
