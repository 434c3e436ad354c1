// Hears what the client tells of its visitors, and shows what one has chosen.

import {ask, hasOther, listen, takeToken, watchForToken} from "./api.js";
import {byId, saveButton, toast} from "./dom.js";
import {loadLanguage, t} from "./language.js";
import {List} from "./list.js";
import {Visitor} from "./visitor.js";

const PAUSE = 2000;

const hasToken = takeToken();
watchForToken();
await loadLanguage();

let visitor = null;
let isLost = false;

const list = new List((number, row) => {
  if (visitor?.row.number === number) visitor.update(row);
  else if (row !== null && number === wanted()) choose();
});
list.onCount = (shown, all, mayBeMore) => {
  if (isLost) return;
  const count = shown < all ? t("count.some", {n: shown, all}) : all === 1 ? t("count.one") : t("count.all", {n: all});
  byId("state").textContent = mayBeMore ? t("count.more", {count}) : count;
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

const events = {
  begin({visitors}) {
    isLost = false;
    document.body.classList.remove("lost");
    list.begin(visitors);
  },
  visitors: content => list.take(content),
};

function lose(text) {
  isLost = true;
  document.body.classList.add("lost");
  byId("state").textContent = text;
}

// Hear what changes, until the client takes this page's token no more.
async function follow() {
  for (;;) {
    let why = t("lost");
    try {
      await listen("/api/live", (name, content) => events[name]?.(content));
    } catch (error) {
      if (error.status === 401) return;
      if (error.status) why = error.message;
    }
    lose(t("lost.again", {why}));
    await new Promise(go => setTimeout(go, PAUSE));
  }
}

function lock(why) {
  lose(t("locked"));
  document.body.classList.toggle("nothing", !list.numbers.length);
  byId("locked").hidden = byId(why).hidden = false;
}

async function begin() {
  if (hasToken) await follow();
  if (hasToken && hasOther()) location.reload();
  else lock(hasToken ? "replaced" : "unknown");
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
byId("clear").after(saveButton(t("har"), "/api/har", t("har.all")));
addEventListener("hashchange", choose);
addEventListener("keydown", event => {
  const isTyping = event.target.closest?.("input, select, textarea, dialog");
  const isArrow = event.key === "ArrowDown" || event.key === "ArrowUp";
  if (event.key === "Escape" && visitor && !document.querySelector("dialog[open]")) location.hash = "";
  else if (event.key === "/" && !isTyping) {
    event.preventDefault();
    byId("search").focus();
  } else if (isTyping ? isArrow && event.target.id === "search" : !event.target.closest?.("#visitor, dialog")) list.key(event);
});
begin();
