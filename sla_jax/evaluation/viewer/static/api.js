// Talking to the server: addresses are relative to the page, the API key stays in this tab.

import { events } from "./stream.js";

const KEY = "sla-jax-key";

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** An answer that is not 200: what the server says of it. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers, redirect: "error" });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `the server answered ${response.status}.`;
  if (response.status === 401) document.dispatchEvent(new CustomEvent("key-wanted"));
  throw new Refused(response.status, message);
}

export async function get(path) {
  return (await send(path)).json();
}

export async function post(path, body, signal) {
  return (await send(path, { method: "POST", body: JSON.stringify(body), signal })).json();
}

/** The text of a recorded file of the viewer's folder. */
export async function file(path) {
  return (await send(`file?path=${encodeURIComponent(path)}`)).text();
}

/** The chunks of a streamed chat, as they come. Throws Refused for an error, also for one in the stream. */
export async function* chat(body, signal) {
  const response = await send("../v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  for await (const event of events(response.body)) {
    if (event.error) throw new Refused(500, event.error.message);
    yield event;
  }
}

/** Tokens → their text. Each text is asked for once. */
export class Speller {
  #known = new Map();

  text(tokens) {
    const name = tokens.join(" ");
    if (!this.#known.has(name)) {
      const asked = post("../detokenize", { tokens }).then((reply) => reply.prompt);
      this.#known.set(name, asked.catch((error) => (this.#known.delete(name), Promise.reject(error))));
    }
    return this.#known.get(name);
  }
}
