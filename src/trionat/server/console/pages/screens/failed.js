// Where a list could not be fetched at all.

import { explain } from "../components/toast.js";
import { html } from "../html.js";
import { t } from "../language.js";
import { visible } from "../visible.js";

export function Failed({ list }) {
  return html`<div class="empty" role="alert">
    <p class="title">${t("failed")}</p>
    <p>${visible(explain(list.error))}</p>
    <button type="button" onClick=${list.reload}>${t("again")}</button>
  </div>`;
}
