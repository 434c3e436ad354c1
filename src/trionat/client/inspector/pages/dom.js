// Elements, made without HTML: what a peer has said only ever becomes the text of a node.

export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

export const byId = id => document.getElementById(id);

let timer = 0;

export function toast(text) {
  const place = byId("toast");
  place.textContent = text;
  place.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => place.classList.remove("shown"), 4000);
}

export async function ask(path, options = {}) {
  const answer = await fetch(path, {credentials: "same-origin", ...options});
  if (answer.ok) return answer;
  let problem = {detail: `the client answers ${answer.status}`};
  try {
    problem = await answer.json();
  } catch { /* no JSON: the status says it */ }
  throw Object.assign(new Error(problem.detail), {status: answer.status, field: problem.field});
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    const area = make("textarea", {readonly: true, rows: 8, "aria-label": "Copy this"});
    area.value = text;
    const dialog = make("dialog", {class: "editor"}, make("h2", {}, "Copy this"), area,
      make("div", {class: "actions"}, make("button", {type: "button", onclick: () => dialog.close()}, "Close")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    area.select();
  }
}
