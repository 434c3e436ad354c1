// Which screen is shown, from the part of the address behind `#`: the server never hears of it.

import { Store } from "./store.js";

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { screen: path || "overview", query: new URLSearchParams(query) };
}

export const route = new Store(read());

window.addEventListener("hashchange", () => route.set(read()));

export function href(screen, query) {
  const text = query ? `?${new URLSearchParams(query)}` : "";
  return `#/${screen}${text}`;
}
