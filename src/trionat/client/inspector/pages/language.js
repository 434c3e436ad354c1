// The language of the page: the browser's, or the one that was chosen here.

const LANGUAGES = {en: "English", zh: "中文"};
const KEY = "trionat-language";

let texts = {};

// The text of a key, with {name} replaced by values.name.
export function t(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

function chosen() {
  try {
    const kept = localStorage.getItem(KEY);
    if (kept in LANGUAGES) return kept;
  } catch { /* a browser that keeps nothing */ }
  for (const each of navigator.languages ?? [navigator.language]) {
    const short = each.toLowerCase().split("-")[0];
    if (short in LANGUAGES) return short;
  }
  return "en";
}

// Load the texts, and put those into the page that are there from the beginning. Between backquotes stands code.
export async function loadLanguage() {
  const code = chosen();
  texts = (await import(`./languages/${code}.js`)).default;
  document.documentElement.lang = code === "zh" ? "zh-Hans" : code;
  for (const element of document.querySelectorAll("[data-text]")) {
    const parts = t(element.dataset.text).split("`");
    element.replaceChildren(...parts.map((part, index) => {
      if (index % 2 === 0) return part;
      const element = document.createElement("code");
      element.textContent = part;
      return element;
    }));
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    const label = t(element.dataset.label);
    element.setAttribute("aria-label", label);
    if ("placeholder" in element) element.placeholder = label;
  }
  const select = document.getElementById("language");
  select.replaceChildren(...Object.entries(LANGUAGES).map(([each, name]) => new Option(name, each, false, each === code)));
  select.addEventListener("change", () => {
    try {
      localStorage.setItem(KEY, select.value);
    } catch { /* then it stays as the browser has it */ }
    location.reload();
  });
}
