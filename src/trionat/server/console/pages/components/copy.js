// A button that copies a text, and a command or ticket with such a button.

import { html, useEffect, useRef, useState } from "../html.js";
import { t } from "../language.js";

const SHOWN = 2000;

/** `name` says what is copied, where several such buttons are side by side. */
export function CopyButton({ text, label, name }) {
  const [state, setState] = useState("");
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setState("copied");
    } catch {
      setState("failed"); // no secure connection, or not allowed: it can be selected by hand
    }
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setState(""), SHOWN);
  };
  return html`<button type="button" class="copy" aria-label=${name && !state ? t("copy.of", { text: name }) : undefined} onClick=${copy}>
    <span aria-live="polite">${state === "copied" ? t("copied") : state === "failed" ? t("copy.failed") : (label ?? t("copy"))}</span>
  </button>`;
}

/** A command line, or another text that somebody needs elsewhere. */
export function Copyable({ text, label }) {
  return html`<div class="copyable">
    <code tabindex="0" aria-label=${label}>${text}</code>
    <${CopyButton} text=${text} />
  </div>`;
}
