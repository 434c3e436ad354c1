// The rest of a list that is fetched page by page.

import { html } from "../html.js";
import { t } from "../language.js";

export function More({ list }) {
  if (!list.more && !list.busy) return null;
  return html`<p class="more"><button type="button" disabled=${list.busy} onClick=${list.more}>${list.busy ? t("working") : t("table.more")}</button></p>`;
}
