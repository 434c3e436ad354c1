// What the server tells by itself: one stream of events for the whole page, opened anew by itself whenever it breaks.

import { me, proof } from "./api.js";
import { useEffect, useState } from "./html.js";
import { Store, useStore } from "./store.js";

/** "off", "connecting", "up" or "lost". */
export const connection = new Store("off");

/** The newest view of the server. */
export const server = new Store(null);

/** Counts how often the server has said "reset", as it does first of all: what was fetched before that may be old. */
export const opened = new Store(0);

const FIRST_DELAY = 1000;
const LONGEST_DELAY = 10_000;
// "server" comes each second: when nothing has come for so long, the stream is dead, whatever the browser believes.
const SILENCE = 12_000;
// Moving from one screen to another ends topics and begins others: they make one new stream.
const SETTLE = 30;

const readers = new Map();
let source = null;
let topics = "";
let delay = FIRST_DELAY;
let retry = 0;
let settle = 0;
let watch = 0;

/** Call `read(kind, data)` for all of a topic; returns what ends that. */
export function follow(topic, read) {
  if (!readers.has(topic)) readers.set(topic, new Set());
  readers.get(topic).add(read);
  arrange();
  return () => {
    readers.get(topic).delete(read);
    arrange();
  };
}

export function start() {
  follow("server", (_, view) => server.set(view));
  me.follow((who) => {
    if (!who) {
      server.set(null);
      close();
      connection.set("off");
    }
    arrange();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && connection.get() === "lost") open();
  });
  window.addEventListener("online", () => connection.get() === "lost" && open());
  arrange();
}

function wanted() {
  return [...readers].filter(([, set]) => set.size).map(([topic]) => topic).sort().join(",");
}

function arrange() {
  clearTimeout(settle);
  settle = setTimeout(() => {
    if (me.get() && wanted() !== topics) open();
  }, SETTLE);
}

function close() {
  clearTimeout(retry);
  clearTimeout(watch);
  source?.close();
  source = null;
  topics = "";
}

function open() {
  close();
  if (!me.get()) return;
  if (connection.get() === "off") connection.set("connecting");
  topics = wanted();
  const stream = new EventSource(`api/v1/live?topics=${encodeURIComponent(topics)}&csrf=${encodeURIComponent(proof())}`);
  source = stream;
  stillThere();
  stream.onopen = () => {
    delay = FIRST_DELAY;
    connection.set("up");
    stillThere();
  };
  stream.onerror = () => lose();
  for (const topic of topics.split(",")) stream.addEventListener(topic, (event) => tell(topic, topic, event.data));
  stream.addEventListener("reset", () => {
    stillThere();
    opened.set(opened.get() + 1);
  });
}

function tell(topic, kind, text) {
  stillThere();
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    return;
  }
  for (const read of [...(readers.get(topic) ?? [])]) read(kind, data);
}

function stillThere() {
  clearTimeout(watch);
  watch = setTimeout(lose, SILENCE);
}

function lose() {
  const asked = wanted();
  close();
  topics = asked; // so that a change of screens does not hurry it
  connection.set("lost");
  // Not all pages at the same moment.
  retry = setTimeout(comeBack, delay * (0.75 + Math.random() / 2));
  delay = Math.min(delay * 2, LONGEST_DELAY);
}

async function comeBack() {
  try {
    // The stream does not tell why it ends: this does, and shows the login where that was the reason.
    const answer = await fetch("api/v1/me", { cache: "no-store", headers: { "X-CSRF-Token": proof() }, signal: AbortSignal.timeout(5000) });
    if (answer.status === 401) {
      me.set(null);
      return;
    }
    if (!answer.ok) throw new Error();
    me.set(await answer.json());
    open();
  } catch {
    lose();
  }
}

/** A number that changes when what was fetched before may be old. */
export function useOpened() {
  return useStore(opened);
}

/** A number that changes each `seconds` while the page is looked at. */
export function useTick(seconds) {
  const [tick, setTick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && setTick((count) => count + 1), seconds * 1000);
    return () => clearInterval(timer);
  }, [seconds]);
  return tick;
}
