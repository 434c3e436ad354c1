// The server's API, as the pages use it: JSON, the cookie that the browser keeps, and the token against forged requests.

import { Store } from "./store.js";

/** Who is logged in: undefined while that is not known, null for nobody. */
export const me = new Store(undefined);

// The cookie alone is nobody: a browser sends it to every port of its host. What a login was told besides is kept for these pages, on their own port, alone.
const KEY = "trionat.login";
let held = "";

/** What a login was told, and has to be said with everything that is asked for. */
export function proof() {
  try {
    return localStorage.getItem(KEY) ?? held;
  } catch {
    return held; // a browser that keeps nothing
  }
}

function keep(text) {
  held = text;
  try {
    if (text) localStorage.setItem(KEY, text);
    else localStorage.removeItem(KEY);
  } catch {
    // Then a page that is loaded anew has to log in.
  }
}

/** Whether who was logged in has left by himself. */
export let hasLeft = false;

export async function logIn(username, password) {
  const who = await request("POST", "login", { username, password });
  keep(who.csrf);
  hasLeft = false;
  me.set(who);
}

export async function logOut() {
  try {
    await request("POST", "logout", {});
  } catch {
    // The server is away, or has ended the login itself: here it ends in any case.
  }
  keep("");
  hasLeft = true;
  me.set(null);
}

// A server that does not answer is away: without this a request would wait for minutes.
const PATIENCE = 20_000;
const PAGE = 1000;
const MOST_PAGES = 50;

/** What went wrong, in the server's words; `code` is one of its words, or "unreachable". */
export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.code = problem.code ?? "";
    this.field = problem.field ?? "";
    this.retryAfter = problem.retryAfter ?? null;
  }
}

export async function request(method, path, body) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (proof()) headers["X-CSRF-Token"] = proof();
  let response;
  let value = null;
  try {
    response = await fetch(`api/v1/${path}`, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(PATIENCE),
    });
    const text = await response.text();
    if (text) value = JSON.parse(text);
  } catch (error) {
    if (!response || response.ok) throw new ApiError(0, { code: "unreachable", detail: error.message });
  }
  if (!response.ok) {
    if (response.status === 401 && path !== "login" && me.get()) me.set(null);
    throw new ApiError(response.status, { ...value, retryAfter: Number(response.headers.get("Retry-After")) || null });
  }
  return value;
}

export const get = (path) => request("GET", path);
export const post = (path, body = {}) => request("POST", path, body);
export const put = (path, body) => request("PUT", path, body);
export const patch = (path, body) => request("PATCH", path, body);
export const remove = (path) => request("DELETE", path);

/** A path below the API; each part is one, whatever is in it. */
export function pathOf(...parts) {
  return parts.map(encodeURIComponent).join("/");
}

/** All pages of a list. */
export async function getAll(path) {
  return (await getPages(path, MOST_PAGES)).items;
}

/** The first pages of a list, at most so many; `next` is null where that is all of it. */
export async function getPages(path, most) {
  const items = [];
  let after = null;
  for (let page = 0; page < most; page += 1) {
    const query = `limit=${PAGE}${after === null ? "" : `&after=${encodeURIComponent(after)}`}`;
    const answer = await get(`${path}${path.includes("?") ? "&" : "?"}${query}`);
    items.push(...answer.items);
    after = answer.next ?? null;
    if (after === null) break;
  }
  return { items, next: after };
}
