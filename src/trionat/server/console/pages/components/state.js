// A word with a mark beside it that says how something is; the word alone says it too.

import { html } from "../html.js";

export function State({ kind, children }) {
  return html`<span class="state ${kind}"><span class="dot" aria-hidden="true"></span>${children}</span>`;
}

/** What to do where there is nothing to see. */
export function Empty({ title, text, children }) {
  return html`<div class="empty">
    <p class="title">${title}</p>
    ${text && html`<p>${text}</p>`}
    ${children}
  </div>`;
}
