// The language of the pages: the browser's, or the one that was chosen here.

import { Store } from "./store.js";

export const LANGUAGES = { en: "English", zh: "中文" };
const KEY = "trionat-language";

export const language = new Store("en");
let texts = {};

/** The text of a key, with {name} replaced by values.name. */
export function t(key, values = {}) {
  const text = texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** The same, where the key is made from what the server says, which may be newer than these pages. */
export function tOr(key, otherwise) {
  return Object.hasOwn(texts, key) ? t(key) : otherwise;
}

export function locale() {
  return language.get() === "zh" ? "zh-CN" : navigator.languages.find((each) => each.startsWith("en")) ?? "en-GB";
}

function chosen() {
  try {
    const kept = localStorage.getItem(KEY);
    if (kept in LANGUAGES) return kept;
  } catch {
    // A browser that keeps nothing.
  }
  for (const each of navigator.languages ?? [navigator.language]) {
    const short = each.toLowerCase().split("-")[0];
    if (short in LANGUAGES) return short;
  }
  return "en";
}

export async function loadLanguage(code = chosen()) {
  texts = (await import(`./languages/${code}.js`)).default;
  document.documentElement.lang = code === "zh" ? "zh-Hans" : code;
  language.set(code);
}

export async function chooseLanguage(code) {
  try {
    localStorage.setItem(KEY, code);
  } catch {
    // It is good for this page, then.
  }
  await loadLanguage(code);
}
