// For how long something has been, which goes on by itself: the server does not tell that time has passed.

import { since, time } from "../format.js";
import { html, useEffect } from "../html.js";
import { Store, useStore } from "../store.js";

const ticks = new Store(0);
let shown = 0;
let timer = 0;

function follow() {
  if ((shown += 1) === 1) timer = setInterval(() => !document.hidden && ticks.set(ticks.get() + 1), 1000);
  return () => {
    if ((shown -= 1) === 0) clearInterval(timer);
  };
}

export function Since({ moment }) {
  useStore(ticks);
  useEffect(follow, []);
  return html`<span title=${time(moment)}>${since(moment)}</span>`;
}
