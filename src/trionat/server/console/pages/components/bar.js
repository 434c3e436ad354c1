// How much of a limit is used.

import { html } from "../html.js";
import { number } from "../format.js";

export function Bar({ used, limit, label, text }) {
  const share = limit > 0 ? Math.min(1, used / limit) : 0;
  const level = share >= 1 ? "full" : share >= 0.8 ? "high" : "";
  return html`<div class="bar ${level}">
    <div class="track" role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(share * 100)} aria-valuetext=${text}>
      <div class="fill" style=${{ width: `${share * 100}%` }}></div>
    </div>
    <span class="of">${text} <span class="soft">${limit > 0 ? `${number((used / limit) * 100)} %` : ""}</span></span>
  </div>`;
}
