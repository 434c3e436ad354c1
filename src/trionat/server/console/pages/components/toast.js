// A word on what was done, or why not, for a few seconds. Screen readers hear it.

import { html } from "../html.js";
import { t } from "../language.js";
import { Store, useStore } from "../store.js";
import { visible } from "../visible.js";

const SHOWN = 6000;
const MOST = 4;
const toasts = new Store([]);
let number = 0;

function add(text, kind) {
  const toast = { id: (number += 1), text, kind };
  toasts.set([...toasts.get(), toast].slice(-MOST));
  setTimeout(() => drop(toast.id), SHOWN);
}

function drop(id) {
  toasts.set(toasts.get().filter((each) => each.id !== id));
}

export const say = (text) => add(text, "done");
export const complain = (error) => add(explain(error), "wrong");

/** What an error says to people. */
export function explain(error) {
  if (error.code === "unreachable") return t("error.unreachable");
  if (error.code === "rate_limited" && error.retryAfter) return t("error.rate_limited", { n: error.retryAfter });
  if (error.code === "forbidden" && error.field === "old_password") return t("error.old_password");
  if (error.code === "forbidden" && !error.field) return t("error.forbidden");
  return error.message;
}

export function Toasts() {
  const shown = useStore(toasts);
  return html`<div class="toasts" role="status" aria-live="polite">
    ${shown.map(
      (toast) => html`<div class="toast ${toast.kind}" key=${toast.id}>
        <span>${visible(toast.text)}</span>
        <button type="button" class="quiet" aria-label=${t("close")} onClick=${() => drop(toast.id)}>×</button>
      </div>`,
    )}
  </div>`;
}
