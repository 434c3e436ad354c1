// Hears what the client tells of its visitors, and shows what one has chosen.

import {ask, byId, toast} from "./dom.js";
import {List} from "./list.js";
import {Visitor} from "./visitor.js";

let visitor = null;
let isLost = false;

const list = new List((number, row) => {
  if (visitor?.row.number === number) visitor.update(row);
  else if (row !== null && number === wanted()) choose();
});
list.onCount = (shown, all, mayBeMore) => {
  if (isLost) return;
  const rest = mayBeMore ? ", and there may be more" : "";
  byId("state").textContent = (shown === all ? `${all} visitor${all === 1 ? "" : "s"}` : `${shown} of ${all} visitors`) + rest;
};

function wanted() {
  return /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : null;
}

function choose() {
  const number = wanted();
  const row = number === null ? null : list.rows.get(number);
  if (row && visitor?.row.number === number) return;
  const before = visitor;
  visitor?.close();
  visitor = null;
  document.body.classList.toggle("one", Boolean(row));
  list.choose(row ? number : null);
  if (row) visitor = new Visitor(row);
  else if (before) list.focus();
}

function listen() {
  const source = new EventSource("/api/live");
  source.addEventListener("begin", event => {
    isLost = false;
    document.body.classList.remove("lost");
    list.begin(JSON.parse(event.data).visitors);
  });
  source.addEventListener("visitors", event => list.take(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    isLost = true;
    document.body.classList.add("lost");
    byId("state").textContent = "the client does not answer: trying again";
    if (source.readyState === EventSource.CLOSED) setTimeout(retry, 2000);
  });
}

async function retry() {
  try {
    const answer = await fetch("/api/search", {credentials: "same-origin"});
    if (answer.status === 401) {
      byId("state").textContent = "the client was started anew: open the URL that it has printed";
      return;
    }
  } catch { /* it is not there */ }
  listen();
}

byId("search").addEventListener("input", event => list.search(event.target.value));
byId("filter").addEventListener("submit", event => event.preventDefault());
byId("clear").addEventListener("click", async () => {
  try {
    await ask("/api/visitors", {method: "DELETE"});
  } catch (error) {
    toast(error.message);
  }
});
addEventListener("hashchange", choose);
addEventListener("keydown", event => {
  const isTyping = event.target.closest?.("input, textarea, dialog");
  if (event.key === "Escape" && visitor && !document.querySelector("dialog[open]")) location.hash = "";
  else if (event.key === "/" && !isTyping) {
    event.preventDefault();
    byId("search").focus();
  }
});
listen();
