// What is asked of the client, always with the token of the URL that it has printed. The token goes in a header: cookies, which browsers send by themselves, go to all ports of a
// host, and what stands in a URL is written down in too many places. So the list is read by fetch, since an EventSource sends no header, and files are fetched before they are saved.

const KEY = "trionat-inspector";
const FRAGMENT = /^#token=([\w-]+)$/;
const PATIENCE = 10_000;
// A client says something every 15 s, if only that it is there.
const SILENCE = 45_000;

let token = "";
let isAdmitted = false;

function kept() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

function keep(text) {
  try {
    if (text) localStorage.setItem(KEY, text);
    else localStorage.removeItem(KEY);
  } catch { /* then a page that is loaded anew needs the whole URL again */ }
}

// Take the token out of the address bar, where others may see it, or else the one with which this port was opened before. Returns whether there is one.
export function takeToken() {
  const found = FRAGMENT.exec(location.hash);
  if (found) history.replaceState(null, "", location.pathname);
  token = found?.[1] ?? kept();
  return token !== "";
}

// The token was refused. Returns whether another one is kept, to begin anew with; else it is forgotten.
export function hasOther() {
  if (kept() && kept() !== token) return true;
  keep("");
  return false;
}

// Begin anew when the URL is opened once more, in this window or in another one: its token may be that of a new client.
export function watchForToken() {
  addEventListener("hashchange", () => {
    if (FRAGMENT.test(location.hash)) location.reload();
  });
  addEventListener("storage", event => {
    if (event.key === KEY && event.newValue && event.newValue !== token) location.reload();
  });
}

export async function ask(path, options = {}) {
  const answer = await fetch(path, {
    ...options,
    headers: {...options.headers, Authorization: `Bearer ${token}`},
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  });
  if (!isAdmitted && answer.status !== 401) {
    isAdmitted = true;
    keep(token); // not before: a wrong one would take the place of a good one
  }
  if (answer.ok) return answer;
  let problem = {detail: `the client answers ${answer.status}`};
  try {
    problem = await answer.json();
  } catch { /* no JSON: the status says it */ }
  throw Object.assign(new Error(problem.detail), {status: answer.status, field: problem.field});
}

// Hear what the client tells, as server-sent events have it: calls `tell` with the name and the content of each. Ends, or throws, when the client does.
export async function listen(path, tell) {
  const stopping = new AbortController();
  let watch = 0;
  const waitFor = milliseconds => {
    clearTimeout(watch);
    watch = setTimeout(() => stopping.abort(), milliseconds);
  };
  waitFor(PATIENCE);
  try {
    const answer = await ask(path, {signal: stopping.signal});
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const {done, value} = await reader.read();
      if (done) return;
      waitFor(SILENCE);
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const found = /^event: (.*)\ndata: (.*)$/.exec(event);
        if (found) tell(found[1], JSON.parse(found[2]));
      }
    }
  } finally {
    clearTimeout(watch);
    stopping.abort();
  }
}

// Save a file under the name that the client gives it.
export async function save(path) {
  const answer = await ask(path);
  const link = document.createElement("a");
  link.download = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1] ?? "";
  link.href = URL.createObjectURL(await answer.blob());
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may still be writing
}
