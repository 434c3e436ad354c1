// Elements, made without HTML: what a peer has said only ever becomes the text of a node.

import {save} from "./api.js";
import {t} from "./language.js";

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

// A button that saves a file which the client writes.
export function saveButton(text, path, title) {
  const button = make("button", {type: "button", title, onclick: async () => {
    button.disabled = true;
    try {
      await save(path);
    } catch (error) {
      toast(error.message);
    } finally {
      button.disabled = false;
    }
  }}, text);
  return button;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    const area = make("textarea", {readonly: true, rows: 8, "aria-label": t("copy")});
    area.value = text;
    const dialog = make("dialog", {class: "editor"}, make("h2", {}, t("copy")), area,
      make("div", {class: "actions"}, make("button", {type: "button", onclick: () => dialog.close()}, t("close"))));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    area.select();
  }
}
