// The page: tabs, what is said about what happens, and the API key if the server asks for one.

import { get, setKey } from "./api.js";
import { BesideViewer } from "./beside.js";
import { EntropyViewer } from "./entropy.js";
import { Playground } from "./playground.js";
import { hideTip } from "./text.js";
import { TraceViewer } from "./trace.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const status = document.getElementById("status");
const keyForm = document.getElementById("key-form");

function say(words, isWrong = false) {
  status.textContent = words;
  status.classList.toggle("wrong", isWrong);
}

function choose(tab, focus = false) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", String(chosen));
    one.setAttribute("tabindex", chosen ? "0" : "-1");
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  hideTip();
  history.replaceState(null, "", `#${panelOf(tab)}`);
  if (focus) tab.focus();
}

function panelOf(tab) {
  return tab.getAttribute("aria-controls");
}

function walk(event) {
  const shown = tabs.filter((tab) => !tab.hidden);
  const at = shown.indexOf(event.target);
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose(shown[(steps[event.key] + shown.length) % shown.length], true);
}

async function open() {
  const { folder, playground, files, more } = await get("files");
  const views = {
    trace: new TraceViewer(files, say),
    entropy: new EntropyViewer(files, say),
    beside: new BesideViewer(files, say),
  };
  if (playground) {
    views.playground = new Playground(say);
    await views.playground.open();
  }
  for (const [name, view] of Object.entries(views)) document.getElementById(name).replaceChildren(view.element);
  for (const tab of tabs) tab.hidden = !(panelOf(tab) in views);
  const asked = tabs.find((tab) => !tab.hidden && `#${panelOf(tab)}` === location.hash);
  choose(asked ?? tabs.find((tab) => !tab.hidden));
  const count = `${files.length}${more ? " and more" : ""}`;
  const listed = folder === null ? "no folder of files is shown" : `${count} files in ${folder}`;
  say(playground ? `ready; ${listed}` : `no model here; ${listed}`);
}

function begin() {
  open().catch((error) => say(error.message, true));
}

for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", walk);
}
document.addEventListener("key-wanted", () => (keyForm.hidden = false));
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(keyForm.elements.key.value.trim());
  keyForm.hidden = true;
  begin();
});
begin();
